"""Is the home ours alone, and writable?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from . import FAILED, OK, WARNING, Finding, Machine


def check(machine: Machine) -> Iterator[Finding]:
    home = machine.home
    if not home.exists():
        yield Finding("home", OK, f"{home} will be made with the first package")
    elif not os.access(home, os.W_OK | os.X_OK):
        yield Finding(
            "home", FAILED, f"{home} can't be written", "Set MLPACKER_HOME to a folder of your own."
        )
    elif stat.S_IMODE(home.stat().st_mode) & 0o077:
        yield Finding("home", WARNING, f"others can read {home}", f"chmod 700 {home}")
    else:
        yield Finding("home", OK, str(home))
