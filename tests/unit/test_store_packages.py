"""What a package is: the same inputs give the same digest, and ModelPack's types carry it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlpacker.errors import BadDescription, BadInput, NotFound, StoreFailed
from mlpacker.stores import Blob, has, put_bytes, read_bytes
from mlpacker.stores import packages as packs
from mlpacker.stores.layout import LayoutStore
from mlpacker.stores.packages import PackageFile, resolve, tag, write_package
from mlpacker.testing.stores import MemoryStore
from mlpacker_runtime.package import FILEPATH

FILES = {
    "mlpacker.json": PackageFile(b"{}\n", "weight.config"),
    "models/forest/model.joblib": PackageFile(b"trees"),
    "code/clean.py": PackageFile(b"x = 1\n", "code"),
    "sample.json": PackageFile(b"[]", "dataset"),
    "README.md": PackageFile(b"# Iris", "doc"),
}
GOLDEN = "sha256:bdfbbfd0e5eed9721a958e7731f66f1994d9099bf63ea758e056f2e834f87c2a"
"""What `FILES` as iris:1.0 have always been. It changes only where packages of old shall no longer be found by digest."""
OTHER = {"mlpacker.json": PackageFile(b"{ }\n", "weight.config")}


def text(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, **value}


STRING, STRINGS, MOMENT = (
    {"type": "string"},
    {"type": "array", "items": {"type": "string"}},
    {"type": "string", "format": "date-time"},
)
MODEL_CONFIG_SCHEMA = {
    # The constraints of schema/config-schema.json of github.com/modelpack/model-spec (Apache-2.0), restated.
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **text(
        {
            "required": ["descriptor", "config", "modelfs"],
            "properties": {
                "descriptor": text(
                    {
                        "properties": {
                            **dict.fromkeys(("family", "docURL", "sourceURL", "version", "revision", "vendor", "title", "description"), STRING),
                            **dict.fromkeys(("authors", "datasetsURL", "licenses"), STRINGS),
                            "name": {"type": "string", "minLength": 1},
                            "createdAt": MOMENT,
                        }
                    }
                ),
                "config": text(
                    {
                        "properties": {
                            **dict.fromkeys(("architecture", "format", "paramSize", "precision", "quantization"), STRING),
                            "capabilities": {"type": "object"},
                        }
                    }
                ),
                "modelfs": text(
                    {
                        "required": ["type", "diffIds"],
                        "properties": {"type": {"enum": ["layers"]}, "diffIds": {**STRINGS, "minItems": 1}},
                    }
                ),
            },
        }
    ),
}  # fmt: skip


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def manifest(store: MemoryStore, digest: str) -> Any:
    return json.loads(read_bytes(store, digest, 1 << 20))


# --- the artifact


def test_the_manifest_has_modelpacks_types_and_a_layer_for_each_file_in_the_order_of_paths(
    store: MemoryStore,
) -> None:
    value = manifest(store, write_package(store, "iris", "1.0", FILES))
    assert value["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert value["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert value["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert [(d["annotations"][FILEPATH], d["mediaType"]) for d in value["layers"]] == [
        ("README.md", "application/vnd.cncf.model.doc.v1.raw"),
        ("code/clean.py", "application/vnd.cncf.model.code.v1.raw"),
        ("mlpacker.json", "application/vnd.cncf.model.weight.config.v1.raw"),
        ("models/forest/model.joblib", "application/vnd.cncf.model.weight.v1.raw"),
        ("sample.json", "application/vnd.cncf.model.dataset.v1.raw"),
    ]


@pytest.mark.parametrize("version", ["1.0", None])
def test_the_config_fits_modelpacks_schema_and_says_nothing_of_when(
    store: MemoryStore, version: str | None
) -> None:
    value = manifest(store, write_package(store, "iris", version, FILES))
    config = json.loads(read_bytes(store, value["config"]["digest"], 1 << 20))
    jsonschema.validate(config, MODEL_CONFIG_SCHEMA)
    assert "createdAt" not in config["descriptor"]
    assert config["descriptor"].get("version") == version
    assert config["modelfs"]["diffIds"] == [d["digest"] for d in value["layers"]]


def test_the_schema_check_above_would_notice_a_field_of_our_own(store: MemoryStore) -> None:
    value = manifest(store, write_package(store, "iris", None, FILES))
    config = json.loads(read_bytes(store, value["config"]["digest"], 1 << 20))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "mlpacker": {}}, MODEL_CONFIG_SCHEMA)


def test_the_same_inputs_give_the_same_digest_in_whatever_order_and_from_wherever(
    store: MemoryStore, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(b"trees")
    os.utime(tmp_path / "model", (0, 0))
    turned = dict(reversed(FILES.items())) | {"models/forest/model.joblib": PackageFile(tmp_path / "model")}
    first = write_package(store, "iris", "1.0", FILES)
    assert write_package(LayoutStore(tmp_path / "store"), "iris", "1.0", turned) == first
    assert first == GOLDEN


def test_name_version_paths_kinds_and_bytes_all_count(store: MemoryStore) -> None:
    variants = [
        ("iris", "1.0", FILES),
        ("iris", None, FILES),
        ("iris", "1.1", FILES),
        ("Iris", "1.0", FILES),
        ("iris", "1.0", {**FILES, "sample.json": PackageFile(b"[1]", "dataset")}),
        ("iris", "1.0", {**FILES, "sample.json": PackageFile(b"[]", "doc")}),
        ("iris", "1.0", {**FILES, "more": PackageFile(b"")}),
    ]
    assert len({write_package(MemoryStore(), *v) for v in variants}) == len(variants)


def test_progress_counts_the_bytes_up_to_their_sum(store: MemoryStore) -> None:
    seen: list[tuple[int, int | None]] = []
    write_package(store, "iris", None, FILES, progress=lambda done, total: seen.append((done, total)))
    total = sum(f.size for f in FILES.values())
    assert seen[-1] == (total, total)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "-a", "..", "a@b", "é", "a" * 129, "a\n"])
def test_a_name_nobody_could_refer_to_is_refused(store: MemoryStore, name: str) -> None:
    with pytest.raises(BadDescription):
        write_package(store, name, None, FILES)
    if name != "":
        with pytest.raises(BadDescription):
            write_package(store, "iris", "." + name, FILES)


def test_what_can_not_be_packed_is_refused_before_it_has_a_name(store: MemoryStore, tmp_path: Path) -> None:
    for files in (
        {},
        {"../x": PackageFile(b"")},
        {"manifest.json": PackageFile(b"")},
        {"x": PackageFile(tmp_path / "nothing")},
        {"x": PackageFile(tmp_path)},
        {"x": PackageFile(b"", "photo")},
    ):
        with pytest.raises((BadInput, BadDescription)):
            write_package(store, "iris", None, files)
    assert store.index() == ()


# --- names


def test_a_version_that_is_another_package_is_refused_unless_moved(store: MemoryStore) -> None:
    first = write_package(store, "iris", "1.0", FILES)
    with pytest.raises(BadDescription, match=r"iris:1\.0 is another package already") as error:
        write_package(store, "iris", "1.0", OTHER)
    assert "--move" in str(error.value)
    assert resolve(store, "iris:1.0") == first
    second = write_package(store, "iris", "1.0", OTHER, move=True)
    assert resolve(store, "iris:1.0") == second
    assert resolve(store, f"iris@{first}") == first  # without a name, but not lost


def test_packing_the_same_again_is_no_error(store: MemoryStore) -> None:
    assert write_package(store, "iris", "1.0", FILES) == write_package(store, "iris", "1.0", FILES)
    assert len(store.index()) == 1


def test_without_a_version_the_newest_is_latest(store: MemoryStore) -> None:
    first = write_package(store, "iris", None, FILES)
    second = write_package(store, "iris", None, OTHER)
    assert resolve(store, "iris") == resolve(store, "iris:latest") == second
    assert resolve(store, first) == first


def test_a_name_alone_is_the_latest_packed(store: MemoryStore) -> None:
    first = write_package(store, "iris", "2.0", FILES)
    second = write_package(store, "iris", "1.0", OTHER)
    assert resolve(store, "iris") == second
    write_package(store, "iris", "2.0", FILES)
    assert resolve(store, "iris") == first


def test_a_further_name_does_not_make_a_package_the_latest(store: MemoryStore) -> None:
    first = write_package(store, "iris", "1.0", FILES)
    second = write_package(store, "iris", "2.0", OTHER)
    assert tag(store, "iris:1.0", "iris:production") == first
    assert resolve(store, "iris") == second
    assert resolve(store, "iris:production") == first


def test_a_tag_moves_only_when_told_to(store: MemoryStore) -> None:
    write_package(store, "iris", "1.0", FILES)
    second = write_package(store, "iris", "2.0", OTHER)
    tag(store, "iris:1.0", "iris:production")
    with pytest.raises(BadDescription):
        tag(store, "iris:2.0", "iris:production")
    assert tag(store, "iris:2.0", "iris:production", move=True) == second
    assert [p.refs for p in packs.list_packages(store)] == [("iris:1.0",), ("iris:2.0", "iris:production")]


def test_a_name_alone_is_rather_a_package_that_has_it_than_a_newer_one_that_lost_it(
    store: MemoryStore,
) -> None:
    first = write_package(store, "iris", "1.0", FILES)
    second = write_package(store, "iris", "2.0", OTHER)
    tag(store, first, "iris:2.0", move=True)
    assert resolve(store, "iris") == first
    packs.remove(store, first)
    assert resolve(store, "iris") == second


def test_a_package_that_lost_its_name_gets_one_by_its_digest(store: MemoryStore) -> None:
    first = write_package(store, "iris", None, FILES)
    write_package(store, "iris", None, OTHER)
    tag(store, first, "iris:old")
    assert [p.refs for p in packs.list_packages(store)] == [("iris:old",), ("iris:latest",)]


@pytest.mark.parametrize("new", ["iris@sha256:" + "0" * 64, "sha256:" + "0" * 64, "a b"])
def test_a_tag_must_be_a_name(store: MemoryStore, new: str) -> None:
    write_package(store, "iris", "1.0", FILES)
    with pytest.raises(BadDescription):
        tag(store, "iris", new)


def test_every_form_of_a_ref_finds_the_package(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    for ref in (
        "iris",
        "iris:1.0",
        f"iris@{digest}",
        digest,
        digest[:13],
        digest[7:13],
        digest[7:],
        f"iris@{digest[:20]}",
    ):
        assert resolve(store, ref) == digest


def test_what_is_not_there_is_not_found_and_near_names_are_told(store: MemoryStore) -> None:
    write_package(store, "rock-bolts", "1.0", FILES)
    with pytest.raises(NotFound) as error:
        resolve(store, "rock-bolt")
    assert error.value.facts["near"] == ["rock-bolts", "rock-bolts:1.0"]
    for ref in ("rock-bolts:2", "sha256:" + "0" * 64, "000000", "other@sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            resolve(store, ref)


@pytest.mark.parametrize(
    "ref", ["", "a b", "a:", ":a", "a:b:c", "a@b", "sha256:xyz", "sha256:12345", "../x", "a@", "a\0b"]
)
def test_what_is_no_ref_is_refused(store: MemoryStore, ref: str) -> None:
    with pytest.raises(BadDescription):
        resolve(store, ref)


def test_a_beginning_that_several_digests_share_lists_them(store: MemoryStore) -> None:
    for n in range(2):
        blob = Blob(f"sha256:abcdef{n}{'0' * 57}", 2)
        store.blobs[blob.digest] = b"{}"
        store.edit(lambda index, b=blob, n=n: packs.recorded(index, b, packs.Ref("iris", str(n)), move=False))
    with pytest.raises(BadDescription, match=r"iris:0 .*iris:1"):
        resolve(store, "abcdef")
    assert resolve(store, "abcdef1") == "sha256:abcdef1" + "0" * 57


def test_a_name_wins_over_a_digest_that_begins_like_it(store: MemoryStore) -> None:
    first = write_package(store, "iris", "1.0", FILES)
    second = write_package(store, first[7:15], None, OTHER)
    assert resolve(store, first[7:15]) == second
    assert resolve(store, first[:15]) == first


def test_the_list_has_each_package_once_with_its_names_and_size(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    tag(store, digest, "flowers:new")
    (listed,) = packs.list_packages(store)
    assert (listed.digest, listed.name, listed.version) == (digest, "iris", "1.0")
    assert listed.refs == ("iris:1.0", "flowers:new")
    assert listed.size > sum(f.size for f in FILES.values())


def test_a_damaged_package_is_listed_as_such_beside_the_whole_ones_and_can_be_removed(
    store: MemoryStore,
) -> None:
    harmed = write_package(store, "iris", "1.0", FILES)
    write_package(store, "wine", "1.0", FILES)
    store.blobs[harmed] = b"{}"
    first, second = packs.list_packages(store)
    assert (first.refs, second.damage) == (("iris:1.0",), "")
    assert "damaged" in first.damage
    packs.remove(store, "iris")
    assert len(packs.list_packages(store)) == 1


# --- removing


def test_a_package_is_gone_with_its_last_name(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    tag(store, digest, "iris:new")
    assert packs.remove(store, "iris:1.0") == packs.Removed(digest, ("iris:1.0",), False)
    assert resolve(store, "iris:new") == digest
    assert packs.remove(store, "iris:new") == packs.Removed(digest, ("iris:new",), True)
    assert store.index() == ()


def test_removing_by_digest_takes_all_its_names(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    tag(store, digest, "iris:new")
    assert packs.remove(store, digest) == packs.Removed(digest, ("iris:1.0", "iris:new"), True)


def test_removing_by_name_takes_the_latest_only(store: MemoryStore) -> None:
    first = write_package(store, "iris", "1.0", FILES)
    second = write_package(store, "iris", "2.0", OTHER)
    assert packs.remove(store, "iris").digest == second
    assert resolve(store, "iris") == first


def test_removing_what_is_not_there_is_not_found(store: MemoryStore) -> None:
    with pytest.raises(NotFound):
        packs.remove(store, "iris")


def test_collecting_takes_what_nothing_names_and_leaves_what_packages_share(store: MemoryStore) -> None:
    shared = {"shared": PackageFile(b"shared")}
    first = write_package(store, "iris", "1.0", {**FILES, **shared})
    second = write_package(store, "wine", "1.0", {**OTHER, **shared})
    packs.remove(store, "iris")
    packs.collect(store, time.time() + 2 * packs.GRACE)
    assert not has(store, first)
    packs.verify(store, second)
    assert len(store.blobs) == 4  # manifest, config, its own file, the shared one


def test_young_blobs_are_left_to_whoever_is_about_to_name_them(store: MemoryStore) -> None:
    blob = put_bytes(store, b"young")
    assert packs.collect(store, time.time()) == ()
    assert packs.collect(store, time.time() + packs.GRACE + 60) == (blob,)


def test_packages_without_a_name_are_collected_only_when_told_to(store: MemoryStore) -> None:
    first = write_package(store, "iris", None, FILES)
    second = write_package(store, "iris", None, OTHER)
    later = time.time() + 2 * packs.GRACE
    assert packs.collect(store, later) == ()
    assert packs.collect(store, later, unnamed=True) != ()
    assert not has(store, first)
    packs.verify(store, second)


def test_nothing_is_collected_while_a_manifest_can_not_be_read(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    stray = put_bytes(store, b"stray")
    store.blobs[digest] = store.blobs[digest].replace(b"raw", b"law")
    with pytest.raises(StoreFailed):
        packs.collect(store, time.time() + 2 * packs.GRACE)
    assert has(store, stray.digest)


def test_a_package_whose_file_was_collected_meanwhile_gets_no_name(store: MemoryStore) -> None:
    class Hasty(MemoryStore):
        def edit(self, change: Any) -> Any:
            self.sweep(lambda _: set(), older_than=time.time() + 60)
            return super().edit(change)

    hasty = Hasty()
    with pytest.raises((StoreFailed, NotFound)):
        write_package(hasty, "iris", "1.0", FILES)
    assert hasty.index() == ()


# --- verifying


def test_verifying_reads_every_byte_and_counts_them(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    verified = packs.verify(store, digest)
    assert verified.blobs == len(FILES) + 2
    assert verified.size == packs.list_packages(store)[0].size


def test_verifying_names_everything_that_is_damaged_or_missing(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    files = packs.read_files(store, digest)
    store.blobs[files["sample.json"].digest] = b"{}"
    del store.blobs[files["code/clean.py"].digest]
    with pytest.raises(StoreFailed, match="2 of 7 parts") as error:
        packs.verify(store, digest)
    assert "sample.json" in str(error.value)
    assert "code/clean.py" in str(error.value)


def test_a_file_of_a_package_is_read_by_its_path(store: MemoryStore) -> None:
    digest = write_package(store, "iris", "1.0", FILES)
    assert packs.read_file(store, digest, "code/clean.py") == b"x = 1\n"
    with pytest.raises(BadInput):
        packs.read_file(store, digest, "code/other.py")
