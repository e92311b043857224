"""What a value in a document may be. Each kind reads a node (or raises with its place) and describes itself in JSON Schema."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .document import Node, plain


class Kind(Protocol):
    """says: what the value should be, as it stands in an error: `a whole number from 1`."""

    @property
    def says(self) -> str: ...

    def read(self, node: Node) -> Any:
        """The value. Raises BadDescription with file, line and path."""

    def schema(self) -> dict[str, Any]: ...


def shown(node: Node) -> str:
    """A node's value in a sentence."""
    if isinstance(node.value, list):
        return "a list"
    if isinstance(node.value, dict):
        return "a mapping"
    if node.value is None:
        return "nothing"
    text = json.dumps(node.value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def unfit(kind: Kind, node: Node) -> Exception:
    step = "Leave the key out, or say what it is." if node.value is None else ""
    return node.wrong(f"{kind.says}, not {shown(node)}.", step)


@dataclass(frozen=True)
class Text:
    """pattern: a regular expression for all of it. loose: a bare number is its digits as they were written (3.10)."""

    says: str = "text"
    pattern: str | None = None
    loose: bool = False

    def read(self, node: Node) -> str:
        number = self.loose and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
        text = node.text if number else node.value
        if (
            not isinstance(text, str)
            or not text.strip()
            or (self.pattern and not re.fullmatch(self.pattern, text))
        ):
            raise unfit(self, node)
        return text

    def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": ["string", "number"] if self.loose else "string", "minLength": 1}
        return {**found, "pattern": f"^(?:{self.pattern})$"} if self.pattern else found


@dataclass(frozen=True)
class Whole:
    least: int | None = None

    @property
    def says(self) -> str:
        return "a whole number" if self.least is None else f"a whole number from {self.least}"

    def read(self, node: Node) -> int:
        value = node.value
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or (self.least is not None and value < self.least)
        ):
            raise unfit(self, node)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer"} if self.least is None else {"type": "integer", "minimum": self.least}


@dataclass(frozen=True)
class Flag:
    says: str = "true or false"

    def read(self, node: Node) -> bool:
        if not isinstance(node.value, bool):
            raise unfit(self, node)
        return node.value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Choice:
    options: tuple[str, ...]

    @property
    def says(self) -> str:
        return f"one of {', '.join(self.options)}"

    def read(self, node: Node) -> str:
        if not isinstance(node.value, str) or node.value not in self.options:
            raise node.wrong(f"{self.says}, not {shown(node)}.", did_you_mean(node.text, self.options))
        return node.value

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.options)}


@dataclass(frozen=True)
class Anything:
    """Any value JSON has."""

    says: str = "a value"

    def read(self, node: Node) -> Any:
        return plain(node)

    def schema(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Many:
    """A list. or_one: a lone item may stand without its list."""

    item: Kind
    least: int = 0
    or_one: bool = False

    @property
    def says(self) -> str:
        return f"{self.item.says}, or a list of them" if self.or_one else f"a list: each {self.item.says}"

    def read(self, node: Node) -> tuple[Any, ...]:
        if not isinstance(node.value, list):
            if self.or_one and node.value is not None:
                return (self.item.read(node),)
            raise unfit(self, node)
        if len(node.value) < self.least:
            raise node.wrong(f"at least {self.least} of them.")
        return tuple(self.item.read(n) for n in node.value)

    def schema(self) -> dict[str, Any]:
        many: dict[str, Any] = {"type": "array", "items": self.item.schema()}
        if self.least:
            many["minItems"] = self.least
        return {"anyOf": [self.item.schema(), many]} if self.or_one else many


@dataclass(frozen=True)
class Table:
    """A mapping with names of the user's own."""

    item: Kind

    @property
    def says(self) -> str:
        return f"a mapping: for each name {self.item.says}"

    def read(self, node: Node) -> dict[str, Any]:
        if not isinstance(node.value, dict):
            raise unfit(self, node)
        return {k: self.item.read(v) for k, v in node.value.items()}

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.item.schema() or True}


@dataclass(frozen=True)
class Key:
    """A key of a record. says: what it is for, as the reference prints it."""

    kind: Kind
    says: str
    required: bool = False


@dataclass(frozen=True)
class Record:
    """A mapping with known keys; any other is an error. one_of: exactly one of these keys stands."""

    says: str
    keys: Mapping[str, Key]
    one_of: Sequence[str] = field(default=())

    def read(self, node: Node) -> dict[str, Any]:
        if not isinstance(node.value, dict):
            raise unfit(self, node)
        for name in node.value:
            if name not in self.keys:
                raise node.wrong_key(name, "unknown key.", did_you_mean(name, self.keys))
        missing = next((k for k, key in self.keys.items() if key.required and k not in node.value), None)
        if missing is not None:
            raise node.wrong_key(missing, f"missing: {self.keys[missing].says}")
        given = [k for k in self.one_of if k in node.value]
        if self.one_of and len(given) != 1:
            said = "both are given" if given else "none is given"
            raise node.wrong(f"one of {' and '.join(self.one_of)} belongs here; {said}.")
        return {k: self.keys[k].kind.read(v) for k, v in node.value.items()}

    def schema(self) -> dict[str, Any]:
        properties = {k: {"description": key.says, **key.kind.schema()} for k, key in self.keys.items()}
        found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
        required = [k for k, key in self.keys.items() if key.required]
        if required:
            found["required"] = required
        if self.one_of:
            found["oneOf"] = [{"required": [k]} for k in self.one_of]
        return found


@dataclass(frozen=True)
class Either:
    """A mapping, or a short form of it."""

    mapping: Kind
    other: Kind

    @property
    def says(self) -> str:
        return f"{self.other.says}, or {self.mapping.says}"

    def read(self, node: Node) -> Any:
        if isinstance(node.value, dict):
            return self.mapping.read(node)
        return self.other.read(node)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.other.schema(), self.mapping.schema()]}


def did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."
