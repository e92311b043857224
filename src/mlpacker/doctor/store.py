"""Can the store be read, and what is in it?"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import MlpackerError
from ..stores.layout import LayoutStore
from ..stores.packages import list_packages
from . import FAILED, OK, Finding, Machine


def check(machine: Machine) -> Iterator[Finding]:
    if not (machine.home / "store").exists():
        yield Finding("store", OK, "empty")
        return
    try:
        found = list_packages(LayoutStore(machine.home / "store"))
    except MlpackerError as error:
        yield Finding(
            "store", FAILED, error.sentence, error.next_step or "mlpacker verify REF names what is damaged."
        )
    else:
        yield Finding("store", OK, f"{len(found)} packages")
