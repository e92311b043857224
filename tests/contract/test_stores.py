"""Every store keeps the store's contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpacker.errors import StoreFailed
from mlpacker.stores import read_bytes
from mlpacker.stores.layout import LayoutStore
from mlpacker.testing.stores import MemoryStore, StoreContract


class TestLayoutStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LayoutStore:
        return LayoutStore(tmp_path / "home" / "store")

    def test_a_damaged_blob_is_noticed_at_the_last_step_and_mended_by_putting_it_again(
        self, store: LayoutStore
    ) -> None:
        blob = store.put([b"abc"])
        place = store.root / "blobs" / "sha256" / blob.digest[7:]
        place.unlink()
        place.write_bytes(b"abd")
        with pytest.raises(StoreFailed, match="damaged"):
            read_bytes(store, blob.digest, 3)
        store.put([b"abc"])
        assert read_bytes(store, blob.digest, 3) == b"abc"


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    def test_a_damaged_blob_is_noticed_at_the_last_step(self, store: MemoryStore) -> None:
        blob = store.put([b"abc"])
        store.blobs[blob.digest] = b"abd"
        with pytest.raises(StoreFailed, match="damaged"):
            read_bytes(store, blob.digest, 3)
