"""Stores: the contract every one keeps, and one in memory.

A store of your own: subclass `StoreContract` in a test module, give it a fixture `store`, and pytest runs the rules.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlpacker.errors import NotFound, StoreFailed
from mlpacker.stores import REF_NAME, Blob, Entry, Index, Store, digest_of, has, read_bytes
from mlpacker_runtime.package import OCI_MANIFEST


class MemoryStore:
    """A `Store` in memory. clock: seconds since the epoch, for the age of blobs."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.blobs: dict[str, bytes] = {}
        self._put_at: dict[str, float] = {}
        self._index: Index = ()
        self._clock = clock
        self._lock = threading.Lock()
        self._writing: set[int] = set()

    def put(self, chunks: Iterable[bytes], digest: str | None = None) -> Blob:
        self._writing.add(threading.get_ident())
        data = b"".join(chunks)
        found = digest_of(data)
        if digest not in (None, found):
            raise StoreFailed(f"The bytes are {found}, not {digest}.")
        self.blobs[found] = data
        self._put_at[found] = self._clock()
        return Blob(found, len(data))

    def read(self, digest: str) -> MemoryBlob:
        if digest not in self.blobs:
            raise NotFound(f"The store holds no {digest}.")
        return MemoryBlob(digest, self.blobs[digest])

    def index(self) -> Index:
        return self._index

    def edit(self, change: Callable[[Index], Index]) -> Index:
        with self._lock:
            self._writing.discard(threading.get_ident())
            self._index = change(self._index)
            return self._index

    def sweep(
        self, live: Callable[[Index], Set[str]], older_than: float, *, dry_run: bool = False
    ) -> tuple[Blob, ...]:
        with self._lock:
            keep = live(self._index)
            before = older_than if self._writing else math.inf
            going = [d for d in self.blobs if d not in keep and self._put_at.get(d, 0) < before]
            removed = tuple(Blob(d, len(self.blobs[d])) for d in going)
            for digest in () if dry_run else going:
                del self.blobs[digest]
            return removed


class MemoryBlob:
    """See `Reading`."""

    def __init__(self, digest: str, data: bytes) -> None:
        self.digest = digest
        self.data = data
        self.size = len(data)

    def __iter__(self) -> Iterator[bytes]:
        hashed = hashlib.sha256()
        for at in range(0, self.size, 1 << 16):
            chunk = self.data[at : at + (1 << 16)]
            hashed.update(chunk)
            yield chunk
        if f"sha256:{hashed.hexdigest()}" != self.digest:
            raise StoreFailed(f"{self.digest} is damaged.")


def entry(blob: Blob, ref: str) -> Entry:
    return Entry(OCI_MANIFEST, blob.digest, blob.size, None, {REF_NAME: ref})


class StoreContract:
    """The rules. A subclass gives the fixture `store`, a fresh one for each test."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("give a fixture `store`")

    def test_what_was_put_is_read_back_under_its_sha256(self, store: Store) -> None:
        blob = store.put([b"ab", b"", b"c"])
        assert blob == Blob(digest_of(b"abc"), 3)
        reading = store.read(blob.digest)
        assert reading.size == 3
        assert b"".join(reading) == b"abc"

    def test_a_reading_can_be_repeated(self, store: Store) -> None:
        reading = store.read(store.put([b"abc"]).digest)
        assert b"".join(reading) == b"".join(reading) == b"abc"

    def test_nothing_at_all_is_a_blob_too(self, store: Store) -> None:
        blob = store.put([])
        assert (blob.size, b"".join(store.read(blob.digest))) == (0, b"")

    def test_putting_the_same_again_changes_nothing(self, store: Store) -> None:
        assert store.put([b"abc"]) == store.put([b"a", b"bc"])
        assert read_bytes(store, digest_of(b"abc"), 3) == b"abc"

    def test_a_blob_larger_than_any_buffer_comes_back_whole(self, store: Store) -> None:
        data = bytes(range(256)) * (20 << 10)
        blob = store.put(data[at : at + 100_001] for at in range(0, len(data), 100_001))
        assert b"".join(store.read(blob.digest)) == data

    def test_bytes_that_are_not_the_digest_promised_are_refused_and_not_kept(self, store: Store) -> None:
        with pytest.raises(StoreFailed):
            store.put([b"abc"], digest_of(b"abd"))
        assert not has(store, digest_of(b"abc"))
        assert not has(store, digest_of(b"abd"))

    def test_a_source_that_breaks_leaves_nothing(self, store: Store) -> None:
        def broken() -> Iterator[bytes]:
            yield b"abc"
            raise RuntimeError("the source broke")

        with pytest.raises(RuntimeError, match="the source broke"):
            store.put(broken())
        assert not has(store, digest_of(b"abc"))

    @pytest.mark.parametrize(
        "digest", ["", "sha256:", "sha256:../../etc/passwd", "sha256:" + "0" * 64, "md5:00"]
    )
    def test_what_is_not_there_is_not_found(self, store: Store, digest: str) -> None:
        with pytest.raises(NotFound):
            store.read(digest)

    def test_a_new_store_has_an_empty_index(self, store: Store) -> None:
        assert store.index() == ()

    def test_the_index_keeps_its_order_and_every_part_of_an_entry(self, store: Store) -> None:
        blob = store.put([b"{}"])
        entries = (
            Entry("b/b", blob.digest, 2, "a/type", {"k": "v", REF_NAME: "b:1"}),
            entry(blob, "a:1"),
        )
        assert store.edit(lambda index: (*index, *entries)) == entries
        assert store.index() == entries

    def test_a_change_that_raises_leaves_the_index_as_it_was(self, store: Store) -> None:
        blob = store.put([b"x"])
        before = store.edit(lambda index: (*index, entry(blob, "x:1")))

        def fails(index: Index) -> Index:
            raise StoreFailed("No.")

        with pytest.raises(StoreFailed, match="No"):
            store.edit(fails)
        assert store.index() == before
        assert store.edit(lambda index: index) == before  # nobody holds the lock any more

    def test_edits_at_the_same_time_all_count(self, store: Store) -> None:
        blob = store.put([b"x"])

        def add(number: int) -> None:
            store.edit(lambda index: (*index, entry(blob, f"x:{number}")))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(40)))
        assert {e.ref for e in store.index()} == {f"x:{n}" for n in range(40)}

    def test_a_sweep_takes_what_is_not_live(self, store: Store) -> None:
        kept, other = store.put([b"kept"]), store.put([b"other"])
        store.edit(lambda index: index)
        assert store.sweep(lambda _: {kept.digest}, older_than=0) == (other,)
        assert has(store, kept.digest)
        assert not has(store, other.digest)

    def test_while_somebody_writes_a_sweep_leaves_what_is_young(self, store: Store) -> None:
        blob = store.put([b"about to be named"])
        assert store.sweep(lambda _: set(), older_than=time.time() - 60) == ()
        assert has(store, blob.digest)
        assert store.sweep(lambda _: set(), older_than=time.time() + 60) == (blob,)

    def test_a_writer_is_at_work_until_it_edits_whoever_else_edits(self, store: Store) -> None:
        blob = store.put([b"about to be named"])
        with ThreadPoolExecutor(1) as pool:
            pool.submit(store.edit, lambda index: index).result()
            assert pool.submit(store.sweep, lambda _: set(), older_than=0).result() == ()
            with pytest.raises(StoreFailed):
                store.edit(self._fails)
            assert pool.submit(store.sweep, lambda _: set(), older_than=0).result() == (blob,)

    @staticmethod
    def _fails(index: Index) -> Index:
        raise StoreFailed("No.")

    def test_a_dry_sweep_tells_what_would_go_and_takes_nothing(self, store: Store) -> None:
        blob = store.put([b"x"])
        store.edit(lambda index: index)
        assert store.sweep(lambda _: set(), older_than=0, dry_run=True) == (blob,)
        assert has(store, blob.digest)

    def test_a_sweep_is_told_the_index_of_its_moment(self, store: Store) -> None:
        blob = store.put([b"x"])
        store.edit(lambda index: (*index, entry(blob, "x:1")))
        assert store.sweep(lambda index: {e.digest for e in index}, older_than=time.time() + 60) == ()

    def test_a_sweep_that_can_not_tell_what_is_live_takes_nothing(self, store: Store) -> None:
        blob = store.put([b"x"])

        def fails(index: Index) -> set[str]:
            raise StoreFailed("A manifest is damaged.")

        with pytest.raises(StoreFailed):
            store.sweep(fails, older_than=time.time() + 60)
        assert has(store, blob.digest)

    def test_a_sweep_of_an_empty_store_takes_nothing(self, store: Store) -> None:
        assert store.sweep(lambda _: set(), older_than=time.time() + 60) == ()

    def test_many_writers_of_the_same_bytes_do_not_disturb_each_other(self, store: Store) -> None:
        data = b"z" * 300_000
        with ThreadPoolExecutor(8) as pool:
            blobs = set(pool.map(lambda _: store.put([data]), range(24)))
        assert blobs == {Blob(digest_of(data), len(data))}
        assert b"".join(store.read(digest_of(data))) == data
