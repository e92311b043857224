"""Every format a model comes in, trained in one environment, packed, and asked through every door.

Whatever the door, the answers are those the model gave where it was trained: labels and whole numbers exactly, floats
within the bounds that packing itself proves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import doors
import mlpacker
from doors import Row
from storytelling import Person

pytestmark = pytest.mark.timeout(600)  # the first test of a format also packs and starts it

TRAINED_WITH = (
    "scikit-learn>=1.4",
    "pandas>=2",
    "cloudpickle",
    "skops",
    "skl2onnx",
    "onnxruntime",
    "xgboost-cpu",
    "lightgbm",
    "catboost",
    "mlflow-skinny",
)


@dataclass(frozen=True)
class Format:
    """words: what is packed. sample: the rows it is asked with. tolerance: float32's where the library answers in it."""

    words: tuple[str, ...]
    sample: str = "rows.csv"
    tolerance: float = 1e-12


FORMATS = {
    "joblib": Format(("model.joblib",), "gaps.csv"),
    "pickle": Format(("model.pkl",), "kinds.csv"),
    "cloudpickle": Format(("model.cloudpickle", "--trust-code")),
    "skops": Format(("model.skops",)),
    "onnx": Format(("model.onnx",), tolerance=1e-6),
    "xgboost-json": Format(("xgboost.json",), "gaps.csv", 1e-6),
    "xgboost-ubj": Format(("xgboost.ubj",), "gaps.csv", 1e-6),
    "lightgbm": Format(("lightgbm.txt",), "gaps.csv"),
    "catboost": Format(("catboost.cbm",), "kinds.csv"),
    "mlflow": Format(("logged",)),
    "function": Format(("flowers.py:judge",)),
    "class": Format(("-f", "class.yaml")),
    "callable": Format(("callable.joblib", "--code", "flowers.py")),
}

FLOWERS = '''
"""Plain functions and classes on flowers."""

from typing import TypedDict

import numpy as np


class Flower(TypedDict):
    sepal_length: float
    sepal_width: float
    petal_length: float
    petal_width: float


def judge(flower: Flower) -> dict:
    area = flower["petal_length"] * flower["petal_width"]
    return {"kind": "small" if area < 2 else "large", "area": area}


class Nearest:
    """Which of the given petals is nearest, and how far away it is."""

    def __init__(self, petals: list, names: list):
        self.petals = np.array(petals)
        self.names = np.array(names, dtype=object)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        here = np.column_stack([rows["petal_length"], rows["petal_width"]])
        far = np.linalg.norm(here[:, None] - self.petals, axis=2)
        return {"nearest": self.names[far.argmin(axis=1)], "far": far.min(axis=1)}


class Scaled:
    """A score, learnt where it was made."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return rows @ self.weights
'''

CLASS = """
name: flowers
sample: rows.csv
stages:
  - name: nearest
    function: flowers.py:Nearest
    args: {petals: [[1.4, 0.2], [4.3, 1.3], [5.6, 2.0]], names: [setosa, versicolor, virginica]}
"""

TRAIN = """
import json, pickle, warnings
warnings.filterwarnings("ignore")
import cloudpickle, joblib, lightgbm, numpy as np, onnxruntime, pandas as pd, skl2onnx, skops.io, xgboost
import catboost, mlflow.pyfunc, mlflow.sklearn
from mlflow.models.signature import infer_signature
from skl2onnx.common.data_types import FloatTensorType
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC
import flowers

X, y = load_iris(return_X_y=True, as_frame=True)
X.columns = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
names = np.array(["setosa", "versicolor", "virginica"])[y]
random = np.random.default_rng(3)
gaps = X.mask(random.random(X.shape) < 0.2)
kinds = X.mask(random.random(X.shape) < 0.1).assign(soil=random.choice(["clay", "sand", "löß"], len(X)))
some = random.permutation(len(X))[:40]
rows = {"rows.csv": X.iloc[some], "gaps.csv": gaps.iloc[some], "kinds.csv": kinds.iloc[some]}
for file, frame in rows.items():
    frame.to_csv(file, index=False)
answers = {}

def answered(name, frame, **outputs):
    answers[name] = {k: np.asarray(v).tolist() for k, v in outputs.items()}

def both(name, model, file):
    answered(name, file, predict=model.predict(rows[file]), predict_proba=model.predict_proba(rows[file]))

model = HistGradientBoostingClassifier(max_iter=20).fit(gaps, y)
joblib.dump(model, "model.joblib")
both("joblib", model, "gaps.csv")

numbers = make_pipeline(SimpleImputer(), StandardScaler())
columns = make_column_transformer((numbers, list(X.columns)), (OneHotEncoder(), ["soil"]))
model = make_pipeline(columns, LogisticRegression(max_iter=900)).fit(kinds, names)
pickle.dump(model, open("model.pkl", "wb"))
both("pickle", model, "kinds.csv")

model = make_pipeline(FunctionTransformer(lambda X: np.log1p(X)), LogisticRegression(max_iter=900)).fit(X, y)
cloudpickle.dump(model, open("model.cloudpickle", "wb"))
both("cloudpickle", model, "rows.csv")

model = make_pipeline(StandardScaler(), RandomForestClassifier(20, random_state=0)).fit(X, names)
skops.io.dump(model, "model.skops")
both("skops", model, "rows.csv")

model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=900)).fit(X.to_numpy(), y)
graph = skl2onnx.to_onnx(model, initial_types=[("X", FloatTensorType([None, 4]))], options={"zipmap": False})
open("model.onnx", "wb").write(graph.SerializeToString())
session = onnxruntime.InferenceSession("model.onnx")
label, probabilities = session.run(None, {"X": rows["rows.csv"].to_numpy(np.float32)})
answered("onnx", "rows.csv", label=label, probabilities=probabilities)

model = xgboost.XGBClassifier(n_estimators=20).fit(gaps, y)
model.save_model("xgboost.json")
both("xgboost-json", model, "gaps.csv")

model = xgboost.train({"objective": "reg:squarederror"}, xgboost.DMatrix(gaps, y), 20)
model.save_model("xgboost.ubj")
answered("xgboost-ubj", "gaps.csv", predict=model.predict(xgboost.DMatrix(rows["gaps.csv"])))

model = lightgbm.train({"objective": "multiclass", "num_class": 3, "verbose": -1}, lightgbm.Dataset(gaps, y), 20)
model.save_model("lightgbm.txt")
answered("lightgbm", "gaps.csv", predict=model.predict(rows["gaps.csv"]))

model = catboost.CatBoostClassifier(20, cat_features=["soil"], verbose=0, allow_writing_files=False).fit(kinds, names)
model.save_model("catboost.cbm")
answered("catboost", "kinds.csv", predict=model.predict(rows["kinds.csv"])[:, 0], predict_proba=model.predict_proba(rows["kinds.csv"]))

model = make_pipeline(StandardScaler(), SVC()).fit(X, names)
mlflow.sklearn.save_model(model, "logged", signature=infer_signature(X, model.predict(X)), input_example=X[:3], serialization_format="cloudpickle")
answered("mlflow", "rows.csv", predict=mlflow.pyfunc.load_model("logged").predict(rows["rows.csv"]))

judged = [flowers.judge(r) for r in rows["rows.csv"].to_dict("records")]
answered("function", "rows.csv", kind=[j["kind"] for j in judged], area=[j["area"] for j in judged])

nearest = flowers.Nearest([[1.4, 0.2], [4.3, 1.3], [5.6, 2.0]], ["setosa", "versicolor", "virginica"])
answered("class", "rows.csv", **nearest({n: c.to_numpy() for n, c in rows["rows.csv"].items()}))

model = flowers.Scaled(np.linalg.lstsq(X.to_numpy(), y.to_numpy(), rcond=None)[0])
joblib.dump(model, "callable.joblib")
answered("callable", "rows.csv", callable=model(rows["rows.csv"].to_numpy()))

json.dump(answers, open("answers.json", "w"))
"""


@dataclass(frozen=True)
class Served:
    """A format that was packed and is being served. rows: its sample; answers: the training interpreter's, row by row."""

    person: Person
    name: str
    format: Format
    packed: Any
    url: str
    rows: list[Row]
    answers: list[Row]

    @property
    def outputs(self) -> list[str]:
        return list(self.answers[0])

    @property
    def plain(self) -> list[str]:
        """What MLflow's protocol is answered: the labels alone, of a model that also tells how sure it is."""
        several = "predict_proba" in self.outputs or "probabilities" in self.outputs
        return self.outputs[:1] if several else self.outputs

    def agrees(self, given: doors.Answers) -> None:
        doors.assert_rows_agree(given, self.answers, self.format.tolerance)


@pytest.fixture(scope="module")
def trained(interpreter: Any, environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """One home and one folder with a model of each format."""
    root = tmp_path_factory.mktemp("doors")
    home, folder = root / "home", root / "work"
    home.mkdir(mode=0o700)
    folder.mkdir()
    (home / "envs").symlink_to(environments)
    (folder / "flowers.py").write_text(FLOWERS)
    (folder / "class.yaml").write_text(CLASS)
    person = Person(home, folder, interpreter("3.11", *TRAINED_WITH))
    person.trains(TRAIN)
    return person


@pytest.fixture(scope="module", params=FORMATS)
def served(request: pytest.FixtureRequest, trained: Person) -> Iterator[Served]:
    name: str = request.param
    form = FORMATS[name]
    words: tuple[str | Path, ...] = (
        *form.words,
        "--name",
        name,
        "--sample",
        form.sample,
        "--python",
        trained.python,
    )
    packed = trained.told("pack", *words)
    columns = json.loads((trained.folder / "answers.json").read_text())[name]
    answers = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    with trained.serving(name) as url:
        yield Served(trained, name, form, packed, url, doors.rows_of(trained.folder / form.sample), answers)


def test_packing_proves_the_answers(served: Served) -> None:
    assert served.packed["proof"]["verdict"] == "proven"
    assert [f["name"] for f in served.packed["signature"]["inputs"]] == list(served.rows[0])
    assert [f["name"] for f in served.packed["signature"]["outputs"]] == served.outputs


def test_plain_json_answers_as_the_model_did(served: Served) -> None:
    served.agrees(doors.by_plain_json(served.url, served.rows))


def test_one_row_answers_as_it_did_among_many(served: Served) -> None:
    answer = doors.ask(served.url, "/predict", served.rows[5])
    doors.assert_rows_agree([answer], served.answers[5:6], max(served.format.tolerance, 1e-9))


def test_v2_json_answers_as_the_model_did(served: Served) -> None:
    served.agrees(doors.by_v2_json(served.url, served.name, served.rows))


def test_v2_binary_answers_as_the_model_did(served: Served) -> None:
    served.agrees(doors.by_v2_binary(served.url, served.name, served.rows))


def test_mlflows_protocol_gives_the_model_s_plain_answer(served: Served) -> None:
    plain = [{n: a[n] for n in served.plain} for a in served.answers]
    given = [doors.named(p, served.plain) for p in doors.by_invocations(served.url, served.rows)]
    doors.assert_rows_agree(given, plain, served.format.tolerance)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_score_writes_what_the_model_answered(served: Served, ending: str) -> None:
    folder = served.person.folder
    given = folder / f"{served.name}-rows.{ending}"
    if ending == "csv":
        given.write_bytes((folder / served.format.sample).read_bytes())
    else:
        given.write_text("".join(json.dumps(row) + "\n" for row in served.rows))
    scored = folder / f"{served.name}-scored.{ending}"
    counts = served.person.told("score", served.name, given, "-o", scored)
    assert (counts["rows"], counts["lines"], counts["rejected"]) == (len(served.rows), len(served.rows), 0)
    if ending == "csv":
        read = [{k: doors.value_of(v) for k, v in line.items()} for line in doors.lines_of(scored)]
    else:
        read = [json.loads(line) for line in scored.read_text().splitlines()]
    served.agrees(doors.from_lines(read, len(served.rows)))


def test_the_sdk_answers_as_the_model_did(served: Served) -> None:
    with mlpacker.open(served.name, home=served.person.home) as opened:
        answer = opened.predict(served.rows)
    columns = {n: np.asarray(answer[n]).tolist() for n in served.outputs}
    served.agrees([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


# --- Files that are none ---------------------------------------------------------------------------------------------

CUT = ("model.joblib", "model.pkl", "model.cloudpickle", "model.skops", "model.onnx")
CUT += ("xgboost.json", "xgboost.ubj", "lightgbm.txt", "catboost.cbm")


@pytest.mark.parametrize("part", [0.5, 0.97])
@pytest.mark.parametrize("file", CUT)
def test_a_file_that_was_cut_short_is_refused_in_a_sentence(trained: Person, file: str, part: float) -> None:
    whole = (trained.folder / file).read_bytes()
    (trained.folder / f"cut-{file}").write_bytes(whole[: int(len(whole) * part)])
    words = ("pack", f"cut-{file}", "--trust-code", "--sample", "rows.csv", "--python", trained.python)
    said = trained.says(*words, code=1).stderr
    assert f"cut-{file}" in said
    assert "Traceback" not in said


def test_a_logged_folder_without_its_model_is_refused_in_a_sentence(trained: Person) -> None:
    shutil.copytree(trained.folder / "logged", trained.folder / "hollow")
    (trained.folder / "hollow" / "model.pkl").unlink()
    said = trained.says("pack", "hollow", "--python", trained.python, code=1).stderr
    assert "model.pkl" in said
