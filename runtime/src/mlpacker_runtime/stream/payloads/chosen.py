"""What a message says it is: by its header `content-type`, or by the frame of a registry; JSON where it says nothing known.

A message that says it is Avro or Protobuf needs the options of that payload, else it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...brokers import CELLS, Headers, Message
from ...errors import BadDescription, BadInput
from ...signature import Field
from . import Decoder, Rows
from . import decoder as by_name
from .json_text import JsonRows
from .schema_registry import read_id, registry
from .v2_binary import CONTENT_TYPE as V2
from .v2_binary import LENGTH

DECODES = ("columns", "registry", "schema", "descriptor", "message", "framed")
ENCODES = ()
CONTENT_TYPES = {
    CELLS[0][1].decode(): "cells",
    "application/json": "json",
    "text/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "text/csv": "csv",
    V2: "v2",
    "application/avro": "avro",
    "avro/binary": "avro",
    "application/vnd.apache.avro+binary": "avro",
    "application/protobuf": "protobuf",
    "application/x-protobuf": "protobuf",
    "application/vnd.google.protobuf": "protobuf",
}
SUFFIXES = {"+json": "json", "+msgpack": "msgpack", "+avro": "avro", "+protobuf": "protobuf"}
NEEDS = {"avro": "registry or schema", "protobuf": "descriptor and message"}


class ChosenRows:
    def __init__(self, fields: tuple[Field, ...], options: Mapping[str, str]) -> None:
        self._json = JsonRows(fields)
        self._decoders: dict[str, Decoder] = {"json": self._json}
        self._registry = registry(options)
        for name, known in _codecs(options).items():
            self._decoders[name] = by_name(name, fields, {n: options[n] for n in known if n in options})

    def decode(self, message: Message) -> Rows:
        if not message.headers and message.value[:1] != b"\0":
            return self._json.decode(message)
        name = said(message.headers) or self._by_frame(message.value)
        found = self._decoders.get(name)
        if found is None:
            raise BadInput(
                f"The message says that it is {name}, and this stream is not set to read that.",
                f"The payload's options are missing: {NEEDS.get(name, name)}.",
            )
        return found.decode(message)

    def _by_frame(self, value: bytes) -> str:
        """The form that the registry holds the message's schema in. Raises BadInput, SchemaAway, Unusable."""
        if self._registry is None or value[:1] != b"\0":
            return "json"
        return self._registry.by_id(read_id(value)).kind.lower()


def said(headers: Headers) -> str | None:
    """The payload that these name; None where they name none that is known."""
    found = None
    for name, value in headers:
        name = name.lower()
        if name == LENGTH:
            return "v2"
        if name == "content-type" and found is None:
            kind = value.partition(b";")[0].strip().lower().decode("latin-1")
            found = CONTENT_TYPES.get(kind) or SUFFIXES.get(kind[kind.rfind("+") :])
    return found


def _codecs(options: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Those that there are options for, and which are theirs."""
    codecs: dict[str, tuple[str, ...]] = {"cells": (), "msgpack": (), "v2": (), "csv": ("columns",)}
    if "descriptor" in options or "message" in options:
        codecs["protobuf"] = ("descriptor", "message", "framed", "registry")
    if "schema" in options or ("registry" in options and "protobuf" not in codecs):
        codecs["avro"] = ("registry", "schema")
    if "framed" in options and "protobuf" not in codecs:
        raise BadDescription("framed: belongs to protobuf, which needs descriptor and message.")
    return codecs


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> ChosenRows:
    return ChosenRows(fields, options)
