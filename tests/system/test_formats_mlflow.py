"""Folders that MLflow 1, 2 and 3 log: answered as MLflow itself answers, in the interpreter that logged them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mlpacker_runtime
from mlpacker_runtime import formats
from mlpacker_runtime.batch import Batch
from mlpacker_runtime.errors import Refused
from mlpacker_runtime.formats import Facts, FolderFiles, Trust
from mlpacker_runtime.hop.client import StageWorker
from mlpacker_runtime.manifest import Stage

SOURCES = Path(mlpacker_runtime.__file__).parents[1]
COLUMNS = ("length", "width")
X = np.round(np.random.default_rng(5).normal(size=(12, 2)), 3)

LOG = """
import json, os, sys, warnings
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd
import mlflow.pyfunc, mlflow.sklearn
from mlflow.models.signature import infer_signature
from sklearn.linear_model import LogisticRegression

folder, code = sys.argv[1], sys.argv[2]
values = np.array(json.load(sys.stdin))
frame = pd.DataFrame(values, columns=["length", "width"])
labels = (values[:, 0] > 0).astype(int)
model = LogisticRegression().fit(frame, labels)
bare = LogisticRegression().fit(values, labels)
signature = infer_signature(frame, model.predict(frame))
known = {"pip_requirements": ["scikit-learn"]}

mlflow.sklearn.save_model(model, folder + "/frame", signature=signature, input_example=frame[:3], **known)
mlflow.sklearn.save_model(bare, folder + "/array", signature=infer_signature(values, labels), **known)
mlflow.sklearn.save_model(bare, folder + "/probabilities", pyfunc_predict_fn="predict_proba", serialization_format="pickle", **known)

class Doubled(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return pd.DataFrame({"double": model_input["length"] * 2, "kind": "x"})

mlflow.pyfunc.save_model(folder + "/python", python_model=Doubled(), signature=infer_signature(frame), **known)

sys.path.insert(0, code)
from ours.thresholds import Threshold
mlflow.sklearn.save_model(
    Threshold(), folder + "/code", signature=signature, serialization_format="cloudpickle", code_paths=[code + "/ours"], **known
)

answers = {}
for name in ("frame", "array", "probabilities", "python", "code"):
    rows = values if name in ("array", "probabilities") else frame
    answer = mlflow.pyfunc.load_model(folder + "/" + name).predict(rows)
    answers[name] = answer.to_dict("list") if hasattr(answer, "to_dict") else np.asarray(answer).tolist()
with open(folder + "/answers.json", "w") as file:
    json.dump(answers, file)
"""

OURS = """
import numpy as np
from sklearn.base import BaseEstimator

class Threshold(BaseEstimator):
    def predict(self, X):
        return (X["length"].to_numpy() > 0.5).astype(np.int64)
"""

VERSIONS = {
    "1": ("3.10", "mlflow-skinny==1.30.1", "scikit-learn<1.3", "pandas<2", "numpy<1.24", "setuptools<70"),
    "2": ("3.11", "mlflow-skinny==2.22.1", "scikit-learn<1.8", "pandas<3"),
    "3": ("3.11", "mlflow-skinny>=3.1,<4", "scikit-learn", "pandas", "skops"),
}


@pytest.fixture(scope="module", params=sorted(VERSIONS))
def logged(
    request: pytest.FixtureRequest, interpreter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An interpreter with one MLflow, and a folder of what it logged."""
    minor, *requirements = VERSIONS[request.param]
    python = interpreter(minor, *requirements)
    folder, code = tmp_path_factory.mktemp(f"mlflow{request.param}"), tmp_path_factory.mktemp("code")
    (code / "ours").mkdir()
    (code / "ours" / "__init__.py").touch()
    (code / "ours" / "thresholds.py").write_text(OURS)
    done = subprocess.run(
        [str(python), "-c", LOG, str(folder), str(code)],
        input=json.dumps(X.tolist()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return python, folder


def facts_of(folder: Path, name: str, trust: Trust) -> Facts:
    files = FolderFiles(folder)
    assert formats.find(files, name) == "mlflow"
    facts: Facts = formats.get("mlflow").inspect(files, name, trust)
    return facts


@pytest.mark.parametrize("name", ["frame", "array", "probabilities", "python", "code"])
def test_a_logged_model_answers_as_in_mlflow(logged: tuple[Path, Path], name: str) -> None:
    python, folder = logged
    facts = facts_of(folder, name, Trust(code=name in ("python", "code")))
    assert facts.python == ("3.10" if "mlflow1" in folder.name else "3.11")
    assert ("mlflow" in facts.modules) is (name == "python")
    stage = Stage(name, "mlflow", name, options=facts.options)
    batch = Batch({c: X[:, i] for i, c in enumerate(COLUMNS)})
    if name in ("array", "probabilities"):
        batch = Batch({"input": X})
    with StageWorker(
        [str(python)], folder, accepted=facts.code, environ={**os.environ, "PYTHONPATH": str(SOURCES)}
    ) as worker:
        described = worker.load(stage)
        if name != "probabilities":
            assert tuple(f.name for f in described.inputs or ()) == batch.names
        answers = worker.predict(name, batch, None).batch
    wanted = json.loads((folder / "answers.json").read_text())[name]
    if isinstance(wanted, dict):
        assert {n: answers[n].tolist() for n in answers.names} == wanted
    else:
        plain = described.methods[0] if described.methods else answers.names[0]
        np.testing.assert_allclose(answers[plain], wanted, rtol=1e-12)


@pytest.mark.parametrize("name", ["python", "code"])
def test_a_logged_model_that_holds_code_is_refused_until_it_is_trusted(
    logged: tuple[Path, Path], name: str
) -> None:
    with pytest.raises(Refused) as caught:
        facts_of(logged[1], name, Trust())
    assert "--trust-code" in caught.value.next_step


def test_a_logged_example_is_found(logged: tuple[Path, Path]) -> None:
    sample = facts_of(logged[1], "frame", Trust()).sample
    assert sample is not None
    assert "length" in (logged[1] / sample).read_text()
