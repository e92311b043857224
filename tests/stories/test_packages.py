"""What a person does with packages: look, compare, name, carry, trust, and clean up."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest

from storytelling import CLEAN, TRAIN, TRAINED_WITH, Person


@pytest.fixture(scope="module")
def first(interpreter: Any, environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """Somebody who trained and packed `iris`."""
    root = tmp_path_factory.mktemp("packed")
    (root / "home").mkdir(mode=0o700)
    (root / "work").mkdir()
    (root / "home" / "envs").symlink_to(environments)
    person = Person(root / "home", root / "work", interpreter("3.11", *TRAINED_WITH))
    person.trains(TRAIN)
    person.says("pack", "model.joblib", "--name", "iris", "--sample", "rows.csv", "--python", person.python)
    return person


@pytest.fixture
def packed(first: Person, tmp_path: Path) -> Person:
    """The same with a copy of that home and that folder."""
    for folder in ("home", "work"):
        shutil.copytree(first.home.parent / folder, tmp_path / folder, symlinks=True)
    return replace(first, home=tmp_path / "home", folder=tmp_path / "work")


def test_names_are_given_taken_and_collected(packed: Person) -> None:
    packed.says("tag", "iris", "iris:good")
    assert [p["ref"] for p in packed.told("ls")["packages"]] == ["iris:latest", "iris:good"]
    packed.says("rm", "iris:latest", "iris:good")
    assert packed.told("ls") == {"packages": []}
    assert "iris" in packed.says("inspect", "iris", code=3).stderr


def test_diff_says_what_changed(packed: Person) -> None:
    packed.trains(TRAIN.replace("max_iter=500", "max_iter=500, C=0.1"))
    packed.says(
        "pack",
        "model.joblib",
        "--name",
        "iris",
        "--version",
        "2",
        "--sample",
        "rows.csv",
        "--python",
        packed.python,
    )
    done = packed.says("diff", "iris:latest", "iris:2", "--json", code=1)
    kinds = {(c["kind"], c["what"]) for c in json.loads(done.stdout)["changes"]}
    assert ("name", "version") in kinds
    assert ("model", "models/model/model.joblib") in kinds
    assert not any(kind == "pin" for kind, _ in kinds)
    packed.says("diff", "iris:2", "iris:2")


def test_a_flipped_byte_is_found_by_verify_and_never_served(packed: Person) -> None:
    packed.says("score", "iris", "rows.csv", "-o", "out.csv")
    folder = next((packed.home / "packages").iterdir())
    model = folder / "models" / "model" / "model.joblib"
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.chmod(0o600)
    model.write_bytes(data)
    packed.says("score", "iris", "rows.csv", "-o", "again.csv", code=7)
    assert {"name", "version", "digest", "stages", "signature", "files"} <= packed.told(
        "verify", "iris"
    ).keys()
    blob = next(
        p for p in (packed.home / "store" / "blobs" / "sha256").iterdir() if p.stat().st_size == len(data)
    )
    blob.chmod(0o600)
    blob.write_bytes(data)
    packed.says("verify", "iris", code=7)


def test_a_saved_package_runs_elsewhere_with_no_index_reachable(packed: Person, tmp_path: Path) -> None:
    packed.says("score", "iris", "rows.csv", "-o", "here.csv")
    packed.says("save", "iris", "iris.tar", "--with-env")
    home = tmp_path / "far"
    home.mkdir(mode=0o700)
    far = replace(
        packed,
        home=home,
        environ={
            "UV_OFFLINE": "1",
            "UV_CACHE_DIR": str(tmp_path / "empty-cache"),
            "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        },
    )
    far.says("load", "iris.tar")
    refused = far.says("score", "iris", "rows.csv", "-o", "far.csv", code=4)
    assert "wheels of its own" in refused.stderr
    far.says("score", "iris", "rows.csv", "-o", "far.csv", "--trust-code")
    assert (packed.folder / "far.csv").read_bytes() == (packed.folder / "here.csv").read_bytes()
    assert far.told("inspect", "iris") == packed.told("inspect", "iris")


def test_a_package_with_code_from_elsewhere_runs_only_once_accepted(packed: Person, new_home: Any) -> None:
    (packed.folder / "clean.py").write_text(CLEAN)
    packed.says(
        "pack",
        "clean.py:drop_gaps",
        "model.joblib",
        "--name",
        "code",
        "--sample",
        "rows.csv",
        "--python",
        packed.python,
    )
    packed.says("save", "code", "code.tar")
    stranger = replace(packed, home=new_home("stranger"))
    stranger.says("load", "code.tar")
    refused = stranger.says("score", "code", "rows.csv", "-o", "a.csv", code=4)
    assert "--trust-code" in refused.stderr
    stranger.says("run", "code", "--port", "0", code=4)
    stranger.says("score", "code", "rows.csv", "-o", "a.csv", "--trust-code")
    stranger.says("score", "code", "rows.csv", "-o", "b.csv")


def test_a_tar_that_leads_outside_is_refused_whole(packed: Person) -> None:
    with tarfile.open(packed.folder / "evil.tar", "w") as tar:
        tar.add(packed.folder / "rows.csv", "../../escaped.csv")
    done = packed.says("load", "evil.tar", code=None)
    assert done.returncode in (1, 7)
    assert "Traceback" not in done.stderr


def test_the_doctor_says_what_is_here(packed: Person) -> None:
    findings = {f["check"]: f["state"] for f in packed.told("doctor")["findings"]}
    assert findings["pythons"] == findings["uv"] == findings["store"] == "ok"


def test_a_package_travels_through_a_registry(packed: Person, new_home: Any, registry: str) -> None:
    place = packed.says("push", "iris", f"{registry}/team/iris:1").stdout.strip()
    assert place.endswith(packed.told("inspect", "iris")["digest"])
    other = replace(packed, home=new_home("other"))
    other.says("pull", f"{registry}/team/iris:1")
    assert other.told("inspect", "iris") == packed.told("inspect", "iris")
    other.says("score", "iris", "rows.csv", "-o", "pulled.csv")
    assert "has no" in other.says("pull", f"{registry}/team/none:1", code=3).stderr


def test_a_parquet_body_needs_the_extra_and_is_answered_with_it(packed: Person) -> None:
    table = pyarrow.csv.read_csv(packed.folder / "rows.csv")
    pyarrow.parquet.write_table(table, packed.folder / "rows.parquet")
    ask = [
        "curl",
        "-s",
        "-H",
        "Content-Type: application/vnd.apache.parquet",
        "--data-binary",
        "@rows.parquet",
    ]
    with packed.serving("iris") as url:
        told = subprocess.run(
            [*ask, f"{url}/invocations"], cwd=packed.folder, capture_output=True, text=True, timeout=60
        )
        assert "parquet" in told.stdout.lower()
    with packed.serving("iris", "--extra", "parquet") as url:
        told = subprocess.run(
            [*ask, f"{url}/invocations"], cwd=packed.folder, capture_output=True, text=True, timeout=60
        )
        labels = [int(r["predict"]) for r in csv.DictReader((packed.folder / "labels.csv").open())]
        assert json.loads(told.stdout) == {"predictions": labels}


APART = """
name: apart
sample: rows.csv
expect: answers.csv
python: '3.10'
stages:
  - name: tell
    function: tell.py:version
    requirements: ["pyarrow==6.0.1", "pandas==1.5.3", "numpy==1.23.5"]
"""


def test_an_extra_that_can_not_live_beside_the_pins_serves_from_an_environment_of_its_own(
    person: Person,
) -> None:
    (person.folder / "tell.py").write_text(
        "import pandas as pd\nimport pyarrow\n"
        "def version(rows: pd.DataFrame) -> pd.DataFrame:\n"
        "    return pd.DataFrame({'arrow': [pyarrow.__version__] * len(rows)}, index=rows.index)\n"
    )
    (person.folder / "rows.csv").write_text("a,b\n1,2.5\n3,4.5\n")
    (person.folder / "answers.csv").write_text("arrow\n6.0.1\n6.0.1\n")
    (person.folder / "pipeline.yaml").write_text(APART)
    person.says("pack", "-f", "pipeline.yaml")
    table = pyarrow.table({"a": [1, 3], "b": [2.5, 4.5]})
    pyarrow.parquet.write_table(table, person.folder / "rows.parquet")
    ask = [
        "curl",
        "-s",
        "-H",
        "Content-Type: application/vnd.apache.parquet",
        "--data-binary",
        "@rows.parquet",
    ]
    with person.serving("apart", "--extra", "parquet") as url:
        told = subprocess.run(
            [*ask, f"{url}/invocations"], cwd=person.folder, capture_output=True, text=True, timeout=60
        )
    assert json.loads(told.stdout) == {"predictions": ["6.0.1", "6.0.1"]}
