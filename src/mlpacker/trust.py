"""Whom this machine trusts. Trust belongs to the machine, not to the package: else an attacker would write it.

One small file per accepted digest says who accepted it, when and how. Packages packed here are accepted by that.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterable, Sequence
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


ORDINARY = frozenset(
    """
    async-timeout catboost certifi charset-normalizer click cloudpickle confluent-kafka contourpy cycler exceptiongroup fastavro
    flatbuffers fonttools graphviz h11 hiredis httptools idna imbalanced-learn jinja2 joblib kiwisolver lightgbm llvmlite markupsafe matplotlib ml-dtypes mpmath msgspec
    narwhals numba numpy onnx onnxruntime packaging paho-mqtt pandas patsy pika pillow plotly prettytable protobuf pyarrow pyparsing
    python-dateutil pytz pyyaml redis requests scikit-image scikit-learn scipy six skops statsmodels sympy tabulate tenacity
    threadpoolctl tomli tqdm typing-extensions tzdata urllib3 uvicorn uvloop wcwidth xgboost xgboost-cpu
    """.split()  # noqa: SIM905  words read better without quotes
)
"""Distributions whose presence in a stranger's lock says nothing: they come from this machine's own index, by hash."""


def reasons(holds_code: bool, brings_wheels: bool, pins: Iterable[str]) -> tuple[str, ...]:
    """Why running a package would run code that its packer chose; () where it would not.

    A wheel is code as well: installing one that is not ordinary can run it at every start of the interpreter.
    """
    unusual = sorted(set(pins) - ORDINARY)
    said = ["code, or imports its packer trusted"] if holds_code else []
    said += ["wheels of its own"] if brings_wheels else []
    said += [f"the distribution{'s' if unusual[1:] else ''} {', '.join(unusual[:5])}"] if unusual else []
    return tuple(said)


def require(home: Path, digest: str, why: Sequence[str], trust_code: bool, what: str) -> bool:
    """Whether the package's code may run here; records `trust_code`. Raises Refused where nobody here accepted it.

    why: see `reasons`; a package with none runs unaccepted, and none of its code does.
    """
    if trust_code:
        accept(home, digest, "--trust-code")
    if accepted(home, digest):
        return True
    if why:
        raise Refused(
            f"{what} was not packed on this machine, and it brings {' and '.join(why)}, which nobody here accepted.",
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
