"""scikit-learn estimators and pipelines, and whatever follows their conventions, saved by pickle, joblib, cloudpickle or skops.

What goes in is read from the fitted estimator (`fitted`). A pickled function or other callable is a plain function here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import audit
from ..batch import Batch, Outcome, as_column, from_result, is_sparse, to_frame, to_matrix, to_records
from ..calls import CallablePredictor
from ..errors import BadInput, EnvironmentFailed
from ..manifest import Stage
from . import HEAD, Description, Facts, Files, Predictor, Trust, features, fitted, versions

name = "sklearn"

ANSWERS = ("predict", "predict_proba")
METHODS = (*ANSWERS, "predict_log_proba", "decision_function", "score_samples", "transform", "apply")
"""What a stage may be told to answer with."""
LIBRARIES = {
    "sklearn": ("scikit-learn", "numpy", "scipy", "joblib"),
    "xgboost": ("xgboost", "xgboost-cpu"),
    "lightgbm": ("lightgbm",),
    "catboost": ("catboost",),
}
"""The distributions a module's estimators run on."""
NO_NAMES = "X does not have valid feature names"


def matches(files: Files, path: str) -> bool:
    try:
        with files.file(path).open("rb") as stream:
            return audit.kind(stream.read(HEAD), path) is not None
    except OSError:
        return False


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    data = files.read(path)
    if audit.kind(data[:HEAD], path) == "skops":
        report = audit.scan_skops(data, trusted=trust.names, code_modules=trust.modules)
    else:
        report = audit.scan(data, trusted=trust.names, code_modules=trust.modules, trust_code=trust.code)
    report.check()
    return Facts(
        versions={n: said[0] for n, said in report.versions.items() if len(said) == 1},
        modules=tuple(report.modules),
        python=report.python,
        code=report.code,
        trusted=tuple(sorted(trust.names & set(report.names))),
    )


def load(files: Files, stage: Stage, trust: Trust) -> Predictor:
    data = files.read(stage.path)
    try:
        if audit.kind(data[:HEAD], stage.path) == "skops":
            model = audit.load_skops(data, trusted=trust.names, code_modules=trust.modules)
        else:
            model = audit.load(data, trusted=trust.names, code_modules=trust.modules, trust_code=trust.code)
    except ImportError as cause:
        raise EnvironmentFailed(
            f"{stage.path} needs a module that is not here: {cause}.",
            "Add it to the stage's requirements, or pack the code it refers to with --code.",
        ) from cause
    if isinstance(model, type) or not any(callable(getattr(model, m, None)) for m in METHODS):
        return _called(model, stage)
    _check_methods(model, stage)
    return Estimator(model, stage)


def _called(model: Any, stage: Stage) -> Predictor:
    if callable(model) and not isinstance(model, type):
        return CallablePredictor(
            model, stage, frames=False, source=stage.path, versions=versions("numpy", "cloudpickle")
        )
    step = "Save the fitted estimator or pipeline itself."
    if hasattr(model, "fit_predict"):
        step = "It can only label the rows it is fitted on: train a classifier on its labels, or use one that predicts."
    raise BadInput(
        f"{stage.path} holds a {type(model).__name__}, which neither predicts nor transforms.", step
    )


def _check_methods(model: Any, stage: Stage) -> None:
    for method in stage.methods:
        if method not in METHODS or not callable(getattr(model, method, None)):
            has = ", ".join(m for m in METHODS if callable(getattr(model, m, None)))
            raise BadInput(f"{stage.path} has no {method!r} to answer with.", f"It has {has}.")


class Estimator:
    """A fitted estimator as a predictor."""

    def __init__(self, model: Any, stage: Stage) -> None:
        _keep_to(model, int(stage.options.get("threads", 1)))
        self.model = model
        self.stage = stage
        self.inputs, self.untyped = fitted.inputs(model)
        self.methods = stage.methods or _methods(model)
        self.takes = stage.takes or _takes(model)
        self.none_is_known = _columns_that_know_none(model)

    def describe(self) -> Description:
        inner = ("transform",) if hasattr(self.model, "transform") else _methods(self.model)[:1]
        used = {type(p).__module__.partition(".")[0] for p in fitted.parts(self.model)}
        pandas = ("pandas",) if self.takes == "frame" else ()
        here = versions("numpy", *(d for u in sorted(used) for d in LIBRARIES.get(u, (u,))), *pandas)
        return Description(
            self.inputs,
            _methods(self.model),
            inner,
            _takes(self.model),
            here,
            untyped=self.untyped,
            labels=fitted.labels(self.model),
        )

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        methods = [m for m in self.methods if want is None or _wanted(m, self.methods, want)]
        if not methods:
            return Outcome(Batch({}, batch.rows))
        rows = self._rows(batch)
        columns: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NO_NAMES)
            for method in methods:
                columns.update(_columns(getattr(self.model, method)(rows), method, batch.rows))
        if want is not None and not set(columns) <= want:
            columns = {n: c for n, c in columns.items() if n in want or _method_of(n, methods) in want}
        return Outcome(Batch(columns, batch.rows))

    def _rows(self, batch: Batch) -> Any:
        batch = features.arranged(batch, self.stage.inputs or self.inputs or ())
        if self.takes == "texts":
            return batch.columns[batch.names[0]]
        if self.takes in ("record", "records"):
            return [{k: v for k, v in row.items() if v is not None and v == v} for row in to_records(batch)]
        if self.takes != "frame":
            return to_matrix(batch)
        if batch.matrix is None and self.inputs and len(batch.names) == 1 != len(self.inputs):
            array = to_matrix(batch)  # what an array from the stage before is
            if is_sparse(array):
                return array
            batch = Batch(rows=batch.rows, names=[f.name for f in self.inputs], matrix=array)
        if batch.matrix is None and len(batch.names) == 1 and len(batch.columns[batch.names[0]].shape) > 1:
            return to_matrix(batch)  # rows that came as one array are no frame
        return to_frame(self._with_pandas_nulls(batch), self.stage.inputs or self.inputs or ())

    def _with_pandas_nulls(self, batch: Batch) -> Batch:
        """NaN for a null among strings, as pandas reads one and fitted imputers look for it."""
        if batch.matrix is not None:
            return batch
        odd = {
            n: c for n, c in batch.columns.items() if not is_sparse(c) and c.dtype == object and c.ndim == 1
        }
        changed = {
            n: _nan_for_none(c) for n, c in odd.items() if n not in self.none_is_known and None in c.tolist()
        }
        return Batch({**batch.columns, **changed}, batch.rows) if changed else batch


def _methods(model: Any) -> tuple[str, ...]:
    answers = tuple(m for m in ANSWERS if hasattr(model, m))
    return answers or tuple(m for m in METHODS if hasattr(model, m))[:1]


def _takes(model: Any) -> str:
    takes = fitted.takes(model)
    return "matrix" if takes == "frame" and not _pandas_is_here() else takes


def _pandas_is_here() -> bool:
    try:
        import pandas  # noqa: F401
    except ImportError:
        return False
    return True


def _keep_to(model: Any, threads: int) -> None:
    """One row costs less than waking other threads for it, and pools of processes don't belong into a worker."""
    for part in fitted.parts(model):
        if getattr(part, "n_jobs", None) not in (None, threads):
            part.n_jobs = threads
        if type(part).__module__.partition(".")[0] == "xgboost" and hasattr(part, "get_booster"):
            part.n_jobs = threads
            part.get_booster().set_param({"nthread": threads})


def _wanted(method: str, methods: Sequence[str], want: frozenset[str]) -> bool:
    """Whether any of the outputs asked for is this method's: by its name, or by a column's only it can have."""
    return any(_method_of(name, methods) == method for name in want)


def _method_of(output: str, methods: Sequence[str]) -> str | None:
    """The method whose answer an output is: `predict_proba_1` is one of several, other names are a frame's columns."""
    if output in methods:
        return output
    numbered = re.fullmatch(r"(.+)_\d+", output)
    if numbered and numbered[1] in methods:
        return numbered[1]
    return "transform" if "transform" in methods else methods[0]


def _columns(result: Any, method: str, rows: np.ndarray) -> dict[str, Any]:
    if isinstance(result, list) and method != "predict":  # one array an output, from multi-output classifiers
        return {f"{method}_{i}": as_column(np.asarray(r)) for i, r in enumerate(result)}
    if hasattr(result, "iloc"):  # a frame from set_output: its rows are ours, in our order
        result = (
            {str(c): result[c] for c in result.columns} if result.ndim == 2 else as_column(result.to_numpy())
        )
    elif not is_sparse(result):
        result = np.asarray(result)
    return from_result(result, rows, method).columns


def _nan_for_none(column: np.ndarray) -> np.ndarray:
    out = column.copy()
    out[[v is None for v in column.tolist()]] = np.nan
    return out


def _columns_that_know_none(model: Any) -> frozenset[str]:
    """Names of columns in whose training None was a value of its own (an encoder lists it)."""
    found = set()
    for part in fitted.parts(model):
        for names, encoder in fitted.encoded(part):
            listed = zip(names, encoder.categories_, strict=False)
            found |= {n for n, values in listed if any(v is None for v in np.asarray(values).tolist())}
    return frozenset(found)
