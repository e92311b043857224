"""What hangs on a package without being covered by its digest: proof, golden answers, parity figures, reports, wheels.

Each is an OCI artifact of its own whose manifest names the package as `subject` (OCI image specification 1.1). `save`, `load`,
`push` and `pull` carry them; when the package is removed they go too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlpacker_runtime.package import (
    MAX_FILES,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    check_paths,
    digest_of,
)

from ..errors import BadInput, NotFound, StoreFailed
from . import SUBJECT, Blob, Entry, Index, Progress, Store, no_progress, put_bytes, read_bytes
from .materialise import extract
from .packages import check_complete, chunks_of, encode_manifest, read_manifest
from .refs import short

EMPTY_CONFIG = Descriptor("application/vnd.oci.empty.v1+json", digest_of(b"{}"), 2)
TITLE = "org.opencontainers.image.title"
"""The annotation by which OCI tools name an artifact's files."""
WHEELS = "application/vnd.mlpacker.wheels.v1"
"""The artifact type of the wheels that `save --with-env` carries, one layer a wheel."""
ANY = "application/octet-stream"


@dataclass(frozen=True)
class Referrer:
    """An artifact that refers to a package. files: by name; a file its maker gave no fit name is called by its digest."""

    digest: str
    artifact_type: str
    annotations: Mapping[str, str]
    files: Mapping[str, Descriptor]


def attach(
    store: Store,
    digest: str,
    artifact_type: str,
    data: bytes,
    annotations: Mapping[str, str] | None = None,
    *,
    name: str = "data",
    media_type: str = ANY,
    replace: bool = False,
) -> str:
    """Hang one file on a package. Returns the artifact's digest. See `attach_files`."""
    files = {name: data}
    return attach_files(
        store, digest, artifact_type, files, annotations, media_type=media_type, replace=replace
    )


def attach_files(
    store: Store,
    digest: str,
    artifact_type: str,
    files: Mapping[str, bytes | Path],
    annotations: Mapping[str, str] | None = None,
    *,
    media_type: str = ANY,
    replace: bool = False,
    progress: Progress = no_progress,
) -> str:
    """Hang an artifact of these files on a package (or on an artifact). Returns the artifact's digest.

    The same content attached again changes nothing. replace: it takes the place of what is there of its type. Raises
    NotFound where there is no such package, BadInput for a name that can't be, StoreFailed.
    """
    subject = Descriptor(OCI_MANIFEST, digest, store.read(digest).size)
    names = sorted(check_paths(files))
    if not 0 < len(names) <= MAX_FILES:
        raise BadInput(f"An artifact holds 1 to {MAX_FILES} files, not {len(names)}.")
    layers = []
    for done, name in enumerate(names, 1):
        blob = store.put(chunks_of(files[name]))
        layers.append(Descriptor(media_type, blob.digest, blob.size, {TITLE: name}))
        progress(done, len(names))
    put_bytes(store, b"{}")
    manifest = ImageManifest(artifact_type, EMPTY_CONFIG, tuple(layers), subject, dict(annotations or {}))
    blob = put_bytes(store, encode_manifest(manifest))

    def change(index: Index) -> Index:
        check_complete(store, blob.digest)
        return attached(index, entry_of(blob, manifest), replace=replace)

    store.edit(change)
    return blob.digest


def entry_of(blob: Blob, manifest: ImageManifest) -> Entry:
    """The index entry of an artifact that has a subject."""
    if manifest.subject is None:
        raise BadInput(f"{short(blob.digest)} refers to nothing.")
    return Entry(OCI_MANIFEST, blob.digest, blob.size, type_of(manifest), {SUBJECT: manifest.subject.digest})


def type_of(manifest: ImageManifest) -> str:
    """The artifact type; of an artifact that states none, its config's type, as the OCI specification says."""
    return manifest.artifact_type or manifest.config.media_type


def attached(index: Index, entry: Entry, *, replace: bool = False) -> Index:
    """The index with that artifact in it. Raises NotFound where what it refers to is not in the index."""
    if all(e.digest != entry.subject for e in index):
        raise NotFound(f"There is no {entry.subject} here to refer to.")
    if any(e.digest == entry.digest for e in index):
        return index
    if replace:
        index = tuple(
            e for e in index if (e.subject, e.artifact_type) != (entry.subject, entry.artifact_type)
        )
    return (*index, entry)


def detach(store: Store, referrer: str) -> None:
    """Take an artifact off what it refers to. Its bytes stay until they are collected. Raises NotFound."""

    def change(index: Index) -> Index:
        left = tuple(e for e in index if e.digest != referrer or e.subject is None)
        if left == index:
            raise NotFound(f"Nothing of the digest {referrer} hangs on a package here.")
        return left

    store.edit(change)


def referrers(store: Store, digest: str, artifact_type: str | None = None) -> tuple[Referrer, ...]:
    """What refers to a package directly, of that type or of any, the oldest first. Raises StoreFailed or BadInput."""
    entries = [e for e in store.index() if e.subject == digest]
    wanted = [e for e in entries if artifact_type in (None, e.artifact_type)]
    return tuple(_referrer(store, e.digest) for e in wanted)


def _referrer(store: Store, digest: str) -> Referrer:
    manifest = read_manifest(store, digest)
    return Referrer(digest, type_of(manifest), manifest.annotations, files_of(manifest))


def files_of(manifest: ImageManifest) -> dict[str, Descriptor]:
    """An artifact's files by name."""
    named = {d.annotations.get(TITLE, ""): d for d in manifest.layers}
    try:
        check_paths(d.annotations.get(TITLE, "") for d in manifest.layers)
    except BadInput:  # a tool that names its files otherwise; they are still there by digest
        return {d.digest.replace(":", "-"): d for d in manifest.layers}
    return named


def read_referrer(store: Store, referrer: Referrer, name: str | None = None) -> bytes:
    """A file of the artifact, or its only one. Raises NotFound, StoreFailed, or BadInput where it has several."""
    if name is None and len(referrer.files) != 1:
        raise BadInput(f"The artifact {short(referrer.digest)} holds {len(referrer.files)} files; name one.")
    wanted = referrer.files.get(name if name is not None else next(iter(referrer.files)))
    if wanted is None:
        raise NotFound(f"The artifact {short(referrer.digest)} holds no {name}.")
    return read_bytes(store, wanted.digest, wanted.size)


def referrer_files(
    store: Store, referrer: Referrer, folder: Path, *, progress: Progress = no_progress
) -> dict[str, Path]:
    """Write the artifact's files, verified, into a folder that holds none of them. Returns the paths by name."""
    total, done = sum(d.size for d in referrer.files.values()), 0
    written = {}
    for name, wanted in referrer.files.items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            done += extract(store, wanted, target)
        except OSError as cause:
            raise StoreFailed(f"{target} can't be written: {cause.strerror or cause}.") from cause
        written[name] = target
        progress(done, total)
    return written
