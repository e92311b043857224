"""Protocol Buffers: a message is a row. Its type comes from a file that `protoc` wrote, never from the registry: that has
only the text, and the compiler for it is no part of a runtime. The registry, where one is given, is asked whether it knows
the id, and whether that schema has a message of this name.

    protoc --include_imports --descriptor_set_out=readings.desc readings.proto

A field that can be absent and is becomes null (in proto3: one marked `optional`, or a message), another its default. Enums
are their names, well-known timestamps ISO text, wrappers their values. The frame's message indexes are checked against
the type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from ...brokers import Message
from ...errors import BadDescription, BadInput
from ...signature import Field
from . import Rows
from .schema_registry import FRAME, Registry, read_id, registry

DECODES = ("descriptor", "message", "framed", "registry")
ENCODES = ()
DEEPEST_INDEX = 32
TIMESTAMP = "google.protobuf.Timestamp"
WRAPPERS = {
    f"google.protobuf.{n}Value"
    for n in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}
Read = Callable[[Any], Any]


class ProtobufRows:
    """framed: messages have a registry's frame. asked: the registry that is asked about its id, None: none is."""

    def __init__(self, made: type, framed: bool, asked: Registry | None) -> None:
        self._made: Any = made
        self._name = made.DESCRIPTOR.full_name  # type: ignore[attr-defined]
        self._path = _path(made.DESCRIPTOR)  # type: ignore[attr-defined]
        self._framed, self._registry = framed, asked
        self._known: dict[int, str] = {}
        self._read = Reading().of(made.DESCRIPTOR)  # type: ignore[attr-defined]

    def decode(self, message: Message) -> Rows:
        value = message.value
        if not value:
            raise BadInput("The message is empty.")
        if self._framed:
            self._check_id(read_id(value))
            value = value[self._body(value) :]
        try:
            found = self._made.FromString(value)
        except DecodeError as cause:
            raise BadInput(f"The message is not a {self._name}: {cause}.") from cause
        if value and not found.ListFields():
            raise BadInput(f"The message has no field of {self._name} in its {len(value)} bytes.")
        return Rows([self._read(found)])

    def _check_id(self, number: int) -> None:
        if self._registry is None:
            return
        wrong = self._known.get(number)
        if wrong is None:
            wrong = self._known[number] = self._wrong(number, self._registry)
        if wrong:
            raise BadInput(wrong)

    def _wrong(self, number: int, asked: Registry) -> str:
        schema = asked.by_id(number)
        if schema.kind != "PROTOBUF":
            return f"The registry holds schema {number} as {schema.kind}, not PROTOBUF."
        own = re.escape(self._name.rpartition(".")[2])
        if re.search(rf"\bmessage\s+{own}\b", schema.schema) is None:
            return f"The registry's schema {number} has no message {self._name}."
        return ""

    def _body(self, value: bytes) -> int:
        """Where the body begins. Raises BadInput where the message is of another type."""
        count, at = _zigzag(value, FRAME)
        path = [0] if count == 0 else []
        if not 0 <= count <= DEEPEST_INDEX:
            raise BadInput("The message's frame does not say of which type it is.")
        for _ in range(count):
            index, at = _zigzag(value, at)
            path.append(index)
        if path != self._path:
            raise BadInput(
                f"The message is of another type of its schema (at {path}) than {self._name} (at {self._path})."
            )
        return at


def _zigzag(value: bytes, at: int) -> tuple[int, int]:
    """A signed varint and where it ends. Raises BadInput."""
    number = shift = 0
    while shift < 35:
        if at >= len(value):
            break
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
    raise BadInput("The message's frame does not say of which type it is.")


def _path(descriptor: Any) -> list[int]:
    """Places of the type and of those around it, the outermost first, among their neighbours in the file."""
    path: list[int] = []
    while descriptor is not None:
        around = descriptor.containing_type
        names = (
            [n.name for n in around.nested_types]
            if around is not None
            else list(descriptor.file.message_types_by_name)
        )
        path.insert(0, names.index(descriptor.name))
        descriptor = around
    return path


class Reading:
    """From messages to plain values. One function for each type, so that a type may contain itself."""

    def __init__(self) -> None:
        self._made: dict[str, Read] = {}

    def of(self, descriptor: Any) -> Read:
        name = descriptor.full_name
        if name == TIMESTAMP:
            return _time
        if name in WRAPPERS:
            return lambda found: found.value
        if name not in self._made:
            fields: list[tuple[str, bool, Read | None]] = []
            self._made[name] = _object(fields)
            fields += [(f.name, _presence(f), self._field(f)) for f in descriptor.fields]
        return self._made[name]

    def _field(self, field: Any) -> Read | None:
        """None where the value is plain already."""
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            one = self._one(field.message_type.fields_by_name["value"])
            return lambda values: {str(k): one(values[k]) if one else values[k] for k in values}
        one = self._one(field)
        if not _repeated(field):
            return one
        return list if one is None else lambda values: [one(v) for v in values]

    def _one(self, field: Any) -> Read | None:
        if field.message_type is not None:
            return self.of(field.message_type)
        if field.enum_type is not None:
            names = {v.number: v.name for v in field.enum_type.values}
            return lambda number: names.get(number, number)
        return None


def _object(fields: list[tuple[str, bool, Read | None]]) -> Read:
    def read(found: Any) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, can_be_absent, one in fields:
            if can_be_absent and not found.HasField(name):
                row[name] = None
                continue
            value = getattr(found, name)
            row[name] = value if one is None else one(value)
        return row

    return read


def _repeated(field: Any) -> bool:
    """`label` is on its way out of the library; `is_repeated` came with release 30."""
    said = getattr(field, "is_repeated", None)
    return field.label == field.LABEL_REPEATED if said is None else bool(said)


def _presence(field: Any) -> bool:
    return bool(field.has_presence) and not _repeated(field)


def _time(found: Any) -> str:
    if not 0 <= found.nanos < 10**9:
        raise BadInput(f"The message has a timestamp of {found.nanos} nanoseconds beside its seconds.")
    return f"{np.datetime64(found.seconds, 's')}.{found.nanos:09d}"


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> ProtobufRows:
    for name in ("descriptor", "message"):
        if not options.get(name):
            raise BadDescription(
                f"The payload protobuf needs {name}.",
                "descriptor=FILE is what protoc --include_imports --descriptor_set_out=FILE wrote, message=package.Name one in it.",
            )
    asked = registry(options)
    framed = options.get("framed", "yes" if asked is not None else "no")
    if framed not in ("yes", "no") or (framed == "no" and asked is not None):
        raise BadDescription("framed: yes or no; with a registry it is yes.")
    return ProtobufRows(message_type(Path(options["descriptor"]), options["message"]), framed == "yes", asked)


def message_type(path: Path, name: str) -> type:
    """The class of a message that a file of descriptors describes. Raises BadDescription."""
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    except (OSError, DecodeError) as cause:
        raise BadDescription(f"descriptor: {path} can't be read: {cause}.") from cause
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in files.file:
            pool.AddSerializedFile(file.SerializeToString())
        descriptor = pool.FindMessageTypeByName(name)
    except TypeError as cause:
        raise BadDescription(
            f"descriptor: {path} can't be used: {cause}.", "Make it with --include_imports."
        ) from cause
    except KeyError as cause:
        raise BadDescription(f"message: {path} has no message {name!r}.") from cause
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)  # type: ignore[attr-defined]  # before 4.22
