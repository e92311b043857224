"""One ledger run: rows flow at a steady rate while faults are walked through in turn, and a verdict is given for each."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlpacker_runtime import brokers
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.stream.settings import Settings

from .ends import Consumer, Producer, answer, letter
from .faults import FAULTS, Fault
from .ledger import Ledger, Verdict, Window
from .proxy import Proxy
from .subject import Subject, draft

START_SECONDS = 60.0
SETTLED_SECONDS = 25.0
END_SECONDS = 60.0
ENDS = ("in", "out", "letters")
RATE = 200.0
SESSION = 3.0
"""Seconds after which a silent reader is taken for dead; a broker may want more."""
FEW = 100
"""Rows that may be on their way when the next fault begins."""


class World:
    """A broker, the stream that is tried, and the ledger's two ends. Use as a context manager."""

    def __init__(
        self,
        server: Any,
        folder: Path,
        *,
        rate: float = 0,
        runtime: Path | None = None,
        said: Callable[[str], None] = lambda line: None,
        **changed: Any,
    ) -> None:
        """server: a started broker. rate: rows a second; 0: what suits the broker. runtime: another copy of the runtime. changed: settings."""
        self.server = server
        self.folder = folder
        self.said = said
        self.runtime = runtime
        scheme = parse(server.address("in")).scheme
        self.broker = brokers.get(scheme)
        for topic in ENDS:
            server.make(topic)
        made = {end: self._proxy() for end in ENDS}
        self.proxies = {end: proxy for end, proxy in made.items() if proxy is not None}
        self.settings = Settings(
            name="ledger",
            source=self._through("in"),
            sink=self._through("out"),
            dead_letters=self._through("letters"),
            state=str(folder / "state"),
            logs=str(folder / "logs"),
            keep=("number",),
            key="key",
            session=getattr(server, "session", SESSION),
            max_message=200_000,
            **changed,
        )
        self.package = draft(folder / "package")
        self.next_release = draft(folder / "next", "double_again")
        self.subject = Subject(folder, self.package, self.settings, runtime=runtime)
        self.ledger = Ledger(journalled=bool(self.broker.journalled), ordered=self.settings.ordered)
        self.producer = Producer(server.address("in"), self.ledger, rate or getattr(server, "rate", RATE))
        self.consumers = [
            Consumer(server.address("out"), self.ledger.outputs, answer, str(folder / "ledger-out")),
            Consumer(server.address("letters"), self.ledger.letters, letter, str(folder / "ledger-letters")),
        ]

    @property
    def shareable(self) -> bool:
        """Whether two machines may read for one group."""
        return not self.broker.journalled

    def _proxy(self) -> Proxy | None:
        port = getattr(self.server, "port", 0)
        if not port:
            return None
        through = getattr(self.server, "through", None)  # a broker that tells its clients where to connect
        if through is not None:
            return through()
        return Proxy(port)

    def _through(self, end: str) -> str:
        address = str(self.server.address(end))
        proxy = self.proxies.get(end)
        return address if proxy is None else address.replace(f":{self.server.port}/", f":{proxy.port}/")

    def second(self) -> Subject:
        settings = replace(self.settings, state=str(self.folder / "state-b"))
        return Subject(self.folder, self.package, settings, name="b", runtime=self.runtime)

    def until_reads(self, subject: Subject) -> None:
        """Until the process has said that it is ready, or for some time."""
        end = time.monotonic() + 10
        while '"action": "ready"' not in subject.said() and time.monotonic() < end:
            time.sleep(0.05)

    def __enter__(self) -> World:
        for consumer in self.consumers:
            consumer.start()
        self.subject.start()
        self._until(
            lambda: '"action": "ready"' in self.subject.said(), START_SECONDS, "the stream to be ready"
        )
        self.producer.start()
        self._until(lambda: bool(self.ledger.outputs), START_SECONDS, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self.producer.stopping.set()
        self.subject.stop()
        for consumer in self.consumers:
            consumer.stopping.set()
            consumer.thread.join(30)
        for proxy in self.proxies.values():
            proxy.close()

    def settle(self, seconds: float = SETTLED_SECONDS, few: int = FEW) -> None:
        """Until hardly anything is on its way, or for so long."""
        end = time.monotonic() + seconds
        while self.ledger.missing() > few and time.monotonic() < end:
            time.sleep(0.1)

    def _until(self, reached: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                raise RuntimeError(f"Waited {seconds:.0f} s for {what}:\n{self.subject.said()[-3000:]}")
            time.sleep(0.05)


@dataclass(frozen=True)
class Result:
    """A run's verdicts: of each fault's window, and of the whole."""

    broker: str
    version: str
    seed: int
    whole: Verdict
    windows: tuple[tuple[Window, Verdict], ...] = ()
    seconds: float = 0.0
    log: str = field(default="", repr=False)

    @property
    def kept(self) -> bool:
        return self.whole.kept

    def lines(self) -> list[str]:
        said = [
            f"{self.broker} {self.version}, seed {self.seed}, {self.seconds:.0f} s: {self.whole.sentence()}"
        ]
        for window, verdict in self.windows:
            told = f"not tried: {window.skipped}" if window.skipped else verdict.sentence()
            said.append(f"  {window.name:<26} {told}")
        return said

    def to_json(self) -> dict[str, Any]:
        cells = [
            {
                "fault": w.name,
                "skipped": w.skipped,
                "in": v.rows_in,
                "out": v.rows_out,
                "dead_letters": v.dead_letters,
                "repeats": v.repeats,
                "inversions": len(v.inversions),
                "lost": len(v.lost),
                "kept": v.kept,
            }
            for w, v in (*self.windows, (Window("the whole run", 0, 0), self.whole))
        ]
        return {
            "broker": self.broker,
            "version": self.version,
            "seed": self.seed,
            "seconds": round(self.seconds),
            "cells": cells,
        }


def walk(
    server: Any,
    folder: Path,
    *,
    seed: int = 1,
    faults: Sequence[Fault] = FAULTS,
    said: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Result:
    """Start the broker, walk the faults in an order that the seed gives, end everything, judge. options: those of World."""
    began = time.monotonic()
    order = list(faults)
    random.Random(seed).shuffle(order)
    server.start()
    try:
        with World(server, folder, said=said, **options) as world:
            windows = [_one(world, fault) for fault in order]
            time.sleep(0.5)
            world.producer.stop()
            world.settle(END_SECONDS, few=0)
            time.sleep(0.3)  # what comes late would be a repeat
            log = world.subject.said()
            version = str(server.version()) if callable(getattr(server, "version", None)) else ""
            for consumer in world.consumers:
                consumer.stop()
    finally:
        server.stop()
    ledger = world.ledger
    judged = tuple((w, ledger.verdict(w)) for w in windows)
    return Result(server.name, version, seed, ledger.verdict(), judged, time.monotonic() - began, log)


def _one(world: World, fault: Fault) -> Window:
    reason = fault.unfit(world)
    start = world.producer.next
    if reason:
        return Window(fault.name, start, start, reason)
    world.said(f"{world.server.name}: {fault.name}")
    time.sleep(0.3)
    fault.run(world)
    time.sleep(0.3)
    world.settle()
    return Window(fault.name, start, world.producer.next)


def save(results: Sequence[Result], path: Path) -> None:
    path.write_text(json.dumps([r.to_json() for r in results], indent=1) + "\n")
