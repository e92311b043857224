"""Packages in a store: write, name, list, remove, collect garbage, verify.

The digest covers what the package is: name and version as given, and every file. It covers nothing of how or when it came to
be; that hangs on it as referrers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlpacker_runtime.package import (
    FILEPATH,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    MODEL_MANIFEST,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    check_paths,
    package_files,
    parse_image_manifest,
    parse_json,
)

from ..errors import BadDescription, BadInput, MlpackerError, NotFound, StoreFailed
from . import CHUNK, REF_NAME, Blob, Entry, Index, Progress, Store, no_progress, put_bytes, read_bytes
from .refs import LATEST, PACKED_AS, Ref, check_name, check_version, find, name_of, packages, parse_ref, short

MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
KINDS = ("weight", "weight.config", "doc", "code", "dataset")
"""What a file is, as ModelPack sorts them."""
MAX_CONFIG_BYTES = 4 << 20
GRACE = 3600.0
"""Seconds an unnamed blob is left alone while somebody is writing, who may be about to name it."""


@dataclass(frozen=True)
class PackageFile:
    """A file to pack: its bytes or where they are, and one of KINDS."""

    data: bytes | Path
    kind: str = "weight"

    @property
    def size(self) -> int:
        return self.data.stat().st_size if isinstance(self.data, Path) else len(self.data)


@dataclass(frozen=True)
class Packed:
    """A package in the store. refs: what it is called here, perhaps nothing. size: bytes of everything it covers.

    damage: why it can't be read, else empty; its name, version and size are then not known.
    """

    digest: str
    name: str | None
    version: str | None
    refs: tuple[str, ...]
    size: int
    damage: str = ""


@dataclass(frozen=True)
class Removed:
    """What `remove` took away. gone: no name is left, and what hung on the package went with it."""

    digest: str
    refs: tuple[str, ...]
    gone: bool


# --- write


def write_package(
    store: Store,
    name: str,
    version: str | None,
    files: Mapping[str, PackageFile],
    *,
    move: bool = False,
    progress: Progress = no_progress,
) -> str:
    """Write a package and name it `name:version` (`name:latest` where it has no version). Returns its digest.

    The same name, version and files give the same digest, here and anywhere. Raises BadDescription where that name and
    version are another package's already and `move` is not given, BadInput for a path that can't be, StoreFailed.
    """
    ref = Ref(check_name(name), check_version(version) if version is not None else None)
    paths = sorted(check_paths(files))
    if not 0 < len(paths) <= MAX_FILES:
        raise BadInput(f"A package holds 1 to {MAX_FILES} files, not {len(paths)}.")
    layers = tuple(_put_files(store, {p: files[p] for p in paths}, progress))
    config = put_bytes(store, encode_config(name, version, layers))
    manifest = ImageManifest(MODEL_MANIFEST, Descriptor(MODEL_CONFIG, config.digest, config.size), layers)
    data = encode_manifest(manifest)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadInput(
            f"The package's manifest is {len(data)} bytes long; registries take {MAX_MANIFEST_BYTES}."
        )
    blob = put_bytes(store, data)
    record_package(store, blob, ref, move=move)
    return blob.digest


def _put_files(store: Store, files: Mapping[str, PackageFile], progress: Progress) -> Iterator[Descriptor]:
    total = sum(_size(path, f) for path, f in files.items())
    done = 0
    for path, file in files.items():
        if file.kind not in KINDS:
            raise BadDescription(f"{path}: {file.kind!r} is no kind of file ({', '.join(KINDS)}).")
        blob = store.put(chunks_of(file.data))
        done += blob.size
        progress(done, total)
        yield Descriptor(
            f"application/vnd.cncf.model.{file.kind}.v1.raw", blob.digest, blob.size, {FILEPATH: path}
        )


def _size(path: str, file: PackageFile) -> int:
    try:
        return file.size
    except OSError as cause:
        raise BadInput(f"{path} can't be packed: {cause.strerror}: {cause.filename}.") from cause


def chunks_of(data: bytes | Path) -> Iterator[bytes]:
    """The bytes, piece by piece. Raises BadInput where the file can't be read."""
    if isinstance(data, bytes):
        yield data
        return
    try:
        with open(data, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as cause:
        raise BadInput(f"{data} can't be read: {cause.strerror}.") from cause


def encode_config(name: str, version: str | None, layers: Iterable[Descriptor]) -> bytes:
    """ModelPack's config blob. Its schema forbids fields of our own; diffIds are the layers' digests, for they are raw."""
    descriptor = {"name": name} if version is None else {"name": name, "version": version}
    modelfs = {"type": "layers", "diffIds": [d.digest for d in layers]}
    return canonical({"descriptor": descriptor, "config": {}, "modelfs": modelfs})


def encode_manifest(manifest: ImageManifest) -> bytes:
    """The OCI image manifest's bytes, always the same for the same manifest."""
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": manifest.artifact_type,
        "config": encode_descriptor(manifest.config),
        "layers": [encode_descriptor(d) for d in manifest.layers],
    }
    if manifest.subject is not None:
        value["subject"] = encode_descriptor(manifest.subject)
    if manifest.annotations:
        value["annotations"] = dict(manifest.annotations)
    return canonical(value)


def encode_descriptor(descriptor: Descriptor) -> dict[str, Any]:
    value: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        value["annotations"] = dict(descriptor.annotations)
    return value


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# --- name


def record_package(store: Store, manifest: Blob, ref: Ref, *, move: bool) -> None:
    """Name a package whose blobs have been put, as the latest recorded.

    Raises BadDescription where another package has that name and version (`latest` moves on freely), StoreFailed where a
    blob of it is missing.
    """

    def change(index: Index) -> Index:
        check_complete(store, manifest.digest)
        return recorded(index, manifest, ref, move=move)

    store.edit(change)


def recorded(index: Index, manifest: Blob, ref: Ref, *, move: bool) -> Index:
    """The index with that package named so, as the latest. Raises BadDescription as `record_package` says."""
    entry = Entry(OCI_MANIFEST, manifest.digest, manifest.size, MODEL_MANIFEST, {REF_NAME: ref.tag})
    index = _taken_from_others(index, ref, manifest.digest, move)
    mine = [e for e in index if e.digest == manifest.digest and e.ref not in (None, ref.tag)]
    return (*(e for e in index if e.digest != manifest.digest), *mine, entry)


def tag(store: Store, ref: str, new: str, *, move: bool = False) -> str:
    """Give a package a further name. Returns its digest.

    The entry stands beside the package's own, so the order stays that of packing. Raises NotFound, BadDescription.
    """
    wanted = parse_ref(new)
    if wanted.digest is not None:
        raise BadDescription(f"{new!r} is no name:version.")

    def change(index: Index) -> Index:
        found = find(index, ref)
        index = _taken_from_others(index, wanted, found.digest, move)
        if any(e.ref == wanted.tag for e in index):
            return index
        entry = replace(found, annotations={REF_NAME: wanted.tag})
        at = max(i for i, e in enumerate(index) if e.digest == found.digest) + 1
        beside = (*index[:at], entry, *index[at:])
        return tuple(e for e in beside if e.digest != found.digest or e.ref)

    after = store.edit(change)
    return find(after, wanted.tag).digest


def taken(tag: str, digest: str) -> BadDescription:
    """What is said where a name and version are another package's."""
    return BadDescription(
        f"{tag} is another package already: {short(digest)}.",
        "Give another version, or --move to let the name go over to the new one.",
        existing=digest,
    )


def _taken_from_others(index: Index, ref: Ref, digest: str, move: bool) -> Index:
    """The index without that name on any other package. What has no name left stays, unnamed, until it is removed."""
    other = next((e for e in index if e.ref == ref.tag and e.digest != digest), None)
    if other is None:
        return index
    if ref.version not in (None, LATEST) and not move:
        raise taken(ref.tag, other.digest)
    if any(e.digest == other.digest and e is not other for e in index):
        return tuple(e for e in index if e is not other)
    unnamed = replace(other, annotations={PACKED_AS: str(name_of(other))})
    return tuple(unnamed if e is other else e for e in index)


def resolve(store: Store, ref: str) -> str:
    """The digest a REF means. Raises NotFound with near names, BadDescription where it is ambiguous or no REF."""
    return find(store.index(), ref).digest


def remove(store: Store, ref: str) -> Removed:
    """Take a name from a package: `name:version` that one, `name` the latest's, a digest all of them.

    With its last name the package goes, and what refers to it. The bytes stay until `collect`. Raises NotFound.
    """
    taken: list[Removed] = []

    def change(index: Index) -> Index:
        found = find(index, ref)
        by_digest = (
            parse_ref(ref).digest is not None or found.ref is None or name_of(found) != parse_ref(ref).name
        )
        going = [e for e in index if e.digest == found.digest and (by_digest or e.ref == found.ref)]
        left = tuple(e for e in index if e not in going)
        gone = all(e.digest != found.digest for e in left)
        taken[:] = [Removed(found.digest, tuple(e.ref for e in going if e.ref), gone)]
        return without_orphans(left, {found.digest}) if gone else left

    store.edit(change)
    return taken[0]


def without_orphans(index: Index, gone: set[str]) -> Index:
    """The index without what refers to the digests gone, and what refers to that."""
    orphans = {e.digest for e in index if e.subject in gone}
    if not orphans:
        return index
    return without_orphans(tuple(e for e in index if e.digest not in orphans), orphans)


# --- read


def read_manifest(store: Store, digest: str) -> ImageManifest:
    """An image manifest of the store, verified. Raises NotFound, StoreFailed or BadInput."""
    return parse_image_manifest(read_bytes(store, digest, MAX_MANIFEST_BYTES))


def read_files(store: Store, digest: str) -> dict[str, Descriptor]:
    """A package's files by path. Raises NotFound, StoreFailed or BadInput."""
    return package_files(read_manifest(store, digest))


def read_file(store: Store, digest: str, path: str) -> bytes:
    """One file of a package, verified. Raises NotFound, StoreFailed or BadInput."""
    files = read_files(store, digest)
    if path not in files:
        raise BadInput(f"The package {short(digest)} holds no {path}.")
    return read_bytes(store, files[path].digest, files[path].size)


def read_name(store: Store, manifest: ImageManifest) -> tuple[str | None, str | None]:
    """Name and version as packed, from the config blob. Raises NotFound, StoreFailed or BadInput."""
    config = parse_json(
        read_bytes(store, manifest.config.digest, MAX_CONFIG_BYTES), "The config", MAX_CONFIG_BYTES
    )
    return config_name(config)


def config_name(config: Any) -> tuple[str | None, str | None]:
    """Name and version a config states, where they are fit to be ones."""
    descriptor = config.get("descriptor") if isinstance(config, dict) else None
    if not isinstance(descriptor, dict):
        raise BadInput("The config is not a ModelPack config: it has no descriptor.")
    name, version = descriptor.get("name"), descriptor.get("version")
    if not all(v is None or isinstance(v, str) for v in (name, version)):
        raise BadInput("The config's name and version must be texts.")
    return (check_name(name) if name is not None else None), (
        check_version(version) if version is not None else None
    )


def list_packages(store: Store) -> tuple[Packed, ...]:
    """The packages of the store, in the order of recording. Entries of other kinds are left out.

    One whose manifest or config is damaged is listed, so that it can be removed or mended.
    """
    index = packages(store.index())
    model = [e for e in index if e.artifact_type in (None, MODEL_MANIFEST) and e.media_type == OCI_MANIFEST]
    found = {}
    for digest in dict.fromkeys(e.digest for e in model):
        refs = tuple(e.ref for e in model if e.digest == digest and e.ref)
        try:
            manifest = read_manifest(store, digest)
            if manifest.artifact_type == MODEL_MANIFEST:
                found[digest] = Packed(digest, *read_name(store, manifest), refs, size_of(manifest))
        except MlpackerError as error:
            found[digest] = Packed(digest, None, None, refs, 0, error.sentence)
    return tuple(found.values())


def size_of(manifest: ImageManifest) -> int:
    """Bytes of the files and the config a manifest names."""
    return manifest.config.size + sum(d.size for d in manifest.layers)


# --- keep


def references(data: bytes) -> set[str]:
    """The digests a manifest or an image index of any tool names."""
    value = parse_json(data, "The manifest", MAX_MANIFEST_BYTES)
    if not isinstance(value, dict):
        raise BadInput("The manifest is not an object.")
    named = [
        value.get("config"),
        *(_list(value.get("layers"))),
        *(_list(value.get("manifests"))),
        *_list(value.get("blobs")),
    ]
    return {d["digest"] for d in named if isinstance(d, dict) and isinstance(d.get("digest"), str)}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def check_complete(store: Store, digest: str) -> None:
    """Raises StoreFailed where a blob the manifest names is missing, BadInput where one is not of the size it says."""
    manifest = read_manifest(store, digest)
    for d in (manifest.config, *manifest.layers):
        try:
            size = store.read(d.digest).size
        except NotFound as cause:
            raise StoreFailed(
                f"The store holds no {short(d.digest)}, which {short(digest)} needs.",
                "It may have been collected meanwhile; do it again.",
            ) from cause
        if size != d.size:
            raise BadInput(f"{short(d.digest)} has {size} bytes, the manifest {short(digest)} says {d.size}.")


def reachable(store: Store, index: Index) -> set[str]:
    """The digests of every blob the index's entries name, directly or through an image index."""
    found: set[str] = set()
    waiting = [e.digest for e in index]
    kinds = {e.digest: e.media_type for e in index}
    while waiting:
        digest = waiting.pop()
        found.add(digest)
        if kinds.get(digest, "").endswith("+json"):
            data = read_bytes(store, digest, MAX_MANIFEST_BYTES)
            named = references(data)
            if kinds[digest] == OCI_INDEX:
                kinds.update((d, OCI_MANIFEST) for d in named - kinds.keys())
                waiting.extend(named - found)
            found |= named
    return found


def collect(
    store: Store, now: float, *, grace: float = GRACE, unnamed: bool = False, dry_run: bool = False
) -> tuple[Blob, ...]:
    """Remove the blobs nothing names, and return them; with `unnamed`, also the packages without a name.

    now: seconds since the epoch. Safe while others write: then only what is older than `grace` seconds goes, and naming a
    package checks that it is all there. dry_run: remove nothing. Raises StoreFailed, with nothing removed, where a manifest
    can't be read, since what it names is then not known.
    """
    if unnamed and not dry_run:
        store.edit(without_unnamed)

    def live(index: Index) -> set[str]:
        return reachable(store, without_unnamed(index) if unnamed else index)

    return store.sweep(live, now - grace, dry_run=dry_run)


def without_unnamed(index: Index) -> Index:
    """The index without packages that have no name, and what refers to them."""
    named = {e.digest for e in index if e.ref}
    gone = {e.digest for e in packages(index) if e.digest not in named}
    return without_orphans(tuple(e for e in index if e.digest not in gone), gone)


@dataclass(frozen=True)
class Verified:
    """blobs, size: how many were read, and their bytes."""

    blobs: int
    size: int


def verify(store: Store, digest: str, *, progress: Progress = no_progress) -> Verified:
    """Read every byte of a package and of what refers to it. Raises StoreFailed naming all that is damaged or missing."""
    manifests = [digest, *(e.digest for e in referring(store.index(), digest))]
    wanted: dict[str, tuple[str, int]] = {}
    damaged: list[str] = []
    for each in manifests:
        try:
            manifest = read_manifest(store, each)
        except MlpackerError as error:
            damaged.append(f"the manifest {short(each)} ({error.sentence})")
            continue
        for d in (manifest.config, *manifest.layers):
            wanted[d.digest] = (d.annotations.get(FILEPATH, short(d.digest)), d.size)
    total, done = sum(size for _, size in wanted.values()), 0
    for each, (what, size) in wanted.items():
        try:
            if sum(len(chunk) for chunk in store.read(each)) != size:
                damaged.append(f"{what} (another size)")
        except MlpackerError as error:
            damaged.append(f"{what} ({error.sentence})")
        done += size
        progress(done, total)
    if damaged:
        raise StoreFailed(
            f"{len(damaged)} of {len(wanted) + len(manifests)} parts of {short(digest)} are not whole: {'; '.join(damaged)}.",
            "Load, pull or pack it again: that mends it.",
            damaged=damaged,
        )
    return Verified(len(wanted) + len(manifests), total)


def referring(index: Index, digest: str, without: Collection[str] = ()) -> Index:
    """The entries that refer to the digest, and to these, in the order of recording; not of the artifact types `without`."""
    found = {digest}
    while True:
        new = {e.digest for e in index if e.subject in found and e.artifact_type not in without} - found
        if not new:
            return tuple(e for e in index if e.subject is not None and e.digest in found)
        found |= new
