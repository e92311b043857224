"""What a function's annotations say of the rows it takes and gives.

Annotations are read as `typing.get_type_hints` resolves them, strings included; one that names a module imported only for
type checkers is recognised by its spelling. Standard library and NumPy only: pandas is recognised, never imported.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BadInput
from .signature import NUMERIC, Field

TAKES = ("frame", "matrix", "columns", "series", "list", "record", "records", "values")
"""frame: a DataFrame. matrix: one [rows, columns] array. columns: a dict of arrays, or arrays by parameter name.
series: one pandas Series, or Series by parameter name. list: one column's plain values. record: one row at a time, as a dict
or an object. records: all rows as a list of dicts. values: one row at a time, a parameter for each column."""

SCALARS: dict[Any, str] = {
    bool: "bool",
    int: "int64",
    float: "float64",
    str: "string",
    bytes: "bytes",
    datetime.datetime: "datetime",
    datetime.date: "datetime",
}
WRAPPERS = ("Annotated", "NotRequired", "Required", "ReadOnly", "Final", "ClassVar")
LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
ITERATORS = (collections.abc.Iterator, collections.abc.Generator)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
Converter = Callable[[Any], Any]


@dataclass(frozen=True)
class Column:
    """A column an annotation declares. convert: from the batch's plain value to the annotated type, where they differ."""

    field: Field
    convert: Converter | None = None


@dataclass(frozen=True)
class Takes:
    """How a callable wants its rows.

    kind: one of TAKES. columns: those it declares, or None where it takes what there is. make: the class a record is
    built with; None is a dict. names: the parameters that are columns, where they are named. dtype: of a matrix.
    lazy: it wants an iterator. said: the annotation, None where there is none.
    """

    kind: str
    columns: tuple[Column, ...] | None = None
    make: Any = None
    names: tuple[str, ...] = ()
    dtype: Any = None
    lazy: bool = False
    said: str | None = None

    @property
    def fields(self) -> tuple[Field, ...] | None:
        return None if self.columns is None else tuple(c.field for c in self.columns)


@dataclass(frozen=True)
class Gives:
    """What a callable says it gives. fields: of a record, or the lone value (named ``) where `value` is true."""

    fields: tuple[Field, ...] | None = None
    value: bool = False
    said: str | None = None


def hints_of(function: Any) -> dict[str, Any]:
    """Parameter → annotation, resolved where possible; what does not resolve stays a string."""
    plain = _plain(function)
    if not hasattr(plain, "__annotations__"):
        return {}
    try:
        return typing.get_type_hints(plain, include_extras=True)
    except Exception:  # noqa: BLE001  an annotation may name anything, also what is imported for type checkers only
        return {name: _resolve(hint, plain) for name, hint in plain.__annotations__.items()}


def _plain(function: Any) -> Any:
    """The function behind decorators, partial arguments and callable objects."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if inspect.isroutine(function):
        return function
    return inspect.unwrap(type(function).__call__) if callable(function) else function


def _resolve(hint: Any, function: Any) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, getattr(function, "__globals__", {}))  # noqa: S307  the user's own code, which is running
    except Exception:  # noqa: BLE001  as above
        return hint


def takes_of(function: Any, label: str, frames: bool, values: bool = False) -> Takes:
    """How the callable wants its rows. frames: what it is given unannotated (a DataFrame, else records).

    values: its parameters are columns, whatever it says.
    Raises BadInput, naming `label`, for a callable that can't be a stage.
    """
    if is_async(function):
        raise BadInput(
            f"{label} is an async function; a stage is a plain one.", "Write def instead of async def."
        )
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # a built-in or a ufunc has none
        return Takes("matrix")
    hints = hints_of(function)
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional:
        return _without_parameters(parameters, needed, label, frames)
    if values or len(needed) > 1 or _is_scalar(hints.get(positional[0].name)):
        return _by_name(parameters, needed, hints, label)
    first = positional[0]
    return _takes(hints.get(first.name), label, frames)


def is_async(function: Any) -> bool:
    plain = _plain(function)
    return inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain)


def _without_parameters(
    parameters: list[inspect.Parameter], needed: list[inspect.Parameter], label: str, frames: bool
) -> Takes:
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and not needed:
        return Takes("frame" if frames else "record")
    if any(p.kind is p.KEYWORD_ONLY for p in parameters):
        return _by_name(parameters, needed, {}, label)
    raise BadInput(f"{label} takes no argument, so a stage can't hand it rows.", "Give it one: the rows.")


def _by_name(
    parameters: list[inspect.Parameter], needed: list[inspect.Parameter], hints: dict[str, Any], label: str
) -> Takes:
    """Several parameters, or a scalar one: each is a column of that name."""
    kinds = {_kind_by_name(hints.get(p.name), p, label) for p in needed or parameters[:1]}
    if len(kinds) > 1:
        raise BadInput(
            f"{label} takes {', '.join(p.name for p in needed)}, which are not one kind of thing.",
            "Let it take one DataFrame, array or record, or columns that are all plain values, arrays or Series; "
            "what is a setting gets a default, or a value under args.",
        )
    kind = kinds.pop()
    if kind != "values":
        return Takes(kind, names=tuple(p.name for p in needed), said=_spell(hints.get(needed[0].name)))
    chosen = [p for p in parameters if p in needed or _is_scalar(hints.get(p.name))]
    columns = tuple(_column(p.name, hints.get(p.name, Any), required=p in needed) for p in chosen)
    return Takes(
        "values", columns, names=tuple(p.name for p in chosen), said=_spell(hints.get(chosen[0].name))
    )


def _kind_by_name(hint: Any, parameter: inspect.Parameter, label: str) -> str:
    if hint is None or hint in (Any, object) or _is_scalar(hint):
        return "values"
    kind = _takes(hint, label, False).kind
    return {"matrix": "columns"}.get(kind, kind)


def _takes(hint: Any, label: str, frames: bool) -> Takes:
    hint, said = _strip(hint), _spell(hint)
    if hint in (None, Any, object, inspect.Parameter.empty) or isinstance(hint, typing.TypeVar):
        return Takes("frame" if frames else "record")
    if isinstance(hint, str):
        return _by_spelling(hint, label)
    if _is_pandas(hint, "DataFrame"):
        return Takes("frame", said=said)
    if _is_pandas(hint, "Series"):
        return Takes("series", said=said)
    if _is_array(hint) or _is_sparse(hint):
        return Takes("matrix", dtype=_dtype_of(hint), said=said)
    if is_record(hint):
        return Takes("record", columns_of(hint), _maker(hint), said=said)
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in MAPPINGS:
        arrays = len(inner) == 2 and (_is_array(_strip(inner[1])) or _is_pandas(_strip(inner[1]), "Series"))
        return Takes("columns" if arrays else "record", said=said)
    if origin in LISTS or origin in ITERATORS:
        return _takes_many(inner[0] if inner else dict, origin in ITERATORS, said, label)
    raise BadInput(
        f"{label} is annotated to take {said}, which a stage can't give.",
        "Take a DataFrame, an array, a Series, a dict of arrays, a list of dicts, a dict, a TypedDict, a dataclass or plain values.",
    )


def _takes_many(inner: Any, lazy: bool, said: str | None, label: str) -> Takes:
    if _is_scalar(inner):
        return Takes("list", lazy=lazy, said=said)
    one = _takes(inner, label, False)
    if one.kind != "record":
        raise BadInput(
            f"{label} is annotated to take {said}, which a stage can't give.",
            "Take a list of dicts, or a DataFrame.",
        )
    return Takes("records", one.columns, one.make, lazy=lazy, said=said)


def _by_spelling(hint: str, label: str) -> Takes:
    """An annotation that can't be resolved, because its module is imported for type checkers only."""
    text = hint.replace(" ", "")
    if text.startswith(("dict[", "Dict[", "Mapping[")) and (
        "ndarray" in text or "NDArray" in text or "Series" in text
    ):
        return Takes("columns", said=hint)
    for word, kind in (
        ("DataFrame", "frame"),
        ("Series", "series"),
        ("ndarray", "matrix"),
        ("NDArray", "matrix"),
        ("ArrayLike", "matrix"),
    ):
        if word in text:
            return Takes(kind, said=hint)
    if text.startswith(("list[", "List[", "Sequence[", "Iterable[")):
        return Takes("records", said=hint)
    if text.startswith(("dict", "Dict", "Mapping")):
        return Takes("record", said=hint)
    raise BadInput(
        f"{label} is annotated to take {hint!r}, which can't be resolved.",
        "Import the name at the top of the file, or leave the annotation out.",
    )


def gives_of(function: Any) -> Gives:
    """What the return annotation declares. Nothing, where it declares nothing a column could be read from."""
    hint = hints_of(function).get("return")
    said = _spell(hint)
    hint = _strip(hint)
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if (origin in LISTS or origin in ITERATORS) and inner:
        hint = _strip(inner[0])
    if is_record(hint):
        return Gives(tuple(_given(c.field, hint) for c in columns_of(hint)), said=said)
    if _is_scalar(hint):
        return Gives(
            (_column("", hint, nullable=_nullable(hints_of(function).get("return"))).field,),
            value=True,
            said=said,
        )
    return Gives(said=said)


def _given(field: Field, record: Any) -> Field:
    """What may be left out of a dict is null then; an object has all of its fields."""
    if field.required:
        return field
    return (
        dataclasses.replace(field, nullable=True)
        if _is_typed_dict(record)
        else dataclasses.replace(field, required=True)
    )


# ---- records


def is_record(hint: Any) -> bool:
    """A TypedDict, a dataclass, a NamedTuple or a pydantic model."""
    if not isinstance(hint, type):
        return False
    return (
        _is_typed_dict(hint)
        or dataclasses.is_dataclass(hint)
        or _is_named_tuple(hint)
        or hasattr(hint, "model_fields")
    )


def _is_typed_dict(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, dict) and hasattr(hint, "__required_keys__")


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _maker(hint: Any) -> Any:
    return None if _is_typed_dict(hint) else hint


def columns_of(record: Any) -> tuple[Column, ...]:
    """The columns a record class declares, in its order."""
    try:
        hints = typing.get_type_hints(record, include_extras=True)
    except Exception:  # noqa: BLE001  as in hints_of
        hints = dict(getattr(record, "__annotations__", {}))
    optional = _optional_names(record)
    return tuple(
        _column(n, h, n not in optional) for n, h in hints.items() if n in _field_names(record, hints)
    )


def _field_names(record: Any, hints: Mapping[str, Any]) -> set[str]:
    if dataclasses.is_dataclass(record):
        return {f.name for f in dataclasses.fields(record) if f.init}
    return set(getattr(record, "model_fields", None) or getattr(record, "_fields", None) or hints)


def _optional_names(record: Any) -> set[str]:
    if _is_typed_dict(record):
        return set(record.__optional_keys__)
    if dataclasses.is_dataclass(record):
        missing = dataclasses.MISSING
        return {
            f.name
            for f in dataclasses.fields(record)
            if f.default is not missing or f.default_factory is not missing
        }
    if _is_named_tuple(record):
        return set(record._field_defaults)
    return {n for n, f in record.model_fields.items() if not f.is_required()}


def _column(name: str, hint: Any, required: bool = True, nullable: bool | None = None) -> Column:
    """The column an annotation declares: Optional is nullable, a Literal or Enum of strings a category."""
    wrappers = _wrappers(hint)
    required = "Required" in wrappers or (required and "NotRequired" not in wrappers)
    null = _nullable(hint) if nullable is None else nullable
    bare = _strip(hint)
    if typing.get_origin(bare) is typing.Literal:
        return Column(_field_of_labels(name, typing.get_args(bare), null, required))
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return Column(_field_of_labels(name, tuple(m.value for m in bare), null, required), bare)
    if _is_array(bare):
        return Column(Field(name, _name_of(_dtype_of(bare)), (-1, -1), null, required))
    dtype = _scalar_dtype(bare) or "object"
    return Column(Field(name, dtype, nullable=null, required=required), _converter(bare, dtype, null))


def _field_of_labels(name: str, labels: tuple[Any, ...], null: bool, required: bool) -> Field:
    given = tuple(v for v in labels if v is not None)
    null = null or len(given) < len(labels)
    if all(isinstance(v, str) for v in given):
        return Field(name, "category", nullable=null, required=required, categories=given)
    kinds = {type(v) for v in given}
    dtype = SCALARS.get(kinds.pop(), "object") if len(kinds) == 1 else "object"
    return Field(name, dtype, nullable=null, required=required)


def _converter(hint: Any, dtype: str, null: bool) -> Converter | None:
    if hint is datetime.date:
        return lambda v: v.date() if isinstance(v, datetime.datetime) else v
    if dtype == "float64" and null:
        return lambda v: None if v != v else float(v)
    if dtype == "float64":
        return float
    return _whole if dtype == "int64" else None


def _whole(value: Any) -> int:
    """A number as an int. Raises ValueError where it is not whole: a float column must not lose what it held."""
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value} is not a whole number")
    return int(value)


# ---- types


def _is_scalar(hint: Any) -> bool:
    bare = _strip(hint)
    if typing.get_origin(bare) is typing.Literal:
        return True
    return isinstance(bare, type) and (issubclass(bare, enum.Enum) or _scalar_dtype(bare) is not None)


def _scalar_dtype(hint: Any) -> str | None:
    if isinstance(hint, str):
        return next((d for k, d in SCALARS.items() if k.__name__ == hint.removesuffix("|None").strip()), None)
    if hint in SCALARS:
        return SCALARS[hint]
    if not isinstance(hint, type):
        return None
    if issubclass(hint, np.generic):
        name = _name_of(hint)
        return "datetime" if issubclass(hint, np.datetime64) else name
    if issubclass(hint, datetime.datetime):  # pandas.Timestamp among them
        return "datetime"
    return next((SCALARS[k] for k in (bool, int, float, str, bytes) if issubclass(hint, k)), None)


def _name_of(dtype: Any) -> str:
    """The signature's word for a NumPy dtype; float64 where it is open, such as `np.floating`."""
    if dtype is None:
        return "float64"
    if issubclass(dtype, np.str_):
        return "string"
    if issubclass(dtype, np.bytes_):
        return "bytes"
    try:
        name = np.dtype(dtype).name
    except TypeError:
        return "int64" if issubclass(dtype, np.integer) else "float64"
    return name if name in NUMERIC else "object"


def _is_pandas(hint: Any, name: str) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and any(
        c.__module__.split(".")[0] == "pandas" and c.__name__ == name for c in kind.__mro__
    )


def _is_array(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, np.ndarray)


def _is_sparse(hint: Any) -> bool:
    return isinstance(hint, type) and hint.__module__.startswith("scipy.sparse")


def _dtype_of(hint: Any) -> Any:
    """The scalar type of `NDArray[np.float32]`, or None."""
    for part in typing.get_args(hint):
        for scalar in typing.get_args(part):
            if isinstance(scalar, type) and issubclass(scalar, np.generic) and not inspect.isabstract(scalar):
                return (
                    scalar
                    if scalar.__name__ not in ("generic", "number", "floating", "integer", "inexact")
                    else None
                )
    return None


def _wrappers(hint: Any) -> set[str]:
    found = set()
    while (word := _wrapper(hint)) in WRAPPERS:
        found.add(word)
        hint = typing.get_args(hint)[0] if word != "Annotated" else hint.__origin__
    return found


def _wrapper(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        return "Annotated"
    origin = typing.get_origin(hint)
    return (
        str(getattr(origin, "_name", None) or getattr(origin, "__name__", "")) if origin is not None else ""
    )


def _strip(hint: Any) -> Any:
    """The annotation without Annotated, NotRequired, Optional, aliases and new types."""
    while True:
        if _wrapper(hint) in WRAPPERS:
            hint = hint.__origin__ if hasattr(hint, "__metadata__") else typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif _is_array_like(hint):
            return np.ndarray
        elif (alias := _alias(hint)) is not None:
            hint = alias
        elif _is_union(hint):
            given = [a for a in typing.get_args(hint) if a is not type(None)]
            if len(given) != 1:
                return _common(given)
            hint = given[0]
        else:
            return hint


def _alias(hint: Any) -> Any:
    """What `type Name = …` stands for, its parameters filled in, as NumPy's NDArray is one from 2.5 on."""
    kind = typing.get_origin(hint) or hint
    if type(kind).__name__ != "TypeAliasType":
        return None
    parameters = typing.get_args(hint)
    return kind.__value__[parameters] if parameters else kind.__value__


def _is_array_like(hint: Any) -> bool:
    typing_ = sys.modules.get("numpy.typing")
    return typing_ is not None and bool(hint == typing_.ArrayLike)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _common(options: list[Any]) -> Any:
    """One type for a union of several: int and float are float, a record or several of it are the record."""
    bare = [_strip(o) for o in options]
    if all(o in (int, float) for o in bare):
        return float
    records = [o for o in bare if is_record(o)]
    many = [typing.get_args(o)[:1] for o in bare if typing.get_origin(o) in (*LISTS, *ITERATORS)]
    if len(records) == 1 and all(m == (records[0],) for m in many) and len(many) == len(bare) - 1:
        return records[0]
    return Any


def _nullable(hint: Any) -> bool:
    while _wrapper(hint) in WRAPPERS:
        hint = hint.__origin__ if hasattr(hint, "__metadata__") else typing.get_args(hint)[0]
    return _is_union(hint) and type(None) in typing.get_args(hint)


def _spell(hint: Any) -> str | None:
    if hint in (None, inspect.Parameter.empty):
        return None
    if isinstance(hint, str):
        return hint
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "")
