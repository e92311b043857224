"""Structured logs on standard error: a line of JSON an event, with an `action`; for a person at a terminal, a readable line."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from typing import Any, TextIO

Log = Callable[..., None]
_COLOURS = {"error": "\033[31m", "warning": "\033[33m", "info": "\033[2m"}


def logger(style: str = "auto", stream: TextIO | None = None, **always: Any) -> Log:
    """A function `log(action, level="info", **facts)`. style: `json`, `human`, or `auto` (human on a terminal)."""
    to = stream or sys.stderr
    human = style == "human" or (style == "auto" and to.isatty())

    def log(action: str, *, level: str = "info", **facts: Any) -> None:
        now = datetime.datetime.now(datetime.timezone.utc)
        line = (
            _human(now, action, level, facts, to.isatty())
            if human
            else _json(now, action, level, {**always, **facts})
        )
        try:
            to.write(line + "\n")
            to.flush()
        except (OSError, ValueError):  # nobody reads: no reason to stop serving
            return

    return log


def _json(now: datetime.datetime, action: str, level: str, facts: dict[str, Any]) -> str:
    time = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps(
        {"time": time, "level": level, "action": action, **facts}, ensure_ascii=False, default=str
    )


def _human(now: datetime.datetime, action: str, level: str, facts: dict[str, Any], colour: bool) -> str:
    said = "  ".join(
        f"{k}={v}" if k not in ("message", "reason") else str(v) for k, v in facts.items() if v is not None
    )
    line = f"{now.astimezone():%H:%M:%S}  {action:<10} {said}"
    return f"{_COLOURS.get(level, '')}{line}\033[0m" if colour else line
