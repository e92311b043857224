"""The journal: where messages of a broker without offsets are kept, before that broker is told that we have them.

MQTT and RabbitMQ's queues forget a message once it is acknowledged, and know it by no number. So each is written down here
first (fsync) and acknowledged then, in the order it came; everything behind reads the journal, whose sequence is the offset.
From then on the promise rests on this disk. At the bound nothing more is taken, and the broker does what it does with a reader
that lags.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..brokers import Away, Lag, Message, Source
from ..brokers.log import Log as Kept
from ..telemetry.log import Log

FILE = "journal.db"
TAKEN = 2000
"""Messages that are written down at a time."""
POLL_SECONDS = 0.2
TRIM_SECONDS = 0.25
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0


class Journal:
    """A source over the journal, and the thread that fills it from the broker's own."""

    def __init__(self, folder: Path, open: Callable[[], Source], *, bound: int, at: str, log: Log) -> None:
        """open: the broker's own source. bound: bytes. at: its address, for the log. Raises what `open` raises, the first time,
        unless there is something to read here already: then the broker may be away."""
        self.kept = Kept(folder / FILE, alone=True)
        self.incarnation = self.kept.uuid
        self.open = open
        self.bound = bound
        self.at = at
        self.log = log
        self.place = self.kept.first() - 1
        self.finished = self.place
        self.trimmed = time.monotonic()
        self.arrived = threading.Event()
        self.closing = threading.Event()
        self.failure: Exception | None = None
        inner: Source | None = None
        try:
            inner = open()
        except Away:
            if self.kept.count() == 0:
                self.kept.close()
                raise
        except BaseException:
            self.kept.close()
            raise
        self.thread = threading.Thread(target=self._fill, args=(inner,), name="journal", daemon=True)
        self.thread.start()

    # --- Source ---------------------------------------------------------------------------------------------------------

    def poll(self, limit: int, seconds: float) -> list[Message]:
        if self.failure is not None:
            raise self.failure
        if limit <= 0:
            return []
        found = self.kept.read(0, self.place, limit)
        if not found and seconds > 0:
            self.arrived.wait(seconds)
            self.arrived.clear()
            found = self.kept.read(0, self.place, limit)
        if found:
            self.place = found[-1].offset
        return found

    def commit(self, finished: Mapping[str, int]) -> None:
        self.finished = max(self.finished, *finished.values())
        now = time.monotonic()
        if now - self.trimmed >= TRIM_SECONDS or self.finished == self.place:
            self.trimmed = now
            self.kept.trim(0, self.finished)

    def lag(self) -> Lag:
        return Lag({"0": self.kept.last() - self.place})

    def close(self) -> None:
        self.closing.set()
        self.thread.join(5.0)
        try:
            self.kept.trim(0, self.finished)
        except Away:
            pass  # they come again
        self.kept.close()

    # --- the thread that fills it ---------------------------------------------------------------------------------------

    def _fill(self, inner: Source | None) -> None:
        wait, said = FIRST_WAIT, False
        while not self.closing.is_set():
            try:
                inner = inner or self.open()
                if said:
                    self.log("back", at=self.at)
                wait, said = FIRST_WAIT, False
                self._from(inner)
            except Away as error:
                if not said:
                    self.log("away", level="warning", at=self.at, reason=error.sentence)
                    said = True
                self.closing.wait(wait * (0.5 + random.random()))  # noqa: S311  jitter
                wait = min(LONGEST_WAIT, wait * 2)
            except Exception as cause:  # noqa: BLE001  the reader hears of it at its next poll
                self.failure = cause
                return
            finally:
                if inner is not None:
                    inner.close()
                    inner = None

    def _from(self, inner: Source) -> None:
        full = False
        while not self.closing.is_set():
            if full:
                inner.poll(0, 0)
                self.closing.wait(POLL_SECONDS)
            else:
                messages = inner.poll(TAKEN, POLL_SECONDS)
                if messages:
                    self.kept.append(messages)
                    self.arrived.set()
                    inner.commit({m.partition: m.offset for m in messages})
            was, full = full, self.kept.size_bytes() > self.bound
            if full and not was:
                reason = f"The journal holds {self.bound} bytes: nothing more is taken from the broker."
                self.log("full", level="error", at=self.at, reason=reason)
