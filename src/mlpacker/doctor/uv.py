"""Is uv here, which resolves and installs?"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from . import FAILED, OK, Finding, Machine


def check(machine: Machine) -> Iterator[Finding]:
    try:
        from uv import find_uv_bin

        done = subprocess.run(
            [find_uv_bin(), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        yield Finding("uv", FAILED, f"uv does not run: {error}", "Install mlpacker again.")
    else:
        yield Finding("uv", OK, done.stdout.strip())
