"""Proof: are these answers those answers? Pure comparisons of batches; PACKAGING's sense of equal.

Labels and whole numbers exactly; float64 within 1e-12 and float32 within 1e-6 of max(1, |reference|, the column's scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpacker_runtime.batch import Batch, Outcome, is_sparse

EXACT = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3}
"""For the same rows in the same batch, in another installation of the same versions."""
REGROUPED = {"float64": 1e-9, "float32": 1e-5, "float16": 1e-2}
"""For the same rows in a batch of another size: linear algebra sums in another order (PCA: 4e-12 seen)."""
SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """One value that is not what it should be. `row` is the row's number in the sample, from 0."""

    row: int
    column: str
    expected: Any
    answered: Any

    def __str__(self) -> str:
        return f"row {self.row}, {self.column}: expected {self.expected!r}, answered {self.answered!r}"


def differences(
    expected: Outcome, answered: Outcome, tolerance: dict[str, float] = EXACT
) -> list[Difference]:
    """Every value that differs, at most SHOWN a column; [] where the answers are equal."""
    reference, answer = expected.batch, answered.batch
    found = _of_errors(expected, answered)
    if not np.array_equal(reference.rows, answer.rows):
        return found + _of_rows(reference, answer)
    for name in reference.names:
        if name not in answer:
            found.append(Difference(0, name, "this column", "no such column"))
        else:
            found += _of_column(name, reference, answer, tolerance)
    return found


def _of_errors(expected: Outcome, answered: Outcome) -> list[Difference]:
    rows = sorted(set(expected.errors) ^ set(answered.errors))
    return [
        Difference(r, "(error)", expected.errors.get(r, "an answer"), answered.errors.get(r, "an answer"))
        for r in rows[:SHOWN]
    ]


def _of_rows(reference: Batch, answer: Batch) -> list[Difference]:
    rows = sorted(set(reference.rows.tolist()) ^ set(answer.rows.tolist()))
    if not rows:
        return [
            Difference(
                int(reference.rows[0]),
                "(order)",
                reference.rows.tolist()[:SHOWN],
                answer.rows.tolist()[:SHOWN],
            )
        ]
    kept = set(reference.rows.tolist())
    return [
        Difference(r, "(row)", *(("answered", "dropped") if r in kept else ("dropped", "answered")))
        for r in rows[:SHOWN]
    ]


def _of_column(name: str, reference: Batch, answer: Batch, tolerance: dict[str, float]) -> list[Difference]:
    a, b = _dense(reference.columns[name]), _dense(answer.columns[name])
    if a.shape != b.shape:
        return [Difference(0, name, f"shape {a.shape}", f"shape {b.shape}")]
    bad = np.logical_not(_equal(a, b, tolerance))
    if bad.ndim > 1:
        bad = np.any(bad.reshape(len(bad), -1), axis=1)
    return [
        Difference(int(reference.rows[i]), name, _shown(a[i]), _shown(b[i]))
        for i in np.flatnonzero(bad)[:SHOWN]
    ]


def _dense(column: Any) -> np.ndarray:
    if is_sparse(column):
        column = column.toarray()
    if isinstance(column, np.ma.MaskedArray):
        column = np.ma.filled(column.astype(object), None)
    return np.asarray(column)


def _shown(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _equal(a: np.ndarray, b: np.ndarray, tolerance: dict[str, float]) -> np.ndarray:
    """Element by element, the shape of `a`."""
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        finite = a[np.isfinite(a)]
        scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
        bound = max(tolerance[a.dtype.name], tolerance[b.dtype.name]) * scale
        with np.errstate(invalid="ignore"):
            return (np.abs(a - b) <= bound) | (a == b) | (np.isnan(a) & np.isnan(b))
    if a.dtype.kind == "M":
        return (a == b) | (np.isnat(a) & np.isnat(b))
    if a.dtype != object or b.dtype != object:
        return np.asarray(a == b)
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return np.array([_same(x, y) for x, y in pairs], dtype=bool).reshape(a.shape)


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, (np.ndarray, list)) or isinstance(y, (np.ndarray, list)):
        return np.array_equal(np.asarray(x), np.asarray(y))
    return bool(x == y) or (x != x and y != y)


def independent(whole: Outcome, parts: list[Outcome]) -> bool:
    """Whether the parts, put together in the whole's order, answer what the whole did: no row looks at its neighbours."""
    answers: dict[int, tuple[Outcome, np.ndarray]] = {}
    for part in parts:
        for row in np.unique(part.batch.rows):
            answers[int(row)] = (part, np.flatnonzero(part.batch.rows == row))
    rows = np.unique(whole.batch.rows)
    if set(answers) != set(rows.tolist()) or {r for p in parts for r in p.errors} != set(whole.errors):
        return False
    for row in rows:
        part, at = answers[int(row)]
        mine = Outcome(whole.batch.take(whole.batch.rows == row))
        if differences(mine, Outcome(part.batch.take(at)), REGROUPED):
            return False
    return True
