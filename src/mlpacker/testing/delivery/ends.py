"""The two ends of a ledger: a producer that is sure of what was confirmed, and a consumer that writes down all that comes."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Away, Message, Outgoing, Reading
from mlpacker_runtime.brokers.address import parse

from .ledger import BROKEN, SOUND, Came, Ledger, Sent

KEYS = 7
TWIN_EVERY = 40
"""Every so many rows are sent twice, in equal bytes: two equal readings are two rows."""
BATCH = 10
AGAIN_SECONDS = 0.2
INJECTED_SECONDS = 10.0
_NUMBER = re.compile(r'"number": ?(\d+)')


class Producer:
    """Sends numbered rows at a steady rate until stopped. rate: rows a second."""

    def __init__(self, address: str, ledger: Ledger, rate: float) -> None:
        self.address = parse(address)
        self.ledger = ledger
        self.rate = rate
        self.next = 0
        self.asked: list[tuple[str, int, float | None]] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self.failure: Exception | None = None

    def start(self) -> None:
        self.thread.start()

    def inject(self, kind: str, size: int = 0, x: float | None = None) -> None:
        """Send a row of this kind next, and wait until it is; size: bytes to make it as long as; x: its value."""
        self.asked.append((kind, size, x))
        end = time.monotonic() + INJECTED_SECONDS
        while self.asked and time.monotonic() < end:
            time.sleep(0.01)

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(60)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        due = time.monotonic()
        sink: Any = None
        try:
            while not self.stopping.is_set():
                rows = [self._row() for _ in range(BATCH)]
                messages = [m for row, body in rows for m in self._messages(row, body)]
                attempts = 0
                while True:
                    attempts += 1
                    try:
                        sink = sink or brokers.get(self.address.scheme).sink(self.address, "ledger")
                        refused = sink.publish(messages)
                        assert not refused, refused
                        break
                    except Away:
                        if sink is not None:
                            sink.close()
                            sink = None
                        time.sleep(AGAIN_SECONDS)
                self.ledger.sent += [
                    Sent(s.number, s.key, s.kind, s.copies, s.copies * attempts) for s, _ in rows
                ]
                due = max(due + BATCH / self.rate, time.monotonic() - 1)
                self.stopping.wait(max(0.0, due - time.monotonic()))
        except Exception as cause:  # noqa: BLE001  told when it is stopped
            self.failure = cause
        finally:
            if sink is not None:
                sink.close()

    def _row(self) -> tuple[Sent, bytes]:
        number, self.next = self.next, self.next + 1
        kind, size, x = self.asked.pop(0) if self.asked else (SOUND, 0, None)
        key = f"k{number % KEYS}"
        copies = 2 if kind == SOUND and number % TWIN_EVERY == 0 else 1
        body = json.dumps(
            {"number": number, "key": key, "kind": kind, "x": float(number) if x is None else x}
        )
        if kind == BROKEN:
            body = body[:-1] + ("" if not size else f', "filling": "{"x" * size}"}}')
        return Sent(number, key, kind, copies), body.encode()

    def _messages(self, row: Sent, body: bytes) -> list[Outgoing]:
        return [Outgoing(body, f"ledger-{row.number}-{copy}", row.key.encode()) for copy in range(row.copies)]


class Consumer:
    """Writes down what comes, in order, until stopped. It reads on from its own commit when the broker was away."""

    def __init__(self, address: str, to: list[Came], read: Callable[[Message], Came], state: str) -> None:
        self.address = parse(address)
        self.to = to
        self.read = read
        self.reading = Reading(f"ledger-{Path(state).name}", state=state, session=6.0)
        self.stopping = threading.Event()
        self.there = threading.Event()
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    def start(self) -> None:
        """Returns once it reads: some brokers keep nothing for who was not there."""
        self.thread.start()
        self.there.wait(30)

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(30)
        if self.failure is not None:
            raise self.failure

    def giving_up(self, partitions: Collection[str], seconds: float) -> None:
        """As a source's listener: all that came is written down already."""

    def _run(self) -> None:
        source: Any = None
        try:
            while not self.stopping.is_set():
                try:
                    source = source or brokers.get(self.address.scheme).source(
                        self.address, self.reading, self
                    )
                    self.there.set()
                    messages = source.poll(500, 0.1)
                    self.to += [self.read(m) for m in messages]
                    if messages:
                        source.commit({m.partition: m.offset for m in messages})
                except Away:
                    if source is not None:
                        source.close()
                        source = None
                    time.sleep(AGAIN_SECONDS)
        except Exception as cause:  # noqa: BLE001  told when it is stopped
            self.failure = cause
        finally:
            if source is not None:
                source.close()


def answer(message: Message) -> Came:
    """An answer of the ledger's stage."""
    value = json.loads(message.value)
    own = next((v.decode() for n, v in message.headers if n == "mlpacker-id"), None)
    return Came(value.get("number"), own or str(value["mlpacker_id"]))


def letter(message: Message) -> Came:
    value = json.loads(message.value)
    found = _NUMBER.search(value.get("value", ""))
    return Came(int(found[1]) if found else None, str(value["id"]))
