"""The way out: answers and dead letters, in order, until their broker has confirmed each; then, and only then, they count."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue

from ..brokers import Away, Outgoing, Sink
from ..telemetry.log import Log
from . import letters as dead
from .letters import Letter
from .numbers import StreamNumbers
from .patience import Stopped
from .repeats import Repeats
from .scoring import Done

FIRST_WAIT = 0.1
LONGEST_WAIT = 10.0
SLICE_BYTES = 4 << 20
SLICE_MESSAGES = 2000
TOGETHER = 8192
"""Parts that are published together when many wait."""
STILL_AWAY = 30.0
"""Seconds between two lines of log that say a broker is still away."""


class Outlet:
    """A sink that is made anew when it is away, for as long as it takes. Called from one thread."""

    def __init__(
        self,
        name: str,
        open: Callable[[], Sink],
        log: Log,
        *,
        stopped: Callable[[], bool],
        pause: Callable[[float], object],
    ) -> None:
        """stopped: tells that waiting must end; `Stopped` is raised then, and nothing was confirmed."""
        self.name = name
        self.open = open
        self.log = log
        self.stopped = stopped
        self.pause = pause
        self.sink: Sink | None = None
        self.away_since = 0.0

    def begin(self, *, patient: bool) -> None:
        """Connect before there is anything to publish: what waiting can't mend is told at the start, and a spool goes on with
        what it holds. Raises as `open`; Away only where not patient."""
        try:
            self.sink = self.sink or self.open()
        except Away as error:
            if not patient:
                raise
            self.log("waiting", level="warning", at=self.name, reason=error.sentence)

    def publish(self, messages: Sequence[Outgoing]) -> dict[int, str]:
        """Until all are confirmed; the places of those that will never be taken, with the reason."""
        refused: dict[int, str] = {}
        start = 0
        for part in slices(messages):
            refused.update({start + at: reason for at, reason in self._whatever_it_takes(part).items()})
            start += len(part)
        return refused

    def _whatever_it_takes(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        wait, said = FIRST_WAIT, 0.0
        while True:
            try:
                refused = self.attempt(messages)
            except Away as error:
                now = time.monotonic()
                if now - said > STILL_AWAY:
                    said = now
                    self.log("away", level="warning", at=self.name, reason=error.sentence)
                if self.stopped():
                    raise Stopped from error
                self.pause(wait * (0.5 + random.random()))  # noqa: S311  jitter
                wait = min(LONGEST_WAIT, wait * 2)
            else:
                if said:
                    self.log("back", at=self.name)
                return refused

    def attempt(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        """Once. Raises Away, with the sink closed, so that the next attempt begins with a new one."""
        try:
            if self.sink is None:
                self.sink = self.open()
            refused = self.sink.publish(messages)
        except Away:
            self.away_since = self.away_since or time.monotonic()
            if not getattr(self.sink, "lasting", False):
                self.close()
            raise
        self.away_since = 0.0
        return refused

    def close(self) -> None:
        if self.sink is not None:
            self.sink.close()
            self.sink = None


def slices(messages: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """In order, by bytes: a client's buffer has a size, and not a count."""
    start, size = 0, 0
    for at, message in enumerate(messages):
        size += len(message.value)
        if at > start and (size > SLICE_BYTES or at - start >= SLICE_MESSAGES):
            yield messages[start:at]
            start, size = at, len(message.value)
    if start < len(messages):
        yield messages[start:]


class Publisher:
    """The thread that publishes what the lanes have answered, in the order it came."""

    def __init__(
        self,
        answers: Outlet,
        letters: Outlet,
        about: dict[str, str],
        repeats: Repeats,
        numbers: StreamNumbers,
        moved: Callable[[], object],
        *,
        patient: bool = True,
    ) -> None:
        """about: deployment, package and source, as letters tell them. moved: told that something is finished.
        patient: go on where a sink is away at the start."""
        self.answers = answers
        self.letters = letters
        self.about = about
        self.repeats = repeats
        self.numbers = numbers
        self.moved = moved
        self.patient = patient
        self.begun = threading.Event()
        self.queue: SimpleQueue[list[Done] | None] = SimpleQueue()

    def run(self) -> None:
        """Until a None comes, or `Stopped` where waiting must end."""
        try:
            self.answers.begin(patient=self.patient)
            self.letters.begin(patient=self.patient)
            self.begun.set()
            while (dones := self._next()) is not None:
                self.deliver(dones)
        except Stopped:
            pass
        finally:
            self.begun.set()
            self.answers.close()
            self.letters.close()

    def _next(self) -> list[Done] | None:
        taken = self.queue.get()
        if taken is None:
            return None
        taken = list(taken)
        while len(taken) < TOGETHER:
            try:
                more = self.queue.get_nowait()
            except Empty:
                break
            if more is None:
                self.queue.put(None)
                break
            taken += more
        return taken

    def deliver(self, dones: Sequence[Done]) -> None:
        """Publish all of it, then count it as finished."""
        live = [d for d in dones if not d.delivery.forgotten]
        messages = [o for d in live for o in d.outgoing]
        unanswerable = [letter for d in live for letter in d.letters]
        refused = 0
        if messages:
            never = self.answers.publish(messages)
            refused = len(never)
            unanswerable += self._refused(live, never)
        if unanswerable:
            self._bury(unanswerable)
        self._finish(live, len(messages) - refused, len(unanswerable))

    def _refused(self, dones: Sequence[Done], refused: Mapping[int, str]) -> list[Letter]:
        """Answers that the sink will never take, as letters of the messages they answer."""
        owners = [(d, o) for d in dones for o in d.outgoing]
        for at in refused:
            owners[at][0].delivery.buried = True
        return [
            Letter(
                owners[at][0].delivery.message,
                f"The sink does not take the answer: {reason}",
                owners[at][1].id,
                stage="sink",
            )
            for at, reason in refused.items()
        ]

    def _bury(self, unanswerable: Sequence[Letter]) -> None:
        written = [dead.outgoing(letter, self.about) for letter in unanswerable]
        refused = self.letters.publish(written)
        if refused:
            cut = [dead.outgoing(unanswerable[at], self.about, most=dead.SHOWN_BYTES) for at in refused]
            again = self.letters.publish(cut)
            for at, reason in again.items():
                self.letters.log("undeliverable", level="error", id=cut[at].id, reason=reason)
            if again:
                raise Away(
                    "The dead letters' topic takes not even a shortened letter.",
                    "Raise its limit on a message's size.",
                )

    def _finish(self, dones: Sequence[Done], answers: int, letters: int) -> None:
        now = time.time()
        finished = self.numbers.finished
        whole: list[bytes] = []
        for done in dones:
            delivery = done.delivery
            delivery.buried = delivery.buried or bool(done.letters)
            delivery.left -= 1
            if delivery.left == 0 and not delivery.buried:
                whole.append(delivery.id)
            finished(now - (delivery.message.time or delivery.at))
        self.repeats.answered(*whole)
        self.numbers.rows(answers, sum(d.dropped for d in dones), letters)
        self.moved()
