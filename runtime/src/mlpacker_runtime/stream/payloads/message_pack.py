"""MessagePack: a map is a row, an array of maps or of arrays several. Its timestamps become ISO text, other extensions are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from ...brokers import Message
from ...errors import BadInput, ModelFailed
from ...rest.answers import dumps
from ...signature import Field
from . import Rows, several
from .nesting import DEPTH, too_deep

DECODES = ()
ENCODES = ()
PLAIN = {str, int, float, bool, bytes, type(None)}

_decode = msgspec.msgpack.Decoder(dict[str, Any] | list[Any]).decode


class PackedRows:
    def decode(self, message: Message) -> Rows:
        try:
            found = _decode(message.value)
        except RecursionError as cause:
            raise too_deep() from cause
        except (msgspec.DecodeError, UnicodeDecodeError) as cause:
            said = str(cause).removeprefix("MessagePack data is malformed: ")
            raise BadInput(f"The message is not MessagePack of a row or of rows: {said}.") from cause
        if not set(map(type, found.values() if type(found) is dict else found)) <= PLAIN:
            found = _plain(found, DEPTH)
        return Rows([found]) if type(found) is dict else several(found)


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if depth == 0:
        raise too_deep()
    if kind is list:
        return [_plain(v, depth - 1) for v in value]
    if kind is dict:
        if not set(map(type, value)) <= {str}:
            raise BadInput("The message holds a map whose keys are not text.")
        return {k: _plain(v, depth - 1) for k, v in value.items()}
    if kind is datetime:
        return value.isoformat()
    raise BadInput("The message holds a MessagePack extension that is not known here.")


def _foreign(value: Any) -> Any:
    """What MessagePack has no word for, as JSON says it."""
    return msgspec.json.decode(dumps(value))


_encode = msgspec.msgpack.Encoder(enc_hook=_foreign).encode


class PackedAnswers:
    content_type = "application/msgpack"

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
        try:
            return [_encode(row) for row in rows]
        except (TypeError, ValueError, OverflowError, RecursionError) as cause:
            raise ModelFailed(f"The answer can't be written as MessagePack: {cause}.") from cause


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> PackedRows:
    return PackedRows()


def encoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> PackedAnswers:
    return PackedAnswers()
