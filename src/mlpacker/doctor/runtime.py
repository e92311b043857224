"""Is the runtime's wheel inside this mlpacker?"""

from __future__ import annotations

from collections.abc import Iterator

from ..environments.runtime_wheel import runtime_wheel
from ..errors import EnvironmentFailed
from . import FAILED, OK, Finding, Machine


def check(machine: Machine) -> Iterator[Finding]:
    try:
        wheel = runtime_wheel(machine.home / "cache")
    except EnvironmentFailed as error:
        yield Finding("runtime", FAILED, error.sentence, error.next_step)
    else:
        yield Finding("runtime", OK, f"mlpacker-runtime {wheel.version}, sha256:{wheel.sha256[:12]}")
