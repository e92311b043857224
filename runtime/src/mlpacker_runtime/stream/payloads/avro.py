"""Avro: a record or a map is a row, an array of them several. With a registry, messages carry its frame; without one, a
message is the bare value, by the schema of a file.

Decimals become numbers; dates and timestamps ISO text, as UUIDs are; bytes stay bytes; a time of day stays its number.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro

from ...brokers import Message, Unusable
from ...errors import BadDescription, BadInput, ModelFailed
from ...signature import Field
from . import Rows, several
from .avro_schema import Type, Walk
from .schema_registry import FRAME, Registry, Schema, frame, read_id, registry

DECODES = ("registry", "schema")
ENCODES = ("registry", "schema", "subject")
MOST_REFERENCES = 100


class Compiled:
    """A schema that values are read and written by."""

    def __init__(self, texts: Sequence[str]) -> None:
        """texts: schemas that the last one refers to, and the last. Raises BadInput for what is none, or not safe to read by."""
        walk = Walk()
        named: dict[str, Any] = {}
        for text in texts:
            self._type: Type = walk.type(_load(text))
            try:
                self._parsed = fastavro.parse_schema(self._type.schema, named)
            except Exception as cause:  # it says "not a schema" by many exceptions
                raise BadInput(f"The Avro schema can't be used: {type(cause).__name__}: {cause}.") from cause

    def rows(self, value: bytes, start: int) -> Rows:
        """Raises BadInput where the bytes from `start` on are not exactly one value of this schema."""
        stream = io.BytesIO(value)
        stream.seek(start)
        try:
            found = fastavro.schemaless_reader(stream, self._parsed, None)
            left = len(value) - stream.tell()
            if not left and self._type.read is not None:
                found = self._type.read(found)
        except BadInput:
            raise
        except Exception as cause:  # it says "not such a value" by many exceptions
            raise BadInput(f"The message is not what its Avro schema says: {_said(cause)}.") from cause
        if left:
            raise BadInput(f"The message has {left} bytes behind what its Avro schema describes.")
        if type(found) is dict:
            return Rows([found])
        if type(found) is list:
            return several(found)
        raise BadInput(f"The message's Avro schema describes a {type(found).__name__}, which is no row.")

    def value(self, row: dict[str, Any]) -> bytes:
        """Raises ModelFailed for a row that does not fit."""
        stream = io.BytesIO()
        try:
            given = row if self._type.write is None else self._type.write(row)
            fastavro.schemaless_writer(stream, self._parsed, given)
        except Exception as cause:  # it says "does not fit" by many exceptions
            raise ModelFailed(f"The answer does not fit its Avro schema: {_said(cause)}.") from cause
        return stream.getvalue()


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as cause:
        raise BadInput("The Avro schema is nested too deeply.") from cause
    except ValueError as cause:
        raise BadInput(f"The Avro schema is not JSON: {cause}.") from cause


def _said(cause: Exception) -> str:
    return f"{type(cause).__name__}{f': {cause}' if str(cause) else ''}"[:300]


# --- Reading ---------------------------------------------------------------------------------------------------------


class BareRows:
    def __init__(self, schema: Compiled) -> None:
        self._schema = schema

    def decode(self, message: Message) -> Rows:
        if not message.value:
            raise BadInput("The message is empty.")
        return self._schema.rows(message.value, 0)


class FramedRows:
    def __init__(self, asked: Registry) -> None:
        self._registry = asked
        self._known: dict[int, Compiled | str] = {}

    def decode(self, message: Message) -> Rows:
        number = read_id(message.value)
        known = self._known.get(number) or self._learn(number)
        if isinstance(known, str):
            raise BadInput(known)
        return known.rows(message.value, FRAME)

    def _learn(self, number: int) -> Compiled | str:
        """The schema of that id, or why nothing can be read by it. Raises BadInput for an unknown id, SchemaAway, Unusable."""
        found = self._registry.by_id(number)
        try:
            made: Compiled | str = compile_with_references(self._registry, found)
        except BadInput as error:
            made = f"Schema {number}: {error}"
        self._known[number] = made
        return made


def compile_with_references(asked: Registry, schema: Schema) -> Compiled:
    """Raises BadInput where it is not Avro, or not safe to read by; SchemaAway, Unusable."""
    if schema.kind != "AVRO":
        raise BadInput(f"The registry holds it as {schema.kind}, not AVRO.")
    texts: dict[tuple[str, int], str] = {}
    _collect(asked, schema, texts, set())
    return Compiled([*texts.values(), schema.schema])


def _collect(
    asked: Registry, schema: Schema, texts: dict[tuple[str, int], str], seen: set[tuple[str, int]]
) -> None:
    """Puts what a schema refers to into `texts`, each after what it refers to itself."""
    for reference in schema.references or ():
        key = (reference.subject, reference.version)
        if key in seen:
            continue
        if len(seen) == MOST_REFERENCES:
            raise BadInput(f"It refers to more than {MOST_REFERENCES} others.")
        seen.add(key)
        found = asked.version(*key)
        _collect(asked, found, texts, seen)
        texts[key] = found.schema


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> BareRows | FramedRows:
    asked, text = registry(options), _file(options)
    if (asked is None) == (text is None):
        raise BadDescription(
            "The payload avro is read with either a registry or a schema.", "See docs/howto/payloads.md."
        )
    return FramedRows(asked) if asked is not None else BareRows(_described(text or ""))


# --- Writing ---------------------------------------------------------------------------------------------------------


class AvroAnswers:
    """The schema is fetched, or registered, when the first answer is written."""

    content_type = "application/avro"

    def __init__(self, asked: Registry | None, subject: str, text: str | None) -> None:
        self._schema = _described(text) if text is not None else None
        self._registry, self._subject, self._text = asked, subject, text
        self._frame: bytes | None = None if asked is not None else b""

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
        if self._frame is None or self._schema is None:
            self._frame, self._schema = self._learn()
        before, value = self._frame, self._schema.value
        return [before + value(row) for row in rows]

    def _learn(self) -> tuple[bytes, Compiled]:
        assert self._registry is not None
        if self._text is not None and self._schema is not None:
            return frame(self._registry.register(self._subject, self._text)), self._schema
        try:
            found = self._registry.latest(self._subject)
            return frame(found.id), compile_with_references(self._registry, found)
        except BadInput as error:
            raise Unusable(
                f"Answers can't be written by the latest schema of {self._subject}: {error}"
            ) from error


def encoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> AvroAnswers:
    asked, text, subject = registry(options), _file(options), options.get("subject", "")
    if asked is None and text is None:
        raise BadDescription("Answers in Avro need a schema (schema=FILE) or a registry and a subject.")
    if (asked is None) != (not subject):
        raise BadDescription("A registry and a subject belong together: the schema is the subject's.")
    return AvroAnswers(asked, subject, text)


def _file(options: Mapping[str, str]) -> str | None:
    path = options.get("schema")
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as cause:
        raise BadDescription(f"schema: {path} can't be read: {cause}.") from cause


def _described(text: str) -> Compiled:
    try:
        return Compiled([text])
    except BadInput as error:
        raise BadDescription(f"schema: {error}") from error
