"""Avro schemas as we read them: logical types to and from plain values, and refused where reading would not be safe.

A schema that contains itself lets a few bytes nest without end (the C stack of fastavro is not bounded), and a list whose
items take no bytes can be of any length. Neither describes a row of columns; both are refused before any message is read.
The types are those of the Avro 1.11 specification.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from ...errors import BadInput

DEPTH = 64
DECIMAL_BYTES = 128
LARGEST_SCALE = 300
PYTHON = {
    "null": type(None),
    "boolean": bool,
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "bytes": bytes,
    "string": str,
}
"""Primitive type → what it is read as."""
UNITS: dict[str, Any] = {"date": "D", "millis": "ms", "micros": "us", "nanos": "ns"}
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Type:
    """schema: without logical types and unknown keys, for fastavro. python: what it is read as. read, write: to a plain value
    and from one; None where it is one. empty: takes no bytes."""

    schema: Any
    python: type
    read: Convert | None = None
    write: Convert | None = None
    empty: bool = False


class Walk:
    """Reads schemas, of which later ones may name types of earlier ones."""

    def __init__(self) -> None:
        self._named: dict[str, Type | None] = {}  # None: not at its end yet

    def type(self, schema: Any, space: str = "", depth: int = DEPTH) -> Type:
        """Raises BadInput for what is no schema, or none that is safe to read by."""
        if depth == 0:
            raise BadInput(f"The Avro schema is nested more than {DEPTH} deep.")
        if isinstance(schema, str):
            return self._by_name(schema, space)
        if isinstance(schema, list):
            return self._union(schema, space, depth - 1)
        kind = schema.get("type") if isinstance(schema, dict) else None
        if isinstance(kind, (dict, list)):
            return self.type(kind, space, depth - 1)
        if not isinstance(kind, str):
            raise BadInput("The Avro schema has a part without a type.")
        if kind in ("record", "enum", "fixed"):
            return self._defined(schema, kind, space, depth - 1)
        if kind == "array":
            return self._array(schema, space, depth - 1)
        if kind == "map":
            return self._map(schema, space, depth - 1)
        found = self._by_name(kind, space)
        read, write = _logical(schema, kind)
        return Type(found.schema, found.python, read or found.read, write or found.write, found.empty)

    def _by_name(self, name: str, space: str) -> Type:
        if name in PYTHON:
            return Type(name, PYTHON[name], empty=name == "null")
        full = name if "." in name or not space else f"{space}.{name}"
        if full not in self._named:
            raise BadInput(f"The Avro schema names {full!r}, which it does not define.")
        found = self._named[full]
        if found is None:
            raise BadInput(f"The Avro schema's {full!r} contains itself; rows of a model do not.")
        return Type(full, found.python, found.read, found.write, found.empty)

    def _union(self, branches: list[Any], space: str, depth: int) -> Type:
        types = [self.type(b, space, depth) for b in branches]
        values = [t for t in types if t.python is not type(None)]
        by_kind = {t.python: t.read for t in values if t.read is not None}
        if by_kind and len({t.python for t in values}) < len(values):
            raise BadInput("The Avro schema has a union whose values can't be told apart by their type.")
        lone = values[0].write if len(values) == 1 else None
        return Type(
            [t.schema for t in types], object, _by_kind(by_kind) if by_kind else None, _unless_null(lone)
        )

    def _defined(self, schema: dict[str, Any], kind: str, space: str, depth: int) -> Type:
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            raise BadInput(f"The Avro schema has a {kind} without a name.")
        given = schema.get("namespace", space)
        if not isinstance(given, str):
            raise BadInput(f"The Avro schema's {name!r} has a namespace that is no text.")
        full = name if "." in name or not given else f"{given}.{name}"
        if full in self._named or full in PYTHON:
            raise BadInput(f"The Avro schema defines {full!r} twice.")
        self._named[full] = None
        make = {"record": self._record, "enum": _enum, "fixed": _fixed}[kind]
        found = make(schema, full, depth)
        self._named[full] = found
        return found

    def _record(self, schema: dict[str, Any], full: str, depth: int) -> Type:
        fields = schema.get("fields")
        if not isinstance(fields, list):
            raise BadInput(f"The Avro schema's {full!r} has no list of fields.")
        types: dict[str, Type] = {}
        plain = []
        for field in fields:
            name = field.get("name") if isinstance(field, dict) else None
            if not isinstance(name, str) or "type" not in field or name in types:
                raise BadInput(f"The Avro schema's {full!r} has a field without a name of its own or a type.")
            types[name] = self.type(field["type"], full.rpartition(".")[0], depth)
            kept = {"default": field["default"]} if "default" in field else {}
            plain.append({"name": name, "type": types[name].schema, **kept})
        reads = [(n, t.read) for n, t in types.items() if t.read is not None]
        writes = [(n, t.write) for n, t in types.items() if t.write is not None]
        return Type(
            {"type": "record", "name": full, "fields": plain},
            dict,
            _each_field(reads) if reads else None,
            _each_field_given(writes) if writes else None,
            all(t.empty for t in types.values()),
        )

    def _array(self, schema: dict[str, Any], space: str, depth: int) -> Type:
        item = self.type(schema.get("items"), space, depth)
        if item.empty:
            raise BadInput("The Avro schema has a list whose items take no bytes: it could be of any length.")
        return Type(
            {"type": "array", "items": item.schema}, list, _each_item(item.read), _each_item(item.write)
        )

    def _map(self, schema: dict[str, Any], space: str, depth: int) -> Type:
        value = self.type(schema.get("values"), space, depth)
        return Type(
            {"type": "map", "values": value.schema}, dict, _each_value(value.read), _each_value(value.write)
        )


def _enum(schema: dict[str, Any], full: str, depth: int) -> Type:
    symbols = schema.get("symbols")
    if not isinstance(symbols, list) or not all(isinstance(s, str) for s in symbols):
        raise BadInput(f"The Avro schema's {full!r} has no list of symbols.")
    return Type({"type": "enum", "name": full, "symbols": symbols}, str)


def _fixed(schema: dict[str, Any], full: str, depth: int) -> Type:
    size = schema.get("size")
    if type(size) is not int or size < 1:
        raise BadInput(f"The Avro schema's {full!r} has no size from 1.")
    read, write = _logical(schema, "fixed")
    return Type({"type": "fixed", "name": full, "size": size}, bytes, read, write)


# --- Values of several values ----------------------------------------------------------------------------------------


def _each_field(reads: list[tuple[str, Convert]]) -> Convert:
    def convert(record: dict[str, Any]) -> dict[str, Any]:
        for name, read in reads:
            record[name] = read(record[name])
        return record

    return convert


def _each_field_given(writes: list[tuple[str, Convert]]) -> Convert:
    def convert(record: Any) -> dict[str, Any]:
        return {**record, **{n: write(record[n]) for n, write in writes if n in record}}

    return convert


def _each_item(one: Convert | None) -> Convert | None:
    return None if one is None else lambda values: [one(v) for v in values]


def _each_value(one: Convert | None) -> Convert | None:
    return None if one is None else lambda values: {k: one(v) for k, v in values.items()}


def _by_kind(reads: dict[type, Convert]) -> Convert:
    def convert(value: Any) -> Any:
        read = reads.get(type(value))
        return value if read is None else read(value)

    return convert


def _unless_null(write: Convert | None) -> Convert | None:
    return None if write is None else lambda value: None if value is None else write(value)


# --- Logical types ---------------------------------------------------------------------------------------------------


def _logical(schema: dict[str, Any], kind: str) -> tuple[Convert | None, Convert | None]:
    """How to read and write a logical type; one that is unknown or does not fit is its plain type, as the specification says."""
    name = schema.get("logicalType")
    if not isinstance(name, str):
        return None, None
    if name == "decimal" and kind in ("bytes", "fixed"):
        return _decimal(schema, schema.get("size") if kind == "fixed" else None)
    if name == "uuid" and kind == "fixed" and schema.get("size") == 16:
        return lambda value: str(uuid.UUID(bytes=value)), lambda text: uuid.UUID(text).bytes
    unit = UNITS.get(name.removeprefix("local-").removeprefix("timestamp-"))
    if unit is None or (kind, unit == "D") not in (("int", True), ("long", False)):
        return None, None
    return lambda value: str(np.datetime64(value, unit)), lambda value: _since_epoch(value, unit)


def _since_epoch(value: Any, unit: str) -> Any:
    """ISO text as whole units since 1970; numbers are that already."""
    if not isinstance(value, str):
        return value
    return int(np.datetime64(value.removesuffix("Z"), "ns").astype(f"datetime64[{unit}]").astype(np.int64))


def _decimal(schema: dict[str, Any], size: int | None) -> tuple[Convert | None, Convert | None]:
    scale = schema.get("scale", 0)
    if type(scale) is not int or not 0 <= scale <= LARGEST_SCALE:
        return None, None
    whole = 10**scale

    def read(value: bytes) -> float:
        if len(value) > DECIMAL_BYTES:
            raise BadInput(f"The message has a decimal of {len(value)} bytes; {DECIMAL_BYTES} are the most.")
        return int.from_bytes(value, "big", signed=True) / whole

    def write(value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        number = int((Decimal(str(value)) * whole).to_integral_value())
        return number.to_bytes(size or number.bit_length() // 8 + 1, "big", signed=True)

    return read, write
