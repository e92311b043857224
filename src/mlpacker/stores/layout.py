"""A store in a folder: a standard OCI image layout (`oci-layout`, `index.json`, `blobs/sha256/…`).

Beside it stands `.mlpacker/`, with the lock that edits of the index take and the files that are still being written. A blob
is written there, synced, and renamed into place; so is the index. A rename happens or does not, so a kill leaves either the
old state or the new one, and at worst a file in `.mlpacker/incoming`, which a sweep removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlpacker_runtime.package import CHUNK, is_digest, parse_descriptor, parse_json

from ..errors import BadInput, NotFound, StoreFailed
from . import Blob, Entry, Index

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
MAX_INDEX_BYTES = 256 << 20


class LayoutStore:
    """A `Store` under `root`, which is made (mode 0700) with the first thing put."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, chunks: Iterable[bytes], digest: str | None = None) -> Blob:
        """See `Store.put`."""
        with self._failures(f"write to {self.root}"):
            self._make()
            with self._incoming() as (fd, place):
                hashed = hashlib.sha256()
                size = 0
                for chunk in chunks:
                    hashed.update(chunk)
                    size += len(chunk)
                    _write(fd, chunk)
                found = f"sha256:{hashed.hexdigest()}"
                if digest not in (None, found):
                    raise StoreFailed(
                        f"The bytes are {found}, not {digest}.", "They were damaged on their way; try again."
                    )
                os.fchmod(fd, 0o444)
                os.fsync(fd)
                self._rename(place, self._place(found))
        return Blob(found, size)

    def read(self, digest: str) -> StoredBlob:
        """See `Store.read`."""
        if not is_digest(digest):
            raise NotFound(f"{digest!r} is no digest.")
        place = self._place(digest)
        try:
            state = place.lstat()
        except (FileNotFoundError, NotADirectoryError) as cause:
            raise NotFound(f"The store {self.root} holds no {digest}.") from cause
        except OSError as cause:
            raise _failed(f"read {place}", cause) from cause
        if not stat.S_ISREG(state.st_mode):
            raise StoreFailed(
                f"{place} is no regular file.", "Remove it, then load or pull the package again."
            )
        return StoredBlob(place, digest, state.st_size)

    def index(self) -> Index:
        """See `Store.index`."""
        try:
            data = (self.root / "index.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as cause:
            raise _failed(f"read {self.root / 'index.json'}", cause) from cause
        try:
            return decode_index(data)
        except BadInput as cause:
            raise StoreFailed(
                f"The index of the store {self.root} is damaged: {cause}",
                "Put index.json back from a backup; the blobs are whole without it.",
            ) from cause

    def edit(self, change: Callable[[Index], Index]) -> Index:
        """See `Store.edit`."""
        with self._failures(f"write to {self.root}"):
            self._make()
            with self._lock():
                before = self.index()
                after = change(before)
                if after != before:
                    self._write_index(after)
                return after

    def sweep(self, live: Callable[[Index], Set[str]], older_than: float) -> tuple[Blob, ...]:
        """See `Store.sweep`."""
        if not self.root.exists():
            return ()
        with self._failures(f"remove from {self.root}"):
            self._make()
            with self._lock():
                keep = live(self.index())
                removed = tuple(self._remove_blobs(keep, older_than))
                for _ in _remove_older(self.root / ".mlpacker" / "incoming", older_than):
                    pass
        return removed

    def _remove_blobs(self, keep: Set[str], older_than: float) -> Iterator[Blob]:
        blobs = self.root / "blobs" / "sha256"
        unwanted = [e for e in os.scandir(blobs) if f"sha256:{e.name}" not in keep]
        for name, size in _remove_older(blobs, older_than, {e.name for e in unwanted}):
            yield Blob(f"sha256:{name}", size)

    def _place(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _make(self) -> None:
        """The folders and the marker file, each only where it is missing."""
        if not self.root.exists():
            self.root.mkdir(parents=True, mode=0o700, exist_ok=True)
        state = self.root.stat()
        if state.st_uid == os.geteuid() and stat.S_IMODE(state.st_mode) & 0o077:
            self.root.chmod(0o700)  # packages may hold what others must not read
        for folder in ("blobs/sha256", ".mlpacker/incoming"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        if not (self.root / "oci-layout").exists():
            self._replace(self.root / "oci-layout", LAYOUT)

    def _write_index(self, index: Index) -> None:
        self._replace(self.root / "index.json", encode_index(index))

    def _replace(self, place: Path, data: bytes) -> None:
        with self._incoming() as (fd, temporary):
            _write(fd, data)
            os.fsync(fd)
            self._rename(temporary, place)

    @contextmanager
    def _incoming(self) -> Iterator[tuple[int, Path]]:
        """A fresh file on the store's own file system, gone again unless it was renamed."""
        fd, name = tempfile.mkstemp(dir=self.root / ".mlpacker" / "incoming")
        try:
            yield fd, Path(name)
        finally:
            os.close(fd)
            Path(name).unlink(missing_ok=True)

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)
        _sync_folder(target.parent)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One at a time, among threads and processes; the system lets go of it where a process dies."""
        fd = os.open(self.root / ".mlpacker" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            raise _failed(doing, cause) from cause


class StoredBlob:
    """A blob of a folder, verified while it is read. See `Reading`."""

    def __init__(self, place: Path, digest: str, size: int) -> None:
        self.place = place
        self.digest = digest
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        hashed = hashlib.sha256()
        try:
            with open(self.place, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    hashed.update(chunk)
                    yield chunk
        except FileNotFoundError as cause:
            raise NotFound(f"{self.digest} was removed while it was read.") from cause
        except OSError as cause:
            raise _failed(f"read {self.place}", cause) from cause
        if f"sha256:{hashed.hexdigest()}" != self.digest:
            raise StoreFailed(
                f"{self.place} is damaged: its bytes are not what its name says.",
                "Load, pull or pack the package again: that mends it.",
            )


def encode_index(index: Index) -> bytes:
    """An OCI image index that names these manifests."""
    manifests = [_plain(e) for e in index]
    value = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def _plain(entry: Entry) -> dict[str, Any]:
    value: dict[str, Any] = {"mediaType": entry.media_type}
    if entry.artifact_type is not None:
        value["artifactType"] = entry.artifact_type
    value.update(digest=entry.digest, size=entry.size)
    if entry.annotations:
        value["annotations"] = dict(sorted(entry.annotations.items()))
    return value


def decode_index(data: bytes) -> Index:
    """The entries of an OCI image index. Raises BadInput for anything else."""
    value = parse_json(data, "The index", MAX_INDEX_BYTES)
    if not isinstance(value, dict) or not isinstance(value.get("manifests"), list):
        raise BadInput("The index is not an OCI image index.")
    described = [parse_descriptor(v, f"manifests[{i}]") for i, v in enumerate(value["manifests"])]
    return tuple(Entry(d.media_type, d.digest, d.size, d.artifact_type, d.annotations) for d in described)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: it is written down in its folder."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_older(
    folder: Path, older_than: float, names: Set[str] | None = None
) -> Iterator[tuple[str, int]]:
    for entry in list(os.scandir(folder)):
        if names is not None and entry.name not in names:
            continue
        try:
            state = entry.stat(follow_symlinks=False)
            if state.st_mtime < older_than and not stat.S_ISDIR(state.st_mode):
                Path(entry.path).unlink()
                yield entry.name, state.st_size
        except FileNotFoundError:
            continue


def _failed(doing: str, cause: OSError) -> StoreFailed:
    return StoreFailed(
        f"Could not {doing}: {cause.strerror or cause}.", "Look at the disk's space and permissions."
    )
