"""Graphs of stages, as a person packs and serves them: branches, joins, stages of another Python, and what becomes of a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import doors
import mlpacker
from mlpacker.errors import ModelFailed
from storytelling import TRAINED_WITH, Person

pytestmark = pytest.mark.timeout(600)

TRAIN = """
import json
import joblib, numpy as np, pandas as pd
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeRegressor
random = np.random.default_rng(1)
X = pd.DataFrame({"x": random.normal(size=60).round(3), "y": random.normal(size=60).round(3)})
goal = X.x * 2 - X.y
line = LinearRegression().fit(X, goal)
tree = DecisionTreeRegressor(max_depth=4, random_state=0).fit(X, goal)
sign = LogisticRegression().fit(X, np.where(goal > 0, "up", "down"))
for name, model in {"line": line, "tree": tree, "sign": sign}.items():
    joblib.dump(model, name + ".joblib")
X.to_csv("rows.csv", index=False)
answers = {
    "mean": ((line.predict(X) + tree.predict(X)) / 2).tolist(),
    "line": line.predict(X).tolist(),
    "sign": sign.predict(X).tolist(),
}
json.dump(answers, open("answers.json", "w"))
"""

CODE = '''
import sys
from typing import Optional, TypedDict

import pandas as pd


def mean(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"mean": (rows["line.predict"] + rows["tree.predict"]) / 2})


def right_half(rows: pd.DataFrame) -> pd.DataFrame:
    """Drops the rows whose x is negative."""
    return rows[rows.x >= 0]
'''

PLAIN = '''
import sys
from typing import TypedDict


class Point(TypedDict):
    x: float
    y: float


class Sum(TypedDict):
    sum: float


class Spelt(TypedDict):
    sum: str


class Named(TypedDict):
    name: str


class Total(TypedDict):
    total: float


def fate(point: Point):
    """One answer, none, two, or an error."""
    if point["x"] < 0:
        return None
    if point["x"] == 13:
        raise ValueError("13 is not counted")
    one = {"sum": point["x"] + point["y"]}
    return [one, {"sum": -one["sum"]}] if point["x"] > 100 else one


def twice(point: Point) -> list[Sum]:
    return [{"sum": point["x"]}, {"sum": point["y"]}]


def add(point: Point) -> Sum:
    return {"sum": point["x"] + point["y"]}


def spell(point: Point) -> Spelt:
    return {"sum": str(point["x"])}


def name(point: Point) -> Named:
    return {"name": str(point["x"])}


def double(row: Sum) -> Total:
    return {"total": 2 * row["sum"]}


class Diary:
    """Says which Python runs it."""

    def __init__(self, file: str):
        self.file = file

    def __call__(self, point: Point) -> Point:
        with open(self.file, "a") as file:
            file.write("%d.%d\\n" % sys.version_info[:2])
        return {"x": 2 * point["x"], "y": point["y"]}
'''


@pytest.fixture(scope="module")
def modeller(interpreter: Any, environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """Somebody with trained models and code, and one home for all pipelines."""
    root = tmp_path_factory.mktemp("graphs")
    home, folder = root / "home", root / "work"
    home.mkdir(mode=0o700)
    folder.mkdir()
    (home / "envs").symlink_to(environments)
    (folder / "graph.py").write_text(CODE)
    (folder / "plain.py").write_text(PLAIN)
    (folder / "fates.csv").write_text("x,y\n1,2\n-1,0\n200,1\n5,5\n")
    person = Person(home, folder, interpreter("3.11", *TRAINED_WITH))
    person.trains(TRAIN)
    return person


def described(person: Person, name: str, *stages: str, sample: str = "rows.csv") -> Path:
    """A descriptor of these stages, one a line from line 4."""
    file = person.folder / f"{name}.yaml"
    lines = "".join(f"  - {{{stage}}}\n" for stage in stages)
    file.write_text(f"name: {name}\nsample: {sample}\nstages:\n{lines}")
    return file


def packs(person: Person, name: str, *stages: str, sample: str = "rows.csv") -> Any:
    return person.told(
        "pack", "-f", described(person, name, *stages, sample=sample), "--python", person.python
    )


def refused(person: Person, name: str, *stages: str, sample: str = "rows.csv", code: int = 2) -> str:
    file = described(person, name, *stages, sample=sample)
    said = person.says("pack", "-f", file, "--python", person.python, code=code).stderr
    assert "Traceback" not in said
    return said


def trained(person: Person, what: str) -> list[Any]:
    answers: list[Any] = json.loads((person.folder / "answers.json").read_text())[what]
    return answers


# --- Branches and joins ----------------------------------------------------------------------------------------------


def test_two_models_are_averaged_by_a_function_that_tells_their_answers_apart(modeller: Person) -> None:
    packed = packs(
        modeller,
        "average",
        "name: line, model: line.joblib, after: input",
        "name: tree, model: tree.joblib, after: input",
        "name: mean, function: 'graph.py:mean', after: [line, tree]",
    )
    assert packed["proof"]["verdict"] == "proven"
    assert [f["name"] for f in packed["signature"]["outputs"]] == ["mean"]
    rows = doors.rows_of(modeller.folder / "rows.csv")
    wanted = [{"mean": m} for m in trained(modeller, "mean")]
    with modeller.serving("average") as url:
        doors.assert_rows_agree(doors.by_plain_json(url, rows), wanted)
        doors.assert_rows_agree(doors.by_v2_binary(url, "average", rows), wanted)


def test_an_ensemble_answers_with_each_last_stage_and_drops_what_one_branch_drops(modeller: Person) -> None:
    packed = packs(
        modeller,
        "ensemble",
        "name: line, model: line.joblib, after: input, method: predict",
        "name: half, function: 'graph.py:right_half', after: input",
        "name: sign, model: sign.joblib, after: half, method: predict",
    )
    outputs = [f["name"] for f in packed["signature"]["outputs"]]
    assert outputs == ["line.predict", "sign.predict"]
    rows = doors.rows_of(modeller.folder / "rows.csv")
    both = zip(rows, trained(modeller, "line"), trained(modeller, "sign"), strict=True)
    wanted = [{"line.predict": v, "sign.predict": s} if r["x"] >= 0 else None for r, v, s in both]
    dropped = wanted.count(None)
    assert 0 < dropped < len(rows)
    with modeller.serving("ensemble") as url:
        doors.assert_rows_agree(doors.by_plain_json(url, rows), wanted)
        doors.assert_rows_agree(doors.by_v2_json(url, "ensemble", rows), wanted)
        doors.assert_rows_agree(doors.by_invocations(url, rows), wanted)
        asked = {"inputs": doors.tensors(rows), "outputs": [{"name": "sign.predict"}]}
        answer = doors.ask(url, "/v2/models/ensemble/infer", asked)
        assert [o["name"] for o in answer["outputs"]] == ["sign.predict", "row"]
    counts = modeller.told("score", "ensemble", "rows.csv", "-o", "ensemble.csv")
    assert (counts["lines"], counts["dropped"]) == (len(rows) - dropped, dropped)


def test_an_expanding_stage_that_feeds_a_join_is_refused_when_packing(modeller: Person) -> None:
    said = refused(
        modeller,
        "expands",
        "name: twice, function: 'plain.py:twice', after: input",
        "name: add, function: 'plain.py:add', after: input",
        "name: both, function: 'graph.py:mean', after: [twice, add]",
        sample="fates.csv",
    )
    assert "expands.yaml:" in said
    assert "'twice'" in said
    assert "several answers for row 0" in said


# --- Stages that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("function: 'plain.py:name'", "function: 'plain.py:double'", "takes 'sum'"),
        ("function: 'plain.py:name'", "model: line.joblib", "takes 'x'"),
        (
            "function: 'plain.py:add', outputs: {sum: float64}",
            "function: 'plain.py:double', inputs: {sum: {dtype: float64, shape: [-1, 3]}}",
            "takes 3 columns, and is given 1",
        ),
        (
            "function: 'plain.py:spell'",
            "function: 'plain.py:double'",
            "takes 'sum' as float64, and is given string",
        ),
    ],
    ids=["name", "name of a model's column", "shape", "dtype"],
)
def test_stages_that_do_not_fit_are_refused_with_file_and_line(
    modeller: Person, first: str, second: str, why: str
) -> None:
    said = refused(modeller, "unfit", f"name: one, {first}", f"name: two, {second}", sample="fates.csv")
    assert "unfit.yaml:5" in said
    assert "'two' does not fit after 'one'" in said
    assert why in said


# --- A stage's own Python --------------------------------------------------------------------------------------------


def test_a_stage_runs_on_the_python_it_names(modeller: Person, interpreter: Any) -> None:
    interpreter("3.10")
    diary = modeller.folder / "diary"
    packed = packs(
        modeller,
        "older",
        f"name: diary, function: 'plain.py:Diary', args: {{file: {diary}}}, python: '3.10', stateful: false",
        "name: line, model: line.joblib",
    )
    assert {e["python"] for e in packed["environments"].values()} == {"3.10", "3.11"}
    diary.unlink()
    with modeller.serving("older") as url:
        assert doors.ask(url, "/predict", [{"x": 1.0, "y": 2.0}, {"x": 0.0, "y": 2.0}])
    assert set(diary.read_text().split()) == {"3.10"}


# --- What becomes of a row -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fates:
    person: Person
    url: str


ONE, GONE, TWO, BAD = {"x": 1, "y": 2}, {"x": -1, "y": 0}, {"x": 200, "y": 1}, {"x": 13, "y": 0}


@pytest.fixture(scope="module")
def fates(modeller: Person) -> Iterator[Fates]:
    packs(modeller, "fate", "name: fate, function: 'plain.py:fate'", sample="fates.csv")
    with modeller.serving("fate") as url:
        yield Fates(modeller, url)


def test_plain_json_keeps_a_place_for_each_row(fates: Fates) -> None:
    answer = doors.ask(fates.url, "/predict", [GONE, ONE, TWO])
    assert answer == [None, {"sum": 3.0}, [{"sum": 201.0}, {"sum": -201.0}]]
    assert doors.ask(fates.url, "/predict", GONE) is None


def test_plain_json_fails_whole_unless_it_may_fail_in_part(fates: Fates) -> None:
    said = doors.ask(fates.url, "/predict", [ONE, BAD], status=400)
    assert "13 is not counted" in said["error"]
    assert "ow 1" in said["error"]
    answer = doors.ask(fates.url, "/predict?partial=true", [ONE, BAD, GONE, {"x": "three", "y": 1}])
    assert answer[0] is not None
    assert "13 is not counted" in answer[1]["error"]
    assert answer[2] is None
    assert "x" in answer[3]["error"]


def v2(fates: Fates, rows: list[doors.Row], status: int = 200, **parameters: Any) -> Any:
    body = {"inputs": doors.tensors(rows), "parameters": parameters}
    return doors.ask(fates.url, "/v2/models/fate/infer", body, status)


def test_v2_says_whose_answers_they_are_where_counts_differ(fates: Fates) -> None:
    outputs = {o["name"]: o for o in v2(fates, [GONE, ONE, TWO])["outputs"]}
    assert outputs["row"]["datatype"] == "INT64"
    assert outputs["row"]["data"] == [1, 2, 2]
    assert outputs["sum"]["data"] == [3.0, 201.0, -201.0]
    assert "row" not in {o["name"] for o in v2(fates, [ONE, ONE])["outputs"]}


def test_v2_fails_whole_unless_it_may_fail_in_part(fates: Fates) -> None:
    assert "13 is not counted" in v2(fates, [ONE, BAD], status=400)["error"]
    answer = v2(fates, [ONE, BAD, ONE], partial=True)
    outputs = {o["name"]: o["data"] for o in answer["outputs"]}
    assert outputs == {"sum": [3.0, 3.0], "row": [0, 2]}
    assert list(json.loads(answer["parameters"]["errors"])) == ["1"]


def test_mlflows_protocol_says_null_for_a_dropped_row_and_refuses_a_failed_one(fates: Fates) -> None:
    assert doors.by_invocations(fates.url, [GONE, ONE]) == [None, 3.0]
    body = {"dataframe_records": [ONE, BAD]}
    said = doors.ask(fates.url, "/invocations", body, status=400)
    assert said["error_code"]
    assert "13 is not counted" in said["message"]


def test_score_leaves_no_line_for_a_dropped_row_and_sets_failed_ones_aside(fates: Fates) -> None:
    folder = fates.person.folder
    (folder / "mixed.csv").write_text("x,y\n1,2\n-1,0\n13,0\nthree,1\n200,1\n")
    counts = fates.person.told("score", "fate", "mixed.csv", "-o", "mixed-scored.csv")
    assert {k: counts[k] for k in ("rows", "lines", "dropped", "rejected")} == {
        "rows": 5,
        "lines": 3,
        "dropped": 1,
        "rejected": 2,
    }
    lines = doors.lines_of(folder / "mixed-scored.csv")
    assert [(int(one["row"]), float(one["sum"])) for one in lines] == [(0, 3.0), (4, 201.0), (4, -201.0)]
    aside = [json.loads(s) for s in (folder / "mixed-scored.csv.rejected.jsonl").read_text().splitlines()]
    assert [one["row"] for one in aside] == [2, 3]
    assert "13 is not counted" in aside[0]["reason"]
    assert "'x'" in aside[1]["reason"]


def test_the_sdk_raises_at_a_failed_row_unless_it_may_leave_it_out(fates: Fates) -> None:
    with mlpacker.open("fate", home=fates.person.home) as opened:
        with pytest.raises(ModelFailed, match="Row 1.*13 is not counted"):
            opened.predict([ONE, BAD])
        answer = opened.predict([GONE, BAD, ONE], partial=True)
    assert {k: list(v) for k, v in answer.items()} == {"sum": [3.0], "row": [2]}


def test_a_join_that_meets_several_answers_fails_the_row_and_no_other(modeller: Person) -> None:
    (modeller.folder / "ones.csv").write_text("x,y\n1,2\n3,4\n")
    packs(
        modeller,
        "late",
        "name: fate, function: 'plain.py:fate', after: input",
        "name: name, function: 'plain.py:name', after: input",
        sample="ones.csv",
    )
    with modeller.serving("late") as url:
        assert "several answers" in doors.ask(url, "/predict", [ONE, TWO], status=400)["error"]
        answer = doors.ask(url, "/predict?partial=true", [ONE, TWO, GONE])
    assert answer[0] == {"sum": 3.0, "name": "1.0"}
    assert "several answers" in answer[1]["error"]
    assert answer[2] is None


def test_a_stage_s_python_that_is_nowhere_is_an_error_of_the_environment(modeller: Person) -> None:
    said = refused(
        modeller, "future", "name: add, function: 'plain.py:add', python: '3.77'", sample="fates.csv", code=6
    )
    assert "'add' runs on Python 3.77" in said
