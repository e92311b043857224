"""ONNX models, through ONNX Runtime.

A file is known by its protobuf structure (the field numbers of `ModelProto`, `GraphProto` and `TensorProto` in onnx.proto),
which is walked here without building anything: it is also how tensors kept in other files are found.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ..batch import Batch, Outcome, as_column, concat, from_result, is_sparse
from ..errors import BadInput, EnvironmentFailed
from ..manifest import Stage
from ..signature import Field
from . import Description, Facts, Files, Trust, features, versions

name = "onnx"

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
MODEL = {
    1: VARINT,
    2: BYTES,
    3: BYTES,
    4: BYTES,
    5: VARINT,
    6: BYTES,
    7: BYTES,
    8: BYTES,
    14: BYTES,
    20: BYTES,
    25: BYTES,
    26: BYTES,
}
IR_VERSION, PRODUCER, PRODUCER_VERSION, GRAPH, OPSET, FUNCTION = 1, 2, 3, 7, 8, 25
GRAPH_FIELDS = (1, 2, 5, 10, 11, 12, 13, 14, 15, 16)
NODE, INITIALIZER, OUTPUT, SPARSE = 1, 5, 12, 15
TENSOR_NAME, TENSOR_EXTERNAL = 8, 13
LATEST_IR = 64
"""Beyond any there is: 13 is current."""
MAX_FIELDS = 20_000_000
MAX_DEPTH = 64
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "numpy")
SINCE = ((21, "1.18"), (20, "1.17"), (19, "1.15"), (18, "1.14"), (17, "1.12"))
"""From ONNX Runtime's compatibility table: an opset of the default domain, and the first release that runs it."""

DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "string": "string",
    "bool": "bool",
    **{f"{u}int{n}": f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)},
}

Part = tuple[int, int, int, int]
"""A field of a message: number, wire type, then the place of its bytes (start, end), or a varint's value twice."""


def walk(data: Any, start: int, end: int) -> Iterator[Part]:
    """The fields of the protobuf message between two offsets. Raises ValueError for what is none."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value, value
            continue
        if wire not in (BYTES, EIGHT, FOUR) or not number:
            raise ValueError(f"no field of a message: number {number}, wire type {wire}")
        size, at = _varint(data, at, end) if wire == BYTES else (8 if wire == EIGHT else 4, at)
        if at + size > end:
            raise ValueError("a field beyond the end of its message")
        yield number, wire, at, at + size
        at += size


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number without an end")


def matches(files: Files, path: str) -> bool:
    try:
        with (
            files.file(path).open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _is_model(data)
    except (OSError, ValueError):
        return False


def _is_model(data: Any) -> bool:
    """Whether the outermost messages are those of a model: only its fields, with an IR version, an opset and a graph."""
    version = opsets = outputs = 0
    for number, wire, start, end in walk(data, 0, len(data)):
        if MODEL.get(number) != wire:
            return False
        version = start if number == IR_VERSION else version
        opsets += number == OPSET
        if number == GRAPH:
            inside = [n for n, *_ in walk(data, start, end)]
            if any(n not in GRAPH_FIELDS for n in inside):
                return False
            outputs += inside.count(OUTPUT)
    return 0 < version < LATEST_IR and outputs > 0 and (opsets > 0 or version < 3)


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    data = files.read(path)
    try:
        opset = _opset(data)
        beside = external(data)
        made = [
            data[a:b].decode("utf-8", "replace")
            for n, _, a, b in walk(data, 0, len(data))
            if n in (PRODUCER, PRODUCER_VERSION)
        ]
    except (ValueError, RecursionError) as cause:
        raise BadInput(f"{path} is not a whole ONNX model: {cause}.") from cause
    found = tuple(_beside(files, path, location) for location in beside)
    since = next((f">={release}" for first, release in SINCE if opset >= first), "")
    return Facts(
        modules=("onnxruntime",),
        requirements=(f"onnxruntime{since}",),
        beside=found,
        notes=(f"Opset {opset}, made by {' '.join(made) or 'a producer that is not named'}.",),
    )


def _opset(data: bytes) -> int:
    """The version of the default operator set."""
    found = 0
    for number, _, start, end in walk(data, 0, len(data)):
        if number == OPSET:
            parts = {n: (a, b) for n, _, a, b in walk(data, start, end)}
            domain = data[slice(*parts[1])] if 1 in parts else b""
            found = parts.get(2, (0, 0))[0] if domain in (b"", b"ai.onnx") else found
    return found


def external(data: bytes) -> list[str]:
    """The locations of the tensors that lie in other files. Raises ValueError for what is no model or beyond bounds."""
    found: dict[str, None] = {}
    waiting: list[tuple[str, int, int, int]] = [("model", 0, len(data), 0)]
    count = 0
    while waiting:
        kind, first, last, depth = waiting.pop()
        for number, wire, start, end in walk(data, first, last):
            count += 1
            if count > MAX_FIELDS or depth > MAX_DEPTH:
                raise ValueError("more fields, or deeper ones, than a model has")
            inner = INSIDE.get((kind, number))
            if inner == "location" and wire == BYTES:
                found.update(dict.fromkeys(_location(data, start, end)))
            elif inner is not None and wire == BYTES:
                waiting.append((inner, start, end, depth + 1))
    return list(found)


INSIDE = {
    ("model", GRAPH): "graph",
    ("model", FUNCTION): "function",
    ("model", 20): "training",
    ("training", 1): "graph",
    ("training", 2): "graph",
    ("function", 7): "node",
    ("graph", NODE): "node",
    ("graph", INITIALIZER): "tensor",
    ("graph", SPARSE): "sparse",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse",
    ("attribute", 23): "sparse",
    ("sparse", 1): "tensor",
    ("sparse", 2): "tensor",
    ("tensor", TENSOR_EXTERNAL): "location",
}
"""Which message lies in which field of another: all the ways to a tensor."""


def _location(data: bytes, start: int, end: int) -> Iterator[str]:
    """The value of a StringStringEntryProto whose key is `location`."""
    parts = {n: data[a:b] for n, w, a, b in walk(data, start, end) if w == BYTES}
    if parts.get(1) == b"location":
        yield parts.get(2, b"").decode("utf-8", "replace")


def _beside(files: Files, path: str, location: str) -> str:
    """The path of a file that holds tensors. Raises BadInput for one outside the model's own folder."""
    relative = PurePosixPath(location)
    if (
        not location
        or relative.is_absolute()
        or ".." in relative.parts
        or "\\" in location
        or "\0" in location
    ):
        raise BadInput(f"{path} keeps tensors in {location!r}, outside its own folder.")
    return (PurePosixPath(path).parent / relative).as_posix()


def load(files: Files, stage: Stage, trust: Trust) -> Graph:
    facts = inspect(files, stage.path, trust)
    for path in facts.beside:
        _check_present(files, stage.path, path)
    source = str(files.file(stage.path)) if facts.beside else files.read(stage.path)
    return Graph(_session(source, stage), stage)


def _check_present(files: Files, path: str, beside: str) -> None:
    """Have the file verified before ONNX Runtime reads it. Raises BadInput where it is missing or leads elsewhere."""
    if beside not in files.paths:
        raise BadInput(
            f"{path} keeps tensors in {beside!r}, which is not there.",
            "Put the file there, or save the model in one: onnx.save(model, path, save_as_external_data=False).",
        )
    root = files.file(PurePosixPath(path).parent.as_posix()).resolve()
    if root not in files.file(beside).resolve().parents:
        raise BadInput(f"{path} keeps tensors in {beside!r}, a link that leaves its own folder.")


def _session(source: str | bytes, stage: Stage) -> Any:
    try:
        import onnxruntime
    except ImportError as cause:
        raise EnvironmentFailed(
            "ONNX Runtime is not installed here.", "Add onnxruntime to the stage's requirements."
        ) from cause
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(stage.options.get("threads", 1))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as cause:
        said = f"{stage.path} can't be run by ONNX Runtime {onnxruntime.__version__}: {cause}."
        if "Unsupported model IR version" in str(cause) or "opset" in str(cause):
            raise EnvironmentFailed(said, "Use a newer onnxruntime.") from cause
        raise BadInput(said) from cause


class Graph:
    """A session as a predictor. The answers keep the names, dtypes and shapes of the graph's outputs."""

    def __init__(self, session: Any, stage: Stage) -> None:
        self.session = session
        self.stage = stage
        self.nodes = session.get_inputs()
        self.inputs = tuple(_field(n) for n in self.nodes)
        self.outputs = tuple(n.name for n in session.get_outputs())
        self.one_by_one = any(_batch_size(n.shape) == 1 for n in self.nodes)
        fixed = [n for n in self.nodes if _batch_size(n.shape) > 1]
        if fixed:
            raise BadInput(
                f"{stage.path} takes exactly {fixed[0].shape[0]} rows at a time ({fixed[0].name!r} is {fixed[0].shape}).",
                "Export it with a dynamic first axis.",
            )

    def describe(self) -> Description:
        return Description(self.inputs, self.outputs, self.outputs[:1], "columns", versions(*DISTRIBUTIONS))

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        wanted = [m for m in self.stage.methods or self.outputs if want is None or m in want]
        if not wanted:
            return Outcome(Batch({}, batch.rows))
        if not self.one_by_one or len(batch) == 1:
            return Outcome(self._run(batch, wanted))
        return Outcome(concat([self._run(batch.take(slice(i, i + 1)), wanted) for i in range(len(batch))]))

    def _run(self, batch: Batch, wanted: list[str]) -> Batch:
        answers = self.session.run(wanted, self._feed(batch))
        named = dict(zip(wanted, (_plain(a) for a in answers), strict=True))
        return from_result(named, batch.rows, wanted[0])

    def _feed(self, batch: Batch) -> dict[str, Any]:
        fields = self.stage.inputs or self.inputs
        if len(self.nodes) == 1 and (len(fields) > 1 or fields[0].name not in batch):
            batch = features.arranged(batch, fields)  # plain columns side by side make the one tensor
            values = features.numbers(batch) if self.inputs[0].numeric else _strings(batch)
            return {self.nodes[0].name: _tensor(values, self.nodes[0], self.inputs[0])}
        batch = features.arranged(batch, fields)
        return {
            node.name: _tensor(batch.columns[name], node, field)
            for name, node, field in zip(batch.names, self.nodes, self.inputs, strict=True)
        }


def _batch_size(shape: list[Any]) -> int:
    """The number of rows a graph's input is fixed to, 0 where it takes any."""
    return shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 0


def _field(node: Any) -> Field:
    """A graph's input: its first axis is rows, and one value a row is a plain column. Raises BadInput for no tensor."""
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind not in DTYPES:
        raise BadInput(f"The graph's input {node.name!r} is {node.type}, which no batch can hold.")
    shape = tuple(n if isinstance(n, int) and n > 0 else -1 for n in node.shape[1:])
    return Field(node.name, DTYPES[kind], (-1,) if shape == (1,) else (-1, *shape))


def _tensor(column: Any, node: Any, field: Field) -> np.ndarray:
    """A column as the graph's input wants it: dtype, axes. Raises BadInput for nulls and for what is no number."""
    if is_sparse(column):
        column = column.toarray()
    if isinstance(column, np.ma.MaskedArray):
        if np.ma.getmaskarray(column).any() and field.numpy.kind != "f":
            raise BadInput(f"Input {node.name!r} has a null, and {field.dtype} knows none.")
        column = (
            features.numbers(Batch({node.name: column}))[:, 0]
            if field.numpy.kind == "f"
            else column.filled(0)
        )
    if field.dtype == "string" and any(v is None for v in column.ravel()):
        raise BadInput(f"Input {node.name!r} has a null, and string knows none.")
    try:
        values = np.ascontiguousarray(column).astype(
            object if field.dtype == "string" else field.dtype, copy=False
        )
    except (TypeError, ValueError) as cause:
        raise BadInput(f"Input {node.name!r} does not hold {field.dtype} values.") from cause
    if node.shape and values.ndim == len(node.shape) - 1 and node.shape[-1] == 1:
        return values[..., None]
    if len(node.shape) == 1 and values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    return values


def _strings(batch: Batch) -> np.ndarray:
    return np.stack([np.asarray(batch.columns[n], dtype=object) for n in batch.names], axis=1)


def _plain(answer: Any) -> Any:
    """A graph's output as a column. A list of maps (what ZipMap makes) becomes one column a class, in the keys' order."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        keys = list(answer[0])
        return np.array([[row[k] for k in keys] for row in answer], dtype=np.float32)
    if isinstance(answer, list):
        out = np.empty(len(answer), dtype=object)
        out[:] = [v.tolist() if isinstance(v, np.ndarray) else v for v in answer]
        return out
    return as_column(answer)
