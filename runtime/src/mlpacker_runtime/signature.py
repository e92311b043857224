"""What goes into a pipeline or a stage, and what comes out: names, dtypes and shapes.

Standard library and NumPy only: this module is also imported inside a user's training interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who only reads a manifest, as the command line does, need not wait for NumPy
    import numpy as np

NUMERIC = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
OTHER = ("string", "bytes", "datetime", "category", "object")
DTYPES = NUMERIC + OTHER


@dataclass(frozen=True)
class Field:
    """One named column or tensor.

    dtype: one of DTYPES. `datetime` is datetime64[ns]; `category` travels as its labels; `object` is a JSON value.
    shape: the first axis is rows and always -1; a plain column is (-1,), thirty features side by side (-1, 30).
    nullable: null is a legal value. A float's NaN needs no permission.
    categories: the labels a `category` knows, in the model's order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = (-1,)
    nullable: bool = False
    required: bool = True
    categories: tuple[Any, ...] | None = None

    @property
    def numeric(self) -> bool:
        return self.dtype in NUMERIC

    @property
    def scalar(self) -> bool:
        """One value a row."""
        return len(self.shape) == 1

    @property
    def numpy(self) -> np.dtype:
        """The dtype a column of this field has in a batch."""
        import numpy as np

        if self.numeric:
            return np.dtype(self.dtype)
        return np.dtype("datetime64[ns]") if self.dtype == "datetime" else np.dtype(object)


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


def is_matrix(fields: tuple[Field, ...]) -> bool:
    """True where the fields are plain columns of one float type, and so fit one [rows, columns] array."""
    return (
        len(fields) > 1
        and all(f.scalar and not f.nullable for f in fields)
        and len({f.dtype for f in fields}) == 1
        and fields[0].dtype in ("float32", "float64")
    )


def field_of(name: str, column: Any) -> Field:
    """The field that describes an array, a masked array or a sparse matrix of one column's rows."""
    import numpy as np

    shape = (-1, *(int(n) for n in column.shape[1:]))
    dtype = column.dtype
    if dtype.kind in "OUS":
        values = [v for v in np.asarray(column).ravel()[:10_000].tolist() if v is not None]
        return Field(name, _object_dtype(values), shape, nullable=_has_null(column))
    if dtype.kind == "M":
        return Field(name, "datetime", shape)
    return Field(name, dtype.name, shape, nullable=isinstance(column, np.ma.MaskedArray))


def _object_dtype(values: list[Any]) -> str:
    if values and all(isinstance(v, bytes) for v in values):
        return "bytes"
    return "string" if all(isinstance(v, str) for v in values) else "object"


def _has_null(column: Any) -> bool:
    return column.dtype == object and any(v is None for v in column.ravel().tolist())
