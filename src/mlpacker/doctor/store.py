"""Can the store be read, and what is in it?"""

from __future__ import annotations

from collections.abc import Iterator

from mlpacker_runtime.manifest import PATH

from ..errors import MlpackerError
from ..stores.layout import LayoutStore
from ..stores.packages import Packed, list_packages, read_file
from . import FAILED, OK, WARNING, Finding, Machine


def check(machine: Machine) -> Iterator[Finding]:
    if not (machine.home / "store").exists():
        yield Finding("store", OK, "empty")
        return
    store = LayoutStore(machine.home / "store")
    try:
        found = list_packages(store)
    except MlpackerError as error:
        yield Finding(
            "store", FAILED, error.sentence, error.next_step or "mlpacker verify REF names what is damaged."
        )
        return
    damaged = {p.digest: why for p in found if (why := p.damage or _unreadable(store, p))}
    for package in found:
        if package.digest in damaged:
            called = ", ".join(package.refs) or package.digest
            mend = f"Load, pull or pack it again, or: mlpacker rm {(package.refs or (package.digest,))[0]}"
            yield Finding("store", WARNING, f"{called}: {damaged[package.digest]}", mend)
    whole = len(found) - len(damaged)
    yield Finding("store", OK, f"{whole} {'package' if whole == 1 else 'packages'} that can be read")


def _unreadable(store: LayoutStore, package: Packed) -> str:
    """Why what the package says of itself can't be read; else empty. `mlpacker verify` reads the rest."""
    try:
        read_file(store, package.digest, PATH)
    except MlpackerError as error:
        return error.sentence
    return ""
