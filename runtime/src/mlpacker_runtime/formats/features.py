"""How a batch becomes what a tabular model reads: columns in the model's order, side by side in one matrix.

Standard library and NumPy only, as the adapters that use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..batch import Batch, is_sparse, to_matrix
from ..errors import BadInput
from ..signature import Field

UNNAMED = "input"
"""The one column of a model that knows its width and no names."""


def unnamed(width: int, dtype: str = "float64") -> tuple[Field, ...]:
    """The signature of a model that knows its width alone: one column of that many numbers a row."""
    return (Field(UNNAMED, dtype, (-1, int(width))),)


def columns(names: Sequence[str], dtype: str = "float64") -> tuple[Field, ...]:
    """The signature of a model that knows its columns' names: a number of each a row."""
    return tuple(Field(n, dtype) for n in names)


def arranged(batch: Batch, fields: Sequence[Field]) -> Batch:
    """The columns these fields name, in their order. Raises BadInput for one that is missing.

    What has no names is taken as it lies: a lone field of several numbers a row takes all columns side by side, and
    named fields take a lone column that is as wide as they are many (what an array from the stage before is).
    """
    names = [f.name for f in fields]
    if not names or all(n in batch for n in names):
        return batch.select(names) if names else batch
    if len(fields) == 1 and len(fields[0].shape) == 2:
        return batch
    if len(batch.names) == 1 and batch.columns[batch.names[0]].shape[1:] == (len(names),):
        return batch
    return batch.select(names)


def matrix(batch: Batch, fields: Sequence[Field], known: Sequence[Field], *, strict: bool = True) -> Any:
    """One [rows, features] array of floats (or a CSR matrix), NaN for null.

    fields: the stage's signature, whose order is the model's. known: what the model says of the same columns, with the
    labels of its categories, which become their positions. A label the model does not know raises BadInput, or is null
    where not `strict`. Raises BadInput for a width that is not the model's and for what is no number.
    """
    batch = arranged(batch, fields or known)
    if len(known) == len(batch.names) and any(f.categories for f in known):
        coded = {n: _coded(batch.columns[n], f, strict) for n, f in zip(batch.names, known, strict=True)}
        batch = Batch(coded, batch.rows)
    return checked_width(numbers(batch), known)


def numbers(batch: Batch) -> Any:
    """All columns side by side as floats. Raises BadInput naming the column that is no number."""
    if batch.matrix is not None:
        return batch.matrix
    odd = {n: c for n, c in batch.columns.items() if not is_sparse(c) and c.dtype.kind not in "biuf"}
    if odd:
        batch = Batch({n: _floats(n, c) if n in odd else c for n, c in batch.columns.items()}, batch.rows)
    return to_matrix(batch)


def checked_width(values: Any, known: Sequence[Field]) -> Any:
    """The matrix itself. Raises BadInput where it is not as wide as the fields are together."""
    width = sum(int(np.prod(f.shape[1:])) for f in known)
    if values.ndim != 2 or (known and values.shape[1] != width):
        given = values.shape[1] if values.ndim == 2 else f"{values.ndim - 1} axes"
        raise BadInput(f"Each row has {given} values; the model was trained on {width}.")
    return values


def _floats(name: str, column: Any) -> np.ndarray:
    if column.dtype.kind == "O" and any(isinstance(v, (str, bytes)) for v in column.ravel()):
        odd = next(v for v in column.ravel() if isinstance(v, (str, bytes)))
        raise BadInput(f"Column {name!r} holds {odd!r} where a number belongs.")
    try:
        return np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise BadInput(f"Column {name!r} does not hold numbers.") from cause


def _coded(column: Any, field: Field, strict: bool) -> Any:
    """A category's labels as their positions among the known ones, NaN for null."""
    if not field.categories:
        return column
    place = {label: float(i) for i, label in enumerate(field.categories)}
    out = np.full(len(column), np.nan)
    for i, label in enumerate(column.tolist()):
        if label is None or label != label:
            continue
        code = place.get(label)
        if code is None and strict:
            known = ", ".join(map(repr, field.categories[:12]))
            raise BadInput(
                f"Column {field.name!r} holds {label!r}, which the model was not trained on: it knows {known}."
            )
        out[i] = np.nan if code is None else code
    return out
