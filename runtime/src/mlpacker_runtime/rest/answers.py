"""From an outcome to JSON values. NaN and infinities become null, datetimes ISO text, bytes base64, sparse rows dense."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np

from ..batch import Batch, is_sparse
from ..errors import ModelFailed


def plain(column: Any) -> list[Any]:
    """A column as a list with one JSON value a row. Not-finite floats are left to `dumps`, which writes null."""
    if is_sparse(column):
        column = column.toarray()
    kind = column.dtype.kind
    if kind == "M":
        return [None if v == "NaT" else v for v in np.datetime_as_string(column).tolist()]
    if kind == "f" and column.dtype.itemsize == 2:
        column = column.astype(np.float32)
    return column.tolist()


def records(batch: Batch) -> list[dict[str, Any]]:
    """Each row as an object."""
    names = batch.names
    columns = [plain(batch.columns[n]) for n in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _foreign(value: Any) -> Any:
    """What JSON has no word for, inside objects that a stage answered."""
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.reshape(1))[0] if isinstance(value, np.generic) else plain(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, complex):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} has no JSON")


_encoder = msgspec.json.Encoder(enc_hook=_foreign)


def dumps(value: Any) -> bytes:
    """Raises ModelFailed where an answer can't be written as JSON."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as cause:
        raise ModelFailed(f"The answer can't be written as JSON: {cause}.") from cause
