"""MLflow's scoring protocol: POST /invocations with JSON in four forms, CSV or Parquet.

The answer is `{"predictions": …}`: the pipeline's plain answer (labels, where it is a classifier), null for a dropped row.
Errors are `{"error_code", "message"}` with 400, but a body of an unknown type is a 415 in plain text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

from ..batch import Batch, Outcome, as_column
from ..errors import BadInput
from ..signature import Field
from . import JSON, Asked, Rejected, Request, Response, Served, in_order
from .answers import dumps, plain
from .bodies import check_object, loads
from .plain import by_row, read_rows
from .rows import Read, Reader

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def ask(served: Served, reader: Reader, request: Request) -> Asked:
    """Raises BadInput; Rejected (415) for a content type that is none of the three."""
    kind, _, charset = request.header(b"content-type").partition(";")
    kind = kind.strip().lower()
    charset = charset.partition("charset=")[2].strip().strip('"').lower() or "utf-8"
    if kind in (JSON, ""):
        if charset not in ("utf-8", "utf8"):
            raise Rejected(415, f"JSON comes as UTF-8, not {charset}.")
        read = _from_json(reader, request.body)
    elif kind == CSV:
        read = _from_csv(reader, request.body, charset)
    elif kind == PARQUET:
        read = _from_parquet(reader, request.body)
    else:
        raise Rejected(415, f"This predictor reads {JSON}, {CSV} and {PARQUET}, not {kind}.")
    return Asked(read.batch, read.count, read.errors, served.plain)


def _from_json(reader: Reader, body: bytes) -> Read:
    value = check_object(loads(body), "The body")
    forms = [f for f in FORMS if f in value]
    if len(forms) != 1:
        said = "none of them" if not forms else " and ".join(map(repr, forms))
        raise BadInput(f"The body has exactly one of {', '.join(FORMS)}; this one has {said}.")
    unknown = sorted(set(value) - {forms[0], "params"})
    if unknown:
        raise BadInput(f"The body has {unknown[0]!r}, which the protocol does not know.")
    if not isinstance(value.get("params", {}), (dict, type(None))):
        raise BadInput("'params' is a JSON object.")
    return _READERS[forms[0]](reader, value[forms[0]])


def _split(reader: Reader, value: Any) -> Read:
    split = check_object(value, "'dataframe_split'")
    data = split.get("data")
    names = split.get("columns")
    if not isinstance(data, list):
        raise BadInput("'dataframe_split' needs 'data', a list of rows.")
    if names is None:
        return reader.lists(data)
    if not isinstance(names, list) or not all(
        type(n) in (str, int) for n in names
    ):  # pandas numbers nameless columns
        raise BadInput("'columns' of 'dataframe_split' is a list of names.")
    for i, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            raise BadInput(f"Row {i} of 'data' is not a list of {len(names)} values, one a column.")
    if not data:
        return reader.columns({str(n): [] for n in names} if names else {n: [] for n in reader.names})
    if list(names) == list(reader.names):
        return reader.lists(data)
    return reader.columns({str(n): [row[i] for row in data] for i, n in enumerate(names)})


def _records(reader: Reader, value: Any) -> Read:
    if not isinstance(value, list):
        raise BadInput("'dataframe_records' is a list of objects, one a row.")
    return reader.records(value)


def _instances(reader: Reader, value: Any) -> Read:
    return read_rows(reader, value)


def _inputs(reader: Reader, value: Any) -> Read:
    if isinstance(value, list):
        return read_rows(reader, value)
    columns = check_object(value, "'inputs'")
    if columns and all(not isinstance(v, list) for v in columns.values()):
        return reader.records([columns])
    return reader.columns({n: v if isinstance(v, list) else [v] for n, v in columns.items()})


_READERS: Mapping[str, Callable[[Reader, Any], Read]] = {
    "dataframe_split": _split,
    "dataframe_records": _records,
    "instances": _instances,
    "inputs": _inputs,
}


def _from_csv(reader: Reader, body: bytes, charset: str) -> Read:
    """A header row, then a row a line. An empty cell is null; what a cell holds, the column's type says."""
    try:
        text = body.decode(charset).removeprefix("\ufeff")
    except (UnicodeDecodeError, LookupError) as cause:
        raise BadInput(f"The CSV is not {charset} text: {cause}.") from cause
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as cause:
        raise BadInput(f"The CSV can't be read: {cause}.") from cause
    rows = [r for r in rows if r]
    if not rows:
        raise BadInput("The CSV is empty: it needs a header row.")
    header, *lines = rows
    for i, line in enumerate(lines):
        if len(line) != len(header):
            raise BadInput(f"Row {i} of the CSV has {len(line)} cells; the header has {len(header)}.")
    kinds = {f.name: f for f in reader.fields}
    alike = reader.lone if reader.lone is not None and reader.lone.name not in header else None
    columns = {}
    for i, name in enumerate(header):
        kind = kinds.get(name, alike)
        if kind is not None or not reader.known & set(header):
            columns[name] = [
                cell(line[i], kind or reader.fields[min(i, len(reader.fields) - 1)]) for line in lines
            ]
    return reader.columns(columns)


def cell(text: str, field: Field) -> Any:
    """What a CSV cell holds, by its column's type. What can't be that stays text, and is refused with row and column."""
    if text == "":
        return None
    if field.dtype in ("string", "bytes"):
        return text
    if field.dtype == "bool":
        return {"true": True, "false": False}.get(text.strip().lower(), _number(text))
    if field.numeric:
        return _number(text)
    if field.dtype == "category" and field.categories and not isinstance(field.categories[0], str):
        return _number(text)
    return text


def _number(text: str) -> Any:
    if text.strip().lower() in ("nan", "na", "n/a", "null", "none"):
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _from_parquet(reader: Reader, body: bytes) -> Read:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as cause:
        raise Rejected(
            415, "Parquet needs pyarrow in the pipeline's environment, which is not there. Send JSON or CSV."
        ) from cause
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(body))
    except (pyarrow.ArrowException, OSError, ValueError) as cause:
        raise BadInput(f"The body is not Parquet: {cause}.") from cause
    columns = {}
    for i, name in enumerate(table.column_names):
        columns[str(name)] = _arrow(table.column(i), pyarrow)
    return reader.columns(columns)


def _arrow(column: Any, pyarrow: Any) -> Any:
    kind = column.type
    if pyarrow.types.is_timestamp(kind) or pyarrow.types.is_date(kind):
        return [
            None if v is None else int(v)
            for v in column.cast(pyarrow.timestamp("ns")).cast("int64").to_pylist()
        ]
    if column.null_count == 0 and (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)):
        return as_column(column.to_numpy())
    return (
        [v if v == v else None for v in column.to_pylist()]
        if pyarrow.types.is_floating(kind)
        else column.to_pylist()
    )


def answer(served: Served, asked: Asked, outcome: Outcome) -> Response:
    batch = in_order(outcome.batch)
    found = _answers(batch)
    if len(found) != asked.count or batch.rows.tolist() != list(range(asked.count)):
        found = by_row(batch.rows.tolist(), found, asked.count)
    return Response(200, dumps({"predictions": found}))


def _answers(batch: Batch) -> list[Any]:
    """A value a row where the answer is one column, else an object a row."""
    columns = [plain(batch.columns[n]) for n in batch.names]
    if len(columns) == 1:
        return columns[0]
    return [dict(zip(batch.names, row, strict=True)) for row in zip(*columns, strict=True)]


def refuse(status: int, sentence: str) -> Response:
    if status == 415:
        return Response(status, sentence.encode(), "text/plain; charset=utf-8")
    return Response(
        status, dumps({"error_code": "BAD_REQUEST" if status == 400 else _code(status), "message": sentence})
    )


def _code(status: int) -> str:
    return {503: "TEMPORARILY_UNAVAILABLE", 413: "REQUEST_LIMIT_EXCEEDED", 401: "UNAUTHENTICATED"}.get(
        status, "INTERNAL_ERROR"
    )
