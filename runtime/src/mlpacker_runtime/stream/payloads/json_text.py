"""JSON: an object is a row, a list of objects or of lists several, an object that is a V2 request its rows.

A message of a registry's JSON serializer (magic byte and schema id before the text) is read too; its schema is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...brokers import Message
from ...errors import BadInput
from ...rest.answers import dumps
from ...rest.bodies import loads
from ...signature import Field
from . import Rows, several
from .nesting import DEPTH, SHORT, check, too_deep
from .schema_registry import FRAME
from .v2_binary import V2Rows

DECODES = ()
ENCODES = ()
V2_KEYS = {"inputs", "id", "parameters", "outputs"}
TENSOR_KEYS = {"name", "shape", "datatype"}

_decode = msgspec.json.Decoder(dict[str, Any] | list[Any]).decode


class JsonRows:
    def __init__(self, fields: tuple[Field, ...]) -> None:
        self._v2 = V2Rows(fields)
        self._has_inputs = any(f.name == "inputs" for f in fields)

    def decode(self, message: Message) -> Rows:
        value = message.value
        try:
            found = _decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
            value = _without_frame(value, cause)
            found = _worded(value)
        if len(value) > SHORT or value.count(b"[") + value.count(b"{") > DEPTH:
            check(found, len(value))
        if type(found) is list:
            return several(found)
        if "inputs" in found and not self._has_inputs and _is_v2(found):
            return self._v2.read(value)
        return Rows([found])


def _without_frame(value: bytes, cause: Exception) -> bytes:
    """The text behind a registry's frame, else as it is. JSON never begins with a zero."""
    return value[FRAME:] if isinstance(cause, msgspec.DecodeError) and value[:1] == b"\0" else value


def _worded(value: bytes) -> Any:
    """The value, else BadInput saying why there is none."""
    try:
        return _decode(value)
    except RecursionError as cause:
        raise too_deep() from cause
    except msgspec.ValidationError as cause:
        raise BadInput(
            f"The JSON can't be taken as a row or a list of rows: {_lower(str(cause))}."
        ) from cause
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        if not value:
            raise BadInput("The message is empty.") from cause
        loads(value)  # finds the words
        raise BadInput("The message is not JSON.") from cause


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _is_v2(found: dict[str, Any]) -> bool:
    inputs = found["inputs"]
    return (
        type(inputs) is list
        and found.keys() <= V2_KEYS
        and all(type(t) is dict and t.keys() >= TENSOR_KEYS for t in inputs)
        and bool(inputs)
    )


class JsonAnswers:
    content_type = "application/json"

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
        return [dumps(row) for row in rows]


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> JsonRows:
    return JsonRows(fields)


def encoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> JsonAnswers:
    return JsonAnswers()
