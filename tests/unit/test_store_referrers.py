"""What hangs on a package does not change its digest, and goes when it goes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mlpacker.errors import BadInput, NotFound, StoreFailed
from mlpacker.stores import Blob, digest_of, has, put_bytes, read_bytes
from mlpacker.stores.packages import (
    PackageFile,
    collect,
    list_packages,
    remove,
    resolve,
    verify,
    write_package,
)
from mlpacker.stores.referrers import (
    WHEELS,
    attach,
    attach_files,
    attached,
    detach,
    entry_of,
    read_referrer,
    referrer_files,
    referrers,
)
from mlpacker.testing.stores import MemoryStore
from mlpacker_runtime.package import parse_image_manifest

FILES = {"mlpacker.json": PackageFile(b"{}", "weight.config")}
PROOF = "application/vnd.mlpacker.proof.v1+json"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def digest(store: MemoryStore) -> str:
    return write_package(store, "iris", "1.0", FILES)


def test_what_is_attached_is_found_by_its_type_the_oldest_first(store: MemoryStore, digest: str) -> None:
    attach(store, digest, PROOF, b"first", {"by": "me"}, name="proof.json")
    attach(store, digest, "application/x", b"other")
    attach(store, digest, PROOF, b"second")
    found = referrers(store, digest, PROOF)
    assert [read_referrer(store, r) for r in found] == [b"first", b"second"]
    assert (found[0].annotations, list(found[0].files)) == ({"by": "me"}, ["proof.json"])
    assert len(referrers(store, digest)) == 3


def test_the_manifest_is_an_oci_artifact_with_a_subject(store: MemoryStore, digest: str) -> None:
    value = json.loads(read_bytes(store, attach(store, digest, PROOF, b"{}"), 1 << 20))
    assert value["artifactType"] == PROOF
    assert value["subject"] == {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": store.read(digest).size,
    }
    assert value["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": digest_of(b"{}"),
        "size": 2,
    }


def test_attaching_changes_neither_the_package_nor_the_list(store: MemoryStore, digest: str) -> None:
    before = list_packages(store)
    attach(store, digest, PROOF, b"{}")
    assert list_packages(store) == before
    assert resolve(store, "iris") == digest


def test_attaching_the_same_again_changes_nothing(store: MemoryStore, digest: str) -> None:
    assert attach(store, digest, PROOF, b"{}") == attach(store, digest, PROOF, b"{}")
    assert len(referrers(store, digest)) == 1


def test_the_new_can_take_the_place_of_the_old_of_its_type(store: MemoryStore, digest: str) -> None:
    attach(store, digest, "application/x", b"kept")
    attach(store, digest, PROOF, b"old")
    attach(store, digest, PROOF, b"new", replace=True)
    assert [read_referrer(store, r) for r in referrers(store, digest)] == [b"kept", b"new"]


def test_what_is_detached_is_gone(store: MemoryStore, digest: str) -> None:
    proof = attach(store, digest, PROOF, b"{}")
    detach(store, proof)
    assert referrers(store, digest) == ()
    with pytest.raises(NotFound):
        detach(store, proof)
    with pytest.raises(NotFound):
        detach(store, digest)


def test_nothing_is_attached_to_what_is_not_there(store: MemoryStore, digest: str) -> None:
    with pytest.raises(NotFound):
        attach(store, digest_of(b"nothing"), PROOF, b"{}")
    remove(store, "iris")
    with pytest.raises(NotFound):
        attach(store, digest, PROOF, b"{}")  # its bytes are still there, it is not


def test_a_removed_package_takes_along_what_hangs_on_it_and_on_that(store: MemoryStore, digest: str) -> None:
    proof = attach(store, digest, PROOF, b"{}")
    signature = attach(store, proof, "application/signature", b"signed")
    other = write_package(store, "wine", "1.0", FILES)
    kept = attach(store, other, PROOF, b"{}")
    remove(store, "iris")
    collect(store, time.time() + 7200)
    assert not has(store, proof)
    assert not has(store, signature)
    assert has(store, kept)


def test_what_hangs_on_a_package_is_not_collected(store: MemoryStore, digest: str) -> None:
    attach(store, digest, PROOF, b"proof")
    collect(store, time.time() + 7200)
    assert read_referrer(store, referrers(store, digest)[0]) == b"proof"


def test_packing_again_keeps_what_hangs_on_it(store: MemoryStore, digest: str) -> None:
    attach(store, digest, PROOF, b"{}")
    write_package(store, "iris", "1.0", FILES)
    assert len(referrers(store, digest)) == 1


def test_verifying_a_package_verifies_what_hangs_on_it(store: MemoryStore, digest: str) -> None:
    attach(store, digest, PROOF, b"proof", name="proof.json")
    store.blobs[digest_of(b"proof")] = b"prooF"
    with pytest.raises(StoreFailed):
        verify(store, digest)


def test_the_files_of_an_artifact_are_written_out_verified(
    store: MemoryStore, digest: str, tmp_path: Path
) -> None:
    (tmp_path / "b").write_bytes(b"from a file")
    attach_files(store, digest, WHEELS, {"a.whl": b"a", "more/b.whl": tmp_path / "b"})
    (wheels,) = referrers(store, digest, WHEELS)
    written = referrer_files(store, wheels, tmp_path / "out")
    assert {n: p.read_bytes() for n, p in written.items()} == {"a.whl": b"a", "more/b.whl": b"from a file"}
    store.blobs[digest_of(b"a")] = b"b"
    with pytest.raises(StoreFailed):
        referrer_files(store, wheels, tmp_path / "again")


@pytest.mark.parametrize("name", ["../x", "/x", "", "a\\b"])
def test_a_file_name_that_leads_out_is_refused(store: MemoryStore, digest: str, name: str) -> None:
    with pytest.raises(BadInput):
        attach_files(store, digest, WHEELS, {name: b""})


def test_the_only_file_needs_no_name_and_several_do(store: MemoryStore, digest: str) -> None:
    attach_files(store, digest, WHEELS, {"a.whl": b"a", "b.whl": b"b"})
    (wheels,) = referrers(store, digest, WHEELS)
    assert read_referrer(store, wheels, "b.whl") == b"b"
    with pytest.raises(BadInput):
        read_referrer(store, wheels)
    with pytest.raises(NotFound):
        read_referrer(store, wheels, "c.whl")


def test_files_a_foreign_tool_named_unsafely_are_called_by_their_digest(
    store: MemoryStore, digest: str, tmp_path: Path
) -> None:
    proof = attach(store, digest, PROOF, b"evil", name="evil")
    data = read_bytes(store, proof, 1 << 20).replace(b'"evil"', b'"../../evil"')
    blob: Blob = put_bytes(store, data)
    store.edit(lambda index: attached(index, entry_of(blob, parse_image_manifest(data))))
    found = referrers(store, digest)[1]
    assert list(found.files) == [digest_of(b"evil").replace(":", "-")]
    assert read_referrer(store, found) == b"evil"
