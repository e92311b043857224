"""Where rows come from: a file, in chunks, with a place to go on from after each."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet

from mlpacker_runtime.rest.invocations import cell
from mlpacker_runtime.rest.rows import Read, Reader
from mlpacker_runtime.signature import Field

from ..errors import BadInput

HEAD = 1 << 16
MAX_LINE = 64 << 20


@dataclass(frozen=True)
class Chunk:
    """Some rows. first: the number of the first, from 0. after: the place to go on from. done: how far, in the source's unit.

    read: fits the rows to a signature. original: a row as it stood in the file. malformed: why rows of the chunk could not
    even be taken apart, by their number in the chunk.
    """

    first: int
    count: int
    after: Any
    done: int
    read: Callable[[Reader], Read]
    original: Callable[[int], Any]
    malformed: Mapping[int, str] = field(default_factory=dict)


class Source(Protocol):
    """A file of rows. identity: changes when the file does. size: in the unit of `Chunk.done`."""

    identity: str
    size: int

    def chunks(self, place: Any) -> Iterator[Chunk]:
        """From this place (None: the start). Raises BadInput for a file that is not what its ending says."""


def open_source(path: Path, rows: int | None) -> Source:
    """rows: how many a chunk has; None: all of them."""
    if not path.is_file():
        raise BadInput(f"There is no file {path}.")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise BadInput(f"{path.name} has no ending that can be scored.", f"Known are {', '.join(ENDINGS)}.")
    return kind(path, rows or 1 << 62)


def _identity(path: Path) -> str:
    status = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(HEAD)).hexdigest()
    return f"{status.st_size}-{status.st_mtime_ns}-{head}"


class _File:
    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.rows = rows
        self.identity = _identity(path)
        self.size = path.stat().st_size


class _Lines:
    """Lines of a file, with the bytes consumed so far. A byte order mark is stepped over."""

    def __init__(self, file: BinaryIO, at: int) -> None:
        self.file = file
        self.at = at
        file.seek(at)

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(MAX_LINE):
            start = self.at
            self.at += len(line)
            yield line.decode("utf-8-sig" if start == 0 else "utf-8", "surrogateescape")


class Csv(_File):
    """Comma-separated values with a header line (RFC 4180; line ends inside quotes are fine)."""

    def chunks(self, place: Any) -> Iterator[Chunk]:
        with self.path.open("rb") as file:
            lines = _Lines(file, 0)
            header = next(csv.reader(iter(lines)), None)
            if not header:
                raise BadInput(
                    f"{self.path.name} is empty.", "A CSV file begins with a line of column names."
                )
            if len(set(header)) != len(header):
                twice = next(n for n in header if header.count(n) > 1)
                raise BadInput(f"{self.path.name} has two columns named {twice!r}.")
            first, lines.at = place or (0, lines.at)
            file.seek(lines.at)
            reader = csv.reader(iter(lines), strict=True)
            while rows := self._take(reader):
                yield _csv_chunk(header, rows, first, lines.at)
                first += len(rows)

    def _take(self, reader: Any) -> list[list[str] | str]:
        """The next rows; a line that is no CSV comes as the reason."""
        rows: list[list[str] | str] = []
        while len(rows) < self.rows:
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as why:
                rows.append(f"not CSV: {why}")
                continue
            if row:
                rows.append(row)
        return rows


def _csv_chunk(header: Sequence[str], rows: list[list[str] | str], first: int, at: int) -> Chunk:
    malformed = {}
    blank = [""] * len(header)
    whole: list[list[str]] = []
    for i, row in enumerate(rows):
        if isinstance(row, str):
            malformed[i] = f"Row {first + i} is {row}."
        elif len(row) != len(header):
            malformed[i] = f"Row {first + i} has {len(row)} values; the header names {len(header)}."
        whole.append(blank if i in malformed else row)  # type: ignore[arg-type]
    columns = dict(zip(header, zip(*whole, strict=True), strict=True))

    def read(reader: Reader) -> Read:
        fields = {f.name: f for f in reader.fields}
        given = {n: from_text(values, fields.get(n)) for n, values in columns.items()}
        return _without(reader.columns(given), malformed)

    def original(i: int) -> Any:
        row = rows[i]
        return dict(zip(header, row, strict=True)) if i not in malformed else row

    return Chunk(first, len(rows), (first + len(rows), at), at, read, original, malformed)


def _without(read: Read, malformed: Mapping[int, str]) -> Read:
    """The rows that could be taken apart; the blanks of the others are not theirs."""
    if not malformed:
        return read
    kept = ~np.isin(read.batch.rows, list(malformed))
    errors = {r: e for r, e in read.errors.items() if r not in malformed}
    return Read(read.batch.take(kept), read.count, errors)


def from_text(values: Sequence[str], field: Field | None) -> Any:
    """A column of CSV cells as the REST door reads them, all at once where they are plain numbers."""
    numbers = _numbers(values, field)
    if numbers is not None:
        return numbers
    if field is None:
        return [v or None for v in values]
    return [cell(v, field) for v in values]


def _numbers(values: Sequence[str], field: Field | None) -> np.ndarray | None:
    """Whole numbers as such, so that a large one keeps its last digits."""
    if field is not None and (not field.numeric or field.dtype == "bool"):
        return None
    whole = field is not None and not field.dtype.startswith("float")
    try:
        return np.array(values, dtype=np.int64 if whole else np.float64)
    except (ValueError, OverflowError):
        return None


class JsonLines(_File):
    """One JSON value a line: an object (columns by name) or a list."""

    def chunks(self, place: Any) -> Iterator[Chunk]:
        with self.path.open("rb") as file:
            first, at = place or (0, 0)
            lines = _Lines(file, at)
            while texts := [t for t in itertools.islice(lines, self.rows) if t.strip()]:
                yield _json_chunk(texts, first, lines.at)
                first += len(texts)


def _json_chunk(texts: list[str], first: int, at: int) -> Chunk:
    malformed: dict[int, str] = {}
    rows: list[Any] = []
    for i, text in enumerate(texts):
        try:
            rows.append(msgspec.json.decode(text.encode("utf-8", "surrogateescape")))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as why:
            malformed[i] = f"Row {first + i} is not JSON: {why}."
            rows.append(None)
    kind = next((type(r) for r in rows if r is not None), dict)

    def read(reader: Reader) -> Read:
        blank: Any = {} if kind is dict else []
        whole = [blank if i in malformed else r for i, r in enumerate(rows)]
        return _without(reader.records(whole) if kind is dict else reader.lists(whole), malformed)

    def original(i: int) -> Any:
        return texts[i] if i in malformed else rows[i]

    return Chunk(first, len(rows), (first + len(rows), at), at, read, original, malformed)


class Parquet(_File):
    def __init__(self, path: Path, rows: int) -> None:
        super().__init__(path, rows)
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as cause:
            raise BadInput(f"{path.name} is not a Parquet file: {cause}.") from cause
        self.size = self.file.metadata.num_rows

    def chunks(self, place: Any) -> Iterator[Chunk]:
        first = 0
        for batch in self.file.iter_batches(batch_size=min(self.rows, 1 << 30)):
            if first >= (place or 0) and batch.num_rows:
                yield _arrow_chunk(pyarrow.Table.from_batches([batch]), first)
            first += batch.num_rows


def _arrow_chunk(table: pyarrow.Table, first: int) -> Chunk:
    from ..tables import from_arrow

    def read(reader: Reader) -> Read:
        return reader.columns(from_arrow(table).columns)

    end = first + table.num_rows
    return Chunk(first, table.num_rows, end, end, read, lambda i: table.slice(i, 1).to_pylist()[0])


class NumPy(_File):
    """One array of rows, read through a memory map."""

    def __init__(self, path: Path, rows: int) -> None:
        super().__init__(path, rows)
        try:
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as cause:
            raise BadInput(f"{path.name} is not a NumPy array: {cause}.") from cause
        if self.array.ndim == 0:
            raise BadInput(f"{path.name} holds one value, not rows.")
        self.size = len(self.array)

    def chunks(self, place: Any) -> Iterator[Chunk]:
        step = min(self.rows, max(self.size, 1))
        for first in range(place or 0, self.size, step):
            yield _array_chunk(np.asarray(self.array[first : first + step]), first)


def _array_chunk(rows: np.ndarray, first: int) -> Chunk:
    def read(reader: Reader) -> Read:
        return reader.tensor(rows) or reader.columns({"input": rows})

    end = first + len(rows)
    return Chunk(first, len(rows), end, end, read, lambda i: rows[i].tolist())


_KINDS: dict[str, Any] = {
    ".csv": Csv,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".parquet": Parquet,
    ".npy": NumPy,
}
ENDINGS = tuple(_KINDS)
