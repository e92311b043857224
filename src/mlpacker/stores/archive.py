"""A package in one tar file, with what refers to it: an OCI layout, as `skopeo`, `podman` and `oras` read and write it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mlpacker_runtime.package import (
    MAX_MANIFEST_BYTES,
    MODEL_MANIFEST,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    digest_of,
    package_files,
    parse_image_manifest,
    parse_json,
)

from ..errors import BadInput, NotFound, StoreFailed
from . import REF_NAME, Blob, Entry, Index, Progress, Store, no_progress
from . import tar as tars
from .arrivals import MAX_MANIFESTS, Arrival, after_subjects, record
from .layout import LAYOUT, decode_index, encode_index
from .packages import (
    MAX_CONFIG_BYTES,
    config_name,
    read_manifest,
    read_name,
    referring,
)
from .refs import Ref, parse_ref, short

# --- save


def save(
    store: Store,
    digest: str,
    out: Path,
    *,
    refs: Iterable[str] = (),
    without: Collection[str] = (),
    progress: Progress = no_progress,
) -> Path:
    """Write a package and what refers to it to a tar file, which appears whole or not at all.

    The same package and referrers give the same bytes. refs: names `name:version` it shall have beside its own. without:
    artifact types left out (WHEELS, say). Raises NotFound, StoreFailed where a blob is damaged or the disk fails.
    """
    index = index_of(store, digest, refs, without)
    blobs = dict(sorted(_blobs(store, index).items()))
    total = sum(blobs.values())
    members = [("oci-layout", LAYOUT), ("index.json", encode_index(index))]

    def contents() -> Iterator[tuple[str, int, Iterable[bytes]]]:
        done = 0
        for name, data in members:
            yield name, len(data), (data,)
        for each, size in blobs.items():
            yield f"blobs/sha256/{each.removeprefix('sha256:')}", size, store.read(each)
            done += size
            progress(done, total)

    _write_whole(out, tars.pack(contents()))
    return out


def index_of(store: Store, digest: str, refs: Iterable[str], without: Collection[str]) -> Index:
    """The index of a layout that holds this package alone, under its own name and further ones."""
    name, version = read_name(store, read_manifest(store, digest))
    own = [Ref(name, version).tag] if name else []
    tags = sorted({*own, *(parse_ref(r).tag for r in refs)})
    base = Entry(OCI_MANIFEST, digest, store.read(digest).size, MODEL_MANIFEST)
    named = [replace(base, annotations={REF_NAME: tag}) for tag in tags] or [base]
    hanging = sorted(referring(store.index(), digest, without), key=lambda e: e.digest)
    return (*named, *hanging)


def _blobs(store: Store, index: Index) -> dict[str, int]:
    """Size by digest of all that the index names."""
    found = {}
    for entry in index:
        manifest = read_manifest(store, entry.digest)
        found[entry.digest] = entry.size
        found.update((d.digest, d.size) for d in (manifest.config, *manifest.layers))
    return found


def _write_whole(out: Path, data: Iterable[bytes]) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}-", delete=False) as file:
            try:
                for chunk in data:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).chmod(0o644)
                Path(file.name).replace(out)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as cause:
        raise StoreFailed(f"{out} can't be written: {cause.strerror or cause}.") from cause


# --- load


def load(store: Store, tar: Path, *, move: bool = False, progress: Progress = no_progress) -> tuple[str, ...]:
    """Take the packages of a tar file, and what refers to them, into the store. Returns the packages' digests.

    All or nothing: the file is read and judged first, every blob is verified while it is copied, and the names appear
    together at the end. Raises BadInput for a file that is not such a tar, BadDescription where a name is another package's
    and `move` is not given, StoreFailed.
    """
    with _opened(tar) as (file, length):
        layout = _Layout(file, tars.read_members(file, length))
        arrivals = layout.arrivals()
        layout.copy(store, arrivals, progress)
    record(store, arrivals, move)
    return tuple(dict.fromkeys(a.blob.digest for a in arrivals if a.ref))


@contextmanager
def _opened(tar: Path) -> Iterator[tuple[BinaryIO, int]]:
    try:
        with open(tar, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise BadInput(f"{tar} is not a file.")
            yield file, state.st_size
    except FileNotFoundError as cause:
        raise NotFound(f"There is no file {tar}.") from cause
    except OSError as cause:
        raise StoreFailed(f"{tar} can't be read: {cause.strerror or cause}.") from cause


class _Layout:
    """An OCI layout inside a tar file, of which nothing is believed."""

    def __init__(self, file: BinaryIO, members: dict[str, tars.Member]) -> None:
        self.file = file
        self.members = members
        if "index.json" not in members or "oci-layout" not in members:
            raise BadInput("The tar file holds no OCI layout.", "mlpacker save writes one.")

    def arrivals(self) -> tuple[Arrival, ...]:
        """What the index names: packages first, then what refers to them, each after its subject."""
        index = decode_index(self._small("index.json", MAX_MANIFEST_BYTES))
        if not 0 < len(index) <= MAX_MANIFESTS:
            raise BadInput(f"The tar file names {len(index)} manifests; 1 to {MAX_MANIFESTS} are read.")
        read = {d.digest: self._manifest(d) for d in index}
        packages = [
            Arrival(blob, manifest, self._ref(entry, manifest))
            for entry, (blob, manifest) in ((e, read[e.digest]) for e in index)
            if manifest.subject is None
        ]
        if not packages:
            raise BadInput("The tar file holds no package.")
        known = {a.blob.digest for a in packages}
        waiting = [Arrival(blob, manifest, None) for blob, manifest in read.values() if manifest.subject]
        return (*packages, *after_subjects(waiting, known))

    def copy(self, store: Store, arrivals: Iterable[Arrival], progress: Progress) -> None:
        wanted: dict[str, int] = {}
        for each in arrivals:
            wanted.update((d.digest, d.size) for d in (each.manifest.config, *each.manifest.layers))
            wanted[each.blob.digest] = each.blob.size
        members = {d: self._blob(d, size) for d, size in wanted.items()}
        done, total = 0, sum(wanted.values())
        for digest, member in members.items():
            store.put(tars.chunks(self.file, member), digest)
            done += member.size
            progress(done, total)

    def _manifest(self, entry: Entry) -> tuple[Blob, ImageManifest]:
        member = self._blob(entry.digest, entry.size)
        data = self._bytes(member, MAX_MANIFEST_BYTES, entry.digest)
        if digest_of(data) != entry.digest:
            raise BadInput(f"The manifest {short(entry.digest)} in the tar file is not what its name says.")
        manifest = parse_image_manifest(data)
        if manifest.subject is None:
            package_files(manifest)  # raises where it is no package of plain, safely named files
        return Blob(entry.digest, entry.size), manifest

    def _ref(self, entry: Entry, manifest: ImageManifest) -> Ref:
        """The name the index gives, where it is a `name:version` as ours are; else the one it was packed under."""
        if entry.ref and ":" in entry.ref:
            ref = parse_ref(entry.ref)
            if ref.digest is None:
                return ref
        name, version = self._own_name(manifest.config)
        if name is None:
            raise BadInput(f"The package {short(entry.digest)} in the tar file has no name.")
        return Ref(name, version)

    def _own_name(self, config: Descriptor) -> tuple[str | None, str | None]:
        data = self._bytes(self._blob(config.digest, config.size), MAX_CONFIG_BYTES, config.digest)
        return config_name(parse_json(data, "The config", MAX_CONFIG_BYTES))

    def _blob(self, digest: str, size: int) -> tars.Member:
        member = self.members.get(f"blobs/sha256/{digest.removeprefix('sha256:')}")
        if member is None:
            raise BadInput(f"The tar file lacks {short(digest)}: it is not whole.")
        if member.size != size:
            raise BadInput(
                f"{short(digest)} in the tar file has {member.size} bytes, its manifest says {size}."
            )
        return member

    def _small(self, name: str, limit: int) -> bytes:
        return self._bytes(self.members[name], limit, name)

    def _bytes(self, member: tars.Member, limit: int, what: str) -> bytes:
        if member.size > limit:
            raise BadInput(f"{what} in the tar file is {member.size} bytes long; at most {limit} are read.")
        return b"".join(tars.chunks(self.file, member))
