"""The embedded broker: topics that are files of this machine (`local:readings?path=FOLDER`), with nothing to install.

A topic is one `Log`, `<path>/<name>.log.db`, made by whoever names it first. What `publish` returns from is on the disk. A group's
members share the partitions by leases: rows with an owner, an epoch and a deadline. The epoch is checked in every commit, so a
member that was stopped and comes back can't commit what another has taken over; it is told so by `giving_up(…, 0)` at its next
`poll`. A member that dies is noticed at once (the kernel lets go of its lock), one that hangs after `session` seconds. Readers
find new messages by asking the file whether it has changed: every half millisecond while messages flow, every 20 when long idle.

Options: `path` (the folder), `partitions` (fixed when the topic is made; the key's hash chooses), `keep` (`all`, or seconds).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import BadDescription, MlpackerError
from . import Guarantee, Lag, Listener, Message, Outgoing, Reading, Setting
from .address import Address
from .log import Log, Run, filesystem

journalled = False

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
LARGEST = 256 << 20
"""Bytes of a value."""
KEEP = 86_400
"""Seconds that a message is kept at least, read or not."""
TRIM_EVERY = 60.0
LOOK, GLANCE = 0.05, 1.0
"""Seconds between two looks at the other members: of one that could read more than it does, and of the others."""


def source(address: Address, reading: Reading, listener: Listener) -> LocalSource:
    keep = _keep(address)
    start = _start(reading.start)
    return LocalSource(_topic(address, synced=False), reading, start, keep, listener)


def sink(address: Address, name: str) -> LocalSink:
    keep = _keep(address)
    return LocalSink(_topic(address, synced=True), keep)


def explain(address: Address, role: str) -> Guarantee:
    """Reads the file, if it is there; makes nothing."""
    path, keep = _path(address), _keep(address)
    kind = filesystem(path.parent if path.parent.exists() else Path.cwd())
    settings = (
        Setting(
            "folder", str(path.parent), True, "The promise rests on this disk alone; there is no second copy."
        ),
        Setting(
            "filesystem",
            kind or None,
            None if not kind else kind != "tmpfs",
            "In memory (tmpfs) a reboot loses everything.",
        ),
        _kept(keep),
    )
    return Guarantee(_source_holds() if role == "source" else _sink_holds(), settings)


def _source_holds() -> tuple[str, ...]:
    return (
        "At least once: what is not committed is delivered again, in order, to the next reader.",
        "One reader a partition at a time; one that dies is replaced at once, one that hangs after its session.",
        "A commit survives the process; after a power cut the last ones may be lost, and their messages come again.",
    )


def _sink_holds() -> tuple[str, ...]:
    return (
        "What is confirmed is on the disk (one fsync a list).",
        "Order is kept within a partition; a key has one partition.",
    )


def _kept(keep: float | None) -> Setting:
    if keep is None:
        return Setting("keep", "all", True, "Nothing is ever deleted; the disk fills.")
    text = f"{keep:g} s"
    return Setting(
        "keep",
        text,
        True,
        f"What every group has committed is deleted after {text}; without a group, or behind one that stopped, all stays.",
    )


class LocalSink:
    headers = True
    max_bytes = LARGEST

    def __init__(self, log: Log, keep: float | None) -> None:
        self._log = log
        self._trimmer = Trimmer(log, keep)

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        refused = {n: _too_large(m) for n, m in enumerate(messages) if len(m.value) > LARGEST}
        taken = [m for n, m in enumerate(messages) if n not in refused] if refused else messages
        self._log.append_to(_spread(taken, self._log.partitions))
        self._trimmer.now_and_then()
        return refused

    def close(self) -> None:
        self._log.close()


def _too_large(message: Outgoing) -> str:
    return f"{len(message.value)} bytes are more than the {LARGEST} that the log takes."


def _spread(messages: Sequence[Outgoing], partitions: int) -> dict[int, Sequence[Outgoing]]:
    if partitions == 1:
        return {0: messages}
    spread: dict[int, list[Outgoing]] = {}
    for message in messages:
        key = message.id.encode() if message.key is None else message.key
        spread.setdefault(zlib.crc32(key) % partitions, []).append(message)
    return dict(spread)


class LocalSource:
    def __init__(
        self, log: Log, reading: Reading, start: tuple[str, float], keep: float | None, listener: Listener
    ) -> None:
        self.incarnation = log.uuid
        self._log, self._listener = log, listener
        self._trimmer = Trimmer(log, keep)
        self._sent: dict[int, int] = {}
        self._lost: set[int] = set()
        self._turn = 0
        self._seen, self._idle_since = -1, time.monotonic()
        try:
            _begin(log, reading.group, start)
            self._leases = Leases(log, reading.group, reading.member, reading.session)
            self._take()
        except BaseException:
            log.close()
            raise

    def poll(self, limit: int, seconds: float) -> list[Message]:
        until = time.monotonic() + seconds
        while True:
            self._tend()
            got = self._read(limit) if limit > 0 else []
            now = time.monotonic()
            if got:
                self._idle_since = now
            if got or now >= until:
                return got
            self._wait(now, until, limit)

    def commit(self, finished: Mapping[str, int]) -> None:
        """What another has taken over is not committed; the next `poll` says so."""
        ours = {int(p): offset for p, offset in finished.items() if int(p) in self._sent}
        self._lost |= self._leases.commit(ours)
        self._trimmer.now_and_then()

    def lag(self) -> Lag:
        return Lag({str(p): self._log.last(p) - sent for p, sent in self._sent.items()})

    def close(self) -> None:
        self._leases.close()
        self._log.close()

    def _read(self, limit: int) -> list[Message]:
        """From each of our partitions in turn. Nothing is asked of a file that has not changed since it had nothing."""
        version = self._log.version()
        if version == self._seen:
            return []
        got: list[Message] = []
        held = sorted(self._sent)
        for n in range(len(held)):
            partition = held[(self._turn + n) % len(held)]
            some = self._log.read(partition, self._sent[partition], limit - len(got))
            if some:
                self._sent[partition] = some[-1].offset
                got += some
            if len(got) >= limit:
                break
        self._turn += 1
        if not got:
            self._seen = version
        return got

    def _wait(self, now: float, until: float, limit: int) -> None:
        nap = min(0.02, max(0.0005, (now - self._idle_since) / 100)) if limit > 0 else LOOK
        time.sleep(min(nap, max(0.0, until - now)))

    def _tend(self) -> None:
        """Keep what we read, hear what we lost, take what is free and hand over what is too much."""
        if self._lost:
            self._drop(self._lost)
        if self._leases.due():
            self._log.still_there()
            self._drop(self._leases.renew())
            self._take()
            self._hand_over()

    def _take(self) -> None:
        for partition, place in self._leases.take().items():
            self._sent[partition] = max(place, self._log.first(partition) - 1)
            self._seen = -1

    def _drop(self, lost: set[int]) -> None:
        ours = lost & set(self._sent)
        self._lost = set()
        self._leases.forget(lost)
        if ours:
            self._listener.giving_up({str(p) for p in ours}, 0)
        for partition in ours:
            del self._sent[partition]

    def _hand_over(self) -> None:
        going = self._leases.excess()
        if going:
            self._listener.giving_up({str(p) for p in going}, self._leases.session / 2)
            self._leases.release(going)
            for partition in going:
                self._sent.pop(partition, None)


class Lease(NamedTuple):
    partition: int
    owner: str
    epoch: int
    session: float
    deadline: float


class Leases:
    """Which partitions this member of a group reads. Deadlines are of the machine's monotonic clock: `session` stands beside
    them, so that one that lies too far ahead is known to be from before a reboot."""

    def __init__(self, log: Log, group: str, member: str, session: float) -> None:
        self.session = session
        self._log, self._group = log, group
        self._owner = f"{re.sub('[^A-Za-z0-9]', '_', member)[:40]}-{uuid.uuid4().hex[:12]}"
        self._epochs: dict[int, int] = {}
        self._renewed = self._looked = 0.0
        self._members = 1
        self._pulse: int | None = _pulse(log.path, self._owner)

    def due(self) -> bool:
        """Whether it is time to renew, or to look for more. A process that was stopped finds itself due before it reads on."""
        now = time.monotonic()
        wait = LOOK if len(self._epochs) < self._share() else GLANCE
        return now - self._renewed > self.session / 3 or now - self._looked > wait

    def renew(self) -> set[int]:
        """Put the deadlines off where they are near; the partitions that others have taken meanwhile."""
        now = time.monotonic()
        if now - self._renewed <= self.session / 3:
            return set()
        lost = set()
        with self._log.change() as run:
            self._sign(run, now)
            for partition, epoch in self._epochs.items():
                kept = run(
                    "UPDATE lease SET deadline = ?, session = ? WHERE reader = ? AND partition = ? AND owner = ? AND epoch = ?",
                    (now + self.session, self.session, self._group, partition, self._owner, epoch),
                ).rowcount
                if not kept:
                    lost.add(partition)
        self._renewed = now
        return lost

    def take(self) -> dict[int, int]:
        """Partitions that are free or whose reader is dead, up to our share, with the last offset that was committed."""
        self._looked = time.monotonic()
        if not self._renewed:
            with self._log.change() as run:
                self._sign(run, self._looked)
            self._renewed = self._looked
        self._count()
        free = self._free()[: max(0, self._share() - len(self._epochs))]
        return {lease.partition: place for lease in free if (place := self._seize(lease)) is not None}

    def excess(self) -> set[int]:
        """Those of ours that are due to members with less."""
        held = sorted(self._epochs)
        return set(held[self._share() :])

    def commit(self, finished: Mapping[int, int]) -> set[int]:
        """Returns the partitions that are no longer ours, where nothing was committed."""
        lost: set[int] = set()
        if not finished:
            return lost
        with self._log.change() as run:
            for partition, offset in finished.items():
                ours = (self._group, partition, self._owner, self._epochs.get(partition, -1))
                kept = run(
                    "UPDATE place SET last = max(last, ?) WHERE reader = ? AND partition = ? AND EXISTS"
                    " (SELECT 1 FROM lease WHERE reader = ? AND partition = ? AND owner = ? AND epoch = ?)",
                    (offset, self._group, partition, *ours),
                ).rowcount
                if not kept:
                    lost.add(partition)
        return lost

    def forget(self, partitions: set[int]) -> None:
        for partition in partitions:
            self._epochs.pop(partition, None)

    def release(self, partitions: set[int]) -> None:
        """For anybody to take at once."""
        with self._log.change() as run:
            for partition in partitions & set(self._epochs):
                run(
                    "UPDATE lease SET owner = '', deadline = 0 WHERE reader = ? AND partition = ? AND owner = ? AND epoch = ?",
                    (self._group, partition, self._owner, self._epochs[partition]),
                )
        self.forget(partitions)

    def close(self) -> None:
        if self._pulse is None:
            return
        try:
            self.release(set(self._epochs))
            with self._log.change() as run:
                run("DELETE FROM member WHERE reader = ? AND owner = ?", (self._group, self._owner))
        except MlpackerError:
            pass  # closing never raises; the deadline and the pulse say the same
        with contextlib.suppress(OSError):
            os.unlink(_pulse_path(self._log.path, self._owner))
        os.close(self._pulse)
        self._pulse = None

    def _sign(self, run: Run, now: float) -> None:
        run(
            "INSERT OR REPLACE INTO member VALUES (?, ?, ?, ?)",
            (self._group, self._owner, self.session, now + self.session),
        )

    def _share(self) -> int:
        return -(-self._log.partitions // self._members)

    def _count(self) -> None:
        """Who else is alive. The rows of those who died are nobody's to keep."""
        rows = self._log.rows("SELECT owner, session, deadline FROM member WHERE reader = ?", (self._group,))
        gone = [row[0] for row in rows if row[0] != self._owner and not self._lives(*row)]
        self._members = max(1, len(rows) - len(gone))
        if gone:
            with self._log.change() as run:
                for owner in gone:
                    run("DELETE FROM member WHERE reader = ? AND owner = ?", (self._group, owner))
            for owner in gone:
                _pulse_path(self._log.path, owner).unlink(missing_ok=True)

    def _free(self) -> list[Lease]:
        """Those that nobody reads."""
        rows = self._log.rows(
            "SELECT partition, owner, epoch, session, deadline FROM lease WHERE reader = ?", (self._group,)
        )
        leases = {row[0]: Lease(*row) for row in rows}
        every = (leases.get(p, Lease(p, "", 0, 0.0, 0.0)) for p in range(self._log.partitions))
        return [
            lease
            for lease in every
            if lease.partition not in self._epochs
            and not self._lives(lease.owner, lease.session, lease.deadline)
        ]

    def _seize(self, lease: Lease) -> int | None:
        """Where its reading goes on; None: it is no longer as it was seen, somebody was quicker."""
        now = time.monotonic()
        place = (self._group, lease.partition)
        with self._log.change() as run:
            run("INSERT OR IGNORE INTO lease VALUES (?, ?, '', 0, 0, 0)", place)
            taken = run(
                "UPDATE lease SET owner = ?, epoch = epoch + 1, session = ?, deadline = ?"
                " WHERE reader = ? AND partition = ? AND owner = ? AND epoch = ? AND deadline = ?",
                (
                    self._owner,
                    self.session,
                    now + self.session,
                    *place,
                    lease.owner,
                    lease.epoch,
                    lease.deadline,
                ),
            ).rowcount
            last = run("SELECT last FROM place WHERE reader = ? AND partition = ?", place).fetchone()
        if not taken:
            return None
        self._epochs[lease.partition] = lease.epoch + 1
        return int(last[0])

    def _lives(self, owner: str, session: float, deadline: float) -> bool:
        now = time.monotonic()
        return bool(owner) and deadline - session <= now < deadline and not _dead(self._log.path, owner)


class Trimmer:
    """Deletes, now and then, what every group has committed and what is older than `keep` (None: nothing)."""

    def __init__(self, log: Log, keep: float | None) -> None:
        self._log, self._keep, self._next = log, keep, time.monotonic() + TRIM_EVERY

    def now_and_then(self) -> None:
        if self._keep is not None and time.monotonic() >= self._next:
            self.trim()
            self._next = time.monotonic() + TRIM_EVERY

    def trim(self) -> None:
        old = time.time() - (self._keep or 0)
        slowest = self._log.rows("SELECT partition, min(last) FROM place GROUP BY partition")
        for partition, last in slowest:
            self._log.trim(partition, min(last, self._log.before(partition, old)))


def _pulse_path(log: Path, owner: str) -> Path:
    return log.with_name(f"{log.name}.{owner}.alive")


def _pulse(log: Path, owner: str) -> int:
    """An open file whose lock says that this process lives."""
    handle = os.open(_pulse_path(log, owner), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _dead(log: Path, owner: str) -> bool:
    """Whether its lock is free, which the kernel does for it, or its file gone, as when it closed."""
    try:
        handle = os.open(_pulse_path(log, owner), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _begin(log: Log, group: str, start: tuple[str, float]) -> None:
    """Give the group its places, where it has none yet."""
    known = {p for (p,) in log.rows("SELECT partition FROM place WHERE reader = ?", (group,))}
    wanted = {p: _last_before(log, p, start) for p in range(log.partitions) if p not in known}
    if wanted:
        with log.change() as run:
            for partition, last in wanted.items():
                run("INSERT OR IGNORE INTO place VALUES (?, ?, ?)", (group, partition, last))


def _last_before(log: Log, partition: int, start: tuple[str, float]) -> int:
    kind, number = start
    if kind == "latest":
        return log.last(partition)
    if kind == "offset":
        return max(0, int(number) - 1)
    return log.before(partition, number) if kind == "time" else 0


def _start(text: str) -> tuple[str, float]:
    kind, colon, rest = text.partition(":")
    number = rest.replace(".", "", 1) if kind == "time" else rest
    if text in ("earliest", "latest"):
        return text, 0.0
    if kind in ("offset", "time") and colon and number.isascii() and number.isdecimal():
        return kind, float(rest)
    raise BadDescription(
        f"{text!r} is no start.",
        "There are earliest, latest, offset:N and time: with seconds since the epoch.",
    )


def _topic(address: Address, *, synced: bool) -> Log:
    partitions = address.number("partitions", 0) if "partitions" in address.options else None
    if partitions is not None and not 1 <= partitions <= 1024:
        raise BadDescription(f"{address}: partitions is from 1 to 1024.")
    return Log(_path(address), partitions=partitions, synced=synced)


def _path(address: Address) -> Path:
    address.only("path", "partitions", "keep")
    if not NAME.fullmatch(address.path):
        raise BadDescription(
            f"local:{address.path} is no name of a topic.",
            "It has letters, digits and . _ -, as local:readings.",
        )
    if not address.option("path"):
        raise BadDescription(f"{address} needs a folder for its file.", "Name one: ?path=FOLDER.")
    return Path(address.option("path")) / f"{address.path}.log.db"


def _keep(address: Address) -> float | None:
    return None if address.option("keep") == "all" else float(address.number("keep", KEEP))
