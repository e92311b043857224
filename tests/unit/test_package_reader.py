"""The reader believes nothing of a package folder but what the digest says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpacker_runtime import package as reader
from mlpacker_runtime.errors import BadInput, NotFound, StoreFailed
from mlpacker_runtime.package import Package, digest_of

FILES = {
    "mlpacker.json": b"{}",
    "models/forest/model.joblib": b"trees",
    "code/clean.py": b"x = 1\n",
    "empty": b"",
}


def manifest_of(files: dict[str, bytes], **changes: Any) -> bytes:
    layers = [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": digest_of(data),
            "size": len(data),
            "annotations": {reader.FILEPATH: path},
        }
        for path, data in files.items()
    ]
    value = {
        "schemaVersion": 2,
        "mediaType": reader.OCI_MANIFEST,
        "artifactType": reader.MODEL_MANIFEST,
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": digest_of(b"{}"),
            "size": 2,
        },
        "layers": layers,
    }
    return json.dumps({**value, **changes}).encode()


def lay_out(folder: Path, files: dict[str, bytes], manifest: bytes | None = None) -> str:
    data = manifest_of(files) if manifest is None else manifest
    folder.mkdir(exist_ok=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "manifest.json").write_bytes(data)
    return digest_of(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "package"


@pytest.fixture
def package(folder: Path) -> Package:
    return Package.open(folder, lay_out(folder, FILES))


def test_a_package_gives_its_files_as_they_were_packed(package: Package) -> None:
    assert package.paths == tuple(sorted(FILES))
    assert {p: package.read(p) for p in package.paths} == FILES
    package.verify()


def test_a_file_on_disk_is_given_once_it_is_verified(package: Package, folder: Path) -> None:
    assert package.file("code/clean.py") == folder / "code/clean.py"


def test_a_folder_is_given_with_everything_in_it_verified(package: Package, folder: Path) -> None:
    assert package.file("models") == folder / "models"
    (folder / "models/forest/model.joblib").write_bytes(b"weeds")
    with pytest.raises(StoreFailed, match="not what the package's digest says"):
        Package.open(folder, package.digest).file("models")


def test_a_stray_file_in_a_folder_that_code_imports_from_is_refused(package: Package, folder: Path) -> None:
    (folder / "code/os.py").write_text("planted")
    with pytest.raises(StoreFailed, match=r"code/os\.py is not of the package"):
        package.file("code")
    with pytest.raises(StoreFailed, match=r"code/os\.py is not of the package"):
        package.verify()


def test_what_python_writes_beside_imported_code_does_not_count_as_stray(
    package: Package, folder: Path
) -> None:
    (folder / "code/__pycache__").mkdir()
    (folder / "code/__pycache__/clean.cpython-311.pyc").write_bytes(b"")
    package.file("code")


def test_a_manifest_that_is_not_the_digests_is_refused(folder: Path) -> None:
    lay_out(folder, FILES)
    with pytest.raises(StoreFailed, match=r"manifest\.json"):
        Package.open(folder, digest_of(b"another"))


def test_what_is_no_digest_is_refused(folder: Path) -> None:
    lay_out(folder, FILES)
    for text in ("", "latest", "sha256:12", "sha256:" + "G" * 64, "sha256:" + "0" * 64 + "\n"):
        with pytest.raises(BadInput, match="is no digest"):
            Package.open(folder, text)


def test_a_folder_without_a_package_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Package.open(tmp_path / "nowhere", digest_of(b""))
    with pytest.raises(NotFound):
        Package.open(tmp_path, digest_of(b""))


def test_a_path_that_is_not_in_the_package_is_not_found(package: Package) -> None:
    for path in ("", "nothing", "../package/mlpacker.json", "/etc/passwd", "manifest.json", "models/"):
        with pytest.raises(NotFound):
            package.read(path)
        with pytest.raises(NotFound):
            package.file(path)


@pytest.mark.parametrize("data", [b"", b"tree", b"Trees", b"trees and more"])
def test_a_file_with_other_bytes_is_refused_on_every_read(
    package: Package, folder: Path, data: bytes
) -> None:
    assert package.read("models/forest/model.joblib") == b"trees"
    (folder / "models/forest/model.joblib").write_bytes(data)
    for look in (package.read, package.file, lambda _: package.verify()):
        with pytest.raises(
            StoreFailed, match=r"model\.joblib is not what the package's digest says"
        ) as error:
            look("models/forest/model.joblib")
        assert "Remove" in error.value.next_step


def linked(place: Path) -> None:
    aside = place.with_name("aside")
    place.rename(aside)
    place.symlink_to(aside)


def removed(place: Path) -> None:
    place.unlink()


def piped(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def foldered(place: Path) -> None:
    place.unlink()
    place.mkdir()


@pytest.mark.parametrize("harm", [linked, removed, piped, foldered])
def test_anything_but_a_plain_file_in_its_place_is_refused(
    package: Package, folder: Path, harm: Callable[[Path], None]
) -> None:
    harm(folder / "code/clean.py")
    for look in (package.read, package.file):
        with pytest.raises(StoreFailed):
            look("code/clean.py")


def test_a_linked_folder_on_the_way_is_refused_though_the_bytes_are_right(
    package: Package, folder: Path
) -> None:
    linked(folder / "models")
    with pytest.raises(StoreFailed):
        package.read("models/forest/model.joblib")


def test_a_linked_manifest_is_refused(folder: Path) -> None:
    digest = lay_out(folder, FILES)
    linked(folder / "manifest.json")
    with pytest.raises(StoreFailed):
        Package.open(folder, digest)


BAD_PATHS = [
    "", "/etc/passwd", "..", "../x", "a/../b", "a//b", "a/", "./a", "a/.", "a\0b", "a\\b", "C:\\x", "a\nb", "\x7f",
    "manifest.json", "nul", "a/CON.txt", "lpt1.tar.gz", "a" * 256, "a/" * 600 + "b", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_an_unsafe_path_is_refused(path: str) -> None:
    with pytest.raises(BadInput):
        reader.check_paths([path])


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "a"),
        ("a", "A"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("x/a", "X/b"),
        ("ß", "ss"),
        ("e\u0301", "\u00e9"),
        ("Manifest.json",),
    ],
)
def test_paths_that_can_not_stand_side_by_side_everywhere_are_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(BadInput):
        reader.check_paths(paths)


def test_ordinary_paths_are_let_through() -> None:
    paths = (
        "mlpacker.json",
        "models/f/m.joblib",
        "models/f/manifest.json",
        "env/null.json",
        "daten/größe é.csv",
        "a..b/...c",
        ".x",
    )
    assert reader.check_paths(paths) == paths


DESCRIPTOR = {"mediaType": "a/b", "digest": digest_of(b""), "size": 0}
BAD_MANIFESTS = {
    "not JSON": b"{",
    "not UTF-8": b'{"schemaVersion": 2, "\xff": 1}',
    "not an object": b"[]",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "huge numbers": manifest_of({}).replace(b'"size": 2', b'"size": ' + b"9" * 5000),
    "a key twice": manifest_of(FILES).replace(b"{", b'{"config": {}, ', 1),
    "another schema": manifest_of(FILES, schemaVersion=1),
    "an index": manifest_of(FILES, mediaType="application/vnd.oci.image.index.v1+json"),
    "another artifact": manifest_of(FILES, artifactType="application/x"),
    "no layers": manifest_of(FILES, layers=None),
    "too many layers": manifest_of(FILES, layers=[DESCRIPTOR] * (reader.MAX_FILES + 1)),
    "a layer that is none": manifest_of(FILES, layers=["x"]),
    "a layer without a name": manifest_of(FILES, layers=[{**DESCRIPTOR, "mediaType": "a/b.raw"}]),
    "an archive as a layer": manifest_of(FILES, layers=[{**DESCRIPTOR, "mediaType": "a/b.tar"}]),
    "annotations that are none": manifest_of(FILES, annotations={"a": 1}),
    "a negative size": manifest_of(FILES, layers=[{**DESCRIPTOR, "size": -1}]),
    "a size that is true": manifest_of(FILES, layers=[{**DESCRIPTOR, "size": True}]),
    "a size beyond all measure": manifest_of(FILES, layers=[{**DESCRIPTOR, "size": 1 << 60}]),
    "a total beyond all measure": manifest_of(FILES, layers=[{**DESCRIPTOR, "size": reader.MAX_FILE_BYTES}] * 5),
    "another hash": manifest_of(FILES, layers=[{**DESCRIPTOR, "digest": "md5:00"}]),
    "no config": manifest_of(FILES, config=None),
    "a subject that is none": manifest_of(FILES, subject="x"),
    "an unsafe path": manifest_of({"../x": b""}),
    "NaN": manifest_of(FILES).replace(b'"size": 2', b'"size": NaN'),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_a_manifest_that_describes_no_safe_package_is_refused_though_its_digest_is_right(
    folder: Path, what: str
) -> None:
    digest = lay_out(folder, {}, BAD_MANIFESTS[what])
    with pytest.raises(BadInput):
        Package.open(folder, digest)


def test_a_manifest_larger_than_registries_take_is_refused(folder: Path) -> None:
    digest = lay_out(folder, {}, manifest_of(FILES) + b" " * reader.MAX_MANIFEST_BYTES)
    with pytest.raises(StoreFailed):
        Package.open(folder, digest)
