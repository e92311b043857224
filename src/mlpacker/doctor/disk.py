"""Is there room for environments?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from . import FAILED, OK, WARNING, Finding, Machine

WANTED = 2 << 30
"""Bytes: a scientific environment is 300 to 700 MB, and a second one is made beside the first."""
NEEDED = 200 << 20


def check(machine: Machine) -> Iterator[Finding]:
    folder = machine.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    said = f"{free / 1e9:.1f} GB free where {machine.home} is"
    mend = "mlpacker gc, or put MLPACKER_HOME on a larger disk."
    if free < NEEDED:
        yield Finding("disk", FAILED, said, mend)
    elif free < WANTED:
        yield Finding("disk", WARNING, said, mend)
    else:
        yield Finding("disk", OK, said)
