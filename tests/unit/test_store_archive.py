"""A saved package comes back the same; a hostile or broken tar file leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpacker.errors import BadDescription, BadInput, MlpackerError, NotFound, StoreFailed
from mlpacker.stores import digest_of
from mlpacker.stores.archive import load, save
from mlpacker.stores.packages import PackageFile, list_packages, resolve, verify, write_package
from mlpacker.stores.referrers import WHEELS, attach, attach_files, read_referrer, referrers
from mlpacker.testing.stores import MemoryStore

FILES = {
    "mlpacker.json": PackageFile(b"{}", "weight.config"),
    "models/f/model.joblib": PackageFile(b"trees" * 1000),
}
OTHER = {"mlpacker.json": PackageFile(b"{ }", "weight.config")}
PROOF = "application/vnd.mlpacker.proof.v1+json"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tmp_path / "iris.tar"


def test_a_package_comes_back_with_everything_that_refers_to_it(store: MemoryStore, tar: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    proof = attach(store, digest, PROOF, b'{"equal": true}', {"when": "today"})
    attach(store, proof, "application/signature", b"signed")
    attach_files(store, digest, WHEELS, {"numpy-1.26-py3-none-any.whl": b"wheel", "scipy-1.0.whl": b"other"})
    save(store, digest, tar)
    there = MemoryStore()
    assert load(there, tar) == (digest,)
    assert resolve(there, "iris:1.0") == digest
    (found,) = referrers(there, digest, PROOF)
    assert (found.digest, found.annotations) == (proof, {"when": "today"})
    assert read_referrer(there, found) == b'{"equal": true}'
    assert read_referrer(there, referrers(there, proof)[0]) == b"signed"
    assert sorted(referrers(there, digest, WHEELS)[0].files) == [
        "numpy-1.26-py3-none-any.whl",
        "scipy-1.0.whl",
    ]
    assert verify(there, digest) == verify(store, digest)


def test_the_same_package_is_the_same_tar_file_from_any_store(store: MemoryStore, tmp_path: Path) -> None:
    other = MemoryStore()
    written = []
    for number, each in enumerate((store, other)):
        if number:
            write_package(each, "wine", "1.0", OTHER)
        digest = write_package(each, "iris", "1.0", FILES)
        kinds = [PROOF, "application/x"]
        for kind in kinds[:: -1 if number else 1]:
            attach(each, digest, kind, b"{}")
        written.append(save(each, digest, tmp_path / f"{number}.tar").read_bytes())
    assert written[0] == written[1]


def test_what_is_left_out_stays_here(store: MemoryStore, tar: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    attach_files(store, digest, WHEELS, {"a.whl": b"wheel"})
    attach(store, digest, PROOF, b"{}")
    load(there := MemoryStore(), save(store, digest, tar, without=(WHEELS,)))
    assert [r.artifact_type for r in referrers(there, digest)] == [PROOF]


def test_the_standard_tools_can_read_the_tar_file(store: MemoryStore, tar: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    save(store, digest, tar)
    with tarfile.open(tar) as archive:
        names = archive.getnames()
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in archive} == {(0, 0, 0, 0o644)}
        index = json.load(archive.extractfile("index.json") or io.BytesIO())
    assert names[:2] == ["oci-layout", "index.json"]
    assert names[2:] == sorted(names[2:])
    assert index["manifests"][0]["annotations"] == {"org.opencontainers.image.ref.name": "iris:1.0"}
    assert tar.stat().st_size % 10240 == 0


def test_tar_files_of_other_tools_are_read_too(store: MemoryStore, tar: Path, tmp_path: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    save(store, digest, tar)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tar) as mine, tarfile.open(tmp_path / "other.tar", "w", format=form) as other:
            folder = tarfile.TarInfo("./")
            folder.type = tarfile.DIRTYPE
            other.addfile(folder)
            for member in mine:
                data = mine.extractfile(member)
                member.name = f"./{member.name}"
                member.mtime = 1.5  # a pax record
                member.uname = "ü" * 40
                other.addfile(member, data)
            long = tarfile.TarInfo("x" * 200)
            other.addfile(long)
        assert load(MemoryStore(), tmp_path / "other.tar") == (digest,)


def test_further_names_travel_along(store: MemoryStore, tar: Path) -> None:
    digest = write_package(store, "iris", None, FILES)
    load(there := MemoryStore(), save(store, digest, tar, refs=["iris:production"]))
    assert resolve(there, "iris:production") == resolve(there, "iris:latest") == digest


def test_loading_twice_changes_nothing(store: MemoryStore, tar: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    attach(store, digest, PROOF, b"{}")
    save(store, digest, tar)
    before = store.index()
    load(store, tar)
    assert sorted(e.digest for e in store.index()) == sorted(e.digest for e in before)


def test_a_name_that_is_another_package_here_is_not_taken_over_unless_moved(
    store: MemoryStore, tar: Path
) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    save(store, digest, tar)
    there = MemoryStore()
    other = write_package(there, "iris", "1.0", OTHER)
    with pytest.raises(BadDescription, match=r"iris:1\.0 is another package"):
        load(there, tar)
    assert resolve(there, "iris:1.0") == other
    load(there, tar, move=True)
    assert resolve(there, "iris:1.0") == digest


def test_a_damaged_blob_is_not_saved_and_leaves_no_file(store: MemoryStore, tar: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    store.blobs[digest_of(b"trees" * 1000)] = b"weeds" * 1000
    with pytest.raises(StoreFailed, match="damaged"):
        save(store, digest, tar)
    assert list(tar.parent.iterdir()) == []


def test_saving_over_a_file_replaces_it_whole(store: MemoryStore, tar: Path) -> None:
    tar.write_bytes(b"old")
    digest = write_package(store, "iris", "1.0", FILES)
    save(store, digest, tar)
    assert load(MemoryStore(), tar) == (digest,)


def test_saving_where_nothing_can_be_written_is_a_sentence(store: MemoryStore, tmp_path: Path) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    with pytest.raises(StoreFailed, match="can't be written"):
        save(store, digest, tmp_path / "nowhere" / "x.tar")
    with pytest.raises(NotFound):
        save(store, digest_of(b""), tmp_path / "x.tar")


def test_what_is_no_file_is_said_so(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load(store, tmp_path / "nothing.tar")
    with pytest.raises(MlpackerError):
        load(store, tmp_path)
    with pytest.raises(BadInput, match="not a file"):
        load(store, Path("/dev/zero"))


# --- hostile files


def good(store: MemoryStore, tar: Path) -> dict[str, bytes]:
    digest = write_package(store, "iris", "1.0", FILES)
    attach(store, digest, PROOF, b"{}")
    with tarfile.open(save(store, digest, tar)) as archive:
        return {m.name: (archive.extractfile(m) or io.BytesIO()).read() for m in archive}


def write(tar: Path, contents: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> None:
    with tarfile.open(tar, "w") as archive:
        for member in extra:
            archive.addfile(member)
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def refused(tar: Path) -> MlpackerError:
    there = MemoryStore()
    with pytest.raises(MlpackerError) as error:
        load(there, tar)
    assert there.index() == ()
    assert list_packages(there) == ()
    return error.value


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"V", b"?"],
)
def test_a_member_that_is_no_plain_file_is_refused(store: MemoryStore, tar: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("innocent")
    info.type, info.linkname = kind, "/etc/passwd"
    write(tar, good(store, tar), (info,))
    assert isinstance(refused(tar), BadInput)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b", "a\\b", "blobs/../../x"])
def test_a_member_out_of_the_folder_is_refused(store: MemoryStore, tar: Path, name: str) -> None:
    write(tar, {**good(store, tar), name: b"evil"})
    assert "can't be a path" in str(refused(tar))


def test_the_same_member_twice_is_refused(store: MemoryStore, tar: Path) -> None:
    write(tar, good(store, tar), (tarfile.TarInfo("index.json"),))
    assert "twice" in str(refused(tar))


def test_a_blob_that_is_not_what_its_name_says_is_refused(store: MemoryStore, tar: Path) -> None:
    contents = good(store, tar)
    for name in [n for n in contents if n.startswith("blobs/")]:
        write(tar, {**contents, name: bytes(len(contents[name]))})
        refused(tar)


def test_a_blob_of_another_size_or_none_is_refused(store: MemoryStore, tar: Path) -> None:
    contents = good(store, tar)
    for name in contents:
        write(
            tar,
            {**contents, name: contents[name] + b" "}
            if name.startswith("blobs/")
            else {**contents, name: b""},
        )
        if name != "oci-layout":
            refused(tar)
        write(tar, {n: d for n, d in contents.items() if n != name})
        refused(tar)


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 700, 1024, 3000, -10240, -1024 - 9000])
def test_a_tar_file_cut_short_is_refused(store: MemoryStore, tar: Path, keep: int) -> None:
    good(store, tar)
    data = tar.read_bytes()
    tar.write_bytes(data[:keep])
    refused(tar)


def test_a_compressed_tar_file_is_refused_with_the_way_out(store: MemoryStore, tar: Path) -> None:
    good(store, tar)
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    assert "unpack it first" in str(refused(tar))


def header(**changes: Any) -> bytes:
    info = tarfile.TarInfo(changes.pop("name", "x"))
    for key, value in changes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "data",
    [
        header(size=1 << 40),
        header(size=(1 << 87) - 1),
        header(type=tarfile.XHDTYPE, size=1 << 30) + bytes(4096),
        header(type=tarfile.GNUTYPE_LONGNAME, size=1 << 30) + bytes(4096),
        header(type=tarfile.XHDTYPE, size=512) + b"9999999 path=x\n".ljust(512, b"\0") + bytes(4096),
        header(type=tarfile.XHDTYPE, size=22)
        + b"22 size=1111111111111\n".ljust(512, b"\0")
        + header()
        + bytes(4096),
        header(type=tarfile.XGLTYPE, size=10) + b"10 path=x\n".ljust(512, b"\0") + header() + bytes(4096),
        header(type=tarfile.XHDTYPE, size=26)
        + b"26 GNU.sparse.realsize=99\n".ljust(512, b"\0")
        + header()
        + bytes(4096),
        header(type=tarfile.DIRTYPE, size=512) + bytes(4096),
        b"\xff" * 512,
        b"PK\x03\x04" + bytes(600),
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(tar: Path, data: bytes) -> None:
    tar.write_bytes(data)
    assert isinstance(refused(tar), BadInput)


def test_more_members_than_any_package_has_are_refused(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpacker.stores.tar.MAX_MEMBERS", 10)
    write(tar, {str(n): b"" for n in range(11)})
    assert "more than 10 members" in str(refused(tar))


def edit_index(change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda contents: {
        **contents,
        "index.json": json.dumps(change(json.loads(contents["index.json"]))).encode(),
    }


def with_manifest(value: Any) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    data = json.dumps(value).encode()
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest_of(data),
        "size": len(data),
    }

    def change(contents: dict[str, bytes]) -> dict[str, bytes]:
        index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        return {
            **contents,
            "index.json": index,
            f"blobs/sha256/{digest_of(data)[7:]}": data,
            "blobs/sha256/" + digest_of(b"{}")[7:]: b"{}",
        }

    return change


EMPTY = {"mediaType": "a/b", "digest": digest_of(b"{}"), "size": 2}
NAMED = {**EMPTY, "mediaType": "a/b.raw", "annotations": {"org.cncf.model.filepath": "../../evil"}}
MODEL = {"schemaVersion": 2, "artifactType": "application/vnd.cncf.model.manifest.v1+json", "config": EMPTY}


@pytest.mark.parametrize(
    "harm",
    [
        edit_index(lambda v: []),
        edit_index(lambda v: {**v, "manifests": []}),
        edit_index(lambda v: {**v, "manifests": v["manifests"] * 600}),
        edit_index(lambda v: {**v, "manifests": v["manifests"][1:]}),  # what refers to nothing
        edit_index(lambda v: {**v, "manifests": [{**v["manifests"][0], "size": 1}]}),
        edit_index(lambda v: {**v, "manifests": [{**v["manifests"][0], "digest": "sha256:../../x"}]}),
        edit_index(lambda v: {**v, "manifests": [{**v["manifests"][0], "annotations": {"org.opencontainers.image.ref.name": "../x:1"}}]}),
        with_manifest({}),
        with_manifest({**MODEL, "layers": [NAMED]}),
        with_manifest({**MODEL, "layers": []}),  # a config that names nothing
        with_manifest({**MODEL, "artifactType": "application/x", "layers": []}),
        with_manifest({**MODEL, "subject": EMPTY, "layers": []}),
    ],
)  # fmt: skip
def test_an_index_or_manifest_that_is_not_as_it_must_be_is_refused(
    store: MemoryStore, tar: Path, harm: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    write(tar, harm(good(store, tar)))
    refused(tar)
