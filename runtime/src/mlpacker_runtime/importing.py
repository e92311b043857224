"""Python files as modules. Below the formats, one of which needs it, as does the loading of packed code above them."""

from __future__ import annotations

import ast
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


DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def define_in_main(path: Path) -> None:
    """Give `__main__` what a training script defines, without running the script.

    Saved objects name their script's classes as `__main__.Name`. Only imports, functions, classes and assignments of plain
    values are carried out: training again is nobody's wish. Raises BadInput where that fails.
    """
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError) as cause:
        raise BadInput(f"{path.name} is not Python: {cause}.") from cause
    tree.body = [node for node in tree.body if isinstance(node, DEFINING) or _is_plain(node)]
    try:
        exec(compile(tree, str(path), "exec"), vars(sys.modules["__main__"]))  # noqa: S102  code its packer gave with --code
    except Exception as cause:
        raise BadInput(f"{path.name} can't be imported: {type(cause).__name__}: {cause}.") from cause


def _is_plain(node: ast.stmt) -> bool:
    """An assignment that computes nothing but plain values."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
        return False
    return not any(
        isinstance(n, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for n in ast.walk(node.value)
    )
