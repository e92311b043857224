"""Payloads: what is a row and what is several, what is refused and with which words, and that nothing else is raised."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Mapping
from datetime import date, datetime, timezone
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, timestamp_pb2, wrappers_pb2

from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Message
from mlpacker_runtime.errors import BadDescription, BadInput, ModelFailed
from mlpacker_runtime.rest.rows import Reader
from mlpacker_runtime.signature import Field
from mlpacker_runtime.stream import payloads
from mlpacker_runtime.stream.payloads.protobuf import message_type
from mlpacker_runtime.stream.payloads.schema_registry import registry

FIELDS = (Field("depth", "float64"), Field("rock", "string", nullable=True))


def message(value: bytes, **headers: str) -> Message:
    named = tuple((n.replace("_", "-"), v.encode()) for n, v in headers.items())
    return Message("0", 7, value, headers=named)


def decode(
    value: bytes,
    name: str = "json",
    fields: tuple[Field, ...] = FIELDS,
    options: Mapping[str, str] | None = None,
    **headers: str,
) -> payloads.Rows:
    return payloads.decoder(name, fields, options or {}).decode(message(value, **headers))


def refused(value: bytes, name: str = "json", **more: Any) -> str:
    with pytest.raises(BadInput) as caught:
        decode(value, name, **more)
    return str(caught.value)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_an_object_is_one_row() -> None:
    rows = decode(b'{"depth": 1.5, "rock": "basalt"}')
    assert (rows.records, rows.one, rows.count) == ([{"depth": 1.5, "rock": "basalt"}], True, 1)


def test_a_list_of_objects_is_several_rows_even_if_it_holds_one() -> None:
    assert decode(b'[{"depth": 1}, {"depth": 2}]').count == 2
    assert decode(b'[{"depth": 1}]').one is False


def test_a_list_of_values_is_one_row_and_a_list_of_lists_several() -> None:
    assert decode(b'[1.5, "basalt"]').records == [[1.5, "basalt"]]
    assert decode(b'[[1, "a"], [2, "b"]]').count == 2


def test_a_row_of_another_kind_among_several_fails_alone() -> None:
    rows = decode(b'[{"depth": 1, "rock": "a"}, 5]')
    read = Reader(FIELDS).records(rows.records)
    assert list(read.errors) == [1]


def test_a_v2_request_gives_its_rows() -> None:
    body = {"inputs": [{"name": "depth", "datatype": "FP64", "shape": [3], "data": [1, 2, 3]}, {"name": "rock", "datatype": "BYTES", "shape": [3], "data": ["a", None, "c"]}]}  # fmt: skip
    rows = decode(json.dumps(body).encode())
    assert rows.read is not None
    assert rows.count == 3
    assert not rows.one
    assert rows.read.batch.columns["depth"].tolist() == [1.0, 2.0, 3.0]


def test_a_column_named_inputs_is_a_column_where_the_model_has_it() -> None:
    fields = (Field("inputs", "object"),)
    assert decode(b'{"inputs": [{"name": 1, "shape": 2, "datatype": 3}]}', fields=fields).read is None
    assert decode(b'{"inputs": 5}').records == [{"inputs": 5}]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "empty"),
        (b"   ", "not JSON"),
        (b'{"depth": NaN}', "NaN"),
        (b'{"depth": -Infinity}', "Infinity"),
        (b'{"rock": "\xff"}', "UTF-8|utf-8"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"depth": 1} {}', "not JSON"),
        (b'{"depth": 1', "not JSON"),
        (b"5", "row"),
        (b'"basalt"', "row"),
        (b"null", "row"),
        (b"[]", "no row"),
        (b'{"depth": 1e999}', "out of range"),
        (b'{"depth": ' + b"9" * 400 + b"}", "308 digits"),
        (b'{"depth": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"depth": ' + b"[" * 70 + b"]" * 70 + b"}", "64 deep"),
        (b"[" * 100_000, "64 deep"),
        (b'{"inputs": [{"name": "depth", "datatype": "FP99", "shape": [1], "data": [1]}]}', "FP99"),
        (b'{"inputs": [{"name": "depth", "datatype": "FP64", "shape": [0], "data": []}, {"name": "rock", "datatype": "BYTES", "shape": [0], "data": []}]}', "no rows"),
    ],
)  # fmt: skip
def test_what_is_no_row_of_json_is_refused_with_its_reason(value: bytes, words: str) -> None:
    assert any(word in refused(value) for word in words.split("|"))


def test_brackets_in_a_text_are_no_nesting() -> None:
    assert decode(json.dumps({"rock": "[{" * 500}).encode()).count == 1


def test_json_behind_the_frame_of_a_registry_is_read() -> None:
    assert decode(b'\0\0\0\0\x07{"depth": 1}').records == [{"depth": 1}]
    assert "not JSON" in refused(b"\0\0\0\0\x07junk")


# --- auto ------------------------------------------------------------------------------------------------------------

PACKED = msgspec.msgpack.encode({"depth": 1.5, "rock": "basalt"})


@pytest.mark.parametrize(
    "kind", ["application/msgpack", "Application/X-MsgPack; v=1", "application/vnd.plant+msgpack"]
)
def test_auto_reads_what_the_content_type_says(kind: str) -> None:
    assert decode(PACKED, "auto", content_type=kind).records == [{"depth": 1.5, "rock": "basalt"}]


def test_auto_reads_json_where_the_content_type_says_nothing_known() -> None:
    for headers in ({}, {"content_type": "text/plain"}, {"traceparent": "00-1"}, {"content_type": ""}):
        assert decode(b'{"depth": 1}', "auto", **headers).count == 1
    assert decode(b"1,a", "auto", content_type="text/csv; charset=utf-8").count == 1


def test_a_content_type_that_lies_is_refused() -> None:
    for kind in ("application/msgpack", "application/json", "application/vnd.mlpacker.v2"):
        refused(b"\x80\x81{", "auto", content_type=kind)
    refused(b'{"depth": 1}', "auto", inference_header_content_length="99")


def test_a_payload_that_is_set_is_read_whatever_the_content_type_says() -> None:
    assert decode(b'{"depth": 1}', "json", content_type="application/msgpack").count == 1


def test_auto_says_which_options_are_missing() -> None:
    assert "registry or schema" in refused(b"x", "auto", content_type="application/avro")
    assert "descriptor" in refused(b"x", "auto", content_type="application/x-protobuf")


# --- MessagePack -----------------------------------------------------------------------------------------------------


def test_message_pack_gives_rows_of_plain_values() -> None:
    assert decode(PACKED, "msgpack").one
    when = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    rows = decode(msgspec.msgpack.encode([{"t": when, "raw": b"\xff", "deep": {"t": [when]}}]), "msgpack")
    assert rows.records == [
        {"t": "2024-05-01T12:00:00+00:00", "raw": b"\xff", "deep": {"t": ["2024-05-01T12:00:00+00:00"]}}
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "not MessagePack"),
        (b"\x05", "not MessagePack"),
        (PACKED + b"\0", "not MessagePack"),
        (b"\xdd\xff\xff\xff\xff", "not MessagePack"),
        (b"\x81\xa1a\xa1\xff", "utf-8"),
        (b"\x81\x01\x02", "not MessagePack"),
        (b"\x81\xa1a\x81\x01\x02", "not text"),
        (b"\x81\xa1a\xd4\x05\x00", "extension"),
        (b"\x81\xa1a" + b"\x91" * 70 + b"\x01", "64 deep"),
        (b"\x91" * 100_000, "64 deep"),
        (b"\x90", "no row"),
    ],
)
def test_what_is_no_row_of_message_pack_is_refused_with_its_reason(value: bytes, words: str) -> None:
    assert words in refused(value, "msgpack")


# --- CSV -------------------------------------------------------------------------------------------------------------

CELLS = (
    Field("depth", "float64"),
    Field("rock", "string", nullable=True),
    Field("count", "int64", nullable=True),
    Field("wet", "bool"),
)


def test_a_line_of_csv_is_a_row_in_the_signatures_order() -> None:
    rows = decode(b'1.5,"a ""b"", c\nd",3,TRUE\r\n', "csv", fields=CELLS)
    assert rows.records == [[1.5, 'a "b", c\nd', 3, True]]
    assert rows.one


def test_lines_of_csv_are_several_rows() -> None:
    rows = decode("\ufeff1,ä,2,true\n\n,,,false\n".encode(), "csv", fields=CELLS)
    assert rows.records == [[1.0, "ä", 2, True], [None, None, None, False]]
    assert not rows.one


def test_columns_name_the_cells_and_others_than_the_models_are_left_out_by_the_reader() -> None:
    rows = decode(b"a,x,1.5", "csv", options={"columns": "rock, note, depth"})
    assert rows.records == [{"rock": "a", "note": "x", "depth": 1.5}]
    assert Reader(FIELDS).records(rows.records).batch.columns["depth"].tolist() == [1.5]


def test_a_line_of_csv_is_one_wide_tensor() -> None:
    wide = (Field("input", "float32", (-1, 3)),)
    rows = decode(b"1,,nan", "csv", fields=wide)
    assert np.isnan(Reader(wide).lists(rows.records).batch.columns["input"][0, 1:]).all()


def test_a_cell_that_does_not_fit_is_that_rows_error_only() -> None:
    rows = decode(b"x,a\n2,b", "csv")
    assert list(Reader(FIELDS).lists(rows.records).errors) == [0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"1", "1 cells; 2 belong"),
        (b"1,a\n1,a,b", "Row 1 of the CSV has 3"),
        (b'1,"a', "can't be read"),
        (b"\xff,a", "UTF-8"),
        (b"1," + b"a" * 200_000, "can't be read"),
    ],
)
def test_what_is_no_line_of_csv_is_refused_with_its_reason(value: bytes, words: str) -> None:
    assert words in refused(value, "csv")


def test_a_number_of_many_digits_in_csv_is_refused() -> None:
    assert "308 digits" in refused(b"1,a," + b"9" * 400 + b",true", "csv", fields=CELLS)


def test_csv_columns_must_be_what_the_model_needs() -> None:
    with pytest.raises(BadDescription, match="'rock' is missing"):
        payloads.decoder("csv", FIELDS, {"columns": "depth"})
    with pytest.raises(BadDescription, match="each once"):
        payloads.decoder("csv", FIELDS, {"columns": "depth,depth,rock"})


# --- V2 --------------------------------------------------------------------------------------------------------------

TENSORS = np.array([[1.5, 2.5], [3.5, 4.5]], "<f4").tobytes()
HEAD = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}]}
).encode()
PAIR = (Field("x", "float32", (-1, 2)),)


def test_v2_tensors_are_read_by_the_length_in_the_header_or_before_the_message() -> None:
    by_header = decode(HEAD + TENSORS, "v2", PAIR, inference_header_content_length=str(len(HEAD)))
    framed = decode(struct.pack("<I", len(HEAD)) + HEAD + TENSORS, "v2", PAIR)
    for rows in (by_header, framed):
        assert rows.read is not None
        assert rows.count == 2
        assert rows.read.batch.columns["x"].tolist() == [[1.5, 2.5], [3.5, 4.5]]
    assert decode(HEAD + TENSORS, "auto", PAIR, inference_header_content_length=str(len(HEAD))).count == 2


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (b"", None),
        (b"\1\0", None),
        (HEAD + TENSORS, None),
        (struct.pack("<I", 1 << 31) + HEAD, None),
        (struct.pack("<I", len(HEAD)) + HEAD + TENSORS[:-1], None),
        (struct.pack("<I", len(HEAD)) + HEAD + TENSORS + b"x", None),
        (HEAD + TENSORS, ""),
        (HEAD + TENSORS, "-1"),
        (HEAD + TENSORS, "\u0663"),
        (HEAD + TENSORS, "9" * 6000),
    ],
)
def test_what_is_no_v2_request_is_refused(value: bytes, length: str | None) -> None:
    headers = {} if length is None else {"inference_header_content_length": length}
    refused(value, "v2", fields=PAIR, **headers)


# --- Avro ------------------------------------------------------------------------------------------------------------

READING = {
    "type": "record",
    "name": "Reading",
    "namespace": "plant",
    "fields": [
        {"name": "depth", "type": "double"},
        {"name": "rock", "type": ["null", "string"], "default": None},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "times", "type": {"type": "array", "items": {"type": "long", "logicalType": "local-timestamp-millis"}}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
    ],
}  # fmt: skip
VALUE = {
    "depth": 1.5,
    "rock": None,
    "price": Decimal("-12.25"),
    "at": datetime(2024, 5, 1, 12, 0, 0, 250000, tzinfo=timezone.utc),
    "day": date(2024, 5, 1),
    "id": uuid.UUID(int=5),
    "times": [datetime(1969, 12, 31, 23, 59, 59)],  # noqa: DTZ001  it is local
    "kind": "B",
}
PLAIN = {
    "depth": 1.5,
    "rock": None,
    "price": -12.25,
    "at": "2024-05-01T12:00:00.250000",
    "day": "2024-05-01",
    "id": "00000000-0000-0000-0000-000000000005",
    "times": ["1969-12-31T23:59:59.000"],
    "kind": "B",
}


def avro(schema: Any, value: Any) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def schema_file(folder: Path, schema: Any) -> dict[str, str]:
    (folder / "schema.avsc").write_text(json.dumps(schema))
    return {"schema": str(folder / "schema.avsc")}


def test_avro_gives_plain_values_of_logical_types(tmp_path: Path) -> None:
    rows = decode(avro(READING, VALUE), "avro", options=schema_file(tmp_path, READING))
    assert rows.records == [PLAIN]


def test_avro_answers_take_plain_values_back(tmp_path: Path) -> None:
    written = payloads.encoder("avro", FIELDS, schema_file(tmp_path, READING)).encode([{**PLAIN, "more": 1}])
    assert written == [avro(READING, VALUE)]


def test_auto_reads_avro_by_a_schema_that_is_set(tmp_path: Path) -> None:
    rows = decode(
        avro(READING, VALUE), "auto", options=schema_file(tmp_path, READING), content_type="application/avro"
    )
    assert rows.count == 1


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}, "contains itself"),
        ({"type": "array", "items": "null"}, "any length"),
        ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "any length"),
        ({"type": "map", "values": {"type": "array", "items": {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}]}}}, "any length"),
        ("Nothing", "does not define"),
        ({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]}, "name of its own"),
        ({"type": "record", "fields": []}, "without a name"),
        ({"type": "fixed", "name": "F", "size": -1}, "size"),
        ([{"type": "int", "logicalType": "date"}, "long"], "told apart"),
        ({"name": "x"}, "without a type"),
        (5, "without a type"),
    ],
)  # fmt: skip
def test_a_schema_that_is_none_or_is_not_safe_to_read_by_is_refused(
    tmp_path: Path, schema: Any, words: str
) -> None:
    with pytest.raises(BadDescription, match=words):
        payloads.decoder("avro", FIELDS, schema_file(tmp_path, schema))


def test_a_schema_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.avsc").write_text('{"type": "array", "items": ' * 3000 + '"int"' + "}" * 3000)
    with pytest.raises(BadDescription, match="nested"):
        payloads.decoder("avro", FIELDS, {"schema": str(tmp_path / "deep.avsc")})


def test_avro_that_is_cut_or_longer_than_its_schema_is_refused(tmp_path: Path) -> None:
    options, whole = schema_file(tmp_path, READING), avro(READING, VALUE)
    for end in range(len(whole)):
        refused(whole[:end], "avro", options=options)
    assert "1 bytes behind" in refused(whole + b"x", "avro", options=options)
    assert "no row" in refused(b"\x02", "avro", options=schema_file(tmp_path, "int"))


def test_avro_needs_to_be_told_a_schema_or_a_registry(tmp_path: Path) -> None:
    both = {**schema_file(tmp_path, READING), "registry": "http://localhost:1"}
    for options in ({}, both):
        with pytest.raises(BadDescription, match="either a registry or a schema"):
            payloads.decoder("avro", FIELDS, options)
    for options in (
        {},
        {"registry": "http://localhost:1"},
        {**schema_file(tmp_path, READING), "subject": "s"},
    ):
        with pytest.raises(BadDescription):
            payloads.encoder("avro", FIELDS, options)


# --- Protocol Buffers ------------------------------------------------------------------------------------------------

DOUBLE, INT64, STRING, ENUM, MESSAGE = 1, 3, 9, 14, 11


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """What protoc writes for a Note, and a Reading with a Place in it."""
    files = descriptor_pb2.FileDescriptorSet()
    for made in (timestamp_pb2, wrappers_pb2):
        made.DESCRIPTOR.CopyToProto(files.file.add())
    file = files.file.add(name="reading.proto", package="plant", syntax="proto3")
    file.dependency.extend(f.name for f in files.file[:2])
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="A", number=0)
    kind.value.add(name="B", number=1)
    file.message_type.add(name="Note").field.add(name="text", number=1, type=STRING, label=1)
    reading = file.message_type.add(name="Reading")
    place = reading.nested_type.add(name="Place")
    place.field.add(name="level", number=1, type=INT64, label=1)
    reading.oneof_decl.add(name="_rock")
    fields = (
        ("depth", DOUBLE, 1, {}),
        ("rock", STRING, 1, {"oneof_index": 0, "proto3_optional": True}),
        ("kind", ENUM, 1, {"type_name": ".plant.Kind"}),
        ("place", MESSAGE, 1, {"type_name": ".plant.Reading.Place"}),
        ("near", MESSAGE, 3, {"type_name": ".plant.Reading.Place"}),
        ("at", MESSAGE, 1, {"type_name": ".google.protobuf.Timestamp"}),
        ("weight", MESSAGE, 1, {"type_name": ".google.protobuf.DoubleValue"}),
        ("inner", MESSAGE, 1, {"type_name": ".plant.Reading"}),
    )
    for number, (name, kind_of, label, more) in enumerate(fields, 1):
        reading.field.add(name=name, number=number, type=kind_of, label=label, **more)
    return files


@pytest.fixture
def protobuf(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "reading.desc").write_bytes(descriptors().SerializeToString())
    return {"descriptor": str(tmp_path / "reading.desc"), "message": "plant.Reading"}


def test_protobuf_gives_plain_values_and_null_for_what_is_absent(protobuf: dict[str, str]) -> None:
    reading: Any = message_type(Path(protobuf["descriptor"]), "plant.Reading")
    found = reading(depth=1.5, kind=1, near=[{"level": 2}], weight={"value": 0})
    found.at.FromJsonString("2024-05-01T12:00:00.000000007Z")
    found.inner.depth = 2
    [row] = decode(found.SerializeToString(), "protobuf", options=protobuf).records
    inner = row.pop("inner")
    assert row == {"depth": 1.5, "rock": None, "kind": "B", "place": None, "near": [{"level": 2}], "at": "2024-05-01T12:00:00.000000007", "weight": 0.0}  # fmt: skip
    assert inner["depth"] == 2.0
    assert inner["kind"] == "A"


@pytest.mark.parametrize(
    ("name", "before", "fits"),
    [
        ("plant.Note", b"\0", True),
        ("plant.Note", b"\x02\0", True),
        ("plant.Note", b"\x02\x02", False),
        ("plant.Reading", b"\x02\x02", True),
        ("plant.Reading", b"\0", False),
        ("plant.Reading.Place", b"\x04\x02\0", True),
        ("plant.Reading.Place", b"\x02\x02", False),
        ("plant.Reading", b"\xff\xff\xff\xff\xff\x01", False),
        ("plant.Reading", b"\x01", False),
        ("plant.Reading", b"\x02", False),
        ("plant.Reading", b"", False),
    ],
)
def test_the_message_indexes_of_a_frame_must_be_the_types(
    protobuf: dict[str, str], name: str, before: bytes, fits: bool
) -> None:
    decoder = payloads.decoder("protobuf", FIELDS, {**protobuf, "message": name, "framed": "yes"})
    framed = message(b"\0\0\0\0\x09" + before)
    if fits:
        assert decoder.decode(framed).count == 1
    else:
        with pytest.raises(BadInput):
            decoder.decode(framed)


def test_bytes_without_a_field_of_the_type_are_refused(protobuf: dict[str, str]) -> None:
    assert "no field of plant.Reading" in refused(b"\xa0\x06\x01", "protobuf", options=protobuf)
    assert "empty" in refused(b"", "protobuf", options=protobuf)
    assert "not a plant.Reading" in refused(b'{"depth": 1}', "protobuf", options=protobuf)
    assert "does not begin" in refused(b"\x01", "protobuf", options={**protobuf, "framed": "yes"})
    deep = b""
    for _ in range(200):
        deep = b"\x42" + _varint(len(deep)) + deep
    assert "not a plant.Reading" in refused(deep, "protobuf", options=protobuf)


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def test_protobuf_says_what_is_missing_in_its_description(protobuf: dict[str, str], tmp_path: Path) -> None:
    alone = descriptor_pb2.FileDescriptorSet(file=descriptors().file[2:])
    (tmp_path / "alone.desc").write_bytes(alone.SerializeToString())
    for options, words in (
        ({}, "needs descriptor"),
        ({**protobuf, "message": "plant.Other"}, "no message"),
        ({**protobuf, "descriptor": str(tmp_path / "none")}, "can't be read"),
        ({**protobuf, "descriptor": str(tmp_path / "alone.desc")}, "include_imports"),
        ({**protobuf, "framed": "maybe"}, "yes or no"),
        ({**protobuf, "framed": "no", "registry": "http://localhost"}, "yes or no"),
    ):
        with pytest.raises(BadDescription, match=words):
            payloads.decoder("protobuf", FIELDS, options)


# --- Answers ---------------------------------------------------------------------------------------------------------

ROW = {"id": 7, "rock": "ä,b", "share": [0.25, 0.75], "wet": True, "none": None, "gap": float("nan")}


def test_answers_are_written_one_message_a_row() -> None:
    def written(name: str, rows: list[dict[str, Any]], **options: str) -> list[bytes]:
        return payloads.encoder(name, (), options).encode(rows)

    assert written("json", [ROW, {"id": 8}]) == ['{"id":7,"rock":"ä,b","share":[0.25,0.75],"wet":true,"none":null,"gap":null}'.encode(), b'{"id":8}']  # fmt: skip
    assert written("csv", [ROW]) == ['7,"ä,b",0.25,0.75,true,,'.encode()]
    assert written("csv", [{**ROW, "raw": b"\xff", "o": {"a": 1}}], columns="o,raw,id") == [
        b'"{""a"":1}",/w==,7'
    ]
    [packed] = written("msgpack", [{**ROW, "o": np.float32(0.5), "gap": 0}])
    assert msgspec.msgpack.decode(packed) == {**ROW, "o": 0.5, "gap": 0}
    assert written("json", []) == []


def test_answers_say_their_content_type_and_auto_reads_them_back(tmp_path: Path) -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "depth", "type": "double"}, {"name": "rock", "type": "string"}]}  # fmt: skip
    row = {"depth": 1.5, "rock": "basalt"}
    for name in payloads.WRITTEN:
        options = schema_file(tmp_path, schema) if name == "avro" else {}
        encoder = payloads.encoder(name, FIELDS, options)
        [value] = encoder.encode([row])
        [record] = decode(value, "auto", options=options, content_type=encoder.content_type).records
        assert record in (row, list(row.values()))


def test_an_answer_that_does_not_fit_is_the_models_failure(tmp_path: Path) -> None:
    for name, row in (("json", {"a": object()}), ("msgpack", {"a": object()}), ("msgpack", {"a": 1 << 70}), ("avro", {"depth": "x"}), ("csv", {"a": object()})):  # fmt: skip
        options = schema_file(tmp_path, READING) if name == "avro" else {}
        with pytest.raises(ModelFailed, match="answer"):
            payloads.encoder(name, (), options).encode([row])


# --- Names and options -----------------------------------------------------------------------------------------------


def test_a_name_or_an_option_that_is_not_known_is_told() -> None:
    with pytest.raises(BadDescription, match="no payload 'xml'"):
        payloads.decoder("xml", FIELDS, {})
    with pytest.raises(BadDescription, match="no option 'header'"):
        payloads.decoder("csv", FIELDS, {"header": "yes"})
    with pytest.raises(BadDescription, match="can't be written as v2"):
        payloads.encoder("v2", FIELDS, {})
    with pytest.raises(BadDescription, match="belongs to protobuf"):
        payloads.decoder("auto", FIELDS, {"framed": "yes"})


@pytest.mark.parametrize("name", sorted(payloads.BUILT_IN))
def test_every_payload_that_can_be_written_is_named_as_such(name: str) -> None:
    said = ""
    try:
        payloads.encoder(name, FIELDS, {})
    except BadDescription as error:
        said = str(error)
    assert ("can't be written" in said) == (name not in payloads.WRITTEN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost:8081", "an address as"),
        ("https://user:secret@host", "password can't stand"),
        ("https://user@host?password=secret", "a secret and can't stand"),
        ("https://user@host?password=env:MLPACKER_NO_SUCH", "not set"),
        ("https://host?retries=3", "no option"),
        ("https://host?ca=/no/such", "TLS"),
    ],
)
def test_the_address_of_a_registry_is_told_what_is_wrong_and_repeats_no_secret(text: str, words: str) -> None:
    with pytest.raises(BadDescription, match=words) as caught:
        registry({"registry": text})
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


def test_texts_of_a_table_become_what_the_signature_says() -> None:
    fields = (Field("depth", "float64"), Field("bolts", "int64"), Field("rock", "string"))
    read = payloads.decoder("auto", fields, {})
    message = Message(
        "0", 1, b'{"depth": "1.5", "bolts": "3", "rock": "7", "other": "x"}', None, brokers.CELLS
    )
    assert read.decode(message).records == [{"depth": 1.5, "bolts": 3, "rock": "7", "other": "x"}]
    with pytest.raises(BadInput):
        read.decode(Message("0", 2, b'[{"depth": "1.5"}]', None, brokers.CELLS))
