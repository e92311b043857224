"""The one line that a person at a terminal watches: rate, lag, age, dead letters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from .numbers import StreamNumbers


class Line:
    """Redrawn in place on a terminal; nothing elsewhere."""

    def __init__(self, to: TextIO) -> None:
        self.to = to
        self.shown = to.isatty()
        self.before = (time.monotonic(), 0.0)

    def show(self, state: Mapping[str, Any], numbers: StreamNumbers) -> None:
        if not self.shown:
            return
        now, done = time.monotonic(), numbers.get(numbers.outcomes)
        rate = (done - self.before[1]) / max(now - self.before[0], 1e-6)
        self.before = (now, done)
        self.to.write(f"\r\033[K{line(state, rate, numbers.get(numbers.lag_seconds))}")
        self.to.flush()


def line(state: Mapping[str, Any], rate: float, age: float) -> str:
    """`12,345 rows  8,123/s  lag 0  age 12 ms  dead letters 1`"""
    rows = state["rows"]
    lag = "?" if state["lag"] is None else f"{state['lag']:,}"
    parts = [f"{rows['answered']:,} rows", f"{rate:,.0f}/s", f"lag {lag}", f"age {_seconds(age)}"]
    if rows["dropped"]:
        parts.append(f"dropped {rows['dropped']:,}")
    parts.append(f"dead letters {rows['failed']:,}")
    parts += [
        f"{end.replace('_', ' ')} away" for end in ("source", "sink", "dead_letters") if state[end] != "up"
    ]
    if state["lost"]:
        parts.append(f"LOST {state['lost']:,}")
    return "  ".join(parts)


def _seconds(age: float) -> str:
    return f"{age * 1000:.0f} ms" if age < 1 else f"{age:.1f} s" if age < 120 else f"{age / 60:.0f} min"
