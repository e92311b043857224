"""Packages to a registry and back, with what refers to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from mlpacker_runtime.package import (
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    digest_of,
    package_files,
    parse_image_manifest,
)

from ..errors import BadDescription, BadInput, MlpackerError, NotFound, StoreFailed
from . import Progress, Store, no_progress, put_bytes, read_bytes
from .arrivals import MAX_MANIFESTS, Arrival, record
from .packages import read_manifest, read_name, referring
from .referrers import type_of
from .refs import LATEST, NAME, Ref, short
from .registry import Registry


@dataclass(frozen=True)
class Pushed:
    """place: HOST/REPOSITORY:TAG@DIGEST. sent: bytes that were not there yet. referrers: how many went along."""

    place: str
    digest: str
    sent: int
    referrers: int


@dataclass(frozen=True)
class Pulled:
    """ref: what the package is called here. received: bytes. skipped: why referrers were left where they are."""

    digest: str
    ref: str
    received: int
    referrers: int
    skipped: tuple[str, ...] = ()


def push(
    store: Store,
    digest: str,
    registry: Registry,
    *,
    without: Collection[str] = (),
    progress: Progress = no_progress,
) -> Pushed:
    """Push a package, then what refers to it. The tag is the registry's remote's, else the version, else `latest`.

    without: artifact types left here. The manifest goes last, so a tag never names what is not all there. Raises NotFound,
    StoreFailed, BadDescription where the remote names a digest that is not this package's.
    """
    if registry.remote.digest not in (None, digest):
        raise BadDescription(
            f"{registry.remote} asks for another package than {short(digest)}.", "Leave @sha256:… out."
        )
    manifest = read_manifest(store, digest)
    hanging = [(e, read_manifest(store, e.digest)) for e in referring(store.index(), digest, without)]
    blobs = {d.digest: d.size for m in (manifest, *(m for _, m in hanging)) for d in (m.config, *m.layers)}
    sent = _push_blobs(store, blobs, registry, progress)
    tag = registry.remote.tag or read_name(store, manifest)[1] or LATEST
    registry.put_manifest(tag, read_bytes(store, digest, MAX_MANIFEST_BYTES))
    for entry, each in hanging:
        described = Descriptor(OCI_MANIFEST, entry.digest, entry.size, each.annotations, type_of(each))
        assert each.subject is not None
        data = read_bytes(store, entry.digest, MAX_MANIFEST_BYTES)
        registry.add_referrer(entry.digest, each.subject, data, described)
    place = replace(registry.remote, tag=tag, digest=digest)
    return Pushed(str(place), digest, sent, len(hanging))


def _push_blobs(store: Store, blobs: dict[str, int], registry: Registry, progress: Progress) -> int:
    done = sent = 0
    total = sum(blobs.values())
    for digest, size in blobs.items():
        if not registry.has_blob(digest):
            registry.put_blob(digest, size, store.read(digest).__iter__, _from(done, total, progress))
            sent += size
        done += size
        progress(done, total)
    return sent


def _from(start: int, total: int, progress: Progress) -> Callable[[int], None]:
    return lambda sent: progress(start + sent, total)


def pull(store: Store, registry: Registry, *, move: bool = False, progress: Progress = no_progress) -> Pulled:
    """Pull a package, by the remote's digest or tag (else `latest`), and what refers to it.

    Every blob is verified before it is kept, and nothing has a name before all is there. The package is called here as it
    was packed. Raises NotFound, StoreFailed, BadInput where it is no package of plain files, BadDescription where its name
    is another package's here and `move` is not given.
    """
    remote = registry.remote
    data = registry.get_manifest(remote.digest or remote.tag or LATEST)
    manifest = parse_image_manifest(data)
    package_files(manifest)
    digest = digest_of(data)
    skipped: list[str] = []
    hanging = list(_pull_referrers(registry, digest, skipped))
    manifests = [(data, manifest), *hanging]
    blobs = {d.digest: d.size for _, m in manifests for d in (m.config, *m.layers)}
    received = _pull_blobs(store, blobs, registry, progress)
    arrivals = [Arrival(put_bytes(store, d), m) for d, m in manifests]
    ref = _own_ref(store, manifest, registry)
    record(store, [replace(arrivals[0], ref=ref), *arrivals[1:]], move)
    return Pulled(digest, ref.tag, received, len(hanging), tuple(skipped))


def _own_ref(store: Store, manifest: ImageManifest, registry: Registry) -> Ref:
    """The name it was packed under; of a package another tool made without one, the repository's last part and the tag."""
    name, version = read_name(store, manifest)
    if name is not None:
        return Ref(name, version)
    last = registry.remote.repository.rpartition("/")[2]
    if not NAME.fullmatch(last):
        raise BadInput(f"The package at {registry.remote} has no name.")
    return Ref(last, registry.remote.tag)


def _pull_referrers(
    registry: Registry, digest: str, skipped: list[str]
) -> Iterator[tuple[bytes, ImageManifest]]:
    """What refers to the digest, and to that. What is no artifact we can keep stays away: anybody may hang one on."""
    waiting = [digest]
    seen = {digest}
    while waiting:
        subject = waiting.pop(0)
        for each in registry.referrers(subject):
            if each.digest in seen:
                continue
            if len(seen) > MAX_MANIFESTS:
                raise StoreFailed(f"More than {MAX_MANIFESTS} artifacts refer to {short(digest)}.")
            seen.add(each.digest)
            try:
                data = registry.get_manifest(each.digest)
                manifest = parse_image_manifest(data)
                if manifest.subject is None or manifest.subject.digest != subject:
                    raise BadInput(f"{short(each.digest)} does not refer to {short(subject)}.")
            except (BadInput, NotFound) as error:
                skipped.append(error.sentence)
                continue
            yield data, manifest
            waiting.append(each.digest)


def _pull_blobs(store: Store, blobs: dict[str, int], registry: Registry, progress: Progress) -> int:
    done = received = 0
    total = sum(blobs.values())
    for digest, size in blobs.items():
        if not is_whole(store, digest):
            store.put(_counted(registry.get_blob(digest, size), done, total, progress), digest)
            received += size
        done += size
        progress(done, total)
    return received


def _counted(chunks: Iterable[bytes], done: int, total: int, progress: Progress) -> Iterator[bytes]:
    for chunk in chunks:
        done += len(chunk)
        progress(done, total)
        yield chunk


def is_whole(store: Store, digest: str) -> bool:
    """Whether the blob is there, every byte as it must be. A damaged one is fetched again, which mends it."""
    try:
        for _ in store.read(digest):
            pass
    except MlpackerError:
        return False
    return True
