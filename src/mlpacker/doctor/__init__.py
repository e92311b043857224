"""Doctor: what is here, what is missing, how to mend it. One check a file; a check never changes anything."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True)
class Finding:
    """state: `ok`, `warning` (something will not work) or `failed` (nothing will). mend: what to do; "" where all is well."""

    check: str
    state: str
    said: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """What the checks look at."""

    home: Path
    environ: Mapping[str, str]


def examine(machine: Machine) -> Iterator[Finding]:
    """Run every check of this folder, in the order of their names."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        yield from importlib.import_module(f"{__name__}.{module}").check(machine)
