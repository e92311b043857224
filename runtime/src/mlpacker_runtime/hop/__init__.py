"""Hops: how a batch travels between two processes.

A frame is: u32 length of the header, u32 zero, u64 length of the tensors (little-endian), the header as JSON, then the
raw tensors in order. The tensors are V2's binary ones: little-endian, no padding, BYTES as u32 length + bytes per element.
Nulls travel as a BOOL tensor `<name>.valid`, sparse matrices as CSR triples, datetimes as INT64 nanoseconds.
Standard library and NumPy only.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from ..batch import Batch, Outcome, is_sparse
from ..errors import BadInput

PREFIX = struct.Struct("<IIQ")
MAX_HEADER = 64 << 20
MAX_BODY = 8 << 30


def encode(header: dict[str, Any], batch: Batch | None = None) -> list[bytes | memoryview]:
    """A frame as the pieces to write, one after the other."""
    tensors: list[dict[str, Any]] = []
    body: list[bytes | memoryview] = []
    if batch is not None:
        _put(tensors, body, "", "rows", batch.rows)
        if batch.matrix is not None:
            _put(tensors, body, "", "matrix", np.ascontiguousarray(batch.matrix))
        else:
            for name, column in batch.columns.items():
                _put_column(tensors, body, name, column)
    text = json.dumps({**header, "names": list(batch.names) if batch else None, "tensors": tensors}).encode()
    return [PREFIX.pack(len(text), 0, sum(len(b) for b in body)), text, *body]


def _put_column(
    tensors: list[dict[str, Any]], body: list[bytes | memoryview], name: str, column: Any
) -> None:
    if is_sparse(column):
        csr = column.tocsr()
        for part, array in (("indptr", csr.indptr), ("indices", csr.indices), ("data", csr.data)):
            _put(tensors, body, name, part, np.asarray(array), columns=csr.shape[1])
        return
    if isinstance(column, np.ma.MaskedArray):
        _put(tensors, body, name, "valid", ~np.ma.getmaskarray(column))
        column = column.filled(0)
    if column.dtype == object:
        _put_objects(tensors, body, name, column)
    else:
        _put(tensors, body, name, "values", column)


def _put_objects(
    tensors: list[dict[str, Any]], body: list[bytes | memoryview], name: str, column: np.ndarray
) -> None:
    values = column.ravel().tolist()
    valid = np.array([v is not None for v in values])
    if not valid.all():
        _put(tensors, body, name, "valid", valid)
    given = [v for v in values if v is not None]
    if all(isinstance(v, str) for v in given):
        kind, parts = "string", [b"" if v is None else v.encode("utf-8", "surrogatepass") for v in values]
    elif all(isinstance(v, bytes) for v in given):
        kind, parts = "bytes", [v or b"" for v in values]
    else:
        kind, parts = (
            "object",
            [b"null" if v is None else json.dumps(v, default=_number).encode() for v in values],
        )
    data = b"".join(piece for p in parts for piece in (len(p).to_bytes(4, "little"), p))
    tensors.append(
        {"column": name, "part": "values", "dtype": kind, "shape": list(column.shape), "size": len(data)}
    )
    body.append(data)


def _number(value: Any) -> Any:
    """NumPy values inside objects, as JSON knows them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise BadInput(f"A value of type {type(value).__name__} can't travel between stages.")


def _put(
    tensors: list[dict[str, Any]],
    body: list[bytes | memoryview],
    column: str,
    part: str,
    array: np.ndarray,
    **more: Any,
) -> None:
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    tensors.append(
        {
            "column": column,
            "part": part,
            "dtype": array.dtype.str[1:],
            "shape": list(array.shape),
            "size": array.nbytes,
            **more,
        }
    )
    body.append(array.tobytes() if array.dtype.kind == "M" or not array.nbytes else array.data.cast("B"))


def lengths(prefix: bytes | bytearray) -> tuple[int, int]:
    """Header and body length from a frame's first 16 bytes. Raises BadInput beyond the bounds."""
    head, zero, body = PREFIX.unpack(prefix)
    if zero or head > MAX_HEADER or body > MAX_BODY:
        raise BadInput("Not a frame, or one beyond the bounds.")
    return head, body


def decode(text: bytes, body: bytes | bytearray | memoryview) -> tuple[dict[str, Any], Batch | None]:
    """Header and batch of a frame. Raises BadInput for anything that is not one."""
    try:
        header = json.loads(text)
        names, tensors = header.pop("names"), header.pop("tensors")
        parts = _split(tensors, memoryview(body))
        return header, None if names is None else _batch(names, parts)
    except BadInput:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        OverflowError,
        ImportError,
    ) as cause:
        raise BadInput(f"A frame that does not hold together: {cause}.") from cause


def _split(tensors: list[dict[str, Any]], body: memoryview) -> dict[tuple[str, str], Any]:
    parts: dict[tuple[str, str], Any] = {}
    at = 0
    for t in tensors:
        size, shape = int(t["size"]), tuple(int(n) for n in t["shape"])
        if size < 0 or any(n < 0 for n in shape) or at + size > len(body):
            raise BadInput("A frame's tensor is longer than the frame.")
        raw = body[at : at + size]
        at += size
        if t["dtype"] in ("string", "bytes", "object"):
            parts[t["column"], t["part"]] = _objects(raw, t["dtype"], shape)
        else:
            dtype = np.dtype(t["dtype"]).newbyteorder("<")
            if dtype.kind not in "biufM":
                raise BadInput(f"A frame's tensor has the dtype {t['dtype']!r}.")
            parts[t["column"], t["part"]] = np.frombuffer(raw, dtype).reshape(shape)
        if "columns" in t:
            parts[t["column"], "columns"] = int(t["columns"])
    return parts


def _objects(raw: memoryview, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape, dtype=object))
    if count * 4 > len(raw):
        raise BadInput("A frame's tensor has fewer elements than it says.")
    out = np.empty(count, dtype=object)
    at = 0
    for i in range(count):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise BadInput("A frame's element is longer than its tensor.")
        value = bytes(raw[at + 4 : end])
        out[i] = (
            value
            if kind == "bytes"
            else value.decode("utf-8", "surrogatepass")
            if kind == "string"
            else json.loads(value)
        )
        at = end
    return out.reshape(shape)


def _batch(names: list[str], parts: dict[tuple[str, str], Any]) -> Batch:
    rows = parts["", "rows"].astype(np.int64, copy=False)
    if rows.ndim != 1:
        raise BadInput("A frame's row identities are not a list.")
    if ("", "matrix") in parts:
        matrix = parts["", "matrix"]
        if matrix.shape != (len(rows), len(names)):
            raise BadInput("A frame's matrix does not have a column for each name.")
        return Batch(rows=rows, names=names, matrix=matrix)
    columns = {n: _column(n, parts) for n in names}
    if any(c.shape[:1] != (len(rows),) for c in columns.values()):
        raise BadInput("A frame's columns differ in length.")
    return Batch(columns, rows)


def _column(name: str, parts: dict[tuple[str, str], Any]) -> Any:
    if (name, "indptr") in parts:
        import scipy.sparse

        indptr = parts[name, "indptr"]
        shape = (len(indptr) - 1, parts[name, "columns"])
        matrix = scipy.sparse.csr_matrix((parts[name, "data"], parts[name, "indices"], indptr), shape=shape)
        matrix.check_format(full_check=True)
        return matrix
    values, valid = parts[name, "values"], parts.get((name, "valid"))
    if valid is None:
        return values
    if values.dtype == object:
        values[~valid.reshape(values.shape)] = None
        return values
    return np.ma.MaskedArray(values, mask=~valid)


def encode_outcome(outcome: Outcome) -> list[bytes | memoryview]:
    return encode({"errors": {str(k): v for k, v in outcome.errors.items()}}, outcome.batch)


def decode_outcome(header: dict[str, Any], batch: Batch | None) -> Outcome:
    """Raises BadInput where the frame holds no outcome."""
    try:
        return Outcome(batch or Batch({}), {int(k): str(v) for k, v in header["errors"].items()})
    except (KeyError, ValueError, AttributeError) as cause:
        raise BadInput("A frame without an outcome.") from cause
