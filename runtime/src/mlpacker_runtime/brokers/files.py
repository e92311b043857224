"""Files as brokers: `file:rows.jsonl`, `file:rows.csv`, and `-` for standard input or output.

A message is a line. JSON lines pass as they are; a CSV record becomes a JSON object of the header's names and the cells' text. A
record that does not fit the header, or is not UTF-8, passes as its bare bytes, to fail as the row it is. Blank lines are none.
An offset is the number of the line where the record begins, from 1. The place of a group is a checkpoint in `reading.state`,
fsynced by `commit`; a file that was replaced or rewritten since is another topic and read from its start. Standard input can't be
read again: what was not finished when the process dies is gone.

Options: `follow=on` (source: go on at the end of the file, as it grows), `format=csv|jsonl` (else by the ending).
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import os
import select
import stat
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import BadDescription
from . import CELLS, Away, Guarantee, Lag, Listener, Message, Outgoing, Reading, Setting, Unusable
from .address import Address

journalled = False

PARTITION = "0"
CHUNK = 1 << 20
LONGEST = 256 << 20
"""Bytes of a line. Where a file has no line ends, this stops us and not the memory's end."""
PROOF = 4096
"""Bytes that tell a file from another."""
BOM = b"\xef\xbb\xbf"


def source(address: Address, reading: Reading, listener: Listener) -> FileSource | InputSource:
    address.only("follow", "format")
    table = _format(address) == "csv"
    kind, number = _start(reading.start)
    if address.scheme == "-":
        return InputSource(0, table)
    return FileSource(_path(address), reading, (kind, number), table=table, follow=address.flag("follow"))


def sink(address: Address, name: str) -> FileSink | OutputSink:
    address.only("format")
    if _format(address) == "csv":
        raise BadDescription(
            f"{address}: answers are written as JSON lines.", "Name a file that ends in .jsonl."
        )
    return OutputSink(1) if address.scheme == "-" else FileSink(_path(address))


def has_headers(address: Address) -> bool:
    return False


def explain(address: Address, role: str) -> Guarantee:
    if address.scheme == "-":
        return Guarantee(_INPUT if role == "source" else _OUTPUT)
    path = Path(address.path)
    found = Setting(
        "file",
        str(path) if path.exists() else "not there",
        path.exists() or role == "sink",
        "There is nothing to read.",
    )
    return Guarantee(_SOURCE if role == "source" else _SINK, (found,))


_SOURCE = (
    "At least once: lines behind the checkpoint, which each commit writes and fsyncs, are read again in order.",
    "A file that is replaced or rewritten is another topic, read from its start.",
)
_SINK = (
    "What is confirmed is on the disk (one fsync a list), in order; a line that a crash left torn is cut off.",
    "Lines carry no headers: the id of an answer is a field of it.",
)
_INPUT = ("At most once where the process dies: standard input can't be read again.", "Order is kept.")
_OUTPUT = (
    "What is confirmed was taken by the pipe or the file behind standard output; whether it is kept is its reader's.",
)


@dataclass(frozen=True)
class Record:
    """value: of a message. offset: its line. end, line: where the next record begins, in bytes and as a line."""

    value: bytes
    offset: int
    end: int
    line: int


class Lines:
    """Records out of an open file, from a place on; a line counts when its end has come."""

    def __init__(
        self, handle: int, table: bool, byte: int = 0, line: int = 1, header: list[str] | None = None
    ) -> None:
        self._handle, self._table = handle, table
        self.byte, self.line = byte, line
        self.header = header
        self._ready: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._open: list[bytes] = []

    def fill(self) -> bool:
        """Read on; False at the end."""
        chunk = os.read(self._handle, CHUNK)
        if not chunk:
            return False
        first, *rest = chunk.split(b"\n")
        self._partial.append(first)
        self._partial_bytes += len(first)
        if rest:
            self._ready.append(b"".join(self._partial))
            self._ready.extend(rest[:-1])
            self._partial, self._partial_bytes = [rest[-1]], len(rest[-1])
        if self._partial_bytes > LONGEST:
            raise Unusable(f"Line {self.line} is longer than {LONGEST} bytes.", "Is this a file of lines?")
        return True

    def finish(self) -> None:
        """Nothing will come any more: what has no line end is a line too, and an open quote ends here."""
        rest = b"".join(self._partial)
        self._partial, self._partial_bytes = [], 0
        if rest:
            self._ready.append(rest)

    def take(self, limit: int, final: bool) -> Iterator[Record]:
        """final: after `finish`."""
        taken = 0
        while taken < limit and (record := self._next(final)) is not None:
            if record.value.strip():
                taken += 1
                yield record

    def _next(self, final: bool) -> Record | None:
        """One record; its value is empty for what is none, as a blank line or the header."""
        if not self._table:
            return self._record(self._ready.popleft()) if self._ready else None
        while self._ready:
            self._open.append(self._ready.popleft())
            text = b"\n".join(self._open)
            if text.count(b'"') % 2 == 0:
                return self._cells(text)
        return self._cells(b"\n".join(self._open)) if final and self._open else None

    def _cells(self, text: bytes) -> Record:
        """A record of a table, which may span lines within quotes."""
        self._open = []
        record = self._record(text, text.count(b"\n") + 1)
        cells = _cells(record.value)
        if self.header is None and cells:
            self.header = cells
            return Record(b"", record.offset, record.end, record.line)
        if not cells or self.header is None or len(cells) != len(self.header):
            return record
        value = json.dumps(dict(zip(self.header, cells, strict=True)), ensure_ascii=False).encode()
        return Record(value, record.offset, record.end, record.line)

    def _record(self, text: bytes, lines: int = 1) -> Record:
        offset = self.line
        self.byte += len(text) + 1
        self.line += lines
        if offset == 1:
            text = text.removeprefix(BOM)
        return Record(text.removesuffix(b"\r"), offset, self.byte, self.line)


def _cells(text: bytes) -> list[str] | None:
    """None where it is no record of a table."""
    try:
        rows = list(csv.reader(text.decode().splitlines(keepends=True), strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    return rows[0] if len(rows) == 1 else None


@dataclass(frozen=True)
class Checkpoint:
    """Where a group is in a file. byte, line: where it goes on. head, tail: bytes and hash of the file's beginning, and the hash
    of what stands before `byte`: by them and the inode the file is known again."""

    incarnation: str
    inode: int
    head: int
    head_hash: str
    byte: int = 0
    line: int = 1
    tail_hash: str = ""

    def at(self, byte: int, line: int, handle: int) -> Checkpoint:
        return Checkpoint(
            self.incarnation, self.inode, self.head, self.head_hash, byte, line, _tail(handle, byte)
        )

    def fits(self, handle: int) -> bool:
        found = os.fstat(handle)
        return (
            found.st_ino == self.inode
            and found.st_size >= self.byte - 1  # a last line without its end counts as if it had one
            and (not self.byte or os.pread(handle, 1, self.byte - 1) in (b"", b"\n"))
            and _hash(os.pread(handle, self.head, 0)) == self.head_hash
            and _tail(handle, self.byte) == self.tail_hash
        )


def _tail(handle: int, byte: int) -> str:
    start = max(0, byte - 1 - PROOF)
    return _hash(os.pread(handle, max(0, byte - 1 - start), start))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _begin(handle: int) -> Checkpoint:
    head = os.pread(handle, PROOF, 0)
    inode = os.fstat(handle).st_ino
    return Checkpoint(uuid.uuid4().hex, inode, len(head), _hash(head), tail_hash=_hash(b""))


class Notes:
    """The checkpoint of one group and file in the state folder, held by one process at a time. Without a folder: in memory."""

    def __init__(self, state: str, group: str, path: Path) -> None:
        name = f"file-{_hash(json.dumps([group, str(path.resolve())]).encode())[:16]}"
        self._path = Path(state) / f"{name}.json" if state else None
        self._lock: int | None = None
        self._last: Checkpoint | None = None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def hold(self) -> bool:
        """Whether this process is the one that reads."""
        if self._path is None or self._lock is not None:
            return True
        handle = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def read(self) -> Checkpoint | None:
        if self._path is None or not self._path.exists():
            return None if self._path else self._last
        try:
            return Checkpoint(**json.loads(self._path.read_text()))
        except (ValueError, TypeError) as cause:
            raise Unusable(
                f"The checkpoint {self._path} can't be read.", "Remove it to read from the start."
            ) from cause

    def write(self, checkpoint: Checkpoint) -> None:
        self._last = checkpoint
        if self._path is None:
            return
        beside = self._path.with_suffix(".new")
        with beside.open("w") as file:
            file.write(json.dumps(asdict(checkpoint)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        _sync_folder(self._path.parent)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class FileSource:
    """ended: all lines have been delivered, and the file is not followed. replayable: it can be read again."""

    replayable = True

    def __init__(
        self, path: Path, reading: Reading, start: tuple[str, int], *, table: bool, follow: bool
    ) -> None:
        self.ended = False
        self._path, self._table, self._follow, self._start = path, table, follow, start
        self._headers = CELLS if table else ()
        self._handle: int | None = None
        self._lines: Lines | None = None
        self._out: deque[Record] = deque()
        with _translated(path):
            self._notes = Notes(reading.state, reading.group, path)
            try:
                self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._refuse_others()
                self._known = self._find() if self._notes.hold() else self._theirs()
            except BaseException:
                self.close()
                raise
        self.incarnation = self._known.incarnation

    def poll(self, limit: int, seconds: float) -> list[Message]:
        until = time.monotonic() + seconds
        while True:
            with _translated(self._path):
                got = self._read(limit) if limit > 0 and self._notes.hold() else []
            left = until - time.monotonic()
            if got or left <= 0 or self.ended:
                return [Message(PARTITION, r.offset, r.value, None, self._headers) for r in got]
            time.sleep(min(left, 0.02))

    def commit(self, finished: Mapping[str, int]) -> None:
        upto, last = finished.get(PARTITION, 0), None
        while self._out and self._out[0].offset <= upto:
            last = self._out.popleft()
        if last is not None and self._handle is not None:
            with _translated(self._path):
                self._known = self._known.at(last.end, last.line, self._handle)
                self._notes.write(self._known)

    def lag(self) -> Lag | None:
        """The lines to come are not counted."""
        return None

    def close(self) -> None:
        self._notes.close()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _read(self, limit: int) -> list[Record]:
        lines = self._lines or self._go_on()
        got = list(lines.take(limit, False))
        while len(got) < limit:
            if not lines.fill():
                got += self._at_the_end(lines, limit - len(got))
                break
            got += lines.take(limit - len(got), False)
        self._out.extend(got)
        return got

    def _at_the_end(self, lines: Lines, limit: int) -> list[Record]:
        if self._follow:
            if not self._out:
                self._look_for_another(lines)
            return []
        lines.finish()
        got = list(lines.take(limit, True))
        self.ended = len(got) < limit
        return got

    def _look_for_another(self, lines: Lines) -> None:
        """A log that is rotated goes on in the new file, when all of the old one is finished."""
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return  # renamed; the new one will come
        if now.st_ino != self._known.inode or now.st_size < lines.byte:
            raise Away(f"{self._path} was replaced; the new one is read from its start.")

    def _refuse_others(self) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise Unusable(f"{self._path} is no plain file.", "Pipes go through standard input: -.")

    @property
    def _descriptor(self) -> int:
        if self._handle is None:
            raise Away(f"{self._path} is closed.")
        return self._handle

    def _find(self) -> Checkpoint:
        """Where to go on; written at once, so that the incarnation stays."""
        known = self._notes.read()
        if known is None or not known.fits(self._descriptor):
            kind, number = self._start if known is None else ("earliest", 0)
            known = _placed(_begin(self._descriptor), kind, number, self._descriptor)
            self._notes.write(known)
        return known

    def _theirs(self) -> Checkpoint:
        """What the member that reads has written down, or is about to."""
        until = time.monotonic() + 5
        while (known := self._notes.read()) is None and time.monotonic() < until:
            time.sleep(0.01)
        if known is None:
            raise Away(f"Who reads {self._path} has not begun yet.")
        return known

    def _go_on(self) -> Lines:
        """Begin to read, or take over from a member that has left."""
        known = self._find()
        if known.incarnation != self.incarnation:
            raise Away(f"{self._path} was replaced.")
        self._known = known
        header = _header(self._descriptor) if self._table and known.byte else None
        os.lseek(self._descriptor, known.byte, os.SEEK_SET)
        self._lines = Lines(self._descriptor, self._table, known.byte, known.line, header)
        return self._lines


def _placed(begun: Checkpoint, kind: str, number: int, handle: int) -> Checkpoint:
    """At the start, the end, or the line of this number."""
    if kind == "earliest" or (kind == "offset" and number <= 1):
        return begun
    byte, line = 0, 1
    wanted = number if kind == "offset" else 0
    os.lseek(handle, 0, os.SEEK_SET)
    with os.fdopen(os.dup(handle), "rb") as file:
        for text in file:
            if not text.endswith(b"\n") or line == wanted:
                break
            byte, line = byte + len(text), line + 1
    return begun.at(byte, line, handle)


def _header(handle: int) -> list[str] | None:
    os.lseek(handle, 0, os.SEEK_SET)
    lines = Lines(handle, True)
    while lines.header is None and lines.fill():
        for _ in lines.take(1, False):
            break
    return lines.header


class InputSource:
    """Standard input. Not replayable: a commit is nobody's to keep."""

    replayable = False

    def __init__(self, handle: int, table: bool) -> None:
        self.ended = False
        self.incarnation = uuid.uuid4().hex
        self._handle = handle
        self._lines = Lines(handle, table)
        self._headers = CELLS if table else ()
        self._over = False

    def poll(self, limit: int, seconds: float) -> list[Message]:
        until = time.monotonic() + seconds
        while True:
            got = list(self._lines.take(limit, self._over)) if limit > 0 else []
            self.ended = self._over and limit > 0 and len(got) < limit
            left = until - time.monotonic()
            if got or self.ended or left <= 0:
                return [Message(PARTITION, r.offset, r.value, None, self._headers) for r in got]
            self._wait(left, limit)

    def commit(self, finished: Mapping[str, int]) -> None:
        pass

    def lag(self) -> Lag | None:
        return None

    def close(self) -> None:
        pass

    def _wait(self, seconds: float, limit: int) -> None:
        if limit == 0 or self._over:
            time.sleep(min(seconds, 0.05))
        elif select.select([self._handle], [], [], seconds)[0] and not self._lines.fill():
            self._lines.finish()
            self._over = True


class FileSink:
    """Appends lines. Several processes may write to one file: each list is written under its lock."""

    headers = False
    max_bytes = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        with _translated(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._handle: int | None = os.open(path, flags, 0o644)
            _sync_folder(path.parent)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            _repair(self._handle)
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        refused, data = _joined(messages)
        handle = self._handle
        if handle is None:
            raise Away(f"{self._path} is closed.")
        with _translated(self._path):
            self._still_there(handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                _append(handle, data)
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)
        return refused

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _still_there(self, handle: int) -> None:
        try:
            same = self._path.stat().st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            same = False
        if not same:
            raise Away(f"{self._path} was moved away; a new one is begun.")


class OutputSink:
    """Standard output."""

    headers = False
    max_bytes = 0

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        refused, data = _joined(messages)
        try:
            _write(self._handle, data)
        except BrokenPipeError as cause:
            raise Unusable("Nobody reads standard output any more.", "Start the whole pipe again.") from cause
        except OSError as cause:
            raise Away(f"Standard output can't be written: {cause.strerror}.") from cause
        return refused

    def close(self) -> None:
        pass


def _joined(messages: Sequence[Outgoing]) -> tuple[dict[int, str], bytes]:
    """What is no line, by its place, and the lines of the others."""
    refused = {}
    for place, message in enumerate(messages):
        if b"\n" in message.value:
            refused[place] = "A value with a line break in it is no line."
        elif not message.value.strip():
            refused[place] = "An empty value is no line."
    taken = [m.value for n, m in enumerate(messages) if n not in refused]
    return refused, b"\n".join([*taken, b""]) if taken else b""


def _append(handle: int, data: bytes) -> None:
    """All of it, on the disk, or nothing."""
    if not data:
        return
    before = _repair(handle)
    try:
        _write(handle, data)
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, before)
        raise


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _repair(handle: int) -> int:
    """Cut off a last line without its end, which a crash left and nobody was told of. Returns the size."""
    size = end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - PROOF)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)
    return end


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _format(address: Address) -> str:
    kind = address.option("format") or ("csv" if address.path.lower().endswith(".csv") else "jsonl")
    if kind not in ("csv", "jsonl"):
        raise BadDescription(f"{address}: format is csv or jsonl, not {kind!r}.")
    return kind


def _path(address: Address) -> Path:
    if address.hosts or not address.path:
        raise BadDescription(
            f"{address} names no file of this machine.", "Write file:rows.jsonl or file:/folder/rows.jsonl."
        )
    return Path(address.path)


def _start(text: str) -> tuple[str, int]:
    kind, colon, rest = text.partition(":")
    if text in ("earliest", "latest"):
        return text, 0
    if kind == "offset" and colon and rest.isascii() and rest.isdecimal():
        return "offset", int(rest)
    raise BadDescription(
        f"A file can't be read from {text!r}.", "There are earliest, latest and offset: with a line's number."
    )


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    passing = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
    try:
        yield
    except OSError as cause:
        if cause.errno in passing:
            raise Away(f"{path} can't be used now: {cause.strerror}.") from cause
        next_step = "Name a file that is there and may be used."
        raise Unusable(f"{path} can't be used: {cause.strerror}.", next_step) from cause
