"""A package as a folder: `manifest.json` and every file at its path, for the runtime to read and to import from.

The files are copies, not hard links to the store's blobs: a link shares its bytes, so whatever wrote to a materialised file
(a library that opens a model for update, root whom no mode stops) would damage the store, which is the one whole copy. The
folder is a cache: it can be removed at any time and is made again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from mlpacker_runtime.package import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Descriptor,
    folder_name,
    package_files,
    parse_image_manifest,
)

from ..errors import StoreFailed
from . import Progress, Store, no_progress, read_bytes

STALE = 24 * 3600.0
"""Seconds after which a half-made folder is taken for one of a process that was killed."""


def materialise(store: Store, digest: str, folder: Path, *, progress: Progress = no_progress) -> Path:
    """The package as `folder/sha256-<hex>`, made where it is not there yet. Every byte is verified while it is copied.

    The folder appears all at once; several processes may make it at the same time. One that lacks a file, or has one of
    another size, is made anew. Raises NotFound, StoreFailed or BadInput.
    """
    data = read_bytes(store, digest, MAX_MANIFEST_BYTES)
    files = package_files(parse_image_manifest(data))
    place = folder / folder_name(digest)
    try:
        if not looks_whole(place, data, files):
            _make(store, data, files, place, progress)
    except OSError as cause:
        raise StoreFailed(
            f"{digest} can't be unpacked into {folder}: {cause.strerror or cause}.",
            "Look at the disk's space and permissions.",
        ) from cause
    return place


def looks_whole(place: Path, manifest: bytes, files: dict[str, Descriptor]) -> bool:
    """Whether each file is there with its size. Their bytes are verified by whoever reads them."""
    try:
        if (place / MANIFEST).read_bytes() != manifest:
            return False
        return all((place / p).lstat().st_size == d.size for p, d in files.items())
    except OSError:
        return False


def _make(
    store: Store, manifest: bytes, files: dict[str, Descriptor], place: Path, progress: Progress
) -> None:
    place.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    _remove_stale(place.parent)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    try:
        fresh = making / "package"
        fresh.mkdir()
        _extract(store, files, fresh, progress)
        (fresh / MANIFEST).write_bytes(manifest)
        _put_in_place(fresh, place, making / "replaced")
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _extract(store: Store, files: dict[str, Descriptor], folder: Path, progress: Progress) -> None:
    # Not synced to disk: after a power cut a file may be short, which `looks_whole` or the reader's digest then finds.
    total, done = sum(d.size for d in files.values()), 0
    for path, wanted in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        done += extract(store, wanted, target)
        progress(done, total)


def extract(store: Store, wanted: Descriptor, target: Path) -> int:
    """Copy a blob to a file that must not exist, verifying it. Returns its bytes. Raises StoreFailed, OSError."""
    size = 0
    with open(target, "xb", buffering=0) as file:
        for chunk in store.read(wanted.digest):
            size += file.write(chunk)
    if size != wanted.size:
        raise StoreFailed(f"{wanted.digest} has {size} bytes, the manifest says {wanted.size}.")
    target.chmod(0o444)
    return size


def prune(folder: Path, keep: Collection[str], *, dry_run: bool = False) -> int:
    """Remove the unpacked packages whose digests are not in `keep`. Returns the bytes they took. Raises StoreFailed."""
    names = {folder_name(d) for d in keep}
    freed = 0
    for place in folder.glob("sha256-*"):
        if place.name in names:
            continue
        freed += sum(p.lstat().st_size for p in place.rglob("*") if not p.is_dir())
        if not dry_run:
            try:
                shutil.rmtree(place)
            except OSError as cause:
                raise StoreFailed(f"{place} can't be removed: {cause.strerror or cause}.") from cause
    return freed


def _put_in_place(fresh: Path, place: Path, aside: Path) -> None:
    """Rename, moving away a folder that is not whole; where somebody else was first, theirs stands."""
    try:
        fresh.rename(place)
        return
    except OSError:
        if not place.exists():
            raise
    try:
        place.rename(aside)
        fresh.rename(place)
    except OSError:
        if not place.exists():
            raise


def _remove_stale(folder: Path) -> None:
    before = time.time() - STALE
    for entry in os.scandir(folder):
        if entry.name.startswith(".making-") and entry.stat(follow_symlinks=False).st_mtime < before:
            shutil.rmtree(entry.path, ignore_errors=True)
