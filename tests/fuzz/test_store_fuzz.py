"""Whatever bytes come: the package reader and the loader answer with an error of ours, or with what the digest says."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlpacker.errors import MlpackerError
from mlpacker.stores import digest_of
from mlpacker.stores.archive import load, save
from mlpacker.stores.credentials import login_in
from mlpacker.stores.layout import decode_index
from mlpacker.stores.packages import PackageFile, list_packages, verify, write_package
from mlpacker.stores.referrers import attach
from mlpacker.stores.refs import parse_ref
from mlpacker.stores.registry_login import parse_challenge
from mlpacker.stores.remotes import parse_remote
from mlpacker.stores.tar import read_members
from mlpacker.testing.stores import MemoryStore
from mlpacker_runtime import package as reader
from mlpacker_runtime.package import Package, check_paths, parse_image_manifest

FILES = {"mlpacker.json": PackageFile(b"{}", "weight.config"), "models/f/model.joblib": PackageFile(b"trees")}
here = settings(suppress_health_check=list(HealthCheck))


def good() -> tuple[bytes, bytes]:
    """A package's manifest, and a tar file that holds it and a referrer."""
    store = MemoryStore()
    digest = write_package(store, "iris", "1.0", FILES)
    attach(store, digest, "application/x", b"proof")
    with tempfile.TemporaryDirectory() as folder:
        return store.blobs[digest], save(store, digest, Path(folder, "x.tar")).read_bytes()


MANIFEST, TAR = good()
with tarfile.open(fileobj=io.BytesIO(TAR)) as _archive:
    MEMBERS = {m.name: (_archive.extractfile(m) or io.BytesIO()).read() for m in _archive}
USED = len(TAR.rstrip(b"\0"))


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """The data with a few pieces cut, doubled, or written over."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        size = draw(st.sampled_from([1, 2, 12, 512]))
        match draw(st.sampled_from(["flip", "write", "cut", "double", "end"])):
            case "flip":
                changed[at : at + 1] = (
                    bytes([changed[at] ^ (1 << draw(st.integers(0, 7)))]) if changed else b""
                )
            case "write":
                changed[at : at + size] = draw(st.binary(min_size=size, max_size=size))
            case "cut":
                del changed[at : at + size]
            case "double":
                changed[at:at] = changed[at : at + size]
            case _:
                del changed[at:]
    return bytes(changed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["sha256:" + "0" * 64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.sampled_from(["digest", "size", "layers", "annotations"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@st.composite
def rewritten(draw: st.DrawFn, value: Any) -> Any:
    """The JSON value with one part of it, somewhere, replaced by another value."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(rewritten(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(rewritten(value[at])), *value[at + 1 :]]
    return draw(json_values)


@here
@given(
    st.binary(max_size=2000)
    | mutated(MANIFEST)
    | rewritten(json.loads(MANIFEST)).map(lambda v: json.dumps(v).encode())
)
def test_a_package_folder_opens_as_safe_paths_or_not_at_all(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_bytes(data)
        try:
            package = Package.open(Path(folder), digest_of(data))
        except MlpackerError:
            return
        for path in package.paths:
            assert not path.startswith("/")
            assert ".." not in path.split("/")
            try:
                package.read(path)
            except MlpackerError:
                continue
            raise AssertionError("nothing is there to be read")


@st.composite
def harmed_folders(draw: st.DrawFn) -> tuple[dict[str, bytes], str, bytes]:
    """Files, the path of one, and what became of it."""
    paths = st.text(max_size=12) | st.sampled_from(["a", "a/b", "../a", "A", "b/c", "b/d"])
    files = draw(st.dictionaries(paths, st.binary(max_size=40), min_size=1, max_size=5))
    harmed = draw(st.sampled_from(sorted(files)))
    return files, harmed, draw(mutated(files[harmed]))


@here
@given(harmed_folders())
def test_a_file_is_what_the_digest_says_or_an_error(folder: tuple[dict[str, bytes], str, bytes]) -> None:
    files, harmed, became = folder
    try:
        check_paths(files)
    except MlpackerError:
        return
    store = MemoryStore()
    digest = write_package(store, "x", None, {p: PackageFile(b) for p, b in files.items()})
    with tempfile.TemporaryDirectory() as root:
        Path(root, "manifest.json").write_bytes(store.blobs[digest])
        for path, content in files.items():
            place = Path(root, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(became if path == harmed else content)
        package = Package.open(Path(root), digest)
        for path, content in files.items():
            try:
                assert package.read(path) == content
            except MlpackerError:
                assert path == harmed


def loads_whole_or_not_at_all(data: bytes) -> None:
    store = MemoryStore()
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder, "x.tar")
        tar.write_bytes(data)
        try:
            digests = load(store, tar)
        except MlpackerError:
            assert store.index() == ()
            return
    assert {p.digest for p in list_packages(store)} == set(digests)
    for digest in digests:
        verify(store, digest)


@here
@given(st.binary(max_size=3000) | mutated(TAR[:USED] + bytes(1024)) | mutated(TAR))
def test_a_tar_file_loads_whole_or_not_at_all(data: bytes) -> None:
    loads_whole_or_not_at_all(data)


def descriptor(kind: dict[str, Any], data: bytes) -> dict[str, Any]:
    return {**kind, "digest": digest_of(data), "size": len(data)}


@st.composite
def other_layouts(draw: st.DrawFn) -> bytes:
    """A whole tar file one part of which says something else, while every digest and size above that part is right."""
    index = json.loads(MEMBERS["index.json"])
    package, referrer = (json.loads(MEMBERS["blobs/sha256/" + e["digest"][7:]]) for e in index["manifests"])
    config = json.loads(MEMBERS["blobs/sha256/" + package["config"]["digest"][7:]])
    part = draw(st.sampled_from(["config", "package", "referrer", "index"]))
    blobs = []

    def written(name: str, value: Any) -> bytes:
        blobs.append(json.dumps(draw(rewritten(value)) if name == part else value).encode())
        return blobs[-1]

    package["config"] = descriptor(package["config"], written("config", config))
    manifest = written("package", package)
    referrer["subject"] = descriptor(referrer["subject"], manifest)
    index["manifests"] = [
        descriptor(index["manifests"][0], manifest),
        descriptor(index["manifests"][1], written("referrer", referrer)),
    ]
    contents = {**MEMBERS, "index.json": written("index", index)}
    contents.update((f"blobs/sha256/{digest_of(b)[7:]}", b) for b in blobs)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@here
@given(other_layouts())
def test_a_well_formed_tar_file_with_other_contents_loads_whole_or_not_at_all(data: bytes) -> None:
    loads_whole_or_not_at_all(data)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A tar file of one header with a right checksum, so that what it claims is looked at."""
    block = bytearray(draw(mutated(TAR[:512])).ljust(512, b"\0")[:512])
    block[156:157] = draw(st.sampled_from([b"0", b"5", b"x", b"g", b"L", b"2"]))
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(block) + draw(st.binary(max_size=600)) + bytes(1024)


@here
@given(headers())
def test_a_tar_header_never_leads_out_of_the_file(file: bytes) -> None:
    try:
        members = read_members(io.BytesIO(file), len(file))
    except MlpackerError:
        return
    for member in members.values():
        assert 0 <= member.offset <= member.offset + member.size <= len(file)


@here
@given(st.text(max_size=60) | st.from_regex(r"[a-z.:/@\[\]-]{0,40}"), json_values)
def test_texts_and_values_from_outside_end_in_a_value_or_an_error_of_ours(text: str, value: Any) -> None:
    parse_challenge(text)
    data = json.dumps(value).encode()
    for attempt in (
        lambda: parse_ref(text),
        lambda: parse_remote(text),
        lambda: check_paths([text]),
        lambda: parse_image_manifest(data),
        lambda: reader.parse_descriptor(value, "it"),
        lambda: decode_index(data),
        lambda: login_in({"auths": value, "credHelpers": value}, "h.x", "a/b", {}, "file"),
    ):
        try:
            attempt()
        except MlpackerError:
            continue
