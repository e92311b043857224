"""The Open Inference Protocol, V2, over REST, with the binary tensor extension. Pure: bodies in, bodies out.

Where rows were dropped or gave several answers, the outputs hold the answers there are and an INT64 output `row` tells
whose they are. The request parameter `partial` lets rows fail alone: they have no answer, and the response parameter
`errors` (JSON text: row → reason) says why.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ..batch import Batch, Outcome, is_sparse
from ..errors import BadInput
from ..signature import Field
from . import Asked, Request, Response, Served, in_order
from .answers import dumps, plain
from .binary import DATATYPES, NUMERIC, as_bytes, count_of, decode, encode
from .bodies import loads
from .rows import Reader, numbers

HEADER_LENGTH = b"inference-header-content-length"
BINARY = "application/octet-stream"
OF_DTYPE = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "datetime": "INT64",
    **{f"{s}int{n}": f"{s.upper()}INT{n}" for s in ("", "u") for n in (8, 16, 32, 64)},
}
ROW = "row"
_OF_NUMPY = {np.dtype(name): datatype for name, datatype in OF_DTYPE.items() if name != "datetime"}
FLOATS = ("FP32", "FP64")
_ARRAYS = {t: "d" if t.startswith("FP") else "q" for t in NUMERIC if t not in ("BOOL", "UINT64")}
"""How JSON numbers of a type become an array without NumPy looking at each."""


class Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class Infer(msgspec.Struct):
    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Output] | None = None


_infer = msgspec.json.Decoder(Infer)


class Form(msgspec.Struct):
    """What the answer must be like: which outputs, and which of them in binary."""

    id: str | None
    outputs: list[Output] | None
    binary: bool


def datatype_of(field: Field) -> str:
    if field.dtype == "category" and field.categories and all(type(c) is int for c in field.categories):
        return "INT64"
    return OF_DTYPE.get(field.dtype, "BYTES")


def metadata_of(fields: tuple[Field, ...]) -> list[dict[str, Any]]:
    return [{"name": f.name, "datatype": datatype_of(f), "shape": list(f.shape)} for f in fields]


def ask(served: Served, reader: Reader, request: Request) -> Asked:
    """A request's rows. Raises BadInput."""
    length = request.headers.get(HEADER_LENGTH)
    if length is None:
        return _ask(served, reader, loads(request.body, _infer), memoryview(b""))
    if not length.isdigit() or int(length) > len(request.body):
        raise BadInput(
            f"Inference-Header-Content-Length is {length.decode('latin-1')!r}; the body has {len(request.body)} bytes."
        )
    whole = memoryview(request.body)
    return _ask(served, reader, loads(whole[: int(length)], _infer), whole[int(length) :])


def _ask(served: Served, reader: Reader, asked: Infer, raw: memoryview) -> Asked:
    given: dict[str, Any] = {}
    at = 0
    for tensor in asked.inputs:
        if tensor.name in given:
            raise BadInput(f"The input {tensor.name!r} comes twice.")
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is not None:
            _check_size(tensor.name, size, len(raw) - at)
            given[tensor.name] = _from_raw(tensor, raw[at : at + size])
            at += size
        else:
            given[tensor.name] = _from_json(tensor)
    if at != len(raw):
        raise BadInput(f"The body has {len(raw) - at} bytes behind its tensors.")
    if not given:
        raise BadInput("The request has no inputs.")
    read = None
    if len(given) == 1:
        only = next(iter(given.values()))
        read = reader.tensor(only) if isinstance(only, np.ndarray) else None
    read = read or reader.columns(given)
    parameters = asked.parameters or {}
    form = Form(asked.id, asked.outputs, bool(parameters.get("binary_data_output", False)))
    return Asked(
        read.batch,
        read.count,
        read.errors,
        _wanted(served, asked.outputs),
        parameters.get("partial") is True,
        form,
    )


def _check_size(name: str, size: Any, left: int) -> None:
    if type(size) is not int or size < 0:
        raise BadInput(
            f"The input {name!r} has the binary_data_size {size!r}: a whole number from 0 belongs there."
        )
    if size > left:
        raise BadInput(f"The input {name!r} says it has {size} bytes; {left} are left in the body.")


def _check(tensor: Tensor) -> None:
    if tensor.datatype not in DATATYPES:
        raise BadInput(
            f"The input {tensor.name!r} has the datatype {tensor.datatype!r}; known are {', '.join(DATATYPES)}."
        )
    if not tensor.shape:
        raise BadInput(f"The input {tensor.name!r} has the shape []: its first dimension must be rows.")


def _from_raw(tensor: Tensor, raw: memoryview) -> np.ndarray:
    _check(tensor)
    if tensor.data is not msgspec.UNSET:
        raise BadInput(f"The input {tensor.name!r} has both data and a binary_data_size.")
    return decode(raw, tensor.datatype, tensor.shape, tensor.name)


def _from_json(tensor: Tensor) -> Any:
    """Flat or nested data as an array where it is all numbers, else as a list of rows."""
    _check(tensor)
    data = tensor.data
    if not isinstance(data, list):
        raise BadInput(f"The input {tensor.name!r} has no list of data, and no binary_data_size.")
    if tensor.datatype == "FP16":
        raise BadInput(f"The input {tensor.name!r} is FP16, which travels in binary only. Send FP32.")
    count = count_of(tensor.shape, tensor.name)
    if (
        data
        and type(data[0]) is list
        and len(tensor.shape) == 2
        and tensor.shape[0] == len(data)
        and tensor.datatype in FLOATS
    ):
        rows = numbers(data, tensor.shape[1])
        if rows is not None:
            return rows
    flat = _flat(data)
    if len(flat) != count:
        raise BadInput(
            f"The input {tensor.name!r} of shape {tensor.shape} has {count} elements, not {len(flat)}."
        )
    code = _ARRAYS.get(tensor.datatype)
    if code is not None:
        try:
            return np.array(array(code, flat)).reshape(tensor.shape)
        except (
            TypeError,
            OverflowError,
        ):  # a null, a text, a fraction: looked at one by one, by the column's type
            pass
    return _in_rows(flat, tensor.shape)


def _flat(data: list[Any]) -> list[Any]:
    while data and type(data[0]) is list:
        if not all(type(part) is list for part in data):
            raise BadInput("A tensor's data mixes lists and values.")
        data = [v for part in data for v in part]
    return data


def _in_rows(flat: list[Any], shape: list[int]) -> list[Any]:
    """A flat list as nested lists of that shape."""
    for size in reversed(shape[1:]):
        flat = (
            [flat[i : i + size] for i in range(0, len(flat), size)] if size else [[] for _ in range(shape[0])]
        )
    return flat


def _wanted(served: Served, outputs: list[Output] | None) -> frozenset[str] | None:
    """The methods to compute, where the outputs asked for are methods and not columns of another kind."""
    if not outputs:
        return None
    names = [o.name for o in outputs if o.name != ROW]
    known = {f.name for f in served.outputs}
    for name in names:
        if known and name not in known and name not in served.methods:
            raise BadInput(f"There is no output {name!r}; there are {', '.join(map(repr, sorted(known)))}.")
    return frozenset(names) if names and served.methods.issuperset(names) else None


def answer(served: Served, asked: Asked, outcome: Outcome) -> Response:
    """The outcome in the form that was asked for."""
    form = asked.form
    assert isinstance(form, Form)
    batch = in_order(outcome.batch)
    columns = _outputs(batch, asked.count)
    chosen = form.outputs or [Output(n) for n in columns]
    if ROW in columns and all(o.name != ROW for o in chosen):
        chosen = [*chosen, Output(ROW)]
    tensors = []
    raw: list[bytes] = []
    for output in chosen:
        if output.name not in columns:
            if output.name == ROW:
                columns[ROW] = batch.rows.astype(np.int64)
            else:
                raise BadInput(
                    f"There is no output {output.name!r}; there are {', '.join(map(repr, columns))}."
                )
        for name, column in _with_validity(output.name, columns[output.name]):
            tensors.append(
                _tensor(name, column, (output.parameters or {}).get("binary_data", form.binary), raw)
            )
    value: dict[str, Any] = {"model_name": served.name, "model_version": served.version}
    if form.id is not None:
        value["id"] = form.id
    errors = {**asked.errors, **outcome.errors}
    if errors:
        value["parameters"] = {"errors": dumps({str(k): v for k, v in sorted(errors.items())}).decode()}
    value["outputs"] = tensors
    head = dumps(value)
    if not raw:
        return Response(200, head)
    return Response(
        200, b"".join((head, *raw)), BINARY, (("Inference-Header-Content-Length", str(len(head))),)
    )


def _outputs(batch: Batch, count: int) -> dict[str, Any]:
    columns: dict[str, Any] = dict(batch.columns)
    rows = batch.rows
    whole = len(rows) == count and (not count or bool(rows[0] == 0 and rows[-1] == count - 1))
    if not whole or (
        count > 2 and bool((rows[1:] == rows[:-1]).any())
    ):  # in order, so a gap means a row twice
        columns.setdefault(ROW, batch.rows.astype(np.int64, copy=False))
    return columns


def _with_validity(name: str, column: Any) -> list[tuple[str, Any]]:
    """The column, and where a null has no value of its own in the column's type, a BOOL tensor that says so."""
    if is_sparse(column):
        column = column.toarray()
    if isinstance(column, np.ma.MaskedArray):
        return [(name, column.filled(0)), (f"{name}.valid", ~np.ma.getmaskarray(column))]
    if column.dtype == object:
        valid = np.array([v is not None for v in column.ravel().tolist()], dtype=bool).reshape(column.shape)
        if not valid.all():
            return [(name, column), (f"{name}.valid", valid)]
    if column.dtype.kind == "M":
        null = np.isnat(column)
        return [(name, column), (f"{name}.valid", ~null)] if null.any() else [(name, column)]
    return [(name, column)]


def _tensor(name: str, column: np.ndarray, binary: Any, raw: list[bytes]) -> Mapping[str, Any]:
    if column.dtype.kind == "M":
        column = column.astype("datetime64[ns]").view(np.int64)
    datatype = "BYTES" if column.dtype == object else _OF_NUMPY.get(column.dtype, "BYTES")
    tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(column.shape)}
    if binary is True:
        data = encode(datatype, column)
        raw.append(data)
        return {**tensor, "parameters": {"binary_data_size": len(data)}}
    if datatype == "FP16":
        tensor["datatype"] = "FP32"
    tensor["data"] = _texts(column) if datatype == "BYTES" else plain(column.reshape(-1))
    return tensor


def _texts(column: np.ndarray) -> list[Any]:
    return [v if v is None or isinstance(v, str) else _text(v) for v in column.ravel().tolist()]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            from base64 import b64encode

            return b64encode(value).decode()
    return as_bytes(value).decode("utf-8", "replace")


def refuse(sentence: str) -> bytes:
    return dumps({"error": sentence})
