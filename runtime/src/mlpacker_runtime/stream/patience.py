"""Asking a stage worker that may die: no row fails for what was not its own doing.

A worker that is away is waited for. After one died of a batch its rows are asked alone, and a row that kills the worker twice,
alone both times, is the one; it fails, and the others have their answers.
"""

from __future__ import annotations

from collections.abc import Callable

from ..batch import Batch, Outcome, concat
from ..engine import Runner
from ..errors import ModelFailed

CRASHED = "The row crashed the worker twice."
WAIT = 0.25


class Stopped(BaseException):
    """The stream ends, and nobody waits for the answer: not an error of any row."""


class Patient:
    """A runner at the end of a hop, asked until it answers. stopped: tells that the stream must end now."""

    def __init__(
        self,
        runner: Runner,
        stopped: Callable[[], bool],
        pause: Callable[[float], object],
        *,
        again: bool = True,
        together: bool = False,
    ) -> None:
        """again: whether rows may be asked a second time; a stateful stage's may not. together: a row's answer depends on its
        neighbours, so they are never asked apart and fail as one."""
        self.runner = runner
        self.stopped = stopped
        self.pause = pause
        self.again = again
        self.together = together

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        outcome = self._ask(batch, want)
        if outcome is not None:
            return outcome
        if not self.again:
            raise ModelFailed("The stage's worker ended while it answered, and what it remembered is gone.")
        if len(batch) == 1 or self.together:
            return self._alone(batch, want)
        answers: list[Batch] = []
        errors: dict[int, str] = {}
        for at in range(len(batch)):
            alone = self._alone(batch.take(slice(at, at + 1)), want)
            answers.append(alone.batch)
            errors.update(alone.errors)
        given = [a for a in answers if a.names] or answers[:1]
        return Outcome(concat([a for a in given if a.names == given[0].names]), errors)

    def _alone(self, rows: Batch, want: frozenset[str] | None) -> Outcome:
        """Of one row, or of those that must be asked together."""
        for _ in range(2):
            try:
                outcome = self._ask(rows, want)
            except Exception as cause:  # noqa: BLE001  the row's own failure, told as the engine tells it
                said = (
                    cause.sentence if isinstance(cause, ModelFailed) else f"{type(cause).__name__}: {cause}"
                )
                return _all_failed(rows, said)
            if outcome is not None:
                return outcome
        return _all_failed(rows, CRASHED)

    def _ask(self, batch: Batch, want: frozenset[str] | None) -> Outcome | None:
        """The outcome; None where the worker died of it."""
        while True:
            if self.stopped():
                raise Stopped
            try:
                return self.runner.predict(batch, want)
            except ModelFailed as error:
                hop = error.facts.get("hop")
                if hop == "died":
                    return None
                if hop != "away":
                    raise
                self.pause(WAIT)


def _all_failed(rows: Batch, reason: str) -> Outcome:
    return Outcome(Batch({}, rows.rows[:0]), {int(row): reason for row in rows.rows})
