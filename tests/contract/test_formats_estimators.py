"""Estimators that are unusual: what they say of themselves, and how they are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker_runtime.batch import Batch
from mlpacker_runtime.errors import BadInput, EnvironmentFailed, Refused
from mlpacker_runtime.formats import FolderFiles, Predictor, Trust, sklearn
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.signature import Field

pytest.importorskip("sklearn")
pd = pytest.importorskip("pandas")

X = np.random.default_rng(3).normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(int)


def saved(folder: Path, model: Any) -> FolderFiles:
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    return FolderFiles(folder)


def loaded(folder: Path, model: Any, trust: Trust | None = None, **stage: Any) -> Predictor:
    return sklearn.load(saved(folder, model), Stage("s", "sklearn", "model.pkl", **stage), trust or Trust())


def test_a_model_that_can_only_label_its_own_rows_is_refused(tmp_path: Path) -> None:
    from sklearn.cluster import DBSCAN

    with pytest.raises(BadInput, match="neither predicts nor transforms") as caught:
        loaded(tmp_path, DBSCAN().fit(X))
    assert "fitted on" in caught.value.next_step


@pytest.mark.parametrize("what", [{"model": 1}, [1, 2], "text", None, np.zeros(3)])
def test_a_file_of_something_else_says_what_it_holds(what: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"holds a {type(what).__name__}"):
        loaded(tmp_path, what)


def test_a_method_the_model_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    from sklearn.svm import SVC

    with pytest.raises(BadInput, match="predict_proba") as caught:
        loaded(tmp_path, SVC().fit(X, Y), methods=("predict_proba",))
    assert "decision_function" in caught.value.next_step
    with pytest.raises(BadInput, match="__class__"):
        loaded(tmp_path, SVC().fit(X, Y), methods=("__class__",))


def test_probabilities_are_computed_only_when_asked_for(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    predictor = loaded(tmp_path, LogisticRegression().fit(X, Y))
    predictor.model.predict_proba = None  # type: ignore[attr-defined]  calling it would raise
    assert list(predictor.predict(Batch({"input": X}), frozenset({"predict"})).batch.columns) == ["predict"]


def test_labels_are_the_classes_in_the_order_of_their_probabilities(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(X, np.where(Y == 1, "yes", "no"))
    assert loaded(tmp_path, model).describe().labels == ("no", "yes")


def test_pools_of_workers_are_not_started_inside_a_worker(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    forest = RandomForestClassifier(3)
    search = GridSearchCV(make_pipeline(forest), {"randomforestclassifier__max_depth": [2]}, cv=2).fit(X, Y)
    search.best_estimator_.steps[0][1].n_jobs = -1
    predictor = loaded(tmp_path, search)
    assert predictor.model.best_estimator_.steps[0][1].n_jobs == 1  # type: ignore[attr-defined]


def test_what_a_column_transformer_drops_is_not_asked_for(tmp_path: Path) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = make_pipeline(make_column_transformer((StandardScaler(), ["c", "a"])), Ridge()).fit(frame, Y)
    predictor = loaded(tmp_path, model)
    assert predictor.describe().inputs == (Field("a", "float64"), Field("c", "float64"))
    answer = predictor.predict(Batch({"c": X[:, 2], "a": X[:, 0]}), None).batch["predict"]
    np.testing.assert_allclose(answer, model.predict(frame), rtol=1e-12)


def test_columns_chosen_by_position_are_all_asked_for(tmp_path: Path) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pd.DataFrame({"a": X[:, 0], "b": ["x", "y"] * 20, "c": X[:, 2]})
    model = make_column_transformer((StandardScaler(), [0]), (OneHotEncoder(), slice(1, 2))).fit(frame)
    described = loaded(tmp_path, model).describe()
    assert described.inputs == (Field("a", "float64"), Field("b", "string"), Field("c", "float64"))


def test_columns_of_a_type_the_model_does_not_tell_are_named(tmp_path: Path) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = make_column_transformer((FunctionTransformer(), ["b"]), (StandardScaler(), ["a"])).fit(frame)
    assert loaded(tmp_path, model).describe().untyped == ("b",)


def test_a_numpy_trained_encoder_takes_strings_side_by_side(tmp_path: Path) -> None:
    from sklearn.preprocessing import OrdinalEncoder

    values = np.array([["a", "x"], ["b", "y"]], dtype=object)
    predictor = loaded(tmp_path, OrdinalEncoder().fit(values))
    assert predictor.describe().inputs == (Field("input", "string", (-1, 2)),)
    two = Batch({"one": values[:, 0], "two": values[:, 1]})
    np.testing.assert_array_equal(predictor.predict(two, None).batch["transform"], [[0, 0], [1, 1]])


def test_an_array_from_the_stage_before_stands_for_the_named_columns(tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge

    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = Ridge().fit(frame, Y)
    answer = loaded(tmp_path, model).predict(Batch({"transform": X}), None).batch["predict"]
    np.testing.assert_allclose(answer, model.predict(frame), rtol=1e-12)


def test_columns_under_other_names_are_missing_columns(tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge

    model = Ridge().fit(pd.DataFrame(X, columns=["a", "b", "c"]), Y)
    with pytest.raises(BadInput, match="'c' is missing"):
        loaded(tmp_path, model).predict(Batch({"a": X[:, 0], "b": X[:, 1], "d": X[:, 2]}), None)


def test_voting_and_calibration_know_the_columns_of_their_members(tmp_path: Path) -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import VotingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame = pd.DataFrame({"a": X[:, 0], "kind": np.where(Y == 1, "x", "y")})
    member = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough"), LogisticRegression()
    )
    for model in (VotingClassifier([("m", member)]), CalibratedClassifierCV(member, cv=2)):
        inputs = loaded(tmp_path, model.fit(frame, Y)).describe().inputs
        assert inputs == (Field("a", "float64"), Field("kind", "string"))


class OfTheScript:
    """Stands for a class that a training script defined itself."""

    def predict(self, rows: Any) -> Any:
        return np.zeros(len(rows))


def test_a_class_of_the_training_script_is_named_with_the_flag_that_packs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(OfTheScript(), protocol=0).replace(__name__.encode(), b"__main__")
    (tmp_path / "model.pkl").write_bytes(data)
    with pytest.raises(Refused, match="OfTheScript") as caught:
        sklearn.inspect(FolderFiles(tmp_path), "model.pkl", Trust())
    assert "--code" in caught.value.next_step


def test_a_module_that_is_not_here_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"cno_such_library.trees\nForest\n)\x81.")
    files, stage = FolderFiles(tmp_path), Stage("s", "sklearn", "model.pkl")
    with pytest.raises(EnvironmentFailed, match="no_such_library"):
        sklearn.load(files, stage, Trust(names=frozenset({"no_such_library.trees.Forest"})))
