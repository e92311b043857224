"""Two outputs, row by row: which rows only one of them has, which are equal, and how far apart the others are.

Rows meet by the id that every answer of a stream carries, or by a field. They go through a scratch database, not memory.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import os
import sqlite3
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from .. import brokers
from ..brokers import Message, Reading
from ..brokers.log import Log
from ..errors import BadDescription, BadInput, NotFound
from . import past, program
from .ids import ID

PAYLOAD_ID = "mlpacker_id"
SHOWN = 20
TOGETHER = 1000
WHOLE = "(the message)"
"""Stands for a field where a message is no object."""

Row = tuple[str | None, Any]
"""Its key, None where it has none, and what it says."""


# --- in -------------------------------------------------------------------------------------------------------------------


def rows(text: str, key: str, logs: str) -> Iterator[Row]:
    """text: an address, or a path of a .jsonl or .csv file. key: `id` or the name of a field."""
    path = text.removeprefix("file:").partition("?")[0]
    if text.startswith("file:") or ":" not in text:
        return _of_file(Path(path), key)
    return (_row(m, key) for m in _messages(text, logs))


def _of_file(path: Path, key: str) -> Iterator[Row]:
    if not path.is_file():
        raise NotFound(f"There is no file {path}.")
    table = path.suffix.lower() == ".csv"
    with path.open(encoding="utf-8-sig", newline="" if table else None) as lines:
        for record in _table(lines) if table else _lines(lines, path):
            yield _keyed(record, key, None)


def _table(lines: TextIO) -> Iterator[dict[str, Any]]:
    for record in csv.DictReader(lines):
        yield {n: _cell(v) for n, v in record.items() if n is not None}


def _cell(text: str | None) -> Any:
    """A number, where it reads as one."""
    try:
        return text if text is None else float(text) if not text.lstrip("-").isdecimal() else int(text)
    except ValueError:
        return text


def _lines(lines: TextIO, path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as cause:
                raise BadInput(f"{path}, line {number}: {cause}.", "A line is a JSON object.") from cause


def _messages(text: str, logs: str) -> Iterator[Message]:
    address = past.place(text, logs)
    if address.scheme == "local":
        yield from _of_log(past.log_file(address), text)
        return
    if brokers.get(address.scheme).journalled:
        raise BadDescription(
            f"{address} hands a message out once: to look at it would take it away.",
            "Compare what its reader has written.",
        )
    reading = Reading(f"mlpacker-compare-{uuid.uuid4().hex[:8]}")
    with past.reader(address, reading) as source:
        while not source.ended:
            got = source.poll(TOGETHER, 0.1)
            yield from got
            source.commit({m.partition: m.offset for m in got})
    past.forget(address, reading.group)


def _of_log(path: str, text: str) -> Iterator[Message]:
    if not os.path.exists(path):
        raise NotFound(f"There is no log {text}.", f"{path} is not there.")
    with closing(Log(path)) as log:
        for partition in range(log.partitions):
            last, after = log.last(partition), 0
            while messages := log.read(partition, after, TOGETHER):
                after = messages[-1].offset
                yield from (m for m in messages if m.offset <= last)


def _row(message: Message, key: str) -> Row:
    try:
        value = json.loads(message.value)
    except ValueError:
        value = base64.b64encode(message.value).decode()
    return _keyed(value, key, next((v.decode("latin-1") for n, v in message.headers if n == ID), None))


def _keyed(value: Any, key: str, id: str | None) -> Row:
    if not isinstance(value, dict):
        return (id if key == "id" else None), {WHOLE: value}
    own = value.pop(PAYLOAD_ID, None)
    if key == "id":
        found = id or own or value.get("id")
    else:
        found = value.get(key)
    return (None if found is None else json.dumps(found) if not isinstance(found, str) else found), value


# --- together -------------------------------------------------------------------------------------------------------------


class Scratch:
    """Both outputs by key, in a file that goes with the process. Of a repeated key the first row stays."""

    def __init__(self) -> None:
        self.run = sqlite3.connect("", isolation_level=None).execute
        for side in "ab":
            self.run(f"CREATE TABLE {side} (key TEXT PRIMARY KEY, at INTEGER, value TEXT) WITHOUT ROWID")
        self.keyless = {"a": 0, "b": 0}
        self.repeats = {"a": 0, "b": 0}

    def take(self, side: str, rows: Iterator[Row]) -> int:
        """How many there were."""
        count = 0
        self.run("BEGIN")
        for count, (key, value) in enumerate(rows, 1):
            if key is None:
                self.keyless[side] += 1
                continue
            new = self.run(
                f"INSERT OR IGNORE INTO {side} VALUES (?, ?, ?)",  # noqa: S608  a or b
                (key, count, json.dumps(value)),
            ).rowcount
            self.repeats[side] += not new
        self.run("COMMIT")
        return count

    def alone(self, side: str, other: str) -> Iterator[tuple[str, Any]]:
        """Rows that the other side has not, in the order they came."""
        query = f"SELECT key, value FROM {side} WHERE key NOT IN (SELECT key FROM {other}) ORDER BY at"  # noqa: S608
        for key, value in self.run(query):
            yield key, json.loads(value)

    def pairs(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        for key, a, b in self.run("SELECT a.key, a.value, b.value FROM a JOIN b USING (key) ORDER BY a.at"):
            yield key, json.loads(a), json.loads(b)


@dataclass
class Spread:
    """How a field differs. rows: in how many; apart: |a-b| of those rows where it is a number, the largest of a list's."""

    rows: int = 0
    numbers: int = 0
    most: float = 0.0
    sum: float = 0.0

    def add(self, apart: float | None) -> None:
        self.rows += 1
        if apart is not None:
            self.numbers += 1
            self.most = max(self.most, apart)
            self.sum += apart

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"rows": self.rows}
        if self.numbers:
            told |= {"max": _finite(self.most), "mean": _finite(self.sum / self.numbers)}
        return told


@dataclass
class Compared:
    """What came of it. first: rows that differ, with what differs."""

    equal: int = 0
    different: int = 0
    fields: dict[str, Spread] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)


def compare(scratch: Scratch, tolerance: float, write: Any) -> Compared:
    """write: called with each row that is different, as it is found."""
    result = Compared()
    for key, a, b in scratch.pairs():
        found = differences(a, b, tolerance)
        if not found:
            result.equal += 1
            continue
        result.different += 1
        for name, apart in found.items():
            result.fields.setdefault(name, Spread()).add(apart)
        told = {"key": key, "fields": {n: _told(n, a, b, apart) for n, apart in found.items()}}
        write({"what": "different", **told})
        if len(result.first) < SHOWN:
            result.first.append(told)
    return result


def _told(name: str, a: Mapping[str, Any], b: Mapping[str, Any], apart: float | None) -> dict[str, Any]:
    told = {side: _finite(row[name]) for side, row in (("a", a), ("b", b)) if name in row}
    return told if apart is None else {**told, "apart": _finite(apart)}


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def differences(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float) -> dict[str, float | None]:
    """The fields that differ, and by how much where they are numbers."""
    found: dict[str, float | None] = {}
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            found[name] = None
        else:
            equal, apart = _apart(a[name], b[name], tolerance)
            if not equal:
                found[name] = apart
    return found


def _apart(a: Any, b: Any, tolerance: float) -> tuple[bool, float | None]:
    """Whether they are equal, and how far apart they are where both are numbers, or lists of them."""
    if _is_number(a) and _is_number(b):
        if a == b or (a != a and b != b):
            return True, 0.0
        distance = _distance(a, b)
        return distance <= tolerance, distance
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return _together([_apart(x, y, tolerance) for x, y in zip(a, b, strict=True)])
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return _together([_apart(a[n], b[n], tolerance) for n in a])
    return a == b and isinstance(a, bool) == isinstance(b, bool), None


def _together(parts: list[tuple[bool, float | None]]) -> tuple[bool, float | None]:
    distances = [apart for _, apart in parts if apart is not None]
    plain = any(not equal and apart is None for equal, apart in parts)
    return all(equal for equal, _ in parts), None if plain or not distances else max(distances)


def _distance(a: float, b: float) -> float:
    try:
        distance = float(abs(a - b))
    except OverflowError:  # whole numbers have no bound in JSON
        return math.inf
    return math.inf if math.isnan(distance) else distance


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- what is asked --------------------------------------------------------------------------------------------------------


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """order: `a`, `b`, `key`, `tolerance`, `logs`, and `output`, a file for all that differs."""
    scratch = Scratch()
    counts = {side: scratch.take(side, rows(order[side], order["key"], order["logs"])) for side in "ab"}
    for side in "ab":
        if counts[side] and scratch.keyless[side] == counts[side]:
            what = "an id" if order["key"] == "id" else f"a field {order['key']!r}"
            raise BadInput(
                f"No row of {order[side]} has {what}.", "Name a field that tells rows apart: --key."
            )
    with _writer(order.get("output")) as write:
        result = compare(scratch, order["tolerance"], write)
        only = dict.fromkeys("ab", 0)
        for side, other in ("ab", "ba"):
            for key, value in scratch.alone(side, other):
                only[side] += 1
                write({"what": f"only in {side}", "key": key, side: value})
    return {
        "rows": counts,
        "equal": result.equal,
        "different": result.different,
        "only": only,
        "repeats": scratch.repeats,
        "without_key": scratch.keyless,
        "fields": {n: s.to_json() for n, s in result.fields.items()},
        "first": result.first,
    }


@contextmanager
def _writer(path: str | None) -> Iterator[Any]:
    if path is None:
        yield lambda value: None
        return
    with open(path, "w", encoding="utf-8") as file:
        yield lambda value: file.write(json.dumps(value, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(program.main(answer))
