"""Which Pythons are here to make environments from?"""

from __future__ import annotations

from collections.abc import Iterator

from ..environments import interpreters
from . import FAILED, OK, Finding, Machine


def check(machine: Machine) -> Iterator[Finding]:
    found = interpreters.available(machine.environ)
    if not found:
        yield Finding(
            "pythons", FAILED, "no Python from 3.10 on was found", "Install one: uv python install 3.12"
        )
    else:
        yield Finding("pythons", OK, f"environments can be made with Python {', '.join(found)}")
