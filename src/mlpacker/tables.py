"""Tables in files, as batches: CSV, JSON lines, JSON, Parquet and NumPy. What a file is, its ending says.

Types follow what a data frame library would make of the same file, because that is what the model was trained on: a
whole-number column with gaps is float64 with NaN, text stays text, a gap in text is null.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from mlpacker_runtime.batch import Batch, as_column
from mlpacker_runtime.signature import Field, is_matrix

from .errors import BadInput

ENDINGS = (".csv", ".jsonl", ".ndjson", ".json", ".parquet", ".npy", ".npz")
UNNAMED = "input"
"""The name of a column or tensor that brought none."""


def read(path: Path, limit: int | None = None) -> Batch:
    """All rows of the file (or the first `limit`). Raises BadInput for a file that is missing or not what it says."""
    if not path.is_file():
        raise BadInput(f"There is no file {path}.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(
            f"{path.name} has no ending that says what it holds.", f"Known are {', '.join(ENDINGS)}."
        )
    try:
        batch = reader(path)
    except (
        pyarrow.ArrowException,
        ValueError,
        KeyError,
        EOFError,
        RecursionError,
        UnicodeDecodeError,
    ) as cause:
        raise BadInput(f"{path.name} can't be read: {cause}.") from cause
    return batch if limit is None or len(batch) <= limit else batch.take(slice(0, limit))


def _csv(path: Path) -> Batch:
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    return from_arrow(pyarrow.csv.read_csv(path, convert_options=options))


def _json_lines(path: Path) -> Batch:
    return from_rows([json.loads(line) for line in path.read_text().splitlines() if line.strip()])


def _json(path: Path) -> Batch:
    return from_json(json.loads(path.read_text()))


def _parquet(path: Path) -> Batch:
    return from_arrow(pyarrow.parquet.read_table(path))


def _npy(path: Path) -> Batch:
    return Batch({UNNAMED: as_column(np.load(path, allow_pickle=False))})


def _npz(path: Path) -> Batch:
    with np.load(path, allow_pickle=False) as arrays:
        return Batch({name: as_column(arrays[name]) for name in arrays})


_READERS = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".npy": _npy,
    ".npz": _npz,
}


def from_arrow(table: pyarrow.Table) -> Batch:
    return Batch(
        {str(n): _column(table.column(i)) for i, n in enumerate(table.column_names)},
        np.arange(table.num_rows),
    )


def _column(values: pyarrow.ChunkedArray) -> Any:
    kind = values.type
    if pyarrow.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
    if pyarrow.types.is_timestamp(kind) or pyarrow.types.is_date(kind):
        return values.cast(pyarrow.timestamp("ns")).to_numpy().astype("datetime64[ns]")
    if pyarrow.types.is_integer(kind) and values.null_count:
        return values.cast(pyarrow.float64()).to_numpy()
    if pyarrow.types.is_floating(kind) or (pyarrow.types.is_primitive(kind) and not values.null_count):
        return np.asarray(values.to_numpy())
    return _objects(values.to_pylist())


def _objects(values: Sequence[Any]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def from_json(value: Any) -> Batch:
    """A list of rows, an object of columns, or one of MLflow's forms (`dataframe_split`, `dataframe_records`, `inputs`, `instances`)."""
    if isinstance(value, list):
        return from_rows(value)
    if not isinstance(value, dict):
        raise BadInput("A JSON sample is a list of rows or an object of columns.")
    for key, reader in (
        ("dataframe_split", _split),
        ("dataframe_records", from_rows),
        ("instances", from_rows),
    ):
        if key in value:
            return reader(value[key])
    value = value.get("inputs", value)
    if isinstance(value, list):
        return from_rows(value)
    if "columns" in value and "data" in value:
        return _split(value)
    if all(not isinstance(v, list) for v in value.values()):
        return from_rows([value])
    return Batch({str(k): _values(v) for k, v in value.items()})


def _split(value: Mapping[str, Any]) -> Batch:
    columns = list(zip(*value["data"], strict=True)) or [()] * len(value["columns"])
    return Batch({str(n): _values(list(c)) for n, c in zip(value["columns"], columns, strict=True)})


def from_rows(rows: Sequence[Any]) -> Batch:
    """Rows as objects (columns by name, gaps allowed) or as lists (one unnamed tensor)."""
    if not rows:
        raise BadInput("A sample needs at least one row.")
    if isinstance(rows[0], dict):
        names = list(dict.fromkeys(n for row in rows for n in row))
        return Batch({str(n): _values([row.get(n) for row in rows]) for n in names})
    return Batch({UNNAMED: _values(list(rows))})


def _values(values: list[Any]) -> Any:
    given = [v for v in values if v is not None]
    if given and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given):
        whole = len(given) == len(values) and all(isinstance(v, int) for v in given)
        return np.array([np.nan if v is None else v for v in values], dtype=np.int64 if whole else np.float64)
    if given and len(given) == len(values) and isinstance(given[0], (bool, list)):
        return as_column(np.array(values))
    return _objects(values)


def to_json(batch: Batch) -> dict[str, list[Any]]:
    """Columns as JSON values: floats exactly, datetimes as ISO text, NaN and null as null."""
    return {name: [_value(v) for v in _list(batch.columns[name])] for name in batch.names}


def _list(column: Any) -> list[Any]:
    if hasattr(column, "toarray"):
        column = column.toarray()
    return np.datetime_as_string(column).tolist() if column.dtype.kind == "M" else column.tolist()


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    return None if value == "NaT" else value


def fit(batch: Batch, fields: tuple[Field, ...], what: str) -> Batch:
    """The batch as the fields want it: columns by name, in order, in their dtype; extra columns left out.

    A lone unnamed tensor fits as many plain columns as it is wide, and the other way round. Raises BadInput otherwise.
    """
    names = [f.name for f in fields]
    if all(n in batch for n in names):
        chosen = batch.select(names)
    elif len(batch.names) == 1 and _width(batch.columns[batch.names[0]]) == len(fields) and len(fields) > 1:
        tensor = batch.columns[batch.names[0]]
        chosen = Batch({n: tensor[:, i] for i, n in enumerate(names)}, batch.rows)
    elif len(fields) == 1:
        chosen = _as_one(batch, fields[0], what)
    elif len(batch.names) == 1 and len(batch.columns[batch.names[0]].shape) == 2:
        width = _width(batch.columns[batch.names[0]])
        raise BadInput(
            f"{what} is {width} columns wide; the model takes {len(fields)}.",
            f"They are {', '.join(names[:8])}.",
        )
    else:
        missing = [n for n in names if n not in batch]
        raise BadInput(
            f"{what} lacks the column {missing[0]!r} (and {len(missing) - 1} more)."
            if len(missing) > 1
            else f"{what} lacks the column {missing[0]!r}.",
            f"It has {', '.join(batch.names[:8])}.",
        )
    columns = {f.name: cast(chosen.columns[f.name], f, what) for f in fields}
    if is_matrix(fields):
        return Batch(rows=chosen.rows, names=names, matrix=np.column_stack([columns[n] for n in names]))
    return Batch(columns, chosen.rows)


def _width(column: Any) -> int:
    return int(column.shape[1]) if len(column.shape) == 2 else 1


def _as_one(batch: Batch, field: Field, what: str) -> Batch:
    if len(batch.names) == 1:
        column = batch.columns[batch.names[0]]
    else:
        numbers = [batch.columns[n] for n in batch.names]
        if any(c.dtype.kind not in "biuf" for c in numbers):
            text = next(n for n, c in zip(batch.names, numbers, strict=True) if c.dtype.kind not in "biuf")
            raise BadInput(
                f"{what}: the column {text!r} is not numeric, and the model takes one numeric array."
            )
        column = np.column_stack(numbers)
    if len(field.shape) == 2 and field.shape[1] not in (-1, _width(column)):
        raise BadInput(f"{what} is {_width(column)} columns wide; the model takes {field.shape[1]}.")
    return Batch({field.name: column}, batch.rows)


def cast(column: Any, field: Field, what: str) -> Any:
    """A column in the field's dtype. Raises BadInput naming the first value that does not fit."""
    if not field.numeric and field.dtype != "datetime":
        return column if column.dtype == object else _objects(column.tolist())
    try:
        if column.dtype == object and field.dtype.startswith("float"):
            column = np.array([np.nan if v is None else v for v in column.ravel()]).reshape(column.shape)
        return column if isinstance(column, np.ma.MaskedArray) else column.astype(field.numpy)
    except (ValueError, TypeError) as cause:
        raise BadInput(
            f"{what}: the column {field.name!r} is {field.dtype}, and not all its values are: {cause}."
        ) from cause


def from_python(rows: Any) -> Batch:
    """A DataFrame, an array, a dict of columns, or a list of records or of lists, as a batch."""
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):
        return Batch({str(c): as_column(rows[c]) for c in rows.columns}, np.arange(len(rows)))
    if isinstance(rows, Mapping):
        return Batch(
            {str(k): as_column(v) if hasattr(v, "dtype") else _values(list(v)) for k, v in rows.items()}
        )
    if isinstance(rows, (list, tuple)):
        return from_rows(rows)
    return Batch({UNNAMED: as_column(rows)})


def to_python(answer: Batch, asked: Any) -> Any:
    """Answers in the shape of the question: a DataFrame for a DataFrame, else a dict of arrays."""
    if not (hasattr(asked, "iloc") and hasattr(asked, "columns")):
        whole = np.array_equal(
            answer.rows, np.arange(len(asked) if hasattr(asked, "__len__") else len(answer))
        )
        return (
            dict(answer.columns)
            if whole or isinstance(asked, Mapping)
            else {**answer.columns, "row": answer.rows}
        )
    frame = type(asked)({n: list(c) if len(c.shape) > 1 else c for n, c in answer.columns.items()})
    frame.index = asked.index[answer.rows]
    return frame


def encode(batch: Batch) -> bytes:
    """A sample as a package holds it: canonical JSON."""
    return json.dumps({"columns": to_json(batch)}, ensure_ascii=False, indent=1).encode() + b"\n"


def decode(data: bytes, fields: tuple[Field, ...]) -> Batch:
    """A packed sample, in the signature's types."""
    return fit(from_json(json.load(io.BytesIO(data))["columns"]), fields, "The sample")
