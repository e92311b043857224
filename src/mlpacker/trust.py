"""Whom this machine trusts. Trust belongs to the machine, not to the package: else an attacker would write it.

One small file per accepted digest says who accepted it, when and how. Packages packed here are accepted by that.
"""

from __future__ import annotations

import getpass
import json
import os
from datetime import datetime, timezone
from pathlib import Path

from .errors import Refused


def accept(home: Path, digest: str, how: str) -> None:
    """Record that this machine accepts the code and the trusted imports of the package. how: `packed here`, `--trust-code`."""
    place = _place(home, digest)
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    said = {
        "digest": digest,
        "how": how,
        "who": _who(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    draft = place.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(said) + "\n")
    draft.replace(place)


def accepted(home: Path, digest: str) -> bool:
    return _place(home, digest).exists()


def require(home: Path, digest: str, holds_code: bool, trust_code: bool, what: str) -> bool:
    """Whether the package's code may run here; records `trust_code`. Raises Refused where it holds code nobody accepted."""
    if trust_code:
        accept(home, digest, "--trust-code")
    if accepted(home, digest):
        return True
    if holds_code:
        raise Refused(
            f"{what} was not packed on this machine, and it holds code or imports that nobody here accepted.",
            "If you know where it is from, accept it once with --trust-code.",
            digest=digest,
        )
    return False


def _place(home: Path, digest: str) -> Path:
    return home / "trust" / f"{digest.replace(':', '-')}.json"


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
