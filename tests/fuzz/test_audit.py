"""Whatever the bytes, scanning ends with a report or an error of ours, and loading imports nothing off the lists."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import zlib
from pathlib import Path

import joblib
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlpacker_runtime.audit import Limits, kind, load, scan, scan_skops
from mlpacker_runtime.audit.allowlist import listed_names
from mlpacker_runtime.errors import MlpackerError

LIMITS = Limits(bytes=1_000_000, ratio_from=1_000_000, opcodes=100_000)


def _seeds() -> list[bytes]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.tree import DecisionTreeClassifier

    values = [
        DecisionTreeClassifier(max_depth=2).fit([[0.0], [1.0]], [0, 1]),
        LogisticRegression(),
        {
            "a": np.arange(4.0),
            "b": np.array([None, "x"], dtype=object),
            "c": np.array([(1, 2.0)], dtype="i4,f8"),
        },
        [collections.OrderedDict(a=1), {1, 2}, b"bytes", bytearray(b"more"), 1.5, 10**30, "text"],
    ]
    found = [pickle.dumps(value, protocol) for value in values for protocol in range(6)]
    for value in values:
        buffer = io.BytesIO()
        joblib.dump(value, buffer)
        found.append(buffer.getvalue())
    return found


SEEDS = _seeds()

# What an attacker splices in. The commands would leave a file behind.
CANARY = Path("canary-of-the-audit")
POISON = [
    b"cos\nsystem\n(S'touch " + bytes(CANARY) + b"'\ntR",
    b"\x8c\x05posix\x8c\x06system\x93",
    b"\x8c\x08builtins\x8c\x04eval\x93",
    b"\x8c\x16sklearn.datasets._base\x8c\x09os.system\x93",
    b"cnumpy\nmemmap\n",
    b"R",
    b"b",
    b"\x81",
    b"\x93",
    b"h\x00",
    b"0",
    b"(",
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid pickle with bytes changed, cut out, doubled or spliced in, perhaps compressed."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        match draw(st.integers(0, 4)):
            case 0:
                data[start:end] = draw(st.binary(max_size=20))
            case 1:
                data[start:start] = draw(st.sampled_from(POISON))
            case 2:
                data[start:start] = bytes(data[start:end])
            case 3:
                del data[start:end]
            case _:
                data[start : start + 1] = bytes([draw(st.integers(0, 255))])
    return zlib.compress(bytes(data)) if draw(st.booleans()) and draw(st.booleans()) else bytes(data)


files = st.one_of(st.binary(max_size=200), mutated())


@given(files)
def test_scanning_any_bytes_ends_with_a_report_or_an_error_of_ours(data: bytes):
    with contextlib.suppress(MlpackerError):
        report = scan(data, limits=LIMITS)
        assert set(report.refused) <= set(report.names)
    kind(data[:512])


@given(st.binary(max_size=300).map(lambda tail: b"PK\x03\x04" + tail))
def test_scanning_any_zip_ends_with_an_error_of_ours(data: bytes):
    with contextlib.suppress(MlpackerError):
        scan_skops(data, limits=LIMITS)


@given(mutated())
def test_what_loads_has_imported_listed_names_only(data: bytes):
    """`scan` says which names a file has; what `load` builds from is that file, so no other can have been imported."""
    try:
        report = scan(data, limits=LIMITS)
        load(data, limits=LIMITS)
    except MlpackerError:
        pass
    else:
        listed = {f"{module}.{name}" for module, name in listed_names()}
        assert set(report.names) <= listed
    assert not CANARY.exists()
