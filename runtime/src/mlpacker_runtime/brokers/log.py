"""A log in one file, on SQLite: what the embedded broker, the journal, the spool and the dead letters are made of.

Appended lists are one transaction each and on the disk when `append` returns (WAL, `synchronous=FULL`). Offsets are whole
numbers from 1 without gaps within a partition, and are never given twice, whatever was trimmed. Several processes of one
machine may read and append at the same time; a network filesystem is refused, for its locks do not hold. A transaction is
opened when all is ready to be written and does nothing else. A process that is stopped within one, which is when its disk is slow,
holds up who writes until it goes on or dies: they raise Away after WAIT seconds; who reads goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from . import Away, Headers, Message, Outgoing, Unusable

SCHEMA = 1
"""Of the file. A newer one is refused; this number rises when the previous release could not read it."""
WAIT = 10.0
"""Seconds a transaction waits for another process's."""
BITS = 40
"""A message's row is its partition and, in this many bits, its offset."""
NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse.sshfs",
    "afs",
    "ceph",
    "glusterfs",
    "fuse.glusterfs",
    "lustre",
    "ocfs2",
    "gfs",
)

TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE message (at INTEGER PRIMARY KEY, time REAL NOT NULL, key BLOB, headers BLOB, value BLOB NOT NULL, id TEXT);
CREATE TABLE head (partition INTEGER PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE place (reader TEXT, partition INTEGER, last INTEGER NOT NULL, PRIMARY KEY (reader, partition)) WITHOUT ROWID;
CREATE TABLE lease (reader TEXT, partition INTEGER, owner TEXT NOT NULL, epoch INTEGER NOT NULL, session REAL NOT NULL,
    deadline REAL NOT NULL, PRIMARY KEY (reader, partition)) WITHOUT ROWID;
CREATE TABLE member (reader TEXT, owner TEXT, session REAL NOT NULL, deadline REAL NOT NULL,
    PRIMARY KEY (reader, owner)) WITHOUT ROWID;
"""
INSERT = "INSERT INTO message (at, time, key, headers, value, id) VALUES (?, ?, ?, ?, ?, ?)"
SELECT = (
    "SELECT at & ?, value, key, headers, time, id FROM message WHERE at > ? AND at <= ? ORDER BY at LIMIT ?"
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode

Run = Callable[..., sqlite3.Cursor]


class Log:
    """An open log; made where it isn't there. May be used from several threads.

    path: of the file; `-wal` and `-shm` beside it are SQLite's. partitions: their number when it is made; None: as it is, else 1.
    alone: hold it for this process only. synced: whether a transaction is on the disk when it returns; else it survives the
    process, not a power cut. uuid: of this file's making, so that one made again is another.
    Raises Away, and Unusable for a file that is damaged, newer, held by another or on a network filesystem.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        partitions: int | None = None,
        alone: bool = False,
        synced: bool = True,
    ) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        with _files(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            refuse_network(self.path.parent)
            if alone:
                self._lock = _hold(self.path.with_name(self.path.name + ".lock"))
        self._closed = False
        self._reading, self._writing = threading.Lock(), threading.Lock()
        try:
            self._writer = self._open(synced)
            self._make(partitions)
            self._reader = self._open(synced)
            self._about(partitions)
            self._inode = self.path.stat().st_ino
        except BaseException:
            self._release()
            raise

    def append(self, messages: Sequence[Message | Outgoing], partition: int = 0) -> int:
        """Returns the offset of the last one (the last there is, where `messages` is empty), when all are on the disk."""
        self.append_to({partition: messages})
        return self.last(partition)

    def append_to(self, messages: Mapping[int, Sequence[Message | Outgoing]]) -> None:
        """All of these lists, by partition, or none of them. What is an `Outgoing` keeps its id; a `Message` keeps its time."""
        now = time.time()
        ready = {p: [_row(m, now) for m in some] for p, some in messages.items() if some}
        if not ready:
            return
        self.still_there()
        with self.change() as run:
            for partition, rows in ready.items():
                (last,) = run("SELECT last FROM head WHERE partition = ?", (partition,)).fetchone()
                start = (partition << BITS) + last + 1
                self._writer.executemany(INSERT, [(at, *row) for at, row in enumerate(rows, start)])
                run("UPDATE head SET last = ? WHERE partition = ?", (last + len(rows), partition))

    def read(self, partition: int, after: int, limit: int) -> list[Message]:
        """At most `limit` messages behind the offset `after`, in order."""
        name = str(partition)
        return [
            Message(name, offset, value, key, _decode(headers) if headers else (), at)
            for offset, value, key, headers, at, _ in self._select(partition, after, limit)
        ]

    def read_outgoing(self, partition: int, after: int, limit: int) -> list[tuple[int, Outgoing]]:
        """As `read`, for what is to be published again: with its id and its offset here."""
        return [
            (offset, Outgoing(value, mark or "", key, _decode(headers) if headers else ()))
            for offset, value, key, headers, _, mark in self._select(partition, after, limit)
        ]

    def trim(self, partition: int, upto: int) -> int:
        """Forget messages up to and including this offset; how many went. Their space is used again. In small steps, so that
        nobody waits long."""
        base, gone = partition << BITS, 0
        while True:
            first = self.one("SELECT min(at) FROM message WHERE at > ? AND at <= ?", (base, base + upto))
            if first is None:
                return gone
            with self.change() as run:
                until = min(first + 4999, base + upto)
                gone += run("DELETE FROM message WHERE at >= ? AND at <= ?", (first, until)).rowcount

    def count(self, partition: int = 0) -> int:
        """Messages that are there."""
        return self.last(partition) - self.first(partition) + 1

    def last(self, partition: int = 0) -> int:
        """The offset given last, trimmed or not; 0: none yet."""
        return int(self.one("SELECT last FROM head WHERE partition = ?", (partition,)))

    def first(self, partition: int = 0) -> int:
        """The offset of the first message that is there, else of the next to come."""
        base = partition << BITS
        found = self.one("SELECT min(at) FROM message WHERE at > ? AND at < ?", (base, base + (1 << BITS)))
        return self.last(partition) + 1 if found is None else int(found) - base

    def before(self, partition: int, moment: float) -> int:
        """The offset behind which all messages are from `moment` (seconds since the epoch) on, as far as the clock was steady."""
        low, high = self.first(partition) - 1, self.last(partition)
        while low < high:
            middle = (low + high) // 2
            found = self.one("SELECT time FROM message WHERE at = ?", ((partition << BITS) + middle + 1,))
            low, high = (middle + 1, high) if found is None or found < moment else (low, middle)
        return low

    def size_bytes(self) -> int:
        """Of what is there; trimmed space, which is used again, does not count."""
        pages, free, size = (
            self.one(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def version(self) -> int:
        """Another number as soon as anybody has changed the file. Costs some microseconds."""
        return int(self.one("PRAGMA data_version"))

    def one(self, query: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row; None: no row."""
        row = next(iter(self.rows(query, values)), None)
        return None if row is None else row[0]

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _translated(self.path), self._reading:
            return self._reader.execute(query, values).fetchall()

    @contextlib.contextmanager
    def change(self) -> Iterator[Run]:
        """One short transaction: gives what runs a statement. Nothing else may be done in it."""
        with _translated(self.path), self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer.execute
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def still_there(self) -> None:
        """Raises Away where the file was removed or replaced under us: what is written now would be nowhere."""
        try:
            same = os.stat(self.path).st_ino == self._inode
        except OSError:
            same = False
        if not same:
            raise Away(f"{self.path} was removed or replaced while it was in use.")

    def close(self) -> None:
        """Never raises; twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._release()

    def _select(self, partition: int, after: int, limit: int) -> list[tuple[Any, ...]]:
        base, mask = partition << BITS, (1 << BITS) - 1
        return self.rows(SELECT, (mask, base + after, base + mask, limit))

    def _open(self, synced: bool) -> sqlite3.Connection:
        with _translated(self.path):
            made = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            made.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            made.execute("PRAGMA wal_autocheckpoint = 4000")
            made.execute(f"PRAGMA journal_size_limit = {64 << 20}")
            return made

    def _make(self, partitions: int | None) -> None:
        """The tables, by whoever comes first."""
        if self._newest() is None:
            with _translated(self.path):
                _patiently(lambda: self._writer.execute("PRAGMA journal_mode = WAL"))
            with self.change() as run:
                if run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                    for statement in TABLES.strip().split(";\n"):
                        run(statement)
                    about = {"schema": SCHEMA, "uuid": uuid.uuid4().hex, "partitions": partitions or 1}
                    for name, value in about.items():
                        run("INSERT INTO about VALUES (?, ?)", (name, str(value)))
                    for partition in range(partitions or 1):
                        run("INSERT INTO head VALUES (?, 0)", (partition,))
            _sync_folder(self.path.parent)

    def _newest(self) -> int | None:
        """The schema of the file; None: nothing in it yet. Raises Unusable for a file of anything else."""
        with _translated(self.path):
            tables = {name for (name,) in self._writer.execute("SELECT name FROM sqlite_master")}
            if not tables:
                return None
            if "about" not in tables:
                raise Unusable(f"{self.path} is a database of something else.", "Name another file.")
            return int(self._writer.execute("SELECT value FROM about WHERE name = 'schema'").fetchone()[0])

    def _about(self, partitions: int | None) -> None:
        schema = self._newest()
        if schema is None or schema > SCHEMA:
            raise Unusable(
                f"{self.path} was written by a newer release (schema {schema}, known here is {SCHEMA}).",
                "Use that release, or finish reading it there first.",
            )
        about = dict(self.rows("SELECT name, value FROM about"))
        self.uuid, self.partitions = about["uuid"], int(about["partitions"])
        if partitions is not None and partitions != self.partitions:
            raise Unusable(
                f"{self.path} has {self.partitions} partitions, not {partitions}: their number is fixed when it is made.",
                "Leave the number out, or name a new topic.",
            )

    def _release(self) -> None:
        for name in ("_reader", "_writer"):
            connection = getattr(self, name, None)
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _row(message: Message | Outgoing, now: float) -> tuple[Any, ...]:
    headers = _encode(message.headers) if message.headers else None
    if isinstance(message, Outgoing):
        return (now, message.key, headers, message.value, message.id)
    return (message.time or now, message.key, headers, message.value, None)


def refuse_network(folder: Path) -> None:
    """Raises Unusable where this folder lies on a filesystem whose locks do not hold across machines."""
    kind = filesystem(folder)
    if kind.rstrip("234") in NETWORK or kind in NETWORK:
        raise Unusable(
            f"{folder} is on a network filesystem ({kind}), where the log could be damaged.",
            "Name a folder on a disk of this machine.",
        )


def filesystem(folder: Path, mounts: str = "/proc/self/mounts") -> str:
    """Its kind, as the kernel lists it; empty where there is no list."""
    try:
        lines = Path(mounts).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    resolved, best, kind = folder.resolve(), -1, ""
    for line in lines:
        _, point, this, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")
        if resolved.is_relative_to(point) and len(point) >= best:  # the later mount covers the earlier
            best, kind = len(point), this
    return kind


def _hold(path: Path) -> int:
    """An open, locked file; the kernel lets go of it when the process ends, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        os.close(handle)
        raise Unusable(
            f"{path.with_suffix('')} is in use by another process.", "Stop it, or name another folder."
        ) from cause
    return handle


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _patiently(run: Callable[[], object]) -> None:
    """SQLite does not wait by itself for the lock that the change to WAL needs."""
    until = time.monotonic() + WAIT
    while True:
        try:
            run()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def _files(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise Unusable(
            f"{path} can't be made: {cause.strerror}.", "Name a folder that can be written."
        ) from cause


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as cause:
        raise Away(
            f"{path} can't be used now: {cause}."
        ) from cause  # busy, full, or closed by another thread
    except sqlite3.DatabaseError as cause:
        raise Unusable(
            f"{path} is damaged, or no log: {cause}.", "Move it away; a new one is made."
        ) from cause


__all__ = ["Headers", "Log", "filesystem", "refuse_network"]
