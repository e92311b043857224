"""Payloads: from a message to rows, from answers to messages. One file a form, found by name; see BUILT_IN.

A decoder is asked once a message, in the loop that polls; it never blocks, but for the first message of a schema that the
registry holds. A message that is not what it should be is a BadInput with its reason, and nothing else: no bytes make a
decoder raise another error, take much more memory than they have, or run for long.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ...brokers import Message
from ...errors import BadDescription, BadInput
from ...rest.rows import Read
from ...signature import Field

BUILT_IN = {
    "auto": "chosen",
    "cells": "cells",
    "json": "json_text",
    "msgpack": "message_pack",
    "csv": "csv_text",
    "v2": "v2_binary",
    "avro": "avro",
    "protobuf": "protobuf",
}
"""Name → module here: `decoder(fields, options)` with DECODES, its options, and `encoder(fields, options)` with ENCODES where it has one."""
EXTRAS = {"avro": "avro", "protobuf": "protobuf"}
"""Name → the extra of the runtime that brings its library."""


class Rows(msgspec.Struct, frozen=True):
    """The rows of one message, at least one.

    records: each an object of columns or a list of values in the signature's order, of plain values and bytes. Among several
    may be something else: the reader refuses that row alone. read: where the payload came as columns, the batch they make;
    records is empty then. one: the message was a row, not a list of rows.
    """

    records: list[Any]
    read: Read | None = None
    one: bool = True

    @property
    def count(self) -> int:
        return len(self.records) if self.read is None else self.read.count


class Decoder(Protocol):
    def decode(self, message: Message) -> Rows:
        """Raises BadInput with the reason where there are no rows in it: the message is a dead letter then. Raises Away where
        a schema is needed that can't be fetched now: the same message is decoded again later; Unusable where it never can."""


class Encoder(Protocol):
    content_type: str

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
        """One message a row. Raises ModelFailed where one of them can't be written (to learn which, encode each alone), Away
        where a schema is needed that can't be fetched now, Unusable where it never can."""


def decoder(name: str, fields: Sequence[Field], options: Mapping[str, str]) -> Decoder:
    """fields: the signature's inputs. Asks no registry. Raises BadDescription for an unknown name or a wrong option."""
    codec = _codec(name)
    _check(name, options, codec.DECODES)
    return codec.decoder(tuple(fields), options)


def encoder(name: str, fields: Sequence[Field], options: Mapping[str, str]) -> Encoder:
    """fields: the signature's outputs. Asks no registry. Raises BadDescription for an unknown name or a wrong option."""
    codec = _codec(name)
    if not hasattr(codec, "encoder"):
        raise BadDescription(f"Answers can't be written as {name}.", f"Known are {', '.join(WRITTEN)}.")
    _check(name, options, codec.ENCODES)
    return codec.encoder(tuple(fields), options)


WRITTEN = ("json", "msgpack", "csv", "avro")


def _codec(name: str) -> Any:
    module = BUILT_IN.get(name)
    if module is None:
        raise BadDescription(f"There is no payload {name!r}.", f"Known are {', '.join(BUILT_IN)}.")
    try:
        return importlib.import_module(f".{module}", __name__)
    except ImportError as cause:
        if name not in EXTRAS:
            raise
        raise BadDescription(
            f"The payload {name} needs {cause.name or 'a library'}, which is not in this environment.",
            f"Install the runtime's extra: mlpacker-runtime[{EXTRAS[name]}].",
        ) from cause


def _check(name: str, options: Mapping[str, str], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise BadDescription(
                f"The payload {name} has no option {option!r}.", f"It has {', '.join(known) or 'none'}."
            )


def several(found: list[Any]) -> Rows:
    """A list of objects or of lists is as many rows; a list of anything else is one row. Raises BadInput for an empty one."""
    if not found:
        raise BadInput("The message is an empty list: it holds no row.")
    first = type(found[0])
    return Rows(found, None, False) if first is dict or first is list else Rows([found])
