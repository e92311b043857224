"""Shared libraries that wheels need and none of them ships."""

from __future__ import annotations

import ctypes.util
import sys
from collections.abc import Iterator

from . import OK, WARNING, Finding, Machine

WANTED = (("gomp", "LightGBM", "apt-get install libgomp1 (Debian), dnf install libgomp (Fedora)"),)


def check(machine: Machine) -> Iterator[Finding]:
    if not sys.platform.startswith("linux"):
        return
    for name, needs, mend in WANTED:
        found = ctypes.util.find_library(name)
        if found:
            yield Finding("libraries", OK, found)
        else:
            yield Finding("libraries", WARNING, f"lib{name} is missing, which {needs} needs", mend)
