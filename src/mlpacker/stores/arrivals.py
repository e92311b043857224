"""What came from elsewhere, from a tar file or a registry: recorded all together once every byte of it is in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mlpacker_runtime.package import ImageManifest

from ..errors import BadInput
from . import Blob, Index, Store
from .packages import check_complete, recorded
from .referrers import attached, entry_of
from .refs import Ref, short

MAX_MANIFESTS = 1000
"""How many manifests may come at once."""


@dataclass(frozen=True)
class Arrival:
    """A package, and what it shall be called; or what refers to one, without a ref."""

    blob: Blob
    manifest: ImageManifest
    ref: Ref | None = None


def record(store: Store, arrivals: Iterable[Arrival], move: bool) -> None:
    """Name what has been put, in one step. A referrer comes after what it refers to.

    Raises BadDescription where a name is another package's and `move` is not given, StoreFailed where a blob is missing.
    """

    def change(index: Index) -> Index:
        for each in arrivals:
            check_complete(store, each.blob.digest)
            if each.ref is not None:
                index = recorded(index, each.blob, each.ref, move=move)
            else:
                index = attached(index, entry_of(each.blob, each.manifest))
        return index

    store.edit(change)


def after_subjects(waiting: list[Arrival], known: set[str]) -> Iterator[Arrival]:
    """The referrers, each after what it refers to. Raises BadInput for one that refers to nothing that comes along."""
    while waiting:
        ready = [a for a in waiting if a.manifest.subject and a.manifest.subject.digest in known]
        if not ready:
            raise BadInput(f"{short(waiting[0].blob.digest)} refers to nothing that comes with it.")
        yield from ready
        known |= {a.blob.digest for a in ready}
        waiting = [a for a in waiting if a.blob.digest not in known]
