"""What goes into a frame comes out of it, and nothing else comes out of other bytes than an error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpacker_runtime import hop
from mlpacker_runtime.batch import Batch
from mlpacker_runtime.errors import BadInput


def objects(*values):
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


COLUMNS = {
    "floats": np.array([1.5, np.nan, np.inf]),
    "small": np.array([1, 2, 3], dtype=np.int8),
    "tensor": np.arange(6, dtype=np.float32).reshape(3, 2),
    "flags": np.array([True, False, True]),
    "times": np.array(["2024-01-01", "NaT", "1950-05-05"], dtype="datetime64[ns]"),
    "strings": objects("a", None, "ü"),
    "bytes": objects(b"\x00", b"", b"abc"),
    "things": objects({"a": [1]}, None, [1, 2]),
    "nullable": np.ma.MaskedArray([1, 2, 3], mask=[False, True, False]),
}


def round_trip(batch):
    pieces = hop.encode({"op": "x"}, batch)
    data = b"".join(bytes(p) for p in pieces)
    head, body = hop.lengths(data[:16])
    assert 16 + head + body == len(data)
    return hop.decode(data[16 : 16 + head], data[16 + head :])


@pytest.mark.parametrize("name", COLUMNS)
def test_every_kind_of_column_survives_a_hop(name):
    header, batch = round_trip(Batch({name: COLUMNS[name]}, np.array([5, 5, 9])))
    assert header == {"op": "x"}
    assert batch.rows.tolist() == [5, 5, 9]
    assert batch[name].dtype == COLUMNS[name].dtype
    np.testing.assert_array_equal(np.ma.getmaskarray(batch[name]), np.ma.getmaskarray(COLUMNS[name]))
    np.testing.assert_array_equal(batch[name], COLUMNS[name])


def test_a_sparse_matrix_survives_a_hop():
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_matrix(np.array([[0, 1.0], [2.0, 0], [0, 0]]))
    _, batch = round_trip(Batch({"m": matrix}))
    np.testing.assert_array_equal(batch["m"].toarray(), matrix.toarray())


def test_a_matrix_survives_a_hop():
    _, batch = round_trip(Batch(names=("a", "b"), matrix=np.arange(6.0).reshape(3, 2)))
    assert batch.matrix is not None
    assert batch["b"].tolist() == [1, 3, 5]


def test_a_question_without_a_batch_has_none():
    assert round_trip(None) == ({"op": "x"}, None)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_foreign_bytes_are_an_error_and_nothing_else(text, body):
    with pytest.raises(BadInput):
        hop.decode(text, body)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_gives_a_batch_or_an_error(at, value):
    data = bytearray(b"".join(bytes(p) for p in hop.encode({"op": "x"}, Batch(COLUMNS))))
    data[at] = value
    try:
        head, body = hop.lengths(bytes(data[:16]))
        hop.decode(bytes(data[16 : 16 + head]), bytes(data[16 + head : 16 + head + body]))
    except BadInput:
        pass
