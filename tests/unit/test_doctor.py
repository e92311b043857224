"""The doctor names what is damaged, and one damaged package hides no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlpacker import Mlpacker, cli
from mlpacker.doctor import OK, WARNING, Machine, store
from mlpacker.stores.packages import PackageFile, read_manifest, write_package
from mlpacker_runtime.manifest import PATH, Manifest, encode


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two packages, `good` and `bad`."""
    packer = Mlpacker(tmp_path / "home")
    for name in ("good", "bad"):
        document = encode(Manifest(name, (), (), ()))
        write_package(packer.store, name, None, {PATH: PackageFile(document, "weight.config")})
    return packer.home


def blob(home: Path, digest: str) -> Path:
    return home / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")


def spoil(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"X")


def spoil_manifest(home: Path) -> None:
    spoil(blob(home, Mlpacker(home).resolve("bad")))


def spoil_description(home: Path) -> None:
    packer = Mlpacker(home)
    spoil(blob(home, read_manifest(packer.store, packer.resolve("bad")).layers[0].digest))


def test_a_whole_store_is_ok(home: Path) -> None:
    assert [f.state for f in store.check(Machine(home, {}))] == [OK]


@pytest.mark.parametrize("spoilt", [spoil_manifest, spoil_description])
def test_a_damaged_package_is_named_with_what_mends_it(home: Path, spoilt: object) -> None:
    spoilt(home)  # type: ignore[operator]
    damaged, rest = store.check(Machine(home, {}))
    assert (damaged.state, rest.state) == (WARNING, OK)
    assert damaged.said.startswith("bad:latest: ")
    assert damaged.mend.endswith("mlpacker rm bad:latest")
    assert rest.said == "1 package that can be read"


def test_a_damaged_package_is_told_on_stderr_beside_the_list_of_the_others(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_manifest(home)
    assert cli.run(["ls", "--home", str(home), "--json"]) == 0
    told = capsys.readouterr()
    assert [p["ref"] for p in json.loads(told.out)["packages"]] == ["good:latest"]
    assert "damaged" in told.err
