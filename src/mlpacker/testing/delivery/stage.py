"""The stage that a ledger runs through: doubles a number; fails, kills its process or takes long for the rows that say so."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

SLOW_SECONDS = 8.0
"""Longer than the session that the kit gives a reader."""


def double(row: dict[str, Any]) -> dict[str, Any]:
    kind = row["kind"]
    if kind == "poison":
        raise ValueError("a poisoned row")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "slow":
        time.sleep(SLOW_SECONDS)
    return {"double": row["x"] * 2}


def double_again(row: dict[str, Any]) -> dict[str, Any]:
    """The next release of the same pipeline."""
    return double(row)
