"""The stage that a ledger runs through: doubles a number; fails, kills its process or takes long for the rows that say so (`x`: seconds)."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def double(row: dict[str, Any]) -> dict[str, Any]:
    kind = row["kind"]
    if kind == "poison":
        raise ValueError("a poisoned row")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "slow":
        time.sleep(row["x"])
    return {"double": row["x"] * 2}


def double_again(row: dict[str, Any]) -> dict[str, Any]:
    """The next release of the same pipeline."""
    return double(row)
