"""A store in a folder: a standard OCI image layout (`oci-layout`, `index.json`, `blobs/sha256/…`).

Beside it stands `.mlpacker/`, with the lock that edits of the index take, the one writers share from their first blob until they
edit (so that a sweep knows whether anybody is at work), and the files that are still being written. A blob is written there, synced, and renamed into place; so is the index. A rename happens or does not, so a kill leaves either the
old state or the new one, and at worst a file in `.mlpacker/incoming`, which a sweep removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import stat
import tempfile
import threading
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
        self._writing = threading.local()  # .lock: from a thread's first put until it edits

    def put(self, chunks: Iterable[bytes], digest: str | None = None) -> Blob:
        """See `Store.put`."""
        with self._failures(f"write to {self.root}"):
            self._make()
            self._begin()
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
            try:
                with _Lock(self._own / "lock", fcntl.LOCK_EX):
                    before = self.index()
                    after = change(before)
                    if after != before:
                        self._replace(self.root / "index.json", encode_index(after))
                    return after
            finally:
                self._end()

    def sweep(
        self, live: Callable[[Index], Set[str]], older_than: float, *, dry_run: bool = False
    ) -> tuple[Blob, ...]:
        """See `Store.sweep`."""
        if not self.root.exists():
            return ()
        with self._failures(f"remove from {self.root}"):
            self._make()
            with _Lock(self._own / "lock", fcntl.LOCK_EX):
                keep = live(self.index())
                with self._alone() as alone:
                    before = math.inf if alone else older_than
                    unnamed = _older(self.root / "blobs" / "sha256", before)
                    unwanted = {e.name: s for e, s in unnamed if f"sha256:{e.name}" not in keep}
                    if not dry_run:
                        for name in unwanted:
                            (self.root / "blobs" / "sha256" / name).unlink(missing_ok=True)
                        for entry, _ in list(_older(self._own / "incoming", before)):
                            Path(entry.path).unlink(missing_ok=True)
        return tuple(Blob(f"sha256:{name}", size) for name, size in unwanted.items())

    @property
    def _own(self) -> Path:
        """What is ours beside the layout."""
        return self.root / ".mlpacker"

    def _begin(self) -> None:
        """Tell sweeps that this thread is writing; waits for one that is at work."""
        if getattr(self._writing, "lock", None) is None:
            self._writing.lock = _Lock(self._own / "writing", fcntl.LOCK_SH)

    def _end(self) -> None:
        lock = getattr(self._writing, "lock", None)
        if lock is not None:
            self._writing.lock = None
            lock.release()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether nobody is writing; then nobody begins before this ends."""
        try:
            lock = _Lock(self._own / "writing", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        with lock:
            yield True

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

    def _replace(self, place: Path, data: bytes) -> None:
        with self._incoming() as (fd, temporary):
            _write(fd, data)
            os.fsync(fd)
            self._rename(temporary, place)

    @contextmanager
    def _incoming(self) -> Iterator[tuple[int, Path]]:
        """A fresh file on the store's own file system, gone again unless it was renamed."""
        fd, name = tempfile.mkstemp(dir=self._own / "incoming")
        try:
            yield fd, Path(name)
        finally:
            os.close(fd)
            Path(name).unlink(missing_ok=True)

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)
        _sync_folder(target.parent)

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as cause:
            raise _failed(doing, cause) from cause


class _Lock:
    """A lock among threads and processes (flock). The system lets go of it where a process dies."""

    def __init__(self, place: Path, how: int) -> None:
        """Raises BlockingIOError where it is taken and `how` says not to wait."""
        self._fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, how)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:  # a writer that never came to edit, and is gone
        self.release()


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


def _older(folder: Path, before: float) -> Iterator[tuple[os.DirEntry[str], int]]:
    """The files of a folder last changed before that time, with their sizes."""
    for entry in os.scandir(folder):
        try:
            state = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if state.st_mtime < before and not stat.S_ISDIR(state.st_mode):
            yield entry, state.st_size


def _failed(doing: str, cause: OSError) -> StoreFailed:
    return StoreFailed(
        f"Could not {doing}: {cause.strerror or cause}.", "Look at the disk's space and permissions."
    )
