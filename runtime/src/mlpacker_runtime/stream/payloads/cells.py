"""A row as an object of texts, as a table with a header gives it, or an entry of plain fields: the signature says what they are."""

from __future__ import annotations

from collections.abc import Mapping

from ...brokers import Message
from ...errors import BadInput
from ...signature import Field
from . import Rows
from .csv_text import cell_of
from .json_text import JsonRows

DECODES = ()


class CellRows:
    def __init__(self, fields: tuple[Field, ...]) -> None:
        self._json = JsonRows(fields)
        self._fields = {f.name: f for f in fields}

    def decode(self, message: Message) -> Rows:
        rows = self._json.decode(message)
        if not rows.one or not isinstance(rows.records[0], dict):
            raise BadInput("The message is no row of named cells.")
        return Rows([{n: self._cell(n, v) for n, v in rows.records[0].items()}])

    def _cell(self, name: str, value: object) -> object:
        return cell_of(value, self._fields.get(name)) if isinstance(value, str) else value


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> CellRows:
    return CellRows(fields)
