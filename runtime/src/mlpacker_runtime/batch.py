"""Rows on their way through a pipeline.

A batch is columnar: each column is an array whose first axis is rows. Where all columns are plain floats of one type they
lie side by side in one matrix, so that thirty columns cost one allocation and not thirty.

`rows` is each row's identity: the number of the row that was asked. A stage that drops rows leaves identities out, one
that gives several answers repeats them, and a join brings branches together by them.
Nulls: NaN in floats, NaT in datetimes, None in strings and objects, a mask over integers and booleans.
Standard library and NumPy only (pandas and SciPy where the data is theirs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import BadInput
from .signature import Field


class Batch:
    """Named columns of `len(batch)` rows. Immutable by convention: a stage makes a new one."""

    __slots__ = ("_columns", "matrix", "names", "rows")

    def __init__(
        self,
        columns: Mapping[str, Any] | None = None,
        rows: np.ndarray | None = None,
        *,
        names: Sequence[str] = (),
        matrix: np.ndarray | None = None,
    ) -> None:
        self._columns = dict(columns) if columns is not None else None
        self.matrix = matrix
        self.names = tuple(names) if matrix is not None else tuple(self._columns or ())
        self.rows = np.arange(self._count()) if rows is None else rows

    def _count(self) -> int:
        if self.matrix is not None:
            return len(self.matrix)
        return next((c.shape[0] for c in (self._columns or {}).values()), 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    @property
    def columns(self) -> dict[str, Any]:
        if self._columns is None:
            matrix = self.matrix
            assert matrix is not None
            self._columns = {n: matrix[:, i] for i, n in enumerate(self.names)}
        return self._columns

    def with_rows(self, rows: np.ndarray) -> Batch:
        """The same values under other identities."""
        if self.matrix is not None:
            return Batch(rows=rows, names=self.names, matrix=self.matrix)
        return Batch(self._columns, rows)

    def take(self, at: Any) -> Batch:
        """The rows at these positions (a slice, an index array or a boolean mask)."""
        if self.matrix is not None:
            return Batch(rows=self.rows[at], names=self.names, matrix=self.matrix[at])
        return Batch({n: c[at] for n, c in self.columns.items()}, self.rows[at])

    def select(self, names: Sequence[str]) -> Batch:
        """These columns, in this order. Raises BadInput for one that is not there."""
        names = tuple(names)
        if names == self.names:
            return self
        missing = [n for n in names if n not in self.names]
        if missing:
            raise BadInput(
                f"Column {missing[0]!r} is missing: the data has {', '.join(map(repr, self.names[:12]))}."
            )
        if self.matrix is not None:
            at = [self.names.index(n) for n in names]
            return Batch(rows=self.rows, names=names, matrix=self.matrix[:, at])
        return Batch({n: self.columns[n] for n in names}, self.rows)


@dataclass(frozen=True)
class Outcome:
    """What became of a batch: the surviving rows, and an error per failed row. Rows in neither were dropped."""

    batch: Batch
    errors: Mapping[int, str] = field(default_factory=dict)


def concat(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, in order. Identities are kept as they are."""
    if len(batches) == 1:
        return batches[0]
    rows = np.concatenate([b.rows for b in batches])
    first = batches[0]
    if first.matrix is not None and all(b.matrix is not None and b.names == first.names for b in batches):
        return Batch(rows=rows, names=first.names, matrix=np.concatenate([b.matrix for b in batches]))
    return Batch({n: _stack([b.columns[n] for b in batches]) for n in first.names}, rows)


def _stack(parts: list[Any]) -> Any:
    if is_sparse(parts[0]):
        import scipy.sparse

        return scipy.sparse.vstack(parts, format="csr")
    if any(isinstance(p, np.ma.MaskedArray) for p in parts):
        return np.ma.concatenate(parts)
    return np.concatenate(parts)


def join(branches: Mapping[str, Batch]) -> Batch:
    """Bring branches together by row identity. A row dropped in one branch is dropped.

    A column name that two branches share becomes `branch.column`. Raises BadInput where a branch repeats a row.
    """
    common: np.ndarray | None = None
    for name, batch in branches.items():
        if len(np.unique(batch.rows)) != len(batch):
            raise BadInput(f"Stage {name!r} gave several answers for one row, which can't be joined.")
        common = batch.rows if common is None else common[np.isin(common, batch.rows)]
    assert common is not None
    columns: dict[str, Any] = {}
    names = [n for b in branches.values() for n in b.names]
    for name, batch in branches.items():
        order = np.argsort(batch.rows, kind="stable")
        at = order[np.searchsorted(batch.rows[order], common)]
        for column in batch.names:
            key = f"{name}.{column}" if names.count(column) > 1 else column
            columns[key] = batch.columns[column][at]
    return Batch(columns, common)


def is_sparse(value: Any) -> bool:
    return hasattr(value, "tocsr") and hasattr(value, "nnz")


def to_matrix(batch: Batch, dtype: Any = None) -> Any:
    """One [rows, features] array of all columns side by side; a lone 2-D or sparse column comes as it is."""
    if batch.matrix is not None:
        return batch.matrix if dtype is None else batch.matrix.astype(dtype, copy=False)
    parts = [batch.columns[n] for n in batch.names]
    if len(parts) == 1 and len(parts[0].shape) >= 2:
        only = parts[0]
        return only if dtype is None or is_sparse(only) else np.asarray(only).astype(dtype, copy=False)
    if any(is_sparse(p) for p in parts):
        import scipy.sparse

        return scipy.sparse.hstack([_two_dimensional(p) for p in parts], format="csr")
    filled = [np.ma.filled(p.astype(float), np.nan) if isinstance(p, np.ma.MaskedArray) else p for p in parts]
    stacked = np.concatenate([_two_dimensional(p) for p in filled], axis=1)
    return stacked if dtype is None else stacked.astype(dtype, copy=False)


def _two_dimensional(column: Any) -> Any:
    if is_sparse(column):
        return column
    return column.reshape(len(column), -1)


def to_frame(batch: Batch, fields: Iterable[Field] = ()) -> Any:
    """A pandas DataFrame whose index is the rows' identity. 2-D columns become object columns of lists."""
    import pandas as pd

    if batch.matrix is not None:
        return pd.DataFrame(batch.matrix, columns=list(batch.names), index=batch.rows, copy=False)
    kinds = {f.name: f for f in fields}
    data = {n: _series(c, kinds.get(n), pd) for n, c in batch.columns.items()}
    return pd.DataFrame(data, index=batch.rows, columns=list(batch.names))


def _series(column: Any, kind: Field | None, pd: Any) -> Any:
    if kind is not None and kind.dtype == "category":
        return pd.Categorical(column, categories=list(kind.categories) if kind.categories else None)
    if isinstance(column, np.ma.MaskedArray):
        name = (
            "boolean" if column.dtype == bool else column.dtype.name.replace("i", "I", 1).replace("uI", "UI")
        )
        values = pd.array(column.filled(0), dtype=name)
        values[np.ma.getmaskarray(column)] = pd.NA
        return values
    return list(column) if column.ndim > 1 else column


def to_records(batch: Batch) -> list[dict[str, Any]]:
    """Each row as a dict of plain Python values; null is None, a NaN stays a float."""
    lists = [_plain(batch.columns[n]) for n in batch.names]
    return [dict(zip(batch.names, row, strict=True)) for row in zip(*lists, strict=True)]


def _plain(column: Any) -> list[Any]:
    if is_sparse(column):
        column = column.toarray()
    if column.dtype.kind == "M":
        return [None if np.isnat(v) else v.astype("datetime64[us]").item() for v in column]
    return column.tolist()


def from_result(result: Any, rows: np.ndarray, name: str) -> Batch:
    """What a model or function returned, as a batch.

    A DataFrame or Series brings its index as identity; an array, list or dict of arrays must keep length and order.
    A lone array is named `name`. Raises BadInput where lengths or identities do not fit.
    """
    if hasattr(result, "iloc"):
        return _from_pandas(result, rows, name)
    if isinstance(result, dict):
        columns = {str(k): as_column(v) for k, v in result.items()}
    else:
        columns = {name: as_column(result)}
    for key, column in columns.items():
        if len(column.shape) == 0 or column.shape[0] != len(rows):
            given = column.shape[0] if column.shape else "one value"
            raise BadInput(
                f"{key!r} has {given} rows for {len(rows)} that went in: arrays must keep length and order."
            )
    return Batch(columns, rows)


def _from_pandas(result: Any, rows: np.ndarray, name: str) -> Batch:
    index = np.asarray(result.index)
    if len(index) and (index.dtype.kind not in "iu" or not np.isin(index, rows).all()):
        raise BadInput(
            "The DataFrame that came back lost its index, which is the rows' identity: keep it, or return an array."
        )
    if result.ndim == 1:
        return Batch(
            {str(result.name if result.name is not None else name): as_column(result)}, index.astype(np.int64)
        )
    return Batch({str(c): as_column(result[c]) for c in result.columns}, index.astype(np.int64))


def as_column(value: Any) -> Any:
    """A column as a batch holds it: an array with nulls as the module says, or a CSR matrix."""
    if is_sparse(value):
        return value.tocsr()
    dtype = getattr(value, "dtype", None)
    if hasattr(value, "iloc") and not isinstance(dtype, np.dtype):
        return _extension_column(value)
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype.kind == "M":
        return array.astype("datetime64[ns]")
    return _nulls_as_none(array) if array.dtype == object else array


def _nulls_as_none(array: np.ndarray) -> np.ndarray:
    """Objects as they are, with a float NaN among strings (pandas' null) told as None."""
    if array.ndim != 1 or not any(isinstance(v, str) for v in array):
        return array
    out = np.empty(len(array), dtype=object)
    out[:] = [None if v is None or v != v else v for v in array]
    return out


def _extension_column(series: Any) -> Any:
    """A pandas extension column (category, string, Int64, boolean, Arrow) as NumPy."""
    null = np.asarray(series.isna())
    kind = getattr(series.dtype, "numpy_dtype", None)
    if kind is not None and getattr(kind, "kind", "O") in "iub":
        return (
            np.ma.MaskedArray(series.fillna(0).to_numpy(dtype=kind), mask=null)
            if null.any()
            else series.to_numpy(dtype=kind)
        )
    if str(series.dtype).lower().startswith("float"):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    if str(series.dtype).startswith("datetime64"):
        return series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(dtype="datetime64[ns]")
    values = np.empty(len(series), dtype=object)
    values[:] = [None if n else v for v, n in zip(series.tolist(), null, strict=True)]
    return values
