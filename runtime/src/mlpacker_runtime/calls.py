"""Calling plain functions and objects with rows: handing a batch over as their annotations say, and taking the answers back.

Nulls: a missing number is NaN and stays NaN, for a record too, unless its annotation is Optional: then it is None. A missing
string, bytes, category or object is None. A missing integer or boolean is masked in an array, `<NA>` in a DataFrame and
None in a record.

Row identity: arrays and lists keep length and order. A DataFrame is handed over with the index 0 … n-1, as a file's reader
makes it, and the index that comes back says which rows these are. A function that makes a new index (`reset_index`, `merge`)
is taken in order where it keeps the length. Where it does not, its rows are recognised by asking it row by row, and it is
refused where that does not give what the whole gave.

A record function fails row by row: what it raises is that row's error. Standard library and NumPy (pandas where the data is).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .annotations import TAKES, Gives, Takes, gives_of, takes_of
from .batch import Batch, Outcome, as_column, concat, from_result, is_sparse, to_frame, to_matrix, to_records
from .columns import column_of, inferred
from .errors import BadInput, MlpackerError, ModelFailed
from .formats import Description
from .manifest import Stage
from .signature import Field, field_of

METHODS = ("predict", "predict_proba")
ELSEWHERE = 1 << 40
"""Where the index begins when it is tried whether a function keeps it."""
FEW = 256
"""How many rows are asked one by one, once, to see whether a function that renumbers keeps their order."""
KEEP_THE_INDEX = "Keep the index (leave out reset_index), or return a row for each that came in, in order."
Ask = Callable[[Batch, int, Callable[..., Any]], Any]
"""Hand a batch, under an index that counts from a number, to a function, and give its answer."""
Answers = list[tuple[int, list[dict[str, Any]]]]
"""A row's identity and its answers as records, row by row."""
UNFIT = (ValueError, TypeError, OverflowError)
SEVERAL = 100_000
"""How many answers one row may have: an endless iterator must not hold the worker."""
EXPECTED = {
    "record": "a record (a dict or an object with fields), None, a list of records or a plain value",
    "records": "a list with one entry (a record, None or a list of records) for each record given",
    "values": "a plain value, a record, None or a list of them",
    "frame": "a DataFrame, a Series, an array or a dict of arrays",
}


class CallablePredictor:
    """A function, or an object with `predict`, `transform` or `__call__`, as a stage.

    frames: what it is given where it says nothing (a DataFrame, else records). source: the file's name, for messages.
    """

    def __init__(
        self,
        target: Any,
        stage: Stage,
        *,
        frames: bool = False,
        source: str = "",
        versions: dict[str, str] | None = None,
    ) -> None:
        self.target = target
        self.stage = stage
        self.versions = versions or {}
        self.offered = _offered(target, stage)
        label = f"{source}:{stage.entry}" if source and stage.entry else source or _name_of(target)
        chosen = stage.methods or tuple(self.offered)
        unknown = [m for m in chosen if m not in self.offered and not callable(getattr(target, m, None))]
        if unknown:
            raise BadInput(
                f"{label} has no method {unknown[0]!r}.", f"It has {', '.join(self.offered) or 'none'}."
            )
        functions = {m: self.offered.get(m) or getattr(target, m) for m in chosen} or {"": target}
        several = len(functions) > 1
        self.calls = {
            m: Call(f, f"{label}.{m}" if m else label, m or _name_of(target, stage), stage, frames, several)
            for m, f in functions.items()
        }

    def describe(self) -> Description:
        first = next(iter(self.calls.values()))
        stateful = not _is_function(self.target)
        inner = (
            tuple(m for m in ("transform", *self.offered) if m in self.offered or hasattr(self.target, m))[:1]
            if self.offered
            else ()
        )
        notes = (
            ()
            if first.takes.said
            else (f"{first.label} has no annotation: it is given {_SAID[first.takes.kind]}.",)
        )
        return Description(
            inputs=first.takes.fields,
            methods=tuple(self.offered),
            inner=inner,
            takes=first.takes.kind,
            versions=self.versions,
            stateful=stateful,
            notes=notes,
            outputs=first.outputs() if len(self.calls) == 1 else None,
            untyped=tuple(f.name for f in first.takes.fields or () if f.dtype == "object"),
        )

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        if want is not None and not want:
            return Outcome(Batch({}, batch.rows))
        asked = {m: c for m, c in self.calls.items() if want is None or m in want} or self.calls
        rows = self._rows(batch)
        outcomes = [call.answer(rows) for call in asked.values()]
        whole = outcomes[0] if len(outcomes) == 1 else _side_by_side(outcomes)
        if want is None or want & set(self.calls):
            return whole
        return Outcome(whole.batch.select([n for n in whole.batch.names if n in want]), whole.errors)

    def _rows(self, batch: Batch) -> Batch:
        """The columns of the stage's signature, in its order. One array, or one plain value, takes what there is."""
        inputs = self.stage.inputs
        lone = len(inputs) == 1 and inputs[0].name not in batch and inputs[0].required
        if not inputs or (lone and (not inputs[0].scalar or len(batch.names) == 1)):
            return batch
        return batch.select([f.name for f in inputs if f.required or f.name in batch])


_SAID = {
    "frame": "a DataFrame",
    "matrix": "an array",
    "columns": "a dict of arrays",
    "series": "a Series",
    "list": "a list of values",
    "record": "one record at a time, as a dict",
    "records": "a list of records",
    "values": "one row at a time, an argument for each column",
}


def _is_function(target: Any) -> bool:
    while isinstance(target, functools.partial):
        target = target.func
    return callable(target) and (hasattr(target, "__code__") or not hasattr(target, "__dict__"))


def _offered(target: Any, stage: Stage) -> dict[str, Callable[..., Any]]:
    """An object's methods that answer, its plain answer first; {} for a function, which has one answer without a name."""
    if _is_function(target):
        return {}
    answers = {m: getattr(target, m) for m in METHODS if callable(getattr(target, m, None))}
    if not answers and callable(target):
        return {}
    if not answers and callable(getattr(target, "transform", None)):
        return {"transform": target.transform}
    if not answers:
        raise BadInput(
            f"{stage.entry or stage.path} gives a {type(target).__name__}, which can't be called and has no predict or transform.",
            "Give the class one of these methods, or __call__.",
        )
    return answers


def _name_of(target: Any, stage: Stage | None = None) -> str:
    while isinstance(target, functools.partial):
        target = target.func
    name = getattr(target, "__name__", "")
    if name.isidentifier():
        return str(name)
    return stage.name if stage is not None else type(target).__name__


def _side_by_side(outcomes: list[Outcome]) -> Outcome:
    """Several methods' answers on the same rows."""
    columns: dict[str, Any] = {}
    for outcome in outcomes:
        if not np.array_equal(outcome.batch.rows, outcomes[0].batch.rows):
            raise ModelFailed("Its methods do not answer for the same rows.", "Choose one with method.")
        columns.update(outcome.batch.columns)
    return Outcome(
        Batch(columns, outcomes[0].batch.rows), {k: v for o in outcomes for k, v in o.errors.items()}
    )


class Call:
    """One function with what it takes and gives. label: how messages name it. name: what a lone answer is called."""

    def __init__(
        self, function: Callable[..., Any], label: str, name: str, stage: Stage, frames: bool, several: bool
    ) -> None:
        self.function = function
        self.label = label
        self.name = name
        self.stage = stage
        self.takes = _as_told(takes_of(function, label, frames, stage.takes == "values"), stage.takes, label)
        self.gives: Gives = gives_of(function)
        self.fields = () if several else _promised(self.outputs() or (), stage.outputs)
        self.plain = _is_function(function) and not hasattr(function, "__self__")
        self.stateful = stage.stateful or stage.batch == "request" or not self.plain
        self.keeps_index: bool | None = None
        self.in_order: bool | None = None
        self.seen: dict[str, Field] = {}
        self._answers = {
            "record": self._by_row,
            "values": self._by_row,
            "records": self._records,
            "frame": self._frame,
            "series": self._series,
        }

    def outputs(self) -> tuple[Field, ...] | None:
        """The columns its return annotation declares, the lone value under its name."""
        if not self.gives.value or self.gives.fields is None:
            return self.gives.fields
        if self.takes.kind not in ("record", "values"):
            return None
        return (dataclasses.replace(self.gives.fields[0], name=self.name),)

    def answer(self, batch: Batch) -> Outcome:
        return self._answers.get(self.takes.kind, self._columns)(batch)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.function(*args, **kwargs)
        except SystemExit as cause:
            raise ModelFailed(
                f"{self.label} ended the program (exit {cause.code}).", "Raise an error instead."
            ) from cause

    # ---- row by row

    def _by_row(self, batch: Batch) -> Outcome:
        answers: Answers = []
        errors: dict[int, str] = {}
        for row, given in zip(batch.rows.tolist(), self._given(batch), strict=True):
            try:
                result = self._call(**given()) if self.takes.kind == "values" else self._call(given())
                answers.append((row, self._several(result)))
            except Exception as cause:  # noqa: BLE001  a row's error is the row's alone
                errors[row] = self._failed(cause)
        return self._outcome(answers, errors)

    def _given(self, batch: Batch) -> Iterator[Callable[[], Any]]:
        """For each row, what makes its record: inside the row's own `try`, since it may not fit."""
        declared = self.takes.columns
        if declared is None:
            return (functools.partial(dict, record) for record in to_records(batch))
        names = self._names(batch)
        picked = {c.field.name: names[c.field.name] for c in declared if c.field.name in names}
        plain = to_records(batch.select(tuple(dict.fromkeys(picked.values()))))
        convert = {c.field.name: c.convert for c in declared}
        make = self.takes.make or dict
        return (functools.partial(_make, make, record, picked, convert) for record in plain)

    def _names(self, batch: Batch) -> dict[str, str]:
        """Declared column → the batch's. A lone plain value takes a lone column whatever it is called."""
        declared = self.takes.fields or ()
        if self.takes.kind == "values" and len(declared) == 1 and len(batch.names) == 1:
            return {declared[0].name: batch.names[0]}
        missing = [f.name for f in declared if f.required and f.name not in batch]
        if missing:
            raise BadInput(
                f"Column {missing[0]!r}, which {self.label} takes, is missing: the data has {', '.join(map(repr, batch.names[:12]))}."
            )
        return {f.name: f.name for f in declared if f.name in batch}

    def _several(self, result: Any) -> list[dict[str, Any]]:
        """A row's answers: none, one or several."""
        if result is None:
            return []
        if type(result) is dict or isinstance(result, Mapping) or _is_object(result) or not _is_many(result):
            return [self._record(result)]
        found: list[dict[str, Any]] = []
        for item in _rows_of(result):
            if len(found) >= SEVERAL:
                raise ModelFailed(f"{self.label} gave more than {SEVERAL} answers for one row.")
            if item is not None:
                found.append(self._record(item))
        return found

    def _record(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {str(k): _null(v) for k, v in value.items()}
        if _is_object(value):
            return {k: _null(v) for k, v in _fields_of(value).items()}
        if _is_many(value) or callable(value):
            raise self._wrong(value)
        return {self._lone: _null(value)}

    @property
    def _lone(self) -> str:
        return self.fields[0].name if len(self.fields) == 1 else self.name

    def _failed(self, cause: Exception) -> str:
        said = cause.sentence if isinstance(cause, MlpackerError) else f"{type(cause).__name__}: {cause}"
        return f"Stage {self.stage.name!r} failed: {said}"

    def _outcome(self, answers: Answers, errors: dict[int, str]) -> Outcome:
        """The rows' answers as a batch; one that does not fit the columns is its row's error."""
        try:
            return Outcome(self._batch(answers), errors)
        except UNFIT:
            pass
        kept = []
        for row, records in answers:
            try:
                self._batch([(row, records)])
            except UNFIT as cause:
                errors[row] = f"Stage {self.stage.name!r} failed: {self.label} returned {cause}"
            else:
                kept.append((row, records))
        try:
            return Outcome(self._batch(kept), errors)
        except UNFIT as cause:
            raise ModelFailed(f"{self.label} returned {cause}", stage=self.stage.name) from cause

    def _batch(self, answers: Answers) -> Batch:
        """Records as columns. Raises ValueError or TypeError, saying what was wrong with which column."""
        rows = np.array([row for row, records in answers for _ in records], dtype=np.int64)
        records = [r for _, rs in answers for r in rs]
        for field in self.fields:
            _require(field, records)
        if self.fields:
            return Batch({f.name: column_of([r.get(f.name) for r in records], f) for f in self.fields}, rows)
        names = dict.fromkeys(n for r in records for n in r)
        return Batch({n: self._unpromised(n, [r.get(n) for r in records]) for n in names}, rows)

    def _unpromised(self, name: str, values: list[Any]) -> Any:
        """A column nobody promised: of the type its values share; where all are null, of the one seen before."""
        if all(v is None for v in values):
            return column_of(values, self.seen.get(name))
        column = column_of(values)
        self.seen.setdefault(name, dataclasses.replace(field_of(name, column), nullable=True))
        return column

    # ---- whole batches

    def _records(self, batch: Batch) -> Outcome:
        records = [given() for given in self._given(batch)]
        return self._listed(self._call(iter(records) if self.takes.lazy else records), batch)

    def _listed(self, result: Any, batch: Batch) -> Outcome:
        """A list with an entry for each row that went in."""
        if (
            result is None
            or isinstance(result, (str, bytes, Mapping))
            or not isinstance(result, Iterable)
            or hasattr(result, "iloc")
        ):
            return self._result(result, batch)
        entries = [entry for entry, _ in zip(result, range(len(batch) + SEVERAL), strict=False)]
        if len(entries) != len(batch):
            raise ModelFailed(
                f"{self.label} returned {len(entries)} entries for {len(batch)} records.",
                "Return None in place of a record that is dropped, and a list of records where there are several.",
            )
        return self._outcome(
            [(int(r), self._several(e)) for r, e in zip(batch.rows, entries, strict=True)], {}
        )

    def _frame(self, batch: Batch) -> Outcome:
        return self._identified(
            lambda part, start, call: call(_frame_of(part, start, self.stage.inputs)), batch
        )

    def _series(self, batch: Batch) -> Outcome:
        names = self.takes.names
        if names:
            return self._identified(
                lambda part, start, call: call(**_series_of(part.select(names), start, self.stage.inputs)),
                batch,
            )
        one = self._one(batch)
        return self._identified(
            lambda part, start, call: call(_series_of(part, start, self.stage.inputs)[one]), batch
        )

    def _identified(self, ask: Ask, batch: Batch) -> Outcome:
        """What pandas rows came back, and which they are."""
        result = ask(batch, 0, self._call)
        if not hasattr(result, "iloc"):
            return self._result(result, batch)
        self._check_names(result)
        places = self._places(result, ask, batch)
        if places is None:
            places = self._recovered(result, ask, batch)
        return Outcome(self._from_pandas(result, batch.rows[places]))

    def _check_names(self, result: Any) -> None:
        if result.ndim == 2 and not result.columns.is_unique:
            repeated = str(result.columns[result.columns.duplicated()][0])
            raise ModelFailed(
                f"{self.label} returned a DataFrame with the column {repeated!r} twice.",
                "Give each column its own name.",
            )

    def _places(self, result: Any, ask: Ask, batch: Batch) -> np.ndarray | None:
        """For each row that came back, the place of the row it is of; None where its index does not say."""
        count, given = len(result), len(batch)
        if given == 1 or count == 0:
            return np.zeros(count, dtype=np.int64)
        index = _whole_index(result, 0, given)
        in_order = np.arange(given)
        if index is not None and not np.array_equal(index, in_order) and self._keeps_index(ask, batch):
            return index
        if count != given:
            return None
        if self.in_order is None and given <= FEW:
            self.in_order = self._is_in_order(result, ask, batch)
        if self.in_order is False:
            raise BadInput(
                f"{self.label} returned its rows in another order and under a new index, so which rows these are can't be known.",
                KEEP_THE_INDEX,
                identity="lost",
            )
        return in_order

    def _keeps_index(self, ask: Ask, batch: Batch) -> bool:
        """Whether an index in its answer is ours: an index that begins elsewhere must come back so. Found out once."""
        if self.keeps_index is None:
            try:
                result = ask(batch, ELSEWHERE, self.function if self.plain else copy.deepcopy(self.function))
                places = _whole_index(result, ELSEWHERE, len(batch)) if hasattr(result, "iloc") else None
            except Exception:  # noqa: BLE001  a function may raise anything
                places = None
            self.keeps_index = places is not None
        return self.keeps_index

    def _is_in_order(self, result: Any, ask: Ask, batch: Batch) -> bool:
        """Whether rows under a new index are those that went in, in order; sorted ones are nobody's. Found out once."""
        if self.stateful or self._keeps_index(ask, batch):
            return True
        alone, whole = self._alone(ask, batch), self._from_pandas(result, np.arange(len(result)))
        return alone is None or _same_values(whole, alone) or _sorted_values(whole) != _sorted_values(alone)

    def _recovered(self, result: Any, ask: Ask, batch: Batch) -> np.ndarray:
        """The places of the rows that came back without ours, from asking for each row alone. Raises BadInput."""
        alone = None if self.stateful else self._alone(ask, batch)
        if alone is None or not _same_values(self._from_pandas(result, np.arange(len(result))), alone):
            raise BadInput(
                f"{self.label} returned {len(result)} rows for {len(batch)} under a new index, so which rows these are can't be known.",
                KEEP_THE_INDEX,
                identity="lost",
            )
        return alone.rows

    def _alone(self, ask: Ask, batch: Batch) -> Batch | None:
        """What each row gives when it is asked alone, under its place; None where one can't be."""
        try:
            results = [ask(batch.take(slice(i, i + 1)), 0, self._call) for i in range(len(batch))]
            parts = [self._from_pandas(r, np.full(len(r), i)) for i, r in enumerate(results)]
            return concat([p for p in parts if len(p)])
        except Exception:  # noqa: BLE001  as above
            return None

    def _from_pandas(self, result: Any, rows: np.ndarray) -> Batch:
        if result.ndim == 1:
            return Batch(
                {str(result.name) if result.name is not None else self._lone: as_column(result)}, rows
            )
        return Batch({str(c): as_column(result[c]) for c in result.columns}, rows)

    def _columns(self, batch: Batch) -> Outcome:
        """Arrays and lists: length and order are kept."""
        kind, names = self.takes.kind, self.takes.names
        if kind == "matrix":
            return self._result(self._call(_writable(to_matrix(batch, self.takes.dtype))), batch)
        columns = _own(batch.select(names) if names else batch).columns
        if kind == "columns":
            return self._result(self._call(**columns) if names else self._call(columns), batch)
        values = [next(iter(r.values())) for r in to_records(batch.select((self._one(batch),)))]
        return self._result(self._call(iter(values) if self.takes.lazy else values), batch)

    def _one(self, batch: Batch) -> str:
        if len(batch.names) != 1:
            raise BadInput(
                f"{self.label} takes one column, and the data has {len(batch.names)}: {', '.join(map(repr, batch.names[:12]))}."
            )
        return str(batch.names[0])

    def _result(self, result: Any, batch: Batch) -> Outcome:
        """What is not a DataFrame: an array, a list or a dict of arrays, a value for each row in order."""
        if isinstance(result, Iterator):
            result = list(itertools.islice(result, len(batch) + 1))
        if isinstance(result, list) and any(_is_record(r) for r in result[:1000]):
            return self._listed(result, batch)
        if hasattr(result, "iloc") and len(result) == len(batch):
            return Outcome(self._from_pandas(result, batch.rows))
        if isinstance(result, (str, bytes, tuple)) or not (
            isinstance(result, Mapping) or hasattr(result, "__len__")
        ):
            raise self._wrong(result)
        columns = self._arrays(result if isinstance(result, Mapping) else {self._lone: result})
        if any(c.shape == () for c in columns.values()):
            raise self._wrong(result)
        try:
            return Outcome(from_result(columns, batch.rows, self._lone))
        except BadInput as cause:
            count = next((c.shape[0] for c in columns.values() if c.shape[0] != len(batch)), 0)
            raise ModelFailed(
                f"{self.label} returned {count} rows for {len(batch)} that went in: arrays keep length and order.",
                "Return a DataFrame that keeps its index, or take records, to drop or add rows.",
                stage=self.stage.name,
            ) from cause

    def _arrays(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        try:
            return {str(k): _listed_column(v) for k, v in values.items()}
        except UNFIT as cause:
            raise ModelFailed(
                f"{self.label} returned values of different shapes: {cause}.", stage=self.stage.name
            ) from cause

    def _wrong(self, result: Any) -> ModelFailed:
        expected = EXPECTED.get(
            self.takes.kind, "an array or list with a value for each row, or a dict of them"
        )
        said = f" (it is annotated {self.gives.said})" if self.gives.said else ""
        step = "Does it lack a return?" if result is None else ""
        return ModelFailed(
            f"{self.label} returned {_kind_of(result)} where {expected} belongs{said}.",
            step,
            stage=self.stage.name,
        )


def _as_told(takes: Takes, told: str | None, label: str) -> Takes:
    if told is None or told == takes.kind:
        return takes
    if told not in TAKES:
        raise BadInput(f"{label} can't be given {told!r}.", f"takes is one of {', '.join(TAKES)}.")
    if takes.said is not None and not (told in ("record", "records") and takes.kind in ("record", "records")):
        return Takes(told, said=told)
    return dataclasses.replace(takes, kind=told, said=told)


# ---- values in


def _make(make: Any, record: dict[str, Any], picked: dict[str, str], convert: dict[str, Any]) -> Any:
    values = {}
    for name, column in picked.items():
        value, to = record[column], convert[name]
        if to is None or value is None:
            values[name] = value
            continue
        try:
            values[name] = to(value)
        except (ValueError, TypeError) as cause:
            raise BadInput(f"column {name!r}: {cause}.") from cause
    return make(**values)


def _frame_of(batch: Batch, start: int, fields: tuple[Field, ...]) -> Any:
    """A DataFrame of one's own whose index counts from `start`."""
    import pandas as pd

    frame = to_frame(_own(batch), fields)
    frame.index = pd.RangeIndex(start, start + len(batch))
    return frame


def _series_of(batch: Batch, start: int, fields: tuple[Field, ...]) -> dict[str, Any]:
    frame = _frame_of(batch, start, fields)
    return {n: frame[n] for n in batch.names}


def _own(batch: Batch) -> Batch:
    """The same rows in memory a function may write to: other branches read the original."""
    if batch.matrix is not None:
        return Batch(rows=batch.rows, names=batch.names, matrix=batch.matrix.copy())
    return Batch({n: c.copy() for n, c in batch.columns.items()}, batch.rows)


def _writable(matrix: Any) -> Any:
    return matrix.copy()


# ---- answers out


def _promised(declared: tuple[Field, ...], seen: tuple[Field, ...]) -> tuple[Field, ...]:
    """The outputs as declared; those only seen in a sample may be null, which a sample need not show."""
    known = {f.name: f for f in declared}
    return tuple(known.get(f.name) or dataclasses.replace(f, nullable=True) for f in seen) or declared


def _whole_index(result: Any, start: int, count: int) -> np.ndarray | None:
    """The result's index as places, where it is an unnamed one of whole numbers from start to start + count."""
    index = np.asarray(result.index)
    if result.index.name is not None or index.dtype.kind not in "iu" or index.ndim != 1:
        return None
    places = index.astype(np.int64) - start
    return places if len(places) == 0 or (places.min() >= 0 and places.max() < count) else None


def _same_values(a: Batch, b: Batch) -> bool:
    if a.names != b.names or len(a) != len(b):
        return False
    return all(_same_column(a.columns[n], b.columns[n]) for n in a.names)


def _sorted_values(batch: Batch) -> list[str]:
    """The rows in an order of their own, floats to nine digits: enough to know them again."""
    records = [
        [f"{v:.9g}" if isinstance(v, float) else repr(v) for v in r.values()] for r in to_records(batch)
    ]
    return sorted(map(repr, records))


def _same_column(a: Any, b: Any) -> bool:
    if all(isinstance(c, np.ndarray) and c.dtype.kind == "f" for c in (a, b)):
        return bool(np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True))
    return bool(np.ma.getmaskarray(a).tolist() == np.ma.getmaskarray(b).tolist()) and all(
        x == y or (x != x and y != y)
        for x, y in zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True)
    )


def _is_object(value: Any) -> bool:
    """A record that is an object: a dataclass, a NamedTuple, a pydantic model or a pandas row."""
    if isinstance(value, type):
        return False
    return (
        dataclasses.is_dataclass(value)
        or hasattr(value, "_asdict")
        or hasattr(value, "model_dump")
        or _is_row(value)
    )


def _is_row(value: Any) -> bool:
    return hasattr(value, "iloc") and getattr(value, "ndim", 0) == 1


def _fields_of(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    return dict(value.model_dump()) if hasattr(value, "model_dump") else {str(k): v for k, v in value.items()}


def _is_record(value: Any) -> bool:
    return value is None or isinstance(value, Mapping) or _is_object(value)


def _is_many(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset, Iterator)) or hasattr(value, "iloc")


def _rows_of(value: Any) -> Iterable[Any]:
    return value.to_dict("records") if hasattr(value, "iloc") else value


def _null(value: Any) -> Any:
    """pandas' own nulls as None."""
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _require(field: Field, records: list[dict[str, Any]]) -> None:
    if field.nullable or not field.required:
        return
    for record in records:
        if field.name not in record:
            raise ValueError(
                f"a record without {field.name!r} (it has {', '.join(map(repr, list(record)[:12])) or 'nothing'})."
            )


def _listed_column(values: Any) -> Any:
    """A list as a column of plain values, anything else as NumPy sees it."""
    if isinstance(values, list) and not any(isinstance(v, (list, tuple, np.ndarray)) for v in values[:1]):
        return inferred(values)
    return values if is_sparse(values) else as_column(values)


def _kind_of(value: Any) -> str:
    if value is None:
        return "None"
    word = type(value).__name__
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
