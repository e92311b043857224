"""Whatever bytes come as a message, there are rows or a BadInput, and the reader can take the rows; what we write reads back equal."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any, TypeVar

import fastavro
import msgspec
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from mlpacker_runtime.brokers import Message
from mlpacker_runtime.errors import BadInput
from mlpacker_runtime.rest.rows import Reader
from mlpacker_runtime.signature import Field
from mlpacker_runtime.stream import payloads
from mlpacker_runtime.stream.payloads import Decoder
from mlpacker_runtime.stream.payloads.avro import BareRows, Compiled
from mlpacker_runtime.stream.payloads.avro_schema import Walk
from mlpacker_runtime.stream.payloads.chosen import ChosenRows
from mlpacker_runtime.stream.payloads.protobuf import ProtobufRows

INPUTS = (
    (Field("input", "float64", (-1, 3)),),
    (Field("a", "float32"), Field("b", "float32")),
    (Field("text", "string"),),
    (
        Field("i", "int8", nullable=True),
        Field("c", "category", categories=("x", "y")),
        Field("t", "datetime", nullable=True, required=False),
        Field("b", "bool"),
        Field("raw", "bytes", required=False, nullable=True),
        Field("o", "object", required=False),
    ),
)
NAMES = ["input", "a", "b", "text", "i", "c", "t", "raw", "o", "inputs", "name", "shape", "datatype", "data"]
SCHEMA = {
    "type": "record",
    "name": "R",
    "fields": [
        {"name": "a", "type": "double"},
        {"name": "b", "type": ["null", "float", {"type": "bytes", "logicalType": "decimal", "precision": 300, "scale": 290}]},
        {"name": "text", "type": "string"},
        {"name": "i", "type": {"type": "map", "values": {"type": "array", "items": {"type": "int", "logicalType": "date"}}}},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-nanos"}},
        {"name": "raw", "type": [{"type": "fixed", "name": "F", "size": 2}, {"type": "enum", "name": "E", "symbols": ["x"]}]},
        {"name": "o", "type": {"type": "array", "items": {"type": "record", "name": "S", "fields": [{"name": "n", "type": "null"}, {"name": "d", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}}},
    ],
}  # fmt: skip
T = TypeVar("T")
CONTENT_TYPES = ["application/json", "application/msgpack", "text/csv", "application/vnd.mlpacker.v2", "avro/binary", "application/protobuf", "\xff", ""]  # fmt: skip

VALUES: Any = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-3, 300), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6),
        st.sampled_from(["x", "2024-05-01", "aGk=", 10**400, 1 << 70, "FP64", "BYTES"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)),
    max_leaves=25,
)  # fmt: skip


def mangled(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """As they are, cut short, and with some bytes overwritten."""
    edits = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=3)), max_size=3)
    return st.one_of(
        whole,
        st.builds(lambda b, n: b[: n % (len(b) + 1)], whole, st.integers(0)),
        st.builds(_edit, whole, edits),
    )


def _edit(whole: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    out = bytearray(whole)
    for at, piece in edits:
        at %= len(out) + 1
        out[at : at + len(piece)] = piece
    return bytes(out)


def take(decoder: Decoder, fields: tuple[Field, ...], value: bytes, *headers: tuple[str, bytes]) -> None:
    """The rows, once the reader has taken them as the stream gives them to it."""
    rows = reason(lambda: decoder.decode(Message("0", 1, value, headers=headers)))
    if isinstance(rows, str):
        assert 0 < len(rows) < 2000
        return
    assert rows.count >= 1
    if rows.read is None:
        reader = Reader(fields)
        objects = [r for r in rows.records if isinstance(r, dict)]
        try:
            assert reader.records(objects).count == len(objects)
            assert reader.lists([r for r in rows.records if not isinstance(r, dict)]).errors is not None
        except BadInput:  # rows of unlike shapes
            pass


def reason(ask: Callable[[], T]) -> T | str:
    """What it gives, or why it refuses."""
    try:
        return ask()
    except BadInput as error:
        return str(error)


@cache
def decoder(name: str, inputs: int) -> Decoder:
    if name == "avro":
        return BareRows(Compiled([json.dumps(SCHEMA)]))
    if name == "protobuf":
        return ProtobufRows(message_type(), framed=False, asked=None)
    if name == "framed protobuf":
        return ProtobufRows(message_type(), framed=True, asked=None)
    return payloads.decoder(name, INPUTS[inputs], {})


@cache
def message_type() -> type:
    file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="p", syntax="proto3")
    kind = file.message_type.add(name="R")
    for number, (name, of, label) in enumerate(
        [("a", 1, 1), ("b", 2, 3), ("text", 9, 1), ("i", 3, 3), ("raw", 12, 1), ("o", 11, 3)], 1
    ):
        kind.field.add(
            name=name, number=number, type=of, label=label, **({"type_name": ".p.R"} if of == 11 else {})
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.R"))


TEXTS = VALUES.map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))
PACKED = VALUES.filter(lambda v: str(v).count("000000000000") == 0).map(lambda v: msgspec.msgpack.encode(v, enc_hook=str) if _small(v) else b"\x90")  # fmt: skip
CELLS = st.lists(st.lists(st.text(max_size=5) | st.sampled_from(["1", "nan", "true", '"', "9" * 400]), max_size=4), max_size=3).map(lambda lines: "\n".join(",".join(line) for line in lines).encode("utf-8", "surrogatepass"))  # fmt: skip
TENSORS = st.fixed_dictionaries(
    {"name": st.sampled_from(NAMES), "shape": st.lists(st.integers(-1, 4), max_size=3), "datatype": st.sampled_from(["FP64", "BYTES", "INT8", "BOOL"])},
    optional={"data": VALUES, "parameters": st.just({"binary_data_size": 8})},
)  # fmt: skip
V2 = st.builds(
    lambda t, raw: _framed(json.dumps({"inputs": t}).encode(), raw),
    st.lists(TENSORS, max_size=2),
    st.binary(max_size=24),
)
PROTO = st.builds(lambda a, text, b, raw: message_type()(a=a, text=text, b=b, raw=raw, o=[{"a": a}]).SerializeToString(), st.floats(), st.text(max_size=5), st.lists(st.floats(width=32), max_size=3), st.binary(max_size=5))  # fmt: skip


def _small(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except OverflowError:
        return False
    return True


def _framed(head: bytes, raw: bytes) -> bytes:
    return struct.pack("<I", len(head)) + head + raw


@pytest.mark.parametrize("inputs", range(len(INPUTS)))
@given(value=st.binary(max_size=64) | mangled(TEXTS))
def test_json_gives_rows_or_a_reason(inputs: int, value: bytes) -> None:
    take(decoder("json", inputs), INPUTS[inputs], value)


@given(inputs=st.integers(0, 3), value=st.binary(max_size=64) | mangled(PACKED))
def test_message_pack_gives_rows_or_a_reason(inputs: int, value: bytes) -> None:
    take(decoder("msgpack", inputs), INPUTS[inputs], value)


@given(inputs=st.integers(0, 3), value=st.binary(max_size=64) | mangled(CELLS))
def test_csv_gives_rows_or_a_reason(inputs: int, value: bytes) -> None:
    take(decoder("csv", inputs), INPUTS[inputs], value)


@given(
    inputs=st.integers(0, 3),
    value=st.binary(max_size=64) | mangled(V2),
    length=st.none() | st.binary(max_size=12),
)
def test_v2_gives_rows_or_a_reason(inputs: int, value: bytes, length: bytes | None) -> None:
    headers = () if length is None else (("Inference-Header-Content-Length", length),)
    take(decoder("v2", inputs), INPUTS[inputs], value, *headers)


@st.composite
def avro_values(draw: st.DrawFn) -> bytes:
    out = BytesIO()
    whole = st.integers(-(1 << 63), (1 << 63) - 1)
    value = {
        "a": draw(st.floats()),
        "b": draw(st.one_of(st.none(), st.floats(width=32), st.binary(max_size=140))),
        "text": draw(st.text(max_size=5)),
        "i": draw(st.dictionaries(st.text(max_size=3), st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=3), max_size=2)),
        "t": draw(whole),
        "raw": draw(st.binary(min_size=2, max_size=2) | st.just("x")),
        "o": [{"n": None, "d": d} for d in draw(st.lists(whole, max_size=3))],
    }  # fmt: skip
    fastavro.schemaless_writer(out, fastavro.parse_schema(Walk().type(SCHEMA).schema), value)
    return out.getvalue()


@given(value=st.binary(max_size=64) | mangled(avro_values()))
def test_avro_gives_rows_or_a_reason(value: bytes) -> None:
    take(decoder("avro", 3), INPUTS[3], value)


SCHEMAS: Any = st.recursive(
    st.sampled_from(["null", "int", "long", "bytes", "string", "R", "S", "x.R", 5, None, "nothing", ""]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.fixed_dictionaries({"type": inner}, optional={"logicalType": st.sampled_from(["date", "decimal", "uuid", "timestamp-millis", 5]), "scale": st.sampled_from([0, 5, -1, "x", 1 << 40])}),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"type": st.just("map"), "values": inner}),
        st.fixed_dictionaries({"type": st.just("fixed"), "name": st.sampled_from(["F", "R", 5]), "size": st.sampled_from([0, 1, 16, -1, 1 << 70, "x"])}, optional={"logicalType": st.sampled_from(["decimal", "uuid"])}),
        st.fixed_dictionaries({"type": st.just("enum"), "name": st.sampled_from(["E", "int"]), "symbols": st.sampled_from([[], ["a"], ["a", "a"], 5])}),
        st.fixed_dictionaries(
            {"type": st.just("record"), "name": st.sampled_from(["R", "S", "x.R", "", None]), "fields": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["a", "b", 5]), "type": inner}), max_size=3)},
            optional={"namespace": st.sampled_from(["x", "", 5])},
        ),
    ),
    max_leaves=8,
)  # fmt: skip


@given(schema=SCHEMAS, value=st.binary(max_size=40))
def test_any_schema_is_refused_or_gives_rows_or_a_reason(schema: Any, value: bytes) -> None:
    compiled = reason(lambda: Compiled([json.dumps(schema)]))
    assert compiled
    if isinstance(compiled, Compiled):
        take(BareRows(compiled), INPUTS[3], value)


@given(value=st.binary(max_size=64) | mangled(PROTO), before=st.binary(max_size=9) | st.just(b"\0\0\0\0\1\0"))
def test_protobuf_gives_rows_or_a_reason(value: bytes, before: bytes) -> None:
    take(decoder("protobuf", 3), INPUTS[3], value)
    take(decoder("framed protobuf", 3), INPUTS[3], before + value)


@given(
    value=st.binary(max_size=40) | TEXTS | PACKED | CELLS | V2 | PROTO,
    kind=st.sampled_from(CONTENT_TYPES),
    more=st.booleans(),
)
def test_a_message_that_lies_about_itself_gives_rows_or_a_reason(value: bytes, kind: str, more: bool) -> None:
    chosen = ChosenRows(INPUTS[3], {})
    chosen._decoders.update(avro=decoder("avro", 3), protobuf=decoder("protobuf", 3))
    extra = (("inference-header-content-length", b"12"),) if more else ()
    take(chosen, INPUTS[3], value, ("Content-Type", kind.encode("latin-1")), *extra)


# --- There and back --------------------------------------------------------------------------------------------------

ROWS = st.fixed_dictionaries(
    {"a": st.floats(allow_nan=False, allow_infinity=False), "n": st.integers(-(1 << 63), (1 << 63) - 1), "s": st.text(st.characters(codec="utf-8"), min_size=1), "w": st.booleans(), "l": st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3)}
)  # fmt: skip
BACK = (
    Field("a", "float64"),
    Field("n", "int64"),
    Field("s", "string"),
    Field("w", "bool"),
    Field("l", "object"),
)
WRITES = {
    "type": "record",
    "name": "W",
    "fields": [{"name": "a", "type": "double"}, {"name": "n", "type": "long"}, {"name": "s", "type": "string"}, {"name": "w", "type": "boolean"}, {"name": "l", "type": {"type": "array", "items": "double"}}],
}  # fmt: skip


@pytest.mark.parametrize("name", ["json", "msgpack", "avro"])
@given(rows=st.lists(ROWS, max_size=3))
def test_answers_read_back_equal(name: str, rows: list[dict[str, Any]]) -> None:
    if name == "avro":
        compiled = Compiled([json.dumps(WRITES)])
        back: Decoder = BareRows(compiled)
        written = [compiled.value(r) for r in rows]
    else:
        back = payloads.decoder(name, BACK, {})
        written = payloads.encoder(name, BACK, {}).encode(rows)
    assert [back.decode(Message("0", 0, w)).records for w in written] == [[r] for r in rows]


@given(row=ROWS)
def test_lines_of_csv_read_back_equal(row: dict[str, Any]) -> None:
    [line] = payloads.encoder("csv", (), {"columns": "a,n,s,w"}).encode([row])
    assert payloads.decoder("csv", BACK[:4], {}).decode(Message("0", 0, line)).records == [
        [row[n] for n in "answ"]
    ]


@given(values=st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=4))
def test_binary_tensors_read_back_equal(values: list[list[float]]) -> None:
    fields = (Field("x", "float32", (-1, 2)),)
    tensor = np.array(values, "<f4")
    head = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    framed = _framed(json.dumps({"inputs": [head]}).encode(), tensor.tobytes())
    rows = payloads.decoder("v2", fields, {}).decode(Message("0", 0, framed))
    assert rows.read is not None
    assert np.array_equal(rows.read.batch.columns["x"], tensor, equal_nan=True)
