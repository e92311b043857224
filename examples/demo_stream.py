"""What stands around the demo's stream: a gateway that sends readings, a control room that collects alerts, and a count of both.

The gateway and the control room are plain clients of the embedded log, as another program of the mine would be.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Outgoing, Reading
from mlpacker_runtime.brokers.address import parse

DAYS = range(2, 22)
RATE = 700.0
BATCH = 10
DEAF = "n/a"
"""What a broken instrument says where a number belongs."""


@dataclass(frozen=True)
class Sent:
    """A reading on its way. name: the time it was taken, which no other has. label: what `mlpacker score` said of the same
    reading; None where it must not be answered."""

    name: str
    key: str
    body: bytes
    label: str | None
    poison: bool = False


def days_of(shift: Sequence[Mapping[str, str]], judged: Iterable[Mapping[str, str]]) -> list[Sent]:
    """The shift's readings on each of the days, and in the middle one whose instrument gives text. judged: what score wrote."""
    labels = {int(row["row"]): row["predict"] for row in judged}
    found = [
        _sent({**row, "measured_at": _on(row["measured_at"], day)}, labels.get(number))
        for day in DAYS
        for number, row in enumerate(shift)
    ]
    sound = shift[min(labels)]
    broken = {**sound, "measured_at": _on(sound["measured_at"], DAYS.stop), "mean_radius": DEAF}
    found.insert(len(found) // 2, _sent(broken, None, poison=True))
    return found


def _on(time_of_day: str, day: int) -> str:
    return time_of_day.replace("2026-03-02", f"2026-03-{day:02}")


def _sent(row: Mapping[str, str], label: str | None, *, poison: bool = False) -> Sent:
    body = json.dumps({column: _value(column, text) for column, text in row.items()})
    return Sent(row["measured_at"], row["sensor"], body.encode(), label, poison)


def _value(column: str, text: str) -> object:
    if not text:
        return None
    return text if column in ("sensor", "measured_at", "firmware") or text == DEAF else float(text)


class Gateway:
    """Sends readings at a steady rate, whoever reads them. It holds a reading for sent when the log has confirmed it."""

    def __init__(self, logs: Path, readings: Sequence[Sent]) -> None:
        self.readings = readings
        self._sink = brokers.get("local").sink(parse(f"local:readings?path={logs}"), "gateway")
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        for at in range(0, len(self.readings), BATCH):
            part = self.readings[at : at + BATCH]
            self._sink.publish(
                [Outgoing(s.body, f"gateway-{at + n}", s.key.encode()) for n, s in enumerate(part)]
            )
            time.sleep(BATCH / RATE)


class ControlRoom:
    """Collects the alerts. answers: by the reading's name, the label that each id said."""

    def __init__(self, logs: Path) -> None:
        self.answers: dict[str, dict[str, str]] = {}
        self.count = 0
        address = parse(f"local:alerts?path={logs}")
        self._source = brokers.get("local").source(address, Reading("control-room"), self)

    def collect(self, seconds: float = 0.05) -> int:
        """How many alerts there are by now, repeats too."""
        messages = self._source.poll(1000, seconds)
        for message in messages:
            said, headers = json.loads(message.value), dict(message.headers)
            self.answers.setdefault(said["measured_at"], {})[headers["mlpacker-id"].decode()] = said[
                "predict"
            ]
        if messages:
            self._source.commit({m.partition: m.offset for m in messages})
        self.count += len(messages)
        return self.count

    def giving_up(self, partitions: Collection[str], seconds: float) -> None:
        """As a source's listener: what came is written down already."""


@dataclass(frozen=True)
class Count:
    """Readings in, held against what came out. wrong: answered twice under two ids, unlike `score`, or though they must not be."""

    sent: int
    answered: int
    left_out: int
    dead: int
    repeats: int
    lost: tuple[str, ...]
    wrong: tuple[str, ...]


def count(sent: Sequence[Sent], room: ControlRoom, letters: Sequence[Mapping[str, object]]) -> Count:
    """letters: the dead letters, with their whole messages."""
    buried = {json.loads(str(letter["value"]))["measured_at"] for letter in letters}
    due = {s.name: {s.label} for s in sent if s.label is not None}
    poison = {s.name for s in sent if s.poison}
    given = {name: set(by_id.values()) for name, by_id in room.answers.items()}
    ids = sum(len(by_id) for by_id in room.answers.values())
    twice = {name for name, by_id in room.answers.items() if len(by_id) > 1}
    return Count(
        sent=len(sent),
        answered=len(given),
        left_out=len(sent) - len(due) - len(poison),
        dead=len(buried),
        repeats=room.count - ids,
        lost=tuple(sorted((due.keys() - given.keys()) | (poison - buried))),
        wrong=tuple(
            sorted({n for n, labels in given.items() if due.get(n) != labels} | twice | (buried - poison))
        ),
    )


def kill_all(pid: int) -> int:
    """SIGKILL to a process and to all that it started; how many they were."""
    family = _family(pid)
    for member in family:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(family)


def _family(pid: int) -> list[int]:
    """The process first: it would start the others again."""
    found = [pid]
    parents = _parents()
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def _parents() -> dict[int, int]:
    """Process → its parent: from /proc, else, as on macOS, from ps."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    if not found:
        said = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
        found = {int(line.split()[0]): int(line.split()[1]) for line in said.splitlines()}
    return found
