"""From what a request brings to a batch, by the signature: names, order, dtypes, nulls.

Numbers are cast to their column's type where no value is lost; a float may be null (NaN), another column only where the
signature says so. Datetimes are ISO 8601 text or whole nanoseconds, bytes are base64, a category is its label. What does
not fit is told with its row and column. The quick way is NumPy's, over all rows at once; only where that fails is each
value looked at, so that the error can name it and the other rows can be answered.
"""

from __future__ import annotations

import base64
import binascii
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..batch import Batch
from ..errors import BadInput
from ..signature import Field, is_matrix

_NUMBER_OR_NULL = {int, float, type(None)}
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?)?)\s*(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
SHOWN = 60
"""How much of a wrong value an error repeats."""


@dataclass(frozen=True)
class Read:
    """The rows that could be read, how many there were, and why the others could not."""

    batch: Batch
    count: int
    errors: dict[int, str]


class Reader:
    """Makes batches that fit these fields."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.names = tuple(f.name for f in self.fields)
        self.known = frozenset(self.names)
        self.matrix = is_matrix(self.fields) and all(f.required for f in self.fields)
        self.lone = self.fields[0] if len(self.fields) == 1 else None
        plain = (
            self.lone is not None and len(self.lone.shape) == 2 and self.lone.dtype in ("float32", "float64")
        )
        self.plain_tensor = self.lone if plain else None

    @property
    def width(self) -> int:
        """How many values a row written as a list has; -1 where any number will do."""
        if self.lone is None:
            return len(self.fields)
        return (
            1
            if self.lone.scalar
            else int(np.prod(self.lone.shape[1:]))
            if min(self.lone.shape[1:]) >= 0
            else -1
        )

    def lists(self, rows: Sequence[Any]) -> Read:
        """Rows as lists of values, in the signature's order."""
        if self.matrix:
            quick = numbers(rows, len(self.fields))
            if quick is not None:
                return Read(self._batch_of_matrix(quick), len(rows), {})
        if self.lone is not None:
            quick = numbers(rows, self.width) if self.plain_tensor is not None and self.width > 0 else None
            return (self.tensor(quick) if quick is not None else None) or self._lone_lists(rows, self.lone)
        errors: dict[int, str] = {}
        kept: list[Sequence[Any]] = []
        blank = [None] * len(self.fields)
        for i, row in enumerate(rows):
            fits = isinstance(row, list) and len(row) == len(self.fields)
            if not fits:
                errors[i] = (
                    f"Row {i} {_said_width(row)}; the model takes {len(self.fields)}: {_listed(self.names)}."
                )
            kept.append(row if fits else blank)
        columns = zip(*kept, strict=True) if kept else ([] for _ in self.fields)
        return self._finish(
            {f.name: list(c) for f, c in zip(self.fields, columns, strict=True)}, len(rows), errors
        )

    def _lone_lists(self, rows: Sequence[Any], field: Field) -> Read:
        if field.scalar:
            rows = [r[0] if isinstance(r, list) and len(r) == 1 else r for r in rows]
        return self._finish({field.name: list(rows)}, len(rows), {})

    def records(self, rows: Sequence[Any]) -> Read:
        """Rows as objects. Columns the signature does not know are ignored."""
        if self.matrix:
            names = self.names
            try:
                quick = numbers([[row[n] for n in names] for row in rows], len(names))
            except (KeyError, TypeError, IndexError):
                quick = None
            if quick is not None:
                return Read(self._batch_of_matrix(quick), len(rows), {})
        errors: dict[int, str] = {}
        good = []
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                errors[i] = f"Row {i} is {_kind(row)} where the rows before are objects."
                row = {}
            good.append(row)
        if self.lone is not None and not self.lone.scalar and good and self.lone.name not in good[0]:
            return self.lists([list(row.values()) for row in good])
        columns: dict[str, Any] = {}
        for field in self.fields:
            missing = [i for i, row in enumerate(good) if field.name not in row]
            if missing and field.required:
                for i in missing:
                    errors.setdefault(
                        i,
                        f"Row {i}: the column {field.name!r} is missing; the model needs {_listed(self.names)}.",
                    )
            if not missing or len(missing) < len(good) or field.required:
                columns[field.name] = [row.get(field.name) for row in good]
        return self._finish(columns, len(rows), errors)

    def columns(self, given: Mapping[str, Any]) -> Read:
        """Columns by name, each a list of values or an array whose first axis is rows.

        A lone tensor fits as many plain columns as it is wide, whatever its name, and the other way round.
        A column `<name>.valid` of truth values says where `<name>` is null.
        """
        given = self._named(dict(given))
        chosen = {n: c for n, c in given.items() if n in self.known}
        missing = [f.name for f in self.fields if f.required and f.name not in chosen]
        if missing:
            raise BadInput(
                f"The column {missing[0]!r} is missing{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}.",
                f"The model needs {_listed(self.names)}; the request has {_listed(tuple(given)) or 'none'}.",
            )
        counts = {n: _length(c, n) for n, c in chosen.items()}
        if len(set(counts.values())) > 1:
            raise BadInput(
                f"The columns differ in length: {', '.join(f'{n!r} has {c}' for n, c in list(counts.items())[:6])}."
            )
        count = next(iter(counts.values()), 0)
        valid = {n: _validity(given[f"{n}.valid"], n, count) for n in chosen if f"{n}.valid" in given}
        return self._finish(chosen, count, {}, valid)

    def _named(self, given: dict[str, Any]) -> dict[str, Any]:
        if self.lone is not None and self.lone.name not in given:
            plain = {n: c for n, c in given.items() if not n.endswith(".valid")}
            if len(plain) == 1:
                given[self.lone.name] = next(iter(plain.values()))
            elif len(plain) == self.width:
                given[self.lone.name] = _side_by_side(list(plain.values()))
        elif len(given) == 1 and len(self.fields) > 1 and not self.known & given.keys():
            return self._apart(*given.popitem())
        return given

    def _apart(self, name: str, tensor: Any) -> dict[str, Any]:
        """One tensor as plain columns."""
        if not all(f.scalar for f in self.fields):
            return {name: tensor}
        if isinstance(tensor, np.ndarray):
            wide = tensor.shape[1] if tensor.ndim == 2 else 1
            if wide != len(self.fields):
                raise BadInput(
                    f"{name!r} is {wide} columns wide; the model takes {len(self.fields)}: {_listed(self.names)}."
                )
            return {n: tensor[:, i] for i, n in enumerate(self.names)}
        rows = tensor if isinstance(tensor, list) else []
        for i, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != len(self.fields):
                raise BadInput(
                    f"Row {i} {_said_width(row)}; the model takes {len(self.fields)}: {_listed(self.names)}."
                )
        return {n: [row[i] for row in rows] for i, n in enumerate(self.names)}

    def tensor(self, given: np.ndarray) -> Read | None:
        """One float tensor that is the whole of what the signature wants, as it is; None where it is not."""
        if given.ndim != 2 or given.dtype.kind not in "fiu":
            return None
        if self.matrix and given.shape[1] == len(self.fields):
            return Read(self._batch_of_matrix(given), len(given), {})
        if self.plain_tensor is not None and given.shape[1] == self.plain_tensor.shape[1]:
            column = given.astype(self.plain_tensor.numpy, copy=False)
            return Read(Batch({self.plain_tensor.name: column}), len(given), {})
        return None

    def _batch_of_matrix(self, given: np.ndarray) -> Batch:
        return Batch(names=self.names, matrix=given.astype(self.fields[0].numpy, copy=False))

    def _finish(
        self,
        given: Mapping[str, Any],
        count: int,
        errors: dict[int, str],
        valid: Mapping[str, np.ndarray] | None = None,
    ) -> Read:
        """Columns in their dtypes; the rows that have an error are left out."""
        columns = {}
        for field in self.fields:
            if field.name not in given:
                columns[field.name] = _absent(field, count)
                continue
            column = to_column(field, given[field.name], errors)
            mask = (valid or {}).get(field.name)
            columns[field.name] = column if mask is None else _with_nulls(field, column, mask)
        if self.matrix:
            stacked = (
                np.column_stack([columns[n] for n in self.names]) if count else np.empty((0, len(self.names)))
            )
            batch = self._batch_of_matrix(stacked)
        else:
            batch = Batch(columns, np.arange(count))
        if errors:
            batch = batch.take(~np.isin(batch.rows, list(errors)))
        return Read(batch, count, errors)


def numbers(rows: Any, width: int) -> np.ndarray | None:
    """Rows of `width` numbers as one float64 array, nulls as NaN; None where they are anything else.

    Never lets NumPy guess a dtype of foreign values: one long text among them would make every element as long.
    """
    flat = array("d")
    try:
        for row in rows:
            if len(row) != width:
                return None
            flat.fromlist(row)
    except (TypeError, OverflowError):
        return _numbers_and_nulls(rows, width)
    return np.frombuffer(flat, np.float64).reshape(-1, width) if flat else np.empty((0, width))


def _numbers_and_nulls(rows: Any, width: int) -> np.ndarray | None:
    if not all(isinstance(r, list) and len(r) == width for r in rows):
        return None
    if not set(map(type, chain.from_iterable(rows))) <= _NUMBER_OR_NULL:
        return None
    try:
        return np.array(rows, dtype=np.float64)
    except OverflowError:
        return None


def to_column(field: Field, values: Any, errors: dict[int, str]) -> np.ndarray:
    """Values of one column (a list, or an array from a binary tensor or a table) as the batch holds them.

    Rows whose value does not fit get an error and a blank.
    """
    if isinstance(values, np.ndarray):
        quick = _cast(field, values)
        if quick is not None:
            return quick
        values = values.tolist() if values.dtype.kind != "M" else list(values)
    elif field.numeric:
        quick = _numbers_of(field, values)
        if quick is not None:
            return quick
    return _one_by_one(field, values, errors)


def _numbers_of(field: Field, values: list[Any]) -> np.ndarray | None:
    """The quick way for a list; None sends it the slow way."""
    if not field.scalar:
        if len(field.shape) != 2 or not field.dtype.startswith("float"):
            return None
        width = (
            field.shape[1]
            if field.shape[1] >= 0
            else len(values[0])
            if values and isinstance(values[0], list)
            else 0
        )
        found = numbers(values, width)
        return None if found is None else found.astype(field.numpy, copy=False)
    kinds = set(map(type, values))
    try:
        if field.dtype.startswith("float"):
            return np.array(values, dtype=field.numpy) if kinds <= _NUMBER_OR_NULL else None
        if field.dtype == "bool":
            return np.array(values, dtype=bool) if kinds <= {bool} else None
        return _cast(field, np.array(values)) if values and kinds <= {int, float} else None
    except OverflowError:
        return None


def _fits_shape(field: Field, given: np.ndarray) -> np.ndarray | None:
    if field.scalar:
        return given if given.ndim == 1 else given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else None
    wanted = field.shape[1:]
    if given.ndim == len(field.shape) and all(
        w < 0 or w == n for w, n in zip(wanted, given.shape[1:], strict=True)
    ):
        return given
    return None


def _cast(field: Field, given: np.ndarray) -> np.ndarray | None:
    """The array in the field's dtype where that loses nothing, else None."""
    shaped = _fits_shape(field, given)
    if shaped is None or shaped.dtype.kind not in (
        "fiub" if field.numeric else "Mi" if field.dtype == "datetime" else ""
    ):
        return None
    if field.dtype == "datetime":
        return shaped.astype("datetime64[ns]")
    target = field.numpy
    if target.kind == "f":
        return None if shaped.dtype.kind == "b" else shaped.astype(target, copy=False)
    if shaped.dtype == target:
        return shaped
    if shaped.dtype.kind == "f" and not np.isfinite(shaped).all():
        return None
    with np.errstate(all="ignore"):
        cast = shaped.astype(target)
    return cast if bool((cast == shaped).all()) else None


def _one_by_one(field: Field, values: Sequence[Any], errors: dict[int, str]) -> np.ndarray:
    convert = _CONVERTERS[field.dtype] if not field.numeric else _converter_ofnumbers(field)
    out: list[Any] = []
    for i, value in enumerate(values):
        try:
            out.append(_row(field, value, convert))
        except (ValueError, OverflowError) as why:
            errors.setdefault(i, f"Row {i}, column {field.name!r}: {why}.")
            out.append(_blank(field))
    return _assemble(field, out)


def _row(field: Field, value: Any, convert: Callable[[Any, Field], Any]) -> Any:
    if field.scalar:
        if isinstance(value, list) and field.dtype != "object":
            if len(value) != 1:
                raise ValueError(f"one value belongs here, not a list of {len(value)}")
            value = value[0]
        return _value(field, value, convert)
    flat: list[Any] = []
    shape = _flatten(value, flat, len(field.shape) - 1)
    if any(w >= 0 and w != n for w, n in zip(field.shape[1:], shape, strict=True)):
        raise ValueError(f"a row has the shape {list(shape)} where the model takes {list(field.shape[1:])}")
    converted = [_value(field, v, convert) for v in flat]
    out = np.empty(len(flat), field.numpy)
    out[:] = converted
    return out.reshape(shape)


def _flatten(value: Any, into: list[Any], depth: int) -> tuple[int, ...]:
    if depth == 0:
        into.append(value)
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{_kind(value)} where a list belongs")
    shapes = {_flatten(v, into, depth - 1) for v in value}
    if len(shapes) > 1:
        raise ValueError("lists of unlike lengths")
    return (len(value), *(shapes.pop() if shapes else (0,) * (depth - 1)))


def _value(field: Field, value: Any, convert: Callable[[Any, Field], Any]) -> Any:
    if value is None:
        if field.dtype.startswith("float"):
            return np.nan
        if not field.nullable and field.dtype != "object":
            raise ValueError("null, and the column can't be null")
        return np.datetime64("NaT", "ns") if field.dtype == "datetime" else None
    return convert(value, field)


def _blank(field: Field) -> Any:
    """Stands where a row has an error, until it is left out."""
    one: Any = None
    if field.numeric:
        one = field.numpy.type(0)
    elif field.dtype == "datetime":
        one = np.datetime64("NaT", "ns")
    return one if field.scalar else _Hole


class _Hole:
    """A row of a tensor column that could not be read; it takes the shape of its neighbours."""


def _assemble(field: Field, values: list[Any]) -> np.ndarray:
    if not field.scalar:
        return _assemble_tensors(field, values)
    if not field.numeric:
        column = np.empty(len(values), field.numpy)
        column[:] = values
        return column
    mask = [v is None for v in values]
    if not any(mask):
        return np.array(values, dtype=field.numpy)
    filled = np.array([0 if v is None else v for v in values], dtype=field.numpy)
    return np.ma.MaskedArray(filled, mask=mask)


def _assemble_tensors(field: Field, values: list[Any]) -> np.ndarray:
    shape = next((v.shape for v in values if v is not _Hole), tuple(max(n, 0) for n in field.shape[1:]))
    out = np.zeros((len(values), *shape), field.numpy)
    for i, value in enumerate(values):
        if value is _Hole:
            continue
        if value.shape != shape:
            raise BadInput(
                f"The rows of {field.name!r} differ in shape: {list(shape)} and {list(value.shape)}."
            )
        out[i] = value
    return out


def _converter_ofnumbers(field: Field) -> Callable[[Any, Field], Any]:
    return _to_bool if field.dtype == "bool" else _to_float if field.dtype.startswith("float") else _to_int


def _to_float(value: Any, field: Field) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{_shown(value)} is not a number")
    try:
        return float(value)
    except OverflowError as cause:
        raise ValueError("a number too large for a float") from cause


def _to_int(value: Any, field: Field) -> Any:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value
        or value in (np.inf, -np.inf)
    ):
        raise ValueError(f"{_shown(value)} is not a whole number")
    whole = int(value)
    if whole != value:
        raise ValueError(f"{_shown(value)} is not a whole number")
    info = np.iinfo(field.numpy)
    if not info.min <= whole <= info.max:
        raise ValueError(f"{whole} is beyond {field.dtype}")
    return whole


def _to_bool(value: Any, field: Field) -> Any:
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    raise ValueError(f"{_shown(value)} is neither true nor false")


def _to_string(value: Any, field: Field) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as cause:
            raise ValueError("bytes that are not UTF-8 text") from cause
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not text")
    return value


def _to_bytes(value: Any, field: Field) -> Any:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)} is not base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as cause:
        raise ValueError(f"{_shown(value)} is not base64 text") from cause


def _to_datetime(value: Any, field: Field) -> Any:
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[ns]")
    if isinstance(value, int) and not isinstance(value, bool):
        return np.datetime64(value, "ns")
    text = _to_string(value, field) if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError(f"{_shown(value)} is not a time, as 2024-05-01T12:00:00")
    return _from_iso(text)


def _from_iso(text: str) -> np.datetime64:
    """ISO 8601; a zone is converted to UTC, none is UTC. Keeps nanoseconds. Raises ValueError."""
    found = _ISO.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{_shown(text)} is not a time, as 2024-05-01T12:00:00")
    try:
        time = np.datetime64(found[1].replace(" ", "T").replace(",", "."), "ns")
    except ValueError as cause:
        raise ValueError(f"{_shown(text)} is not a time, as 2024-05-01T12:00:00") from cause
    zone = found[2]
    if zone and zone != "Z":
        minutes = int(zone[1:3]) * 60 + int(zone[-2:])
        time -= np.timedelta64(minutes if zone[0] == "+" else -minutes, "m")
    return time


def _to_label(value: Any, field: Field) -> Any:
    value = _to_string(value, field) if isinstance(value, bytes) else value
    if isinstance(value, (list, dict)):
        raise ValueError(f"{_shown(value)} is not a label")
    if field.categories is None:
        return value
    for label in field.categories:
        if label == value and isinstance(label, bool) == isinstance(value, bool):
            return label
    raise ValueError(f"{_shown(value)} is not one of {_listed(field.categories)}")


def _to_object(value: Any, field: Field) -> Any:
    return _to_string(value, field) if isinstance(value, bytes) else value


_CONVERTERS: dict[str, Callable[[Any, Field], Any]] = {
    "string": _to_string,
    "bytes": _to_bytes,
    "datetime": _to_datetime,
    "category": _to_label,
    "object": _to_object,
}


def _absent(field: Field, count: int) -> Any:
    """An optional column nobody sent: null in every row."""
    shape = (count, *(max(n, 0) for n in field.shape[1:]))
    if field.dtype.startswith("float"):
        return np.full(shape, np.nan, field.numpy)
    if field.numeric:
        return np.ma.MaskedArray(np.zeros(shape, field.numpy), mask=True)
    return (
        np.full(shape, np.datetime64("NaT", "ns"))
        if field.dtype == "datetime"
        else np.full(shape, None, object)
    )


def _with_nulls(field: Field, column: Any, valid: np.ndarray) -> Any:
    if valid.all():
        return column
    if not field.nullable and not field.dtype.startswith("float"):
        row = int(np.flatnonzero(~valid)[0])
        raise BadInput(f"Row {row}, column {field.name!r}: null, and the column can't be null.")
    if field.numeric and not field.dtype.startswith("float"):
        return np.ma.MaskedArray(column, mask=~valid)
    column = column.copy()
    column[~valid] = np.datetime64("NaT") if field.dtype == "datetime" else np.nan if field.numeric else None
    return column


def _validity(values: Any, name: str, count: int) -> np.ndarray:
    flags = np.asarray(values) if isinstance(values, np.ndarray) or set(map(type, values)) <= {bool} else None
    if flags is None or flags.size != count or (count and flags.dtype.kind != "b"):
        raise BadInput(f"{name + '.valid'!r} is not one truth value a row.")
    return flags.reshape(count).astype(bool)


def _length(column: Any, name: str) -> int:
    if isinstance(column, np.ndarray):
        if column.ndim == 0:
            raise BadInput(f"{name!r} has no rows.")
        return len(column)
    if not isinstance(column, list):
        raise BadInput(f"The column {name!r} is {_kind(column)} where a list of values, one a row, belongs.")
    return len(column)


def _side_by_side(columns: list[Any]) -> Any:
    if all(isinstance(c, np.ndarray) and c.dtype.kind in "fiub" and c.ndim == 1 for c in columns):
        if len({len(c) for c in columns}) == 1:
            return np.column_stack(columns)
    lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns]
    if not all(isinstance(c, list) for c in lists) or len({len(c) for c in lists}) > 1:
        raise BadInput("The columns are not lists of one length.")
    return [list(row) for row in zip(*lists, strict=True)]


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    words = {int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return words.get(type(value), type(value).__name__)


def _said_width(row: Any) -> str:
    return f"has {len(row)} values" if isinstance(row, list) else f"is {_kind(row)}, not a list of values"


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, (list, dict)) else _kind(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
