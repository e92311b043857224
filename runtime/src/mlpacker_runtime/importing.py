"""A Python file as a module. Below the formats, one of which needs it, as does the loading of packed code above them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .errors import BadInput


def import_file(path: Path, name: str) -> ModuleType:
    """A Python file as a module of that name, once. Raises BadInput where it can't be imported."""
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path.name} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        sys.modules.pop(name, None)
        raise BadInput(f"{path.name} can't be imported: {type(cause).__name__}: {cause}.") from cause
    return module
