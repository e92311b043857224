"""Store and forward: what can't be published now is kept on this disk (fsync) and published later, in order, also after a reboot.

While anything waits here, all that comes queues behind it. At the bound it is `pause`: the stream takes nothing more until
there is room; or `drop_oldest`, only where somebody has written so: the oldest rows are gone then, and counted.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..brokers import Away, Message, Outgoing, Sink
from ..brokers.log import Log as Kept
from ..telemetry.log import Log
from .letters import Letter
from .patience import Stopped

FILE = "spool.db"
FORWARDED = 1000
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0


class Spool:
    """A sink that takes what the real one can't take now. Opened once; the real one is made anew when it is away."""

    def __init__(
        self,
        folder: Path,
        open: Callable[[], Sink],
        bury: Callable[[Sequence[Letter]], None],
        *,
        bound: int,
        drop_oldest: bool,
        at: str,
        log: Log,
    ) -> None:
        """open: the real sink. bury: takes letters of what the sink will never take, until they are confirmed. bound: bytes."""
        self.kept = Kept(folder / FILE, alone=True)
        self.open = open
        self.bury = bury
        self.bound = bound
        self.drop_oldest = drop_oldest
        self.at = at
        self.log = log
        self.dropped = 0
        self.forwarded = self.kept.first() - 1
        self.depth = self.waiting()
        self.failure: Exception | None = None
        self.sink: Sink | None = None
        self.turn = threading.Lock()
        self.work = threading.Event()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._forward, name="spool", daemon=True)
        self.thread.start()
        if self.depth:
            self.work.set()

    headers = True
    max_bytes = 0

    lasting = True
    """It stays when it can't take more: what it holds is being forwarded meanwhile."""

    def waiting(self) -> int:
        return self.kept.last() - self.forwarded

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        """Raises what the thread that forwards came to an end of, too: nothing would ever leave the spool."""
        if self.failure is not None:
            raise self.failure
        if not self.waiting():
            with self.turn:
                try:
                    return self._real().publish(messages)
                except Away as error:
                    self.log("spooling", level="warning", at=self.at, reason=error.sentence)
                    self._lose()
        self._keep(messages)
        self.depth = self.waiting()
        self.work.set()
        return {}

    def close(self) -> None:
        self.closing.set()
        self.work.set()
        self.thread.join(5.0)
        self._lose()
        self.kept.close()

    # --- in -------------------------------------------------------------------------------------------------------------

    def _keep(self, messages: Sequence[Outgoing]) -> None:
        size = sum(len(m.value) for m in messages)
        if self.kept.size_bytes() + size > self.bound:
            if not self.drop_oldest:
                raise Away(f"The spool holds {self.bound} bytes, and {self.at} is away.")
            self._make_room()
        try:
            self.kept.append(messages)
        except Away:
            raise
        except OSError as cause:
            raise Away(f"The spool can't be written: {cause.strerror}.") from cause

    def _make_room(self) -> None:
        with self.turn:
            oldest = [offset for offset, _ in self.kept.read_outgoing(0, self.forwarded, FORWARDED)]
            if not oldest:
                return
            self._forget(oldest[-1])
        self.dropped += len(oldest)
        reason = "The spool is full: its oldest rows are gone."
        self.log("dropped", level="error", at=self.at, count=len(oldest), reason=reason)

    # --- out ------------------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        wait = FIRST_WAIT
        while not self.closing.is_set():
            self.work.wait()
            self.work.clear()
            try:
                while not self.closing.is_set() and self._one_step():
                    wait = FIRST_WAIT
            except Away:
                self._lose_in_turn()
                self.closing.wait(wait * (0.5 + random.random()))  # noqa: S311  jitter
                wait = min(LONGEST_WAIT, wait * 2)
                self.work.set()
            except Stopped:
                return  # what waits is forwarded after the next start
            except Exception as cause:  # noqa: BLE001  the publisher hears of it with its next answers
                self.failure = cause
                return

    def _one_step(self) -> bool:
        """Publish the oldest that wait; whether there may be more. Raises Away."""
        with self.turn:
            waiting = self.kept.read_outgoing(0, self.forwarded, FORWARDED)
            if not waiting:
                return False
            refused = self._real().publish([m for _, m in waiting])
            letters = [self._letter(*waiting[at], reason) for at, reason in refused.items()]
        if letters:
            self.bury(letters)
        self._forget(waiting[-1][0])
        self.depth = self.waiting()
        if not self.depth:
            self.log("forwarded", at=self.at)
        return True

    def _forget(self, upto: int) -> None:
        """What was forwarded, or dropped. A full disk may not take even that: then it goes with what is forwarded later."""
        self.forwarded = upto
        try:
            self.kept.trim(0, upto)
        except Away:
            return

    def _letter(self, offset: int, message: Outgoing, reason: str) -> Letter:
        came = Message("spool", offset, message.value, message.key, message.headers)
        return Letter(came, f"The sink does not take the answer: {reason}", message.id, stage="sink")

    def _real(self) -> Sink:
        if self.sink is None:
            self.sink = self.open()
        return self.sink

    def _lose(self) -> None:
        if self.sink is not None:
            self.sink.close()
            self.sink = None

    def _lose_in_turn(self) -> None:
        with self.turn:
            self._lose()
