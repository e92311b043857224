"""Stores: bytes by their digest, and an index that names some of them.

A store is an OCI image layout in spirit: blobs that never change, and one list of entries (the index) that names manifests.
`layout.py` keeps it in a folder. What a package is, and how it gets in and out, is written over this interface, in plain
functions:

    packages.py     write a package, list, tag, remove, collect garbage, verify
    refs.py         names, versions, and what a REF means
    referrers.py    what hangs on a package without being covered by its digest: proof, golden answers, reports, wheels
    materialise.py  a package as a folder
    archive.py      save to and load from one tar file
    registry.py     push to and pull from an OCI registry
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Protocol

from mlpacker_runtime.package import CHUNK, digest_of, is_digest

from ..errors import NotFound, StoreFailed

REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation by which an OCI layout names an entry; ours are `name:version`."""
SUBJECT = "vnd.mlpacker.subject"
"""The digest an entry's manifest refers to, repeated in the index so that finding referrers reads no manifest."""

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes done and, where known, the bytes there are. `Events.progress` is one."""


def no_progress(done: int, total: int | None) -> None: ...


@dataclass(frozen=True)
class Blob:
    """size: bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A line of the index: a manifest, and what it is called here."""

    media_type: str
    digest: str
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def ref(self) -> str | None:
        """`name:version`, or None where it has no name."""
        return self.annotations.get(REF_NAME)

    @property
    def subject(self) -> str | None:
        """The digest it refers to, or None where it stands for itself."""
        return self.annotations.get(SUBJECT)


Index = tuple[Entry, ...]
"""In the order of recording: the last is the newest."""


class Reading(Protocol):
    """A blob being read. size: bytes. Iterating gives its chunks once or more often, each time from the start.

    The bytes are verified while they are read: the last step raises StoreFailed where they are not what the digest says,
    so nothing read may be used before the iteration has ended.
    """

    @property
    def size(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class Store(Protocol):
    """Bytes by digest, and the index. Safe to use from several processes at once; a kill at any moment leaves it sound.

    Every method raises StoreFailed where the medium fails.
    """

    def put(self, chunks: Iterable[bytes], digest: str | None = None) -> Blob:
        """Keep these bytes. They are there, whole and durable, when it returns, and not at all where it raises.

        Putting bytes that are there already changes nothing but their age (and mends them where they were damaged).
        digest: what they must be; StoreFailed where they are not.
        """

    def read(self, digest: str) -> Reading:
        """Raises NotFound where there is no such blob."""

    def index(self) -> Index:
        """The index as it is now."""

    def edit(self, change: Callable[[Index], Index]) -> Index:
        """Replace the index by `change(index)`, all at once, while nobody else edits or sweeps. Returns the new one.

        Where `change` raises, the index stays as it was. `change` may read, not put, edit or sweep.
        """

    def sweep(
        self, live: Callable[[Index], Set[str]], older_than: float, *, dry_run: bool = False
    ) -> tuple[Blob, ...]:
        """Remove the blobs `live(index)` does not name. Returns them; with dry_run, removes nothing.

        While a writer is at work (it has put, and not edited since), who may be about to name what it put, only those last
        put before `older_than` (seconds, epoch). Nobody edits the index meanwhile. Also removes what interrupted writers left.
        """


def put_bytes(store: Store, data: bytes) -> Blob:
    return store.put((data,))


def read_bytes(store: Store, digest: str, limit: int) -> bytes:
    """A small blob, verified. Raises NotFound, or StoreFailed where it is damaged or longer than `limit` bytes."""
    reading = store.read(digest)
    if reading.size > limit:
        raise StoreFailed(f"{digest} is {reading.size} bytes long; at most {limit} were expected here.")
    return b"".join(reading)


def has(store: Store, digest: str) -> bool:
    """Whether there is such a blob; says nothing about its bytes."""
    try:
        store.read(digest)
    except NotFound:
        return False
    return True


__all__ = [
    "CHUNK", "REF_NAME", "SUBJECT", "Blob", "Entry", "Index", "Progress", "Reading", "Store",
    "digest_of", "has", "is_digest", "no_progress", "put_bytes", "read_bytes",
]  # fmt: skip
