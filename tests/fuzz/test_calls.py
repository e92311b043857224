"""Whatever a code file holds and whatever a function returns: an answer, a row's error, or a sentence."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mlpacker_runtime.batch import Batch
from mlpacker_runtime.calls import CallablePredictor
from mlpacker_runtime.errors import BadInput, MlpackerError
from mlpacker_runtime.formats import function
from mlpacker_runtime.hop import decode as decode_frame
from mlpacker_runtime.hop import decode_outcome, encode_outcome, lengths
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.signature import DTYPES, Field

BATCH = Batch({"x": np.array([0.0, 1.0, 2.0])}, np.array([7, 3, 5]))

EARLY, LATE = datetime(1700, 1, 1), datetime(2200, 1, 1)  # noqa: DTZ001  what NumPy's nanoseconds hold

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.datetimes(min_value=EARLY, max_value=LATE),
    st.floats(width=32).map(np.float32),
    st_numpy.arrays(np.float64, st.integers(0, 3)),
)
returned = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    ),
    max_leaves=8,
)
fields = st.lists(
    st.builds(Field, st.sampled_from(["a", "b", "c"]), st.sampled_from(DTYPES), nullable=st.booleans()),
    max_size=3,
    unique_by=lambda f: f.name,
).map(tuple)


def answered(takes: str, values: list[Any], outputs: tuple[Field, ...]) -> None:
    waiting = iter(values)
    stage = Stage("toy", "function", "toys.py", takes=takes, outputs=outputs)
    predictor = CallablePredictor(lambda _: next(waiting), stage)
    try:
        outcome = predictor.predict(BATCH, None)
    except MlpackerError:
        return
    rows = set(outcome.batch.rows.tolist())
    assert rows <= {7, 3, 5}
    assert not rows & set(outcome.errors)
    assert all(c.shape[0] == len(outcome.batch) for c in outcome.batch.columns.values())


@given(
    takes=st.sampled_from(["record", "values", "matrix", "columns", "list", "records"]),
    values=st.tuples(returned, returned, returned),
    outputs=fields,
)
def test_whatever_a_function_returns_is_answered_or_told(
    takes: str, values: tuple[Any, ...], outputs: tuple[Field, ...]
) -> None:
    answered(takes, list(values), outputs)


@given(values=st.lists(returned, min_size=3, max_size=3))
def test_what_is_answered_can_travel_or_says_why_not(values: list[Any]) -> None:
    waiting = iter(values)
    predictor = CallablePredictor(
        lambda _: next(waiting), Stage("toy", "function", "toys.py", takes="record")
    )
    try:
        outcome = predictor.predict(BATCH, None)
        pieces = encode_outcome(outcome)
    except MlpackerError:
        return
    whole = b"".join(bytes(p) for p in pieces)
    head, _ = lengths(whole[:16])
    again = decode_outcome(*decode_frame(whole[16 : 16 + head], bytearray(whole[16 + head :])))
    assert again.batch.rows.tolist() == outcome.batch.rows.tolist()
    assert again.errors == outcome.errors


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet="defimport ast()[]{}:\n\t.,='\"\\x0", max_size=200).map(str.encode),
    )
)
def test_any_bytes_are_python_or_refused(data: bytes) -> None:
    try:
        function.read(data, "any.py")
    except BadInput as error:
        assert error.sentence.startswith("any.py")  # noqa: PT017  most bytes are Python's or not, by chance


@pytest.mark.parametrize(
    "data", [b"(" * 100_000, b"-" * 100_000 + b"1", b"a." * 50_000 + b"a", b"x\x00y", b"\xff\xfe"]
)
def test_source_nested_beyond_measure_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        function.read(data, "deep.py")
