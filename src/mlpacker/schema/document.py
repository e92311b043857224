"""YAML as nodes that know where they stand.

Scalars are YAML 1.2's (core schema, without infinities): `no` is a word, `0x1F` is not a number, a date stays text. Keys are text and stand once.
Anchors work, within bounds that a billion laughs do not pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from ..errors import BadDescription

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 50
STANDARD = "tag:yaml.org,2002:"
SCALARS = tuple(STANDARD + t for t in ("null", "bool", "int", "float", "str", "timestamp", "merge", "value"))
INT = re.compile(r"[-+]?[0-9]{1,30}")
FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?")
SURROGATE = re.compile("[\ud800-\udfff]")
WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
WORDS |= {w: w[0] in "tT" for w in ("true", "True", "TRUE", "false", "False", "FALSE")}
Value: TypeAlias = "bool | int | float | str | list[Node] | dict[str, Node] | None"


@dataclass(frozen=True)
class Node:
    """A value where it stands. text: a scalar as it was written. keys: the line of each key of a mapping."""

    value: Value
    file: str
    line: int
    path: str = ""
    text: str = ""
    keys: dict[str, int] = field(default_factory=dict)

    def wrong(self, sentence: str, next_step: str = "") -> BadDescription:
        """An error at this place."""
        return wrong(self.file, self.line, self.path, sentence, next_step)

    def wrong_key(self, key: str, sentence: str, next_step: str = "") -> BadDescription:
        return wrong(self.file, self.keys.get(key, self.line), join(self.path, key), sentence, next_step)

    def __getitem__(self, at: str | int) -> Node:
        child: Any = self.value[at]  # type: ignore[index,call-overload]
        assert isinstance(child, Node)
        return child

    def lines(self) -> Iterator[tuple[str, int]]:
        """Path → line of everything below."""
        yield self.path, self.line
        for child in self.children():
            yield from child.lines()

    def children(self) -> list[Node]:
        if isinstance(self.value, dict):
            return list(self.value.values())
        return self.value if isinstance(self.value, list) else []


def wrong(file: str, line: int | None, path: str, sentence: str, next_step: str = "") -> BadDescription:
    place = f"{file}:{line}: " if line is not None else f"{file}: " if file else ""
    return BadDescription(
        f"{place}{path}{': ' if path else ''}{sentence}", next_step, file=file, line=line, path=path
    )


def join(path: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def read(data: bytes, file: str) -> Node:
    """The one document in these bytes. Raises BadDescription, naming the line, for anything else."""
    if len(data) > MAX_BYTES:
        raise wrong(file, None, "", f"{len(data)} bytes is more than a description has ({MAX_BYTES}).")
    try:
        root = yaml.compose(data, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as cause:
        line = cause.problem_mark.line + 1 if cause.problem_mark else None
        raise wrong(file, line, "", f"not YAML: {cause.problem or cause.context}.") from cause
    except (yaml.YAMLError, ValueError, RecursionError, UnicodeError) as cause:
        raise wrong(file, None, "", f"not YAML: {_first_line(cause)}.") from cause
    if root is None:
        raise wrong(file, 1, "", "nothing is written in it.")
    return _Reading(file).node(root, "", 0)


def _first_line(cause: Exception) -> str:
    if isinstance(cause, RecursionError):
        return "nested too deeply"
    return (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")


class _Reading:
    """One reading of one document, which counts what it has unfolded."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0

    def node(self, raw: yaml.Node, path: str, depth: int) -> Node:
        line = raw.start_mark.line + 1
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise wrong(self.file, line, path, "more values, or nested deeper, than a description has.")
        if isinstance(raw, yaml.SequenceNode) and raw.tag == STANDARD + "seq":
            items = [self.node(item, join(path, i), depth + 1) for i, item in enumerate(raw.value)]
            return Node(items, self.file, line, path)
        if isinstance(raw, yaml.MappingNode) and raw.tag == STANDARD + "map":
            return self._mapping(raw, line, path, depth)
        if isinstance(raw, yaml.ScalarNode) and raw.tag in SCALARS:
            return Node(self._scalar(raw, line, path), self.file, line, path, self._text(raw, line, path))
        raise wrong(
            self.file, line, path, f"the YAML tag {raw.tag!r} is not taken here.", "Write plain values."
        )

    def _mapping(self, raw: yaml.MappingNode, line: int, path: str, depth: int) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, int] = {}
        for key, value in raw.value:
            here = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise wrong(self.file, here, path, "a key is a word, not a list or a mapping.")
            name = self._text(key, here, path)
            if name in keys:
                raise wrong(self.file, here, join(path, name), f"stands twice: first on line {keys[name]}.")
            keys[name] = here
            entries[name] = self.node(value, join(path, name), depth + 1)
        return Node(entries, self.file, line, path, keys=keys)

    def _text(self, raw: yaml.ScalarNode, line: int, path: str) -> str:
        """A scalar's text; a pair of surrogates, as JSON escapes what lies beyond 16 bits, is the one letter it stands for."""
        text: str = raw.value
        if not SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeError as cause:
            raise wrong(self.file, line, path, "half a surrogate pair is no text.") from cause

    def _scalar(self, raw: yaml.ScalarNode, line: int, path: str) -> Value:
        text = self._text(raw, line, path)
        if raw.style is not None:
            return text
        if text in WORDS:
            return WORDS[text]
        if INT.fullmatch(text):
            return int(text)
        if FLOAT.fullmatch(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise wrong(self.file, line, path, f"{text} is a number too large.")
            return number
        return text


def plain(node: Node) -> Any:
    """The node as plain lists, dicts and scalars."""
    if isinstance(node.value, list):
        return [plain(v) for v in node.value]
    if isinstance(node.value, dict):
        return {k: plain(v) for k, v in node.value.items()}
    return node.value
