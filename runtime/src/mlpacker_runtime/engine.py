"""The engine: a batch through a graph of stages, with an outcome per row. REST, stream, hop and file are ways in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from .batch import Batch, Outcome, concat, join
from .errors import BadInput, MlpackerError
from .manifest import INPUT, Stage

BISECT_CALLS = 64
"""How many more calls a failed batch may cost before its remaining rows all fail with the batch's error."""


class Runner(Protocol):
    """Whatever answers for one stage: a loaded model here, or a worker process at the end of a hop."""

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome: ...


class Engine:
    """Stages in topological order, each with its runner. Called from one thread at a time."""

    def __init__(self, stages: tuple[Stage, ...], runners: Mapping[str, Runner]) -> None:
        self.stages = stages
        self.runners = runners
        fed = {a for s in stages for a in s.after}
        self.last = tuple(s.name for s in stages if s.name not in fed)

    @property
    def shares_batches(self) -> bool:
        """Whether rows of different requests may go through together."""
        return all(s.batch == "rows" for s in self.stages)

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
        """Answer each row: in the outcome's batch, in its errors, or in neither (dropped)."""
        done: dict[str, Batch] = {INPUT: batch}
        errors: dict[int, str] = {}
        for stage in self.stages:
            rows = _gather(stage.after, done, errors)
            wanted = _wanted(stage.name, want) if stage.name in self.last else None
            outcome = run_stage(stage, self.runners[stage.name], rows, wanted)
            done[stage.name] = outcome.batch
            errors.update(outcome.errors)
        return Outcome(self._answer(done, errors), errors)

    def _answer(self, done: dict[str, Batch], errors: dict[int, str]) -> Batch:
        answer = _gather(self.last, done, errors)
        if not errors:
            return answer
        return answer.take(~np.isin(answer.rows, np.fromiter(errors, dtype=np.int64)))


def _gather(names: tuple[str, ...], done: dict[str, Batch], errors: dict[int, str]) -> Batch:
    """What these stages answered, joined. A row that one of them gave several answers for is an error of its own."""
    branches = {name: done[name] for name in names}
    if len(branches) == 1:
        return done[names[0]]
    try:
        return join(branches)
    except BadInput:
        return join({name: _once(name, batch, errors) for name, batch in branches.items()})


def _once(name: str, batch: Batch, errors: dict[int, str]) -> Batch:
    rows, counts = np.unique(batch.rows, return_counts=True)
    several = rows[counts > 1]
    reason = f"Stage {name!r} gave several answers for one row, which can't be joined."
    errors.update(dict.fromkeys(several.tolist(), reason))
    return batch.take(~np.isin(batch.rows, several))


def _wanted(stage: str, want: frozenset[str] | None) -> frozenset[str] | None:
    if want is None:
        return None
    return frozenset(w.removeprefix(f"{stage}.") for w in want)


def run_stage(stage: Stage, runner: Runner, batch: Batch, want: frozenset[str] | None) -> Outcome:
    """One stage over a batch. What raises is halved until the failing rows stand alone, within BISECT_CALLS."""
    if len(batch) == 0 and stage.batch == "rows":
        return _answer_nothing(stage, batch, want)
    try:
        return runner.predict(batch, want)
    except Exception as cause:  # noqa: BLE001  a stage may raise anything, and must not take other rows with it
        if stage.stateful or stage.batch == "request" or len(batch) <= 1 or _is_of_all(cause):
            return failed(stage, batch, cause, want)
        return _bisect(stage, runner, batch, want, cause)


def _is_of_all(cause: Exception) -> bool:
    """Whether no half of the batch would fare better: a function that lost its rows' identity would answer halves otherwise."""
    return isinstance(cause, MlpackerError) and cause.facts.get("identity") == "lost"


def _answer_nothing(stage: Stage, batch: Batch, want: frozenset[str] | None) -> Outcome:
    """Most libraries refuse an empty batch; the answer's columns are known from the stage's outputs all the same."""
    fields = [f for f in stage.outputs if want is None or f.name in want]
    columns = {f.name: np.empty((0, *(max(n, 0) for n in f.shape[1:])), f.numpy) for f in fields}
    return Outcome(Batch(columns, batch.rows))


def _bisect(
    stage: Stage, runner: Runner, batch: Batch, want: frozenset[str] | None, cause: Exception
) -> Outcome:
    answers: list[Batch] = []
    errors: dict[int, str] = {}
    waiting = [(batch, cause)]
    calls = 0
    while waiting:
        part, why = waiting.pop()
        half = len(part) // 2
        if half == 0 or calls >= BISECT_CALLS:
            errors.update(failed(stage, part, why).errors)
            continue
        for piece in (part.take(slice(half, None)), part.take(slice(None, half))):
            calls += 1
            try:
                outcome = runner.predict(piece, want)
            except Exception as again:  # noqa: BLE001  as above
                waiting.append((piece, again))
            else:
                answers.append(outcome.batch)
                errors.update(outcome.errors)
    if not answers:
        return Outcome(_answer_nothing(stage, batch.take(slice(0, 0)), want).batch, errors)
    whole = concat(answers)
    return Outcome(whole.take(_in_order_of(whole.rows, batch.rows)), errors)


def _in_order_of(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = {int(r): i for i, r in enumerate(wanted)}
    return np.argsort([place[int(r)] for r in rows], kind="stable")


def failed(stage: Stage, batch: Batch, cause: Exception, want: frozenset[str] | None = None) -> Outcome:
    """All rows of the batch failed for this reason. What is left has the wanted columns, as any other answer."""
    said = cause.sentence if isinstance(cause, MlpackerError) else f"{type(cause).__name__}: {cause}"
    message = f"Stage {stage.name!r} failed: {said}"
    nothing = _answer_nothing(stage, batch.take(slice(0, 0)), want).batch
    return Outcome(nothing, {int(r): message for r in batch.rows})
