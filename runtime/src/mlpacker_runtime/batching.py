"""Tick batching: rows of requests that arrived in one turn of the event loop go through the pipeline together.

There is no timer, so a lone request waits for nothing: at the end of the turn that read it, it is answered. While a batch is
being computed the sockets fill, and all that is read in the next turn is the next batch. A pipeline that takes long is asked
in one thread of its own, so that the loop goes on reading while rows queue up.

What holds whatever comes together: each request gets the answer it would get alone. Rows are renumbered for the batch and
given back by identity; a request that had errors in company is asked again alone, unless the pipeline is stateful; one
whose client went away is left out; a pipeline that looks at neighbouring rows (`Engine.shares_batches`) gets whole requests.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from .batch import Batch, Outcome, concat
from .errors import MlpackerError, ModelFailed

SMOOTHING = 0.2


class Overloaded(MlpackerError):
    """More rows wait than will be answered in time. `facts["retry_after"]`: seconds."""


@dataclass(frozen=True)
class Limits:
    """batch_rows: rows that go together. waiting_requests, waiting_seconds: how much may queue up before we shed.
    slow_seconds: a pipeline that takes longer for a batch is asked in a thread. thread: True or False decides it for good.
    """

    batch_rows: int = 4096
    waiting_requests: int = 2048
    waiting_seconds: float = 10.0
    slow_seconds: float = 0.003
    thread: bool | None = None
    share: bool = True


class Pipeline(Protocol):
    """What answers batches: an Engine. Called from one thread at a time."""

    @property
    def shares_batches(self) -> bool: ...

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome: ...


Done = Callable[["Outcome | Exception"], None]


class Ticket:
    """A request in the queue. `cancel` it when nobody waits for the answer any more."""

    __slots__ = ("batch", "cancelled", "done", "want")

    def __init__(self, batch: Batch, want: frozenset[str] | None, done: Done) -> None:
        self.batch = batch
        self.want = want
        self.done = done
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Batcher:
    """One queue before one pipeline. All methods are called in the event loop's thread."""

    def __init__(
        self,
        engine: Pipeline,
        loop: asyncio.AbstractEventLoop,
        limits: Limits | None = None,
        *,
        stateful: bool = False,
        seen: Callable[[int, int], None] | None = None,
    ) -> None:
        """stateful: what was asked before changes answers, so nothing is asked twice and nothing overtakes.
        seen: told the requests and rows of each batch.
        """
        self.engine = engine
        self.loop = loop
        self.limits = limits or Limits()
        self.stateful = stateful
        self.seen = seen
        self.shares = engine.shares_batches and self.limits.share
        self.waiting: deque[Ticket] = deque()
        self.rows = 0
        self.scheduled = False
        self.busy = False
        self.seconds = 0.0
        self.seconds_a_row = 0.0
        self._thread: ThreadPoolExecutor | None = None

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.busy

    def submit(self, batch: Batch, want: frozenset[str] | None, done: Done) -> Ticket:
        """Queue a request's rows. `done` is called once, in the loop, with the outcome or what went wrong.

        The batch's rows may have any identities; the outcome speaks of them. Raises Overloaded.
        """
        self._shed_if_full()
        ticket = Ticket(batch, want, done)
        self.waiting.append(ticket)
        self.rows += len(batch)
        if not self.scheduled and not self.busy:
            self.scheduled = True
            self.loop.call_soon(self._turn)
        return ticket

    def _shed_if_full(self) -> None:
        wait = self.rows * self.seconds_a_row
        if len(self.waiting) < self.limits.waiting_requests and (
            wait < self.limits.waiting_seconds or not self.waiting
        ):
            return
        raise Overloaded(
            f"{len(self.waiting)} requests are waiting already, more than can be answered in time.",
            "Try again later.",
            retry_after=max(1, round(min(wait, 60.0))),
        )

    def measured(self, seconds: float, rows: int) -> None:
        """What a call took; decides whether the next one blocks the loop or goes to the thread."""
        self.seconds += (seconds - self.seconds) * (SMOOTHING if self.seconds else 1.0)
        if rows:
            a_row = seconds / rows
            self.seconds_a_row += (a_row - self.seconds_a_row) * (SMOOTHING if self.seconds_a_row else 1.0)

    def slow(self, rows: int) -> bool:
        if self.limits.thread is not None:
            return self.limits.thread
        return self.seconds > self.limits.slow_seconds or rows > 2048

    def _turn(self) -> None:
        """Take what came together and answer it."""
        self.scheduled = False
        taken = self._take()
        if not taken:
            return
        rows = sum(len(t.batch) for t in taken)
        if self.slow(rows):
            self.busy = True
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="pipeline")
            self._thread.submit(self._in_thread, taken)
            return
        self._give(taken, self._answer(taken))
        self._go_on()

    def _in_thread(self, taken: list[Ticket]) -> None:
        answers = self._answer(taken)
        try:
            self.loop.call_soon_threadsafe(self._back, taken, answers)
        except RuntimeError:  # the loop has ended: nobody waits
            return

    def _back(self, taken: list[Ticket], answers: list[Outcome | Exception]) -> None:
        self.busy = False
        self._give(taken, answers)
        self._go_on()

    def _go_on(self) -> None:
        if self.waiting and not self.scheduled and not self.busy:
            self.scheduled = True
            self.loop.call_soon(self._turn)

    def _give(self, taken: list[Ticket], answers: list[Outcome | Exception]) -> None:
        for ticket, answer in zip(taken, answers, strict=True):
            if not ticket.cancelled:
                ticket.done(answer)

    def _take(self) -> list[Ticket]:
        """The next requests that may share a batch: of one `want`, in order, within `batch_rows`."""
        taken: list[Ticket] = []
        left: list[Ticket] = []
        rows = 0
        waiting = self.waiting
        while waiting:
            ticket = waiting.popleft()
            if ticket.cancelled:
                self.rows -= len(ticket.batch)
                continue
            if taken and ticket.want != taken[0].want:
                left.append(ticket)
                if self.stateful:
                    break
                continue
            if taken and (not self.shares or rows + len(ticket.batch) > self.limits.batch_rows):
                left.append(ticket)
                break
            taken.append(ticket)
            rows += len(ticket.batch)
        waiting.extendleft(reversed(left))
        self.rows -= rows
        return taken

    def _answer(self, taken: list[Ticket]) -> list[Outcome | Exception]:
        """An answer for each, in the thread that computes. Never raises."""
        began = (
            time.thread_time()
        )  # of this thread: a crowded machine does not make a quick pipeline a slow one
        rows = sum(len(t.batch) for t in taken)
        try:
            answers = self._together(taken)
        except Exception as cause:  # noqa: BLE001  whatever a pipeline raises is that request's answer
            answers = [cause] if len(taken) == 1 else [self._alone(t) for t in taken]
        self.measured(time.thread_time() - began, rows)
        if self.seen is not None:
            self.seen(len(taken), rows)
        return answers

    def _alone(self, ticket: Ticket) -> Outcome | Exception:
        if self.stateful:
            return ModelFailed("The pipeline failed on a batch, and being stateful can't be asked again.")
        try:
            return self._together([ticket])[0]
        except Exception as cause:  # noqa: BLE001  as above
            return cause

    def _together(self, taken: list[Ticket]) -> list[Outcome | Exception]:
        if len(taken) == 1:
            only = taken[0].batch
            count = len(only)
            outcome = self.engine.run(only.with_rows(np.arange(count)), taken[0].want)
            return [_under(outcome, only.rows, 0, count)]
        whole = concat([t.batch for t in taken])
        whole = whole.with_rows(np.arange(len(whole)))
        outcome = self.engine.run(whole, taken[0].want)
        shares: list[Outcome | Exception] = list(split(outcome, [t.batch for t in taken]))
        if outcome.errors and not self.stateful:
            shares = [
                self._alone(t) if isinstance(s, Outcome) and s.errors else s
                for t, s in zip(taken, shares, strict=True)
            ]
        return shares

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def split(outcome: Outcome, batches: Sequence[Batch]) -> list[Outcome]:
    """An outcome over rows numbered through all batches, given back to each under its own identities."""
    answer = outcome.batch
    rows = answer.rows
    starts = [0, *accumulate(len(b) for b in batches)]
    if len(rows) > 1 and bool((rows[1:] < rows[:-1]).any()):
        answer = answer.take(np.argsort(rows, kind="stable"))
        rows = answer.rows
    cuts = (
        starts if len(rows) == starts[-1] and _are_counted(rows) else np.searchsorted(rows, starts).tolist()
    )
    errors: dict[int, dict[int, str]] = {}
    for row, reason in outcome.errors.items():
        errors.setdefault(bisect_right(starts, row) - 1, {})[row] = reason
    return [
        _under(
            Outcome(answer.take(slice(cuts[i], cuts[i + 1])), errors.get(i, {})),
            batch.rows,
            starts[i],
            len(batch),
        )
        for i, batch in enumerate(batches)
    ]


def _are_counted(rows: np.ndarray) -> bool:
    """Whether sorted rows are 0, 1, 2 … each once."""
    return len(rows) == 0 or bool(rows[0] == 0 and rows[-1] == len(rows) - 1 and (np.diff(rows) == 1).all())


def _under(outcome: Outcome, identities: np.ndarray, start: int, count: int) -> Outcome:
    """An outcome over rows start … start + count - 1, under the identities these rows came with."""
    rows = outcome.batch.rows
    given = identities if len(rows) == count == 1 else identities[rows - start]
    errors: Mapping[int, str] = outcome.errors
    if errors:
        errors = {int(identities[row - start]): reason for row, reason in errors.items()}
    return Outcome(outcome.batch.with_rows(given), errors)
