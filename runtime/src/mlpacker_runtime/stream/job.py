"""A stream's threads: one reads and commits, one for each lane asks the models, one publishes.

The reader never waits for a model. It polls while there is room in the window, keeps the session alive while there is none, and
commits what the publisher has confirmed, without a gap. When anything about the source is in doubt it is closed, what is out is
forgotten and will come again, and it is opened anew.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ..brokers import Away, Message, Sink, Source
from ..telemetry.log import Log
from .intake import Intake
from .numbers import StreamNumbers
from .patience import Stopped
from .payloads import Decoder
from .publishing import FIRST_WAIT, LONGEST_WAIT, STILL_AWAY, Outlet, Publisher
from .repeats import Repeats
from .scoring import Lane, Part
from .settings import Settings
from .tracking import Tracker

POLL_SECONDS = 0.1
TURN = 0.02
"""How long the reader waits for work to finish before it keeps the session alive again."""
COMMIT_SECONDS = 0.05
LAG_SECONDS = 1.0


@dataclass(frozen=True)
class Ends:
    """How to open what is at the ends. Each raises Away, Unusable or BadDescription."""

    source: Callable[[Job], Source]
    sink: Callable[[], Sink]
    letters: Callable[[], Sink]


class Job:
    """One stream in one process. `run` it in a thread, `stop` it from any."""

    def __init__(
        self,
        settings: Settings,
        ends: Ends,
        lanes: Sequence[Lane],
        decoder: Decoder,
        repeats: Repeats,
        numbers: StreamNumbers,
        log: Log,
        *,
        about: dict[str, str],
        stage: str,
        together: bool = True,
        opened: Callable[[], object] = lambda: None,
    ) -> None:
        """about: deployment, package and source, as letters tell them. together: rows of several messages may share a batch.
        opened: told when the source was opened for the first time."""
        self.settings = settings
        self.ends = ends
        self.lanes = lanes
        self.decoder = decoder
        self.repeats = repeats
        self.numbers = numbers
        self.log = log
        self.stage = stage
        self.together = together
        self.opened = opened
        self.stopping = threading.Event()
        self.ending = threading.Event()
        self.moved = threading.Event()
        self.tracker = Tracker()
        self.source: Source | None = None
        self.intake: Intake | None = None
        self.failure: BaseException | None = None
        self.queues: list[SimpleQueue[list[Part] | None]] = [SimpleQueue() for _ in lanes]
        outlet = {"stopped": self.ending.is_set, "pause": self.ending.wait}
        self.answers = Outlet(settings.sink, ends.sink, log, **outlet)  # type: ignore[arg-type]
        self.letters = Outlet(settings.letters, ends.letters, log, **outlet)  # type: ignore[arg-type]
        self.publisher = Publisher(
            self.answers, self.letters, about, repeats, numbers, self.moved.set, patient=settings.patient
        )
        self.last_commit = 0.0
        self.last_lag = 0.0
        self.lag = -1
        self.ended = False

    # --- the life of it -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take nothing more; finish and commit what is out, within `drain` of `run`."""
        self.stopping.set()
        self.moved.set()

    def run(self, drain: float = 30.0) -> None:
        """Until stopped, or until a source that has an end is at it. Raises what can't be mended by waiting."""
        threads = [
            threading.Thread(target=self._guard, args=(self._lane, i), name=f"lane-{i}")
            for i in range(len(self.lanes))
        ]
        threads.append(threading.Thread(target=self._guard, args=(self.publisher.run,), name="publisher"))
        for thread in threads:
            thread.daemon = True
            thread.start()
        try:
            while not self.publisher.begun.wait(POLL_SECONDS) and not self.stopping.is_set():
                pass
            self._read()
            self._drain(drain)
        finally:
            self.ending.set()
            if self.source is not None:
                self.source.close()
            for queue in self.queues:
                queue.put(None)
            self.publisher.queue.put(None)
            for thread in threads:
                thread.join(2.0)
        if self.failure is not None:
            raise self.failure

    def _guard(self, what: Callable[..., None], *args: object) -> None:
        """A thread that fails takes the job with it: better started again than alive and idle."""
        try:
            what(*args)
        except Stopped:
            pass
        except BaseException as cause:  # noqa: BLE001  whatever it is, the reader must hear of it
            self.failure = self.failure or cause
            self.stop()
            self.ending.set()

    # --- in -------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        wait, said, first = FIRST_WAIT, 0.0, True
        while not self.stopping.is_set() and not self.ended:
            try:
                self._open()
                if first:
                    self.opened()
                    first = False
                elif said:
                    self.log("back", at=self.settings.source)
                wait, said = FIRST_WAIT, 0.0
                self._flow()
            except Away as error:
                self._leave()
                if first and not self.settings.patient:
                    raise
                now = time.monotonic()
                if now - said > STILL_AWAY:
                    said = now
                    self.log(
                        "waiting" if first else "away",
                        level="warning",
                        at=self.settings.source,
                        reason=error.sentence,
                    )
                self.stopping.wait(wait * (0.5 + random.random()))  # noqa: S311  jitter
                wait = min(LONGEST_WAIT, wait * 2)

    def _open(self) -> None:
        self.source = self.ends.source(self)
        self.intake = Intake(
            self.settings,
            self.source.incarnation,
            self.tracker,
            self.repeats,
            self.decoder,
            lanes=len(self.lanes),
            stage=self.stage,
            apart=not self.together,
        )
        self.numbers.count(self.numbers.reopened)
        self.numbers.set(self.numbers.up, 1, 0)

    def _leave(self) -> None:
        """The source is in doubt: what is out will be delivered again, and nobody waits for it here."""
        self.numbers.set(self.numbers.up, 0, 0)
        self.tracker.forget()
        if self.source is not None:
            self.source.close()
            self.source = None

    def _flow(self) -> None:
        source = self.source
        assert source is not None
        while not self.stopping.is_set():
            self._advance()
            room = self._room()
            if room <= 0:
                source.poll(0, 0)
                self.moved.wait(TURN)
                self.moved.clear()
                continue
            messages = source.poll(room, POLL_SECONDS)
            if messages:
                self._take(messages)
            elif getattr(source, "ended", False) and not self.tracker.count:
                self._advance(always=True)
                self.ended = True
                return
            self._look_at_lag(source)

    def _room(self) -> int:
        if self.tracker.size >= self.settings.window_bytes:
            return 0
        return min(self.settings.window - self.tracker.count, 2 * self.settings.batch)

    def _take(self, messages: list[Message]) -> None:
        assert self.intake is not None
        self.numbers.count(self.numbers.read_messages, len(messages))
        lanes, done = self.intake.take(messages)
        if self.intake.dropped:
            self.numbers.count(self.numbers.repeated, self.intake.dropped)
            self.intake.dropped = 0
        if done:
            self.publisher.queue.put(done)
        for queue, parts in zip(self.queues, lanes, strict=True):
            if parts:
                queue.put(parts)

    def _look_at_lag(self, source: Source) -> None:
        now = time.monotonic()
        if now - self.last_lag < LAG_SECONDS:
            return
        self.last_lag = now
        found = source.lag()
        self.lag = -1 if found is None else found.total
        self.numbers.set(self.numbers.lag, self.lag)
        lost = getattr(source, "lost", None)
        if lost:
            self.numbers.count(self.numbers.lost, len(lost))
            self.log("lost", level="error", at=self.settings.source, offsets=lost[:20], count=len(lost))
            lost.clear()

    # --- finished -------------------------------------------------------------------------------------------------------

    def _advance(self, *, always: bool = False) -> None:
        """Take what is finished, and commit it now and then."""
        self.tracker.advance()
        self.numbers.set(self.numbers.in_flight, self.tracker.count)
        now = time.monotonic()
        full = self.tracker.count >= self.settings.window // 2
        if self.tracker.committable and (always or full or now - self.last_commit >= COMMIT_SECONDS):
            self.last_commit = now
            self._commit()

    def _commit(self) -> None:
        source, intake = self.source, self.intake
        if source is None or intake is None:
            return
        finished = self.tracker.take_commit()
        if finished:
            source.commit(finished)
            self.repeats.commit(intake.incarnation, finished)

    def giving_up(self, partitions: Collection[str], seconds: float) -> None:
        """Called by the source from within `poll`: finish these, commit, then drop the rest."""
        began = time.monotonic()
        while seconds > 0 and time.monotonic() - began < seconds:
            self.tracker.advance()
            if self.tracker.idle(partitions):
                break
            self.moved.wait(TURN)
            self.moved.clear()
        if seconds > 0:
            self._advance(always=True)
        dropped = self.tracker.forget(partitions)
        took = time.monotonic() - began
        self.numbers.count(self.numbers.given_up, len(partitions))
        self.numbers.count(self.numbers.giving_seconds, took)
        self.log("gave up", partitions=sorted(partitions), unfinished=dropped, seconds=round(took, 3))

    def _drain(self, seconds: float) -> None:
        """No more is taken; what is out is finished and committed."""
        deadline = time.monotonic() + seconds
        try:
            while self.source is not None and self.failure is None:
                self._advance(always=True)
                if not self.tracker.count or time.monotonic() > deadline:
                    break
                self.source.poll(0, 0)
                self.moved.wait(TURN)
                self.moved.clear()
        except Away as error:
            self.log("away", level="warning", at=self.settings.source, reason=error.sentence)
        if self.tracker.count:
            self.log(
                "unfinished",
                level="warning",
                messages=self.tracker.count,
                reason="They will be delivered again.",
            )

    # --- a lane ---------------------------------------------------------------------------------------------------------

    def _lane(self, index: int) -> None:
        lane, queue = self.lanes[index], self.queues[index]
        while (parts := self._together(queue)) is not None:
            if self.together:
                for batch in _batches(parts, self.settings.batch):
                    self._answer(lane, batch)
            else:
                for part in parts:
                    self._answer(lane, [part])

    def _answer(self, lane: Lane, parts: list[Part]) -> None:
        self.numbers.batch(sum(p.count for p in parts))
        self.publisher.queue.put(lane.answer(parts))

    def _together(self, queue: SimpleQueue[list[Part] | None]) -> list[Part] | None:
        """What waits, up to a batch; waits for more only where told to."""
        parts = queue.get()
        if parts is None:
            return None
        rows = sum(p.count for p in parts)
        end = time.monotonic() + self.settings.wait / 1000 if self.settings.wait else 0.0
        while rows < self.settings.batch:
            try:
                left = end - time.monotonic() if end else 0.0
                more = queue.get(timeout=left) if left > 0 else queue.get_nowait()
            except Empty:
                break
            if more is None:
                queue.put(None)
                break
            parts = parts + more
            rows += sum(p.count for p in more)
        return parts

    # --- watched from outside -------------------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether waiting is right: a sink is away, or the source is."""
        return bool(self.answers.away_since or self.letters.away_since) or self.source is None

    @property
    def due(self) -> bool:
        """Whether there is something to do."""
        return self.tracker.count > 0 or self.lag > 0

    def state(self) -> dict[str, object]:
        numbers = self.numbers
        return {
            "in_flight": self.tracker.count,
            "lag": None if self.lag < 0 else self.lag,
            "finished": numbers.total_finished,
            "source": "up" if self.source is not None else "away",
            "sink": "away" if self.answers.away_since else "up",
            "dead_letters": "away" if self.letters.away_since else "up",
            "lost": int(numbers.get(numbers.lost)),
        }


def _batches(parts: Sequence[Part], rows: int) -> list[list[Part]]:
    """In order, each of at most `rows` rows where a part is not larger by itself."""
    batches: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if batches[-1] and size + part.count > rows:
            batches.append([])
            size = 0
        batches[-1].append(part)
        size += part.count
    return batches
