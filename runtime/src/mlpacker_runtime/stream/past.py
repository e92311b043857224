"""What a source holds already: read up to a bound, and then it is at its end, however much goes on behind it.

A broker does not say where "now" is in a way that all of them share, so the end is seen: nothing within the bound has come for a
while, and the source says that nothing is left. By time it is the broker's clock that counts (Kafka's: the producer's).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .. import brokers
from ..brokers import Lag, Message, Reading, Source
from ..brokers.address import Address, parse
from ..brokers.log import Log

QUIET_SECONDS = 1.0
"""Without a message, where the source says that none is left."""
LONG_SECONDS = 10.0
"""Without a message, where it can't say so: it joins its group still, or it counts what is never delivered."""
TAKEN = 1000


class Past:
    """A source up to a bound. ended: nothing more of it is to come. left_out: messages that lay behind the bound."""

    def __init__(self, source: Source, until: str, clock: Callable[[], float] = time.monotonic) -> None:
        """until: `time:` and seconds since the epoch, or `offset:N`, inclusive; empty: as far as it goes."""
        self.source = source
        self.incarnation = source.incarnation
        self.ended = False
        self.left_out = 0
        self._kind, _, number = until.partition(":")
        self._until = float(number or 0)
        self._clock = clock
        self._since = clock()
        self._over: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def poll(self, limit: int, seconds: float) -> list[Message]:
        got = self.source.poll(limit, seconds)
        kept = [m for m in got if not self._beyond(m)]
        self.left_out += len(got) - len(kept)
        now = self._clock()
        if kept or limit <= 0:
            self._since = now
        else:
            self.ended = getattr(self.source, "ended", False) or self._is_over(now - self._since)
        return kept

    def commit(self, finished: Mapping[str, int]) -> None:
        self.source.commit(finished)

    def lag(self) -> Lag | None:
        return self.source.lag()

    def close(self) -> None:
        self.source.close()

    def _beyond(self, message: Message) -> bool:
        at = {"time": message.time, "offset": message.offset}.get(self._kind)
        if at is None or at <= self._until:
            return False
        self._over.add(message.partition)
        return True

    def _is_over(self, quiet: float) -> bool:
        if quiet < QUIET_SECONDS:
            return False
        lag = self.source.lag()
        if lag is None or not lag.messages:
            return quiet >= LONG_SECONDS
        left = any(count for partition, count in lag.messages.items() if partition not in self._over)
        return quiet >= (LONG_SECONDS if left else QUIET_SECONDS)


class Nobody:
    """Hears of partitions that are given up, and has nothing out."""

    def giving_up(self, partitions: Collection[str], seconds: float) -> None:
        pass


def place(text: str, logs: str) -> Address:
    """An address; an embedded log that names no folder lies in the folder `logs`. Raises BadDescription."""
    address = parse(text)
    if address.scheme == "local" and "path" not in address.options and logs:
        return replace(address, options={**address.options, "path": logs})
    return address


@contextmanager
def reader(address: Address, reading: Reading, until: str = "") -> Iterator[Past]:
    """The past of a topic, for a group of one's own."""
    source = brokers.get(address.scheme).source(address, reading, Nobody())
    past = Past(source, until)
    try:
        yield past
    finally:
        past.close()


def everything(past: Past) -> Iterator[Message]:
    """All of it. Whoever takes it may commit meanwhile."""
    while not past.ended:
        yield from past.poll(TAKEN, 0.1)


def forget(address: Address, group: str) -> None:
    """A group that will not come again: its place would hold back what the embedded log deletes. A broker that can forget one
    offers `forget(address, group)`; the others keep a group until they drop it themselves."""
    if address.scheme == "local":
        log = Log(log_file(address))
        try:
            with log.change() as run:
                for table in ("place", "lease", "member"):
                    run(f"DELETE FROM {table} WHERE reader = ?", (group,))  # noqa: S608  names of ours
        finally:
            log.close()
    else:
        offered = getattr(brokers.get(address.scheme), "forget", None)
        if offered is not None:
            offered(address, group)


def log_file(address: Address) -> str:
    """The file of an embedded log."""
    return f"{address.option('path')}/{address.path}.log.db"
