"""Run by test_audit.py in the interpreter of a scikit-learn release: train, save, audit, load, compare.

`main` prints one JSON object: for each model the versions its files state, and what went wrong, if anything did.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import numpy as np
import scipy.special
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from mlpacker_runtime import audit

try:
    import cloudpickle
except ImportError:
    cloudpickle = None

X, y = load_iris(return_X_y=True)
WORDS = np.array(["clay on top", "sand and stone", "stone"])[y]
TABLE = np.column_stack([X[:, :2].astype(object), np.array(["a", "b", "c"], dtype=object)[y]])


def columns() -> ColumnTransformer:
    return ColumnTransformer(
        [("scaled", StandardScaler(), [0, 1]), ("onehot", OneHotEncoder(handle_unknown="ignore"), [2])]
    )


def models() -> Iterator[tuple[str, Any, Any]]:
    """name, estimator, rows"""
    one = DecisionTreeClassifier(max_depth=2)
    for estimator in (
        RandomForestClassifier(5),
        HistGradientBoostingClassifier(max_iter=3),
        HistGradientBoostingClassifier(max_iter=3, categorical_features=[3]),
        GradientBoostingClassifier(n_estimators=3),
        GradientBoostingRegressor(n_estimators=3, loss="huber"),
        KNeighborsClassifier(algorithm="kd_tree"),
        KNeighborsClassifier(algorithm="ball_tree", metric="manhattan"),
        SVC(probability=True),
        IsolationForest(n_estimators=5),
        MLPClassifier((4,), max_iter=5),
        SGDClassifier(),
        GaussianProcessClassifier(1.0 * RBF() + WhiteKernel(), n_restarts_optimizer=0, max_iter_predict=5),
        StackingClassifier([("tree", one), ("bayes", GaussianNB())], cv=2),
        VotingClassifier([("tree", one), ("bayes", GaussianNB())], voting="soft"),
        CalibratedClassifierCV(GaussianNB(), cv=2),
        CalibratedClassifierCV(GaussianNB(), method="isotonic", cv=2),
        GridSearchCV(LogisticRegression(max_iter=200), {"C": [0.1, 1.0]}, cv=2, scoring="accuracy"),
        make_pipeline(StandardScaler(), PCA(2), LogisticRegression()),
        make_pipeline(
            SelectKBest(k=2),
            FunctionTransformer(np.log1p),
            FunctionTransformer(scipy.special.expit),
            GaussianNB(),
        ),
    ):
        yield f"{type(estimator).__name__} {sum(map(ord, repr(estimator)))}", estimator, X
    yield "ColumnTransformer and forest", make_pipeline(columns(), RandomForestClassifier(5)), TABLE
    yield "OrdinalEncoder", make_pipeline(OrdinalEncoder(), one), TABLE[:, 2:]
    yield "TfidfVectorizer", make_pipeline(TfidfVectorizer(), LogisticRegression()), WORDS
    yield from boosting()


def boosting() -> Iterator[tuple[str, Any, Any]]:
    """What is installed of the boosting libraries, and whose native parts are on this machine."""
    for module, name, options in (
        ("xgboost", "XGBClassifier", {"n_estimators": 3}),
        ("lightgbm", "LGBMClassifier", {"n_estimators": 3, "verbose": -1}),
        ("catboost", "CatBoostClassifier", {"iterations": 3, "verbose": 0, "allow_writing_files": False}),
    ):
        try:
            library = __import__(module)
        except (ImportError, OSError):
            continue
        yield name, getattr(library, name)(**options), X


def joblib_dumps(model: object, compress: int) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=compress)
    return buffer.getvalue()


SAVED: dict[str, Callable[[object], bytes]] = {
    "pickle": pickle.dumps,
    "pickle 0": lambda model: pickle.dumps(model, 0),
    "pickle 5": lambda model: pickle.dumps(model, 5),
    "joblib": lambda model: joblib_dumps(model, 0),
    "joblib 3": lambda model: joblib_dumps(model, 3),
}
if cloudpickle is not None:
    SAVED["cloudpickle"] = cloudpickle.dumps


def answer(model: Any, rows: Any) -> list[object]:
    return [
        np.asarray(getattr(model, method)(rows)).tolist()
        for method in ("predict", "predict_proba")
        if hasattr(model, method)
    ]


def tried(estimator: Any, rows: Any) -> dict[str, object]:
    model = estimator.fit(rows, y)
    expected, stated = answer(model, rows), set()
    for saved, dumps in SAVED.items():
        try:
            data = dumps(model)
            report = audit.scan(data)
            stated |= set(report.versions.get("scikit-learn", ()))
            report.check()
            if answer(audit.load(data), rows) != expected:
                return {"stated": sorted(stated), "trouble": f"{saved}: loaded model answers otherwise"}
        except Exception as error:
            return {"stated": sorted(stated), "trouble": f"{saved}: {type(error).__name__}: {error}"}
    return {"stated": sorted(stated)}


def main() -> None:
    print(json.dumps({name: tried(estimator, rows) for name, estimator, rows in models()}))
