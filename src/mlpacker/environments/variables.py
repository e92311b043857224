"""The variables a process in an environment of ours may see."""

from __future__ import annotations

from collections.abc import Mapping

HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__")
"""Variables that would leak another installation into a clean environment."""


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environ.items() if k not in HIDDEN and not k.startswith("MLPACKER_")}
