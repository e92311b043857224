"""CSV without a header: a line is a row, its cells in the signature's order or in that of `columns`. RFC 4180 quotes."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...brokers import Message
from ...errors import BadDescription, BadInput
from ...rest.answers import dumps
from ...rest.invocations import cell
from ...rest.rows import Reader
from ...signature import Field
from . import Rows
from .nesting import SHORT, check

DECODES = ("columns",)
ENCODES = ("columns",)
END = "\r\n"
"""Which the writer puts at the end; told of none, it would not quote one in a text."""


class CsvRows:
    """columns: the names of the cells, of which some may be unknown to the signature; none: the signature's."""

    def __init__(self, fields: tuple[Field, ...], columns: tuple[str, ...] = ()) -> None:
        by_name = {f.name: f for f in fields}
        lone = fields[0] if len(fields) == 1 else None
        self._names = columns
        self._floats = not columns and all(f.dtype.startswith("float") for f in fields)
        self._width = len(columns) or Reader(fields).width
        self._fields: tuple[Field | None, ...] = tuple(by_name.get(n, lone) for n in columns) or fields
        self._alike = lone if not columns else None
        missing = [f.name for f in fields if f.required and f.name not in columns]
        if columns and lone is None and missing:
            raise BadDescription(f"columns: {missing[0]!r} is missing, and the model needs it.")

    def decode(self, message: Message) -> Rows:
        lines = _lines(message.value)
        records = [self._record(line, i) for i, line in enumerate(lines)]
        if len(message.value) > SHORT:
            check(records, len(message.value))
        return Rows(records, None, len(records) == 1)

    def _record(self, line: list[str], number: int) -> Any:
        if len(line) != self._width and self._width >= 0:
            raise BadInput(f"Row {number} of the CSV has {len(line)} cells; {self._width} belong there.")
        if self._floats:
            with contextlib.suppress(ValueError):  # a gap, or no number: told apart below
                return list(map(float, line))
        kinds: Iterable[Field | None] = (
            itertools.repeat(self._alike, len(line)) if self._alike else self._fields
        )
        values = [cell_of(text, kind) for text, kind in zip(line, kinds, strict=True)]
        return dict(zip(self._names, values, strict=True)) if self._names else values


def cell_of(text: str, field: Field | None) -> Any:
    """As over REST, where numbers are quicker by what they mostly are. field: None for a column that the model does not know."""
    if field is None:
        return text
    if field.dtype.startswith("float"):
        with contextlib.suppress(ValueError):
            return float(text)
    return cell(text, field)


def _lines(value: bytes) -> list[list[str]]:
    try:
        text = value.decode().removeprefix("\ufeff")
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except UnicodeDecodeError as cause:
        raise BadInput(f"The CSV is not UTF-8 text: {cause}.") from cause
    except csv.Error as cause:
        raise BadInput(f"The CSV can't be read: {cause}.") from cause
    if not lines:
        raise BadInput("The message is empty.")
    return lines


class CsvAnswers:
    """Values in the row's order, or those of `columns`, one cell for each value of a list. Null is an empty cell, and so is
    an empty text; bytes are base64. No line end."""

    content_type = "text/csv"

    def __init__(self, columns: tuple[str, ...] = ()) -> None:
        self._columns = columns

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
        return [self._line(row) for row in rows]

    def _line(self, row: dict[str, Any]) -> bytes:
        out = io.StringIO()
        values = [row.get(n) for n in self._columns] if self._columns else row.values()
        csv.writer(out).writerow(_cells(values))
        return out.getvalue()[: -len(END)].encode("utf-8", "surrogatepass")


def _cells(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        kind = type(value)
        if kind is list:
            yield from _cells(value)
        elif kind is float:
            yield value if not math.isnan(value) else None
        elif kind is bool:
            yield "true" if value else "false"
        elif kind is bytes:
            yield base64.b64encode(value).decode()
        elif value is None or kind in (str, int):
            yield value
        else:
            yield dumps(value).decode()


def _columns(options: Mapping[str, str]) -> tuple[str, ...]:
    names = tuple(n.strip() for n in options["columns"].split(",")) if "columns" in options else ()
    if "" in names or len(set(names)) < len(names):
        raise BadDescription("columns: names divided by commas, each once.")
    return names


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> CsvRows:
    return CsvRows(fields, _columns(options))


def encoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> CsvAnswers:
    return CsvAnswers(_columns(options))
