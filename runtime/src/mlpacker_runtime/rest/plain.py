"""Plain JSON, for a person with curl: POST /predict with a row object, a list of row objects or a list of lists.

The answer has the request's form: an object of outputs for a row, a list for a list, of the same length. A dropped row is
null, one with several answers a list of them; with `?partial=true` a failed row is `{"error": …}`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from ..batch import Outcome
from ..errors import BadInput
from . import Asked, Request, Response, Served, in_order
from .answers import dumps, records
from .bodies import loads
from .rows import Read, Reader

TRUE = ("true", "1", "yes", "")


def ask(served: Served, reader: Reader, request: Request) -> Asked:
    """Raises BadInput."""
    body: Any = loads(request.body)
    single = isinstance(body, dict)
    read = read_rows(reader, [body] if single else body)
    partial = False
    want = None
    if request.query:
        query = parse_qs(request.query, keep_blank_values=True)
        partial = query.get("partial", ["no"])[-1].lower() in TRUE
        want = _wanted(served, ",".join(query["outputs"])) if "outputs" in query else None
    return Asked(read.batch, read.count, read.errors, want, partial, single)


def read_rows(reader: Reader, rows: Any) -> Read:
    if not isinstance(rows, list):
        raise BadInput("Send a row as an object, a list of such rows, or a list of lists.")
    if rows and isinstance(rows[0], dict):
        return reader.records(rows)
    if rows and not isinstance(rows[0], list) and (reader.lone is None or not reader.lone.scalar):
        raise BadInput("The rows of a list are objects or lists: for one row of values send [[…]].")
    return reader.lists(rows)


def _wanted(served: Served, text: str) -> frozenset[str]:
    names = frozenset(n.strip() for n in text.split(",") if n.strip())
    unknown = sorted(names - served.methods)
    if unknown:
        raise BadInput(
            f"There is no output {unknown[0]!r} to ask for; there are {', '.join(sorted(served.methods)) or 'none'}."
        )
    return names


def answer(served: Served, asked: Asked, outcome: Outcome) -> Response:
    batch = in_order(outcome.batch)
    found = records(batch)
    errors = {**asked.errors, **outcome.errors}
    if not errors and len(found) == asked.count and (asked.count == 1 or _each_once(batch.rows.tolist())):
        rows: list[Any] = found
    else:
        rows = by_row(batch.rows.tolist(), found, asked.count)
        for row, reason in errors.items():
            rows[row] = {"error": reason}
    return Response(200, dumps(rows[0] if asked.form is True else rows))


def _each_once(rows: list[int]) -> bool:
    return rows == list(range(len(rows)))


def by_row(rows: list[int], answers: list[Any], count: int) -> list[Any]:
    """One entry a row that was asked: null where it was dropped, a list where it has several answers."""
    out: list[Any] = [None] * count
    several: set[int] = set()
    for row, found in zip(rows, answers, strict=True):
        if row in several:
            out[row].append(found)
        elif out[row] is not None:
            out[row] = [out[row], found]
            several.add(row)
        else:
            out[row] = found
    return out
