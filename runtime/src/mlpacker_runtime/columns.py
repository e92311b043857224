"""Plain Python values as a batch's columns: of the type that was promised, else of the type they share."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

from .batch import as_column
from .signature import NUMERIC, Field


def column_of(values: list[Any], field: Field | None = None) -> Any:
    """Plain Python values as a batch's column: of the field's type, else of the type they share.

    Raises ValueError or TypeError, naming the value and the type, where one is of another type.
    """
    if field is None:
        return inferred(values)
    if field.shape[1:]:
        return _stacked(values, field)
    if field.dtype in NUMERIC:
        return _numbers(values, field)
    if field.dtype == "datetime":
        return _times(values, field)
    _check(values, field)
    out = np.empty(len(values), dtype=object)
    out[:] = (
        [v.value if hasattr(v, "value") and hasattr(v, "name") else v for v in values]
        if field.dtype == "category"
        else values
    )
    return out


def _stacked(values: list[Any], field: Field) -> Any:
    dtype = field.numpy
    wide = tuple(max(n, 0) for n in field.shape[1:])
    arrays = [np.asarray(v, dtype=dtype) for v in values]
    for array in arrays:
        if len(array.shape) != len(wide) or any(
            w not in (0, n) for w, n in zip(wide, array.shape, strict=True)
        ):
            raise ValueError(
                f"an array of shape {list(array.shape)} for {field.name!r}, which has {[*field.shape[1:]]}."
            )
    return np.stack(arrays) if arrays else np.empty((0, *wide), dtype)


def _numbers(values: list[Any], field: Field) -> Any:
    dtype = field.numpy
    fitting: tuple[type, ...]
    null = np.fromiter((v is None for v in values), dtype=bool, count=len(values))
    if dtype.kind == "f":
        fitting, filled = (int, float, np.number, np.bool_), [np.nan if v is None else v for v in values]
    else:
        if null.any() and not field.nullable:
            raise ValueError(f"null for {field.name!r}, which is {field.dtype} and not nullable.")
        fitting = (bool, np.bool_) if dtype.kind == "b" else (int, np.integer, np.bool_)
        filled = [0 if v is None else _exact(v) if dtype.kind in "iu" else v for v in values]
    wrong = next((v for v, n in zip(filled, null, strict=True) if not n and not isinstance(v, fitting)), None)
    if wrong is not None:
        raise TypeError(f"{_shown(wrong)} for {field.name!r}, which is {field.dtype}.")
    try:
        with np.errstate(over="ignore"):  # too large for a narrow float is infinite in it
            array = np.array(filled, dtype=dtype)
    except (OverflowError, ValueError, TypeError) as cause:
        raise ValueError(f"a value for {field.name!r} that {field.dtype} can't hold: {cause}.") from cause
    return np.ma.MaskedArray(array, mask=null) if null.any() and dtype.kind != "f" else array


def _exact(value: Any) -> Any:
    """A whole float as an int: 3.0 where 3 was said."""
    return int(value) if isinstance(value, (float, np.floating)) and float(value).is_integer() else value


def _times(values: list[Any], field: Field) -> Any:
    out = np.empty(len(values), dtype="datetime64[ns]")
    for i, value in enumerate(values):
        if value is None:
            out[i] = np.datetime64("NaT", "ns")
        elif isinstance(value, (datetime.date, np.datetime64)):
            out[i] = _instant(value)
        else:
            raise TypeError(f"{_shown(value)} for {field.name!r}, which is datetime.")
    return out


def _instant(value: Any) -> Any:
    """A datetime or date as UTC, to the nanosecond where it knows them."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    return value.to_datetime64() if hasattr(value, "to_datetime64") else np.datetime64(value, "ns")


def _check(values: list[Any], field: Field) -> None:
    kind = {"string": str, "bytes": bytes}.get(field.dtype)
    labels = None if field.categories is None or field.dtype != "category" else set(field.categories)
    for value in values:
        if value is None:
            continue
        if kind is not None and not isinstance(value, kind):
            raise TypeError(f"{_shown(value)} for {field.name!r}, which is {field.dtype}.")
        if labels is not None and getattr(value, "value", value) not in labels:
            raise ValueError(
                f"{_shown(value)} for {field.name!r}, which is one of {', '.join(map(repr, field.categories or ()))}."
            )


def inferred(values: list[Any]) -> Any:
    """A column of the type the values share: bool, int64, float64, strings, bytes, datetimes, arrays, else objects."""
    given = [v for v in values if v is not None]
    kinds = {type(v) for v in given}
    if not given:
        return _objects(values)
    if (
        all(issubclass(k, np.ndarray) for k in kinds)
        and len({v.shape for v in given}) == 1
        and len(given) == len(values)
    ):
        return np.stack(values)
    if all(issubclass(k, np.generic) for k in kinds) and len(kinds) == 1 and len(given) == len(values):
        return as_column(np.array(values))
    dtype = next((d for d, types in _INFERRED if all(issubclass(k, types) for k in kinds)), None)
    try:
        return _objects(values) if dtype is None else column_of(values, Field("value", dtype, nullable=True))
    except (ValueError, OverflowError):  # whole numbers beyond 64 bits stay what they are
        return _objects(values)


_INFERRED: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("bool", (bool, np.bool_)),
    ("int64", (int, np.integer)),
    ("float64", (int, float, np.number)),
    ("string", (str,)),
    ("bytes", (bytes,)),
    ("datetime", (datetime.date, np.datetime64)),
)


def _objects(values: list[Any]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        out[i] = value
    return out


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
