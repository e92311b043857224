"""Packing, as a person meets it: what is proven, what is refused, and that the same inputs give the same digest."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storytelling import CLEAN, TRAIN, Person


def pack(person: Person, *words: str) -> Any:
    return person.told("pack", "model.joblib", "--name", "iris", "--python", str(person.python), *words)


def test_a_model_is_proven_and_the_summary_is_one_object(person: Person) -> None:
    person.trains(TRAIN)
    done = person.says(
        "pack", "model.joblib", "--name", "iris", "--sample", "rows.csv", "--python", person.python, "--json"
    )
    packed = json.loads(done.stdout)
    assert packed["proof"]["verdict"] == "proven"
    assert packed["digest"].startswith("sha256:")
    assert packed["name"] == "iris"
    assert packed["version"] is None
    assert [s["name"] for s in packed["stages"]] == ["model"]
    assert [f["name"] for f in packed["signature"]["outputs"]] == ["predict", "predict_proba"]
    assert "target" not in [f["name"] for f in packed["signature"]["inputs"]]
    assert person.told("inspect", "iris") == packed
    assert person.told("inspect", packed["digest"][7:15]) == packed


def test_the_same_inputs_give_the_same_digest_elsewhere(
    person: Person, new_home: Any, tmp_path: Path
) -> None:
    person.trains(TRAIN)
    first = pack(person, "--sample", "rows.csv", "--version", "1")
    elsewhere = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(person.folder, elsewhere)
    for file in elsewhere.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    other = replace(
        person,
        home=new_home("other"),
        folder=elsewhere,
        environ={"TZ": "Asia/Tokyo", "LANG": "C", "USER": "other"},
    )
    assert pack(other, "--sample", "rows.csv", "--version", "1")["digest"] == first["digest"]
    assert pack(other, "--sample", "rows.csv", "--version", "2")["digest"] != first["digest"]


def test_wrong_answers_are_refused_with_the_rows(person: Person) -> None:
    person.trains(TRAIN)
    words = ("pack", "model.joblib", "--name", "iris", "--sample", "rows.csv", "--python", person.python)
    done = person.says(*words, "--expect", "wrong.csv", code=5)
    assert "row 0, predict: expected 2, answered 0" in done.stderr
    assert person.told("ls") == {"packages": []}
    person.says(*words, "--expect", "labels.csv")


def test_a_sample_that_does_not_fit_is_refused_naming_the_column(person: Person) -> None:
    person.trains(TRAIN)
    (person.folder / "bad.csv").write_text("a,b\n1,2\n")
    done = person.says("pack", "model.joblib", "--sample", "bad.csv", "--python", person.python, code=1)
    assert "lacks the column 'sepal length (cm)'" in done.stderr


def test_another_content_under_a_taken_version_needs_a_word(person: Person) -> None:
    person.trains(TRAIN)
    pack(person, "--version", "1", "--sample", "rows.csv")
    person.trains(TRAIN.replace("max_iter=500", "max_iter=500, C=0.1"))
    words = (
        "pack",
        "model.joblib",
        "--name",
        "iris",
        "--version",
        "1",
        "--sample",
        "rows.csv",
        "--python",
        person.python,
    )
    refused = person.says(*words, code=2).stderr
    assert "--move" in refused
    assert "Asking the training interpreter" not in refused, "it is said before the long work"
    person.says(*words, "--move")


EVIL = {
    "os.system": "class Evil:\n def __reduce__(self):\n  import os\n  return os.system, ('touch PWNED',)\npickle.dump(Evil(), open('evil', 'wb'))",
    "eval": "class Evil:\n def __reduce__(self):\n  return eval, ('open(\"PWNED\", \"w\")',)\njoblib.dump([Evil()], 'evil')",
    "compressed": "class Evil:\n def __reduce__(self):\n  return exec, ('open(\"PWNED\", \"w\")',)\njoblib.dump({'a': Evil()}, 'evil', compress=3)",
    "read_pickle": "import pandas\nclass Evil:\n def __reduce__(self):\n  return pandas.read_pickle, ('x',)\npickle.dump(Evil(), open('evil', 'wb'))",
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_malicious_file_is_refused_and_runs_nothing(person: Person, kind: str) -> None:
    person.trains("import joblib, pickle\n" + EVIL[kind])
    done = person.says("pack", "evil", "--python", person.python, code=4)
    assert "imports" in done.stderr
    assert not (person.folder / "PWNED").exists()


def test_code_pickled_by_value_is_accepted_only_by_a_word(person: Person) -> None:
    person.trains(
        "import cloudpickle\n"
        "from sklearn.preprocessing import FunctionTransformer\n"
        "cloudpickle.dump(FunctionTransformer(lambda X: X * 2).fit([[1.0, 2.0]]), open('model.pkl', 'wb'))\n"
        "open('rows.csv', 'w').write('a,b\\n1,2\\n3,4\\n')"
    )
    words = ("pack", "model.pkl", "--sample", "rows.csv", "--python", person.python)
    assert "--trust-code" in person.says(*words, code=4).stderr
    assert json.loads(person.says(*words, "--trust-code", "--json").stdout)["proof"]["verdict"] == "proven"


MAIN_CLASS = """
import joblib
import numpy
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

STEP = 1

class Shift(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X + STEP

X, y = load_iris(return_X_y=True)
open("trained", "a").write("once ")
joblib.dump(make_pipeline(Shift(), LogisticRegression(max_iter=900)).fit(X, y), "model.joblib")
numpy.save("rows.npy", X)
"""


def test_a_class_of_the_training_script_is_packed_with_code_and_not_trained_again(person: Person) -> None:
    person.trains(MAIN_CLASS)
    words = ("pack", "model.joblib", "--sample", "rows.npy", "--python", person.python)
    refused = person.says(*words, code=4)
    assert "Shift" in refused.stderr
    assert "--code" in refused.stderr
    person.says(*words, "--code", "train.py")
    assert (person.folder / "trained").read_text() == "once "


def test_half_a_file_no_file_and_no_model_are_told_apart(person: Person) -> None:
    person.trains(TRAIN)
    whole = (person.folder / "model.joblib").read_bytes()
    (person.folder / "half.joblib").write_bytes(whole[: len(whole) // 2])
    (person.folder / "note.joblib").write_text("not a model")
    assert "half" in person.says("pack", "half.joblib", code=1).stderr
    assert "not a model" in person.says("pack", "note.joblib", code=1).stderr
    assert "Did you mean" in person.says("pack", "modle.joblib", code=2).stderr


def test_a_version_that_does_not_exist_is_an_error_of_the_environment(person: Person) -> None:
    person.trains(TRAIN)
    done = person.says(
        "pack",
        "model.joblib",
        "--sample",
        "rows.csv",
        "--python",
        person.python,
        "-r",
        "pandas==0.0.999",
        code=6,
    )
    assert "pandas" in done.stderr


@pytest.mark.parametrize(
    ("python", "version", "before"), [("3.11", "1.2.2", "2023-06-01"), ("3.10", "1.0.2", "2022-03-01")]
)
def test_a_model_trained_years_ago_runs_with_its_own_versions(
    person: Person, interpreter: Any, python: str, version: str, before: str
) -> None:
    old = interpreter(python, f"scikit-learn=={version}", "pandas", before=before)
    person = replace(person, python=old)
    person.trains(TRAIN)
    packed = pack(person, "--sample", "rows.csv")
    assert packed["proof"]["verdict"] == "proven"
    assert packed["environments"]["default"]["python"] == python
    person.says("score", "iris", "rows.csv", "-o", "out.csv")
    labels = [r["predict"] for r in csv.DictReader((person.folder / "labels.csv").open())]
    assert [r["predict"] for r in csv.DictReader((person.folder / "out.csv").open())] == labels


def test_an_old_model_without_its_interpreter_still_gets_its_versions(
    person: Person, interpreter: Any
) -> None:
    old = interpreter("3.11", "scikit-learn==1.2.2", "pandas", before="2023-06-01")
    replace(person, python=old).trains(TRAIN)
    done = person.says(
        "pack", "model.joblib", "--name", "iris", "--sample", "rows.csv", "--python", person.python
    )
    assert "No reference answers" in done.stderr
    assert person.told("inspect", "iris")["proof"]["verdict"] == "runs, not compared"
    person.says("score", "iris", "rows.csv", "-o", "out.csv")
    labels = [r["predict"] for r in csv.DictReader((person.folder / "labels.csv").open())]
    assert [r["predict"] for r in csv.DictReader((person.folder / "out.csv").open())] == labels


def test_stages_with_other_requirements_run_in_environments_of_their_own(person: Person) -> None:
    person.trains(TRAIN)
    (person.folder / "clean.py").write_text(CLEAN)
    (person.folder / "pipeline.yaml").write_text(
        "name: two\nsample: rows.csv\nstages:\n"
        "  - {name: clean, function: 'clean.py:drop_gaps', requirements: ['pandas==2.2.3', 'numpy==1.26.4']}\n"
        "  - {name: classify, model: model.joblib}\n"
    )
    packed = person.told("pack", "-f", "pipeline.yaml", "--python", person.python)
    assert sorted(packed["environments"]) == ["classify", "default"]
    with person.serving("two") as url:
        rows = list(csv.DictReader((person.folder / "rows.csv").open()))[:3]
        body = [{k: float(v) for k, v in r.items()} for r in rows]
        body[1]["sepal length (cm)"] = None  # type: ignore[assignment]
        answer = subprocess.run(
            ["curl", "-s", f"{url}/predict", "-d", json.dumps(body)],
            capture_output=True,
            check=True,
            timeout=60,
        )
        predictions = json.loads(answer.stdout)
    assert predictions[1] is None
    assert [predictions[0]["predict"], predictions[2]["predict"]] == [0, 0]


def test_a_stage_that_looks_at_its_neighbours_never_shares_a_batch(person: Person) -> None:
    person.trains(TRAIN)
    (person.folder / "clean.py").write_text(CLEAN)
    packed = person.told(
        "pack", "clean.py:centred", "model.joblib", "--sample", "rows.csv", "--python", person.python
    )
    batches = {s["name"]: s.get("batch", "rows") for s in packed["stages"]}
    assert batches == {"centred": "request", "model": "rows"}


def test_a_column_nobody_uses_is_left_out_and_one_the_code_looks_at_stays(person: Person) -> None:
    person.trains(TRAIN + "X.assign(target=y, flag=0).to_csv('flagged.csv', index=False)\n")
    (person.folder / "clean.py").write_text(
        "import pandas as pd\n"
        "def unflagged(rows: pd.DataFrame) -> pd.DataFrame:\n"
        "    return rows[rows['flag'] == 0] if 'flag' in rows else rows\n"
    )
    packed = person.told(
        "pack", "clean.py:unflagged", "model.joblib", "--sample", "flagged.csv", "--python", person.python
    )
    names = [f["name"] for f in packed["signature"]["inputs"]]
    assert "flag" in names
    assert "target" not in names
