"""Puts the runtime's wheel inside mlpacker's own: hatch runs this when a wheel is built, from a clone or from an sdist."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RuntimeWheelHook(BuildHookInterface):  # type: ignore[type-arg]
    """An editable install carries no wheel; it gets the builder as a dependency and builds one when sources change."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if version == "editable":
            build_data["dependencies"].append("hatchling>=1.26")
            return
        self.scratch = tempfile.TemporaryDirectory(prefix="mlpacker-build-")
        wheel = _runtime_wheel(root).build(root / "runtime", Path(self.scratch.name), os.environ)
        build_data["force_include"][str(wheel)] = f"mlpacker/_runtime/{wheel.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.scratch.cleanup()


def _runtime_wheel(root: Path) -> Any:
    """The module of that name, from its file: mlpacker is not installed yet."""
    sys.path.insert(0, str(root / "runtime" / "src"))
    path = root / "src/mlpacker/environments/runtime_wheel.py"
    spec = importlib.util.spec_from_file_location("_mlpacker_runtime_wheel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
