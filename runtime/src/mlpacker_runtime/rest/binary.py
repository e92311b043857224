"""The raw tensors of V2's binary extension: little-endian, no padding, BYTES as u32 length + bytes per element."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BadInput

NUMERIC = {
    "BOOL": np.dtype("bool"),
    "INT8": np.dtype("int8"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("uint8"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = (*NUMERIC, "BYTES")


def count_of(shape: list[int], name: str) -> int:
    """Elements in a tensor of that shape. Raises BadInput for a negative dimension."""
    count = 1
    for n in shape:
        if n < 0:
            raise BadInput(f"The input {name!r} has the shape {shape}: a dimension is negative.")
        count *= n
    return count


def decode(raw: memoryview, datatype: str, shape: list[int], name: str) -> np.ndarray:
    """Raises BadInput where the bytes are not exactly that tensor."""
    count = count_of(shape, name)
    if datatype == "BYTES":
        return _strings(raw, count, name).reshape(shape)
    dtype = NUMERIC[datatype]
    if len(raw) != count * dtype.itemsize:
        raise BadInput(
            f"The input {name!r} of shape {shape} and type {datatype} is {count * dtype.itemsize} bytes long, not {len(raw)}."
        )
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).astype(bool).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def _strings(raw: memoryview, count: int, name: str) -> np.ndarray:
    if count * 4 > len(raw):
        raise BadInput(f"The input {name!r} says it has {count} elements; its {len(raw)} bytes hold fewer.")
    out = np.empty(count, dtype=object)
    at = 0
    for i in range(count):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise BadInput(f"Element {i} of the input {name!r} is longer than the input.")
        out[i] = bytes(raw[at + 4 : end])
        at = end
    if at != len(raw):
        raise BadInput(f"The input {name!r} has {len(raw) - at} bytes too many.")
    return out


def encode(datatype: str, column: np.ndarray) -> bytes:
    if datatype == "BYTES":
        parts = [as_bytes(v) for v in column.ravel().tolist()]
        return b"".join(piece for p in parts for piece in (len(p).to_bytes(4, "little"), p))
    return np.ascontiguousarray(column, dtype=NUMERIC[datatype]).tobytes()


def as_bytes(value: Any) -> bytes:
    """One element of a BYTES tensor: text as UTF-8, bytes as they are, null as nothing, another value as JSON."""
    from .answers import dumps

    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return b"" if value is None else dumps(value)
