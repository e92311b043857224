"""The folder is an OCI image layout that only its owner reads and no kill can break."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from mlpacker.errors import NotFound, StoreFailed
from mlpacker.stores import digest_of, has
from mlpacker.stores.layout import LayoutStore
from mlpacker.stores.materialise import materialise, prune
from mlpacker.stores.packages import PackageFile, collect, list_packages, remove, write_package
from mlpacker_runtime.package import Package

FILES = {"mlpacker.json": PackageFile(b"{}", "weight.config"), "models/f/model.joblib": PackageFile(b"trees")}


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "home" / "store")


def test_the_folder_is_an_oci_layout(store: LayoutStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.root / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    (entry,) = index["manifests"]
    assert entry["digest"] == digest
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "iris:1.0"}
    for blob in (store.root / "blobs" / "sha256").iterdir():
        assert digest_of(blob.read_bytes()) == f"sha256:{blob.name}"


def test_files_two_packages_share_are_kept_once(store: LayoutStore) -> None:
    write_package(store, "iris", "1.0", FILES)
    write_package(store, "iris", "2.0", FILES)
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == 2 + 2 * 2


def test_only_the_owner_may_look_into_the_store(store: LayoutStore) -> None:
    store.put([b"x"])
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_a_folder_others_could_look_into_is_closed(store: LayoutStore) -> None:
    store.root.mkdir(parents=True, mode=0o755)
    store.put([b"x"])
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_reading_a_store_that_is_not_there_makes_nothing(store: LayoutStore) -> None:
    assert store.index() == ()
    assert list_packages(store) == ()
    assert collect(store, time.time()) == ()
    with pytest.raises(NotFound):
        store.read(digest_of(b""))
    assert not store.root.exists()


def test_a_damaged_index_is_said_to_be_damaged(store: LayoutStore) -> None:
    write_package(store, "iris", "1.0", FILES)
    for data in (b"", b"{", b"[]", b'{"manifests": [{}]}'):
        (store.root / "index.json").write_bytes(data)
        with pytest.raises(StoreFailed, match="damaged"):
            store.index()
        with pytest.raises(StoreFailed, match="damaged"):
            write_package(store, "iris", "2.0", FILES)


def test_a_blob_that_is_a_link_is_refused(store: LayoutStore, tmp_path: Path) -> None:
    blob = store.put([b"abc"])
    place = store.root / "blobs" / "sha256" / blob.digest[7:]
    (tmp_path / "elsewhere").write_bytes(b"abc")
    place.unlink()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreFailed):
        store.read(blob.digest)


def test_a_full_or_closed_disk_is_a_sentence(store: LayoutStore, tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")  # a file where the folder belongs
    with pytest.raises(StoreFailed, match="Could not write to"):
        store.put([b"x"])


def test_what_interrupted_writers_left_is_collected_when_it_is_old(store: LayoutStore) -> None:
    store.put([b"x"])
    left = store.root / ".mlpacker" / "incoming" / "tmpabc"
    left.write_bytes(b"half")
    collect(store, time.time())
    assert left.exists()  # for all it knows, the writer of `x` is at it
    store.edit(lambda index: index)
    collect(store, time.time())
    assert not left.exists()


def test_what_is_removed_can_be_collected_at_once(store: LayoutStore) -> None:
    write_package(store, "iris", "1.0", FILES)
    remove(store, "iris:1.0")
    assert len(collect(store, time.time(), dry_run=True)) == 4
    assert len(collect(store, time.time())) == 4
    assert list((store.root / "blobs" / "sha256").iterdir()) == []


def test_a_writer_that_failed_and_is_gone_keeps_nobody_from_collecting(store: LayoutStore) -> None:
    other = LayoutStore(store.root)
    other.put([b"never named"])
    assert collect(store, time.time()) == ()
    del other
    assert len(collect(store, time.time())) == 1


def test_entries_other_tools_wrote_are_kept_and_so_is_what_they_name(store: LayoutStore) -> None:
    write_package(store, "iris", "1.0", FILES)
    layer, config = store.put([b"layer"]), store.put([b"{}"])
    image = store.put(
        [json.dumps({"config": {"digest": config.digest}, "layers": [{"digest": layer.digest}]}).encode()]
    )
    images = store.put([json.dumps({"manifests": [{"digest": image.digest}]}).encode()])
    index = json.loads((store.root / "index.json").read_bytes())
    foreign = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": images.digest,
        "size": images.size,
    }
    index["manifests"].insert(0, foreign)
    (store.root / "index.json").write_text(json.dumps(index))
    write_package(store, "iris", "2.0", FILES)
    collect(store, time.time() + 7200)
    assert all(has(store, b.digest) for b in (layer, config, image, images))
    assert [p.refs for p in list_packages(store)] == [("iris:1.0",), ("iris:2.0",)]


# --- as a folder


def test_unpacked_folders_nobody_needs_are_removed(store: LayoutStore, tmp_path: Path) -> None:
    out = tmp_path / "packages"
    kept, gone = (write_package(store, "iris", v, FILES) for v in ("1.0", "2.0"))
    places = [materialise(store, d, out) for d in (kept, gone)]
    assert prune(out, {kept}, dry_run=True) > 0
    assert all(p.exists() for p in places)
    assert prune(out, {kept}) > 0
    assert [p.exists() for p in places] == [True, False]
    assert prune(out, {kept}) == prune(tmp_path / "nowhere", ()) == 0


def test_a_materialised_package_is_what_was_packed(store: LayoutStore, tmp_path: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    place = materialise(store, digest, tmp_path / "packages")
    assert place == tmp_path / "packages" / digest.replace(":", "-")
    package = Package.open(place, digest)
    package.verify()
    assert {p: package.read(p) for p in package.paths} == {p: f.data for p, f in FILES.items()}


def test_materialising_again_leaves_the_folder_alone(store: LayoutStore, tmp_path: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    before = materialise(store, digest, tmp_path).stat()
    assert materialise(store, digest, tmp_path).stat().st_ino == before.st_ino
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".making")] == []


@pytest.mark.parametrize("path", ["manifest.json", "models/f/model.joblib"])
def test_a_folder_that_lacks_something_is_made_anew(store: LayoutStore, tmp_path: Path, path: str) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    place = materialise(store, digest, tmp_path)
    (place / path).unlink()
    materialise(store, digest, tmp_path)
    Package.open(place, digest).verify()


def test_writing_to_a_materialised_file_does_not_reach_the_store(store: LayoutStore, tmp_path: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    file = materialise(store, digest, tmp_path) / "models/f/model.joblib"
    assert stat.S_IMODE(file.stat().st_mode) == 0o444
    file.chmod(0o644)
    file.write_bytes(b"weeds")
    Package.open(materialise(store, digest, tmp_path / "again"), digest).verify()


def test_a_damaged_blob_is_never_materialised(store: LayoutStore, tmp_path: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    blob = store.root / "blobs" / "sha256" / digest_of(b"trees")[7:]
    blob.unlink()
    blob.write_bytes(b"weeds")
    with pytest.raises(StoreFailed, match="damaged"):
        materialise(store, digest, tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []


def test_what_a_killed_process_left_half_made_is_removed_the_next_day(
    store: LayoutStore, tmp_path: Path
) -> None:
    left = tmp_path / ".making-abc"
    left.mkdir()
    digest = write_package(store, "iris", "1.0", FILES)
    materialise(store, digest, tmp_path)
    assert left.exists()
    os.utime(left, (0, 0))
    materialise(store, write_package(store, "iris", "2.0", FILES), tmp_path)
    assert not left.exists()
