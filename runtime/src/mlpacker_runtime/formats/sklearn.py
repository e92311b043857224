"""scikit-learn estimators and pipelines, and whatever follows their conventions, saved by pickle, joblib, cloudpickle or skops.

The names `n_features_in_`, `feature_names_in_`, `categories_` and the order of `predict_proba`'s columns are those of
scikit-learn's developer guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import audit
from ..batch import Batch, Outcome, as_column, from_result, is_sparse, to_frame, to_matrix
from ..errors import BadInput, EnvironmentFailed
from ..manifest import Stage
from ..signature import Field
from . import HEAD, Description, Facts, Files, Trust, versions

name = "sklearn"

ANSWERS = ("predict", "predict_proba")
TEXT = "sklearn.feature_extraction.text"
LIBRARIES = ("scikit-learn", "numpy", "scipy", "xgboost", "lightgbm", "catboost")


def matches(files: Files, path: str) -> bool:
    file = files.file(path)
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return audit.kind(stream.read(HEAD), path) is not None


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    data = files.read(path)
    if audit.kind(data[:HEAD], path) == "skops":
        report = audit.scan_skops(data, trusted=trust.names)
    else:
        report = audit.scan(data, trusted=trust.names, trust_code=trust.code)
    return Facts(
        versions={n: said[0] for n, said in report.versions.items() if len(said) == 1},
        modules=tuple(report.modules),
        code=report.code,
        trusted=tuple(sorted(trust.names & set(report.names))),
    )


def load(files: Files, stage: Stage, trust: Trust) -> Estimator:
    data = files.read(stage.path)
    try:
        if audit.kind(data[:HEAD], stage.path) == "skops":
            model = audit.load_skops(data, trusted=trust.names)
        else:
            model = audit.load(data, trusted=trust.names, trust_code=trust.code)
    except ImportError as cause:
        raise EnvironmentFailed(
            f"{stage.path} needs a module that is not here: {cause}.",
            "Add it to the stage's requirements, or pack the code it refers to with --code.",
        ) from cause
    if not any(callable(getattr(model, m, None)) for m in ("predict", "transform")):
        raise BadInput(
            f"{stage.path} holds a {type(model).__name__}, which neither predicts nor transforms.",
            "Save the fitted estimator or pipeline itself.",
        )
    return Estimator(model, stage)


class Estimator:
    """A fitted estimator as a predictor."""

    def __init__(self, model: Any, stage: Stage) -> None:
        self.model = model
        self.stage = stage
        self.names = tuple(f.name for f in stage.inputs)

    def describe(self) -> Description:
        methods = self._methods()
        inner = ("transform",) if hasattr(self.model, "transform") else methods[:1]
        return Description(_inputs(self.model), methods, inner, self._takes(), versions(*LIBRARIES))

    def _methods(self) -> tuple[str, ...]:
        answers = tuple(m for m in ANSWERS if hasattr(self.model, m))
        return answers or ("transform",)

    def _takes(self) -> str:
        if _first(self.model).__module__ == TEXT:
            return "texts"
        return "frame" if _names(self.model) and _pandas_is_here() else "matrix"

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        methods = self.stage.methods or self._methods()
        wanted = [m for m in methods if want is None or m in want]
        rows = self._rows(batch)
        columns: dict[str, Any] = {}
        for method in wanted:
            result = getattr(self.model, method)(rows)
            columns.update(self._columns(result, method, batch))
        return Outcome(Batch(columns, batch.rows))

    def _rows(self, batch: Batch) -> Any:
        takes = self.stage.takes or self._takes()
        if self.names:
            batch = batch.select(self.names)
        if takes == "frame":
            return to_frame(batch, self.stage.inputs)
        if takes == "texts":
            return batch.columns[batch.names[0]]
        return to_matrix(batch)

    def _columns(self, result: Any, method: str, batch: Batch) -> dict[str, Any]:
        if isinstance(result, list) and method != "predict":  # one array an output, from multi-output classifiers
            return {f"{method}_{i}": as_column(np.asarray(r)) for i, r in enumerate(result)}
        if hasattr(result, "iloc"):  # a frame from set_output: its rows are ours, in our order
            result = {str(c): result[c] for c in result.columns} if result.ndim == 2 else result.to_numpy()
        elif not is_sparse(result):
            result = np.asarray(result)
        return from_result(result, batch.rows, method).columns


def _pandas_is_here() -> bool:
    try:
        import pandas  # noqa: F401
    except ImportError:
        return False
    return True


def _first(model: Any) -> Any:
    """The class of the first step, through pipelines."""
    while getattr(model, "steps", None):
        model = model.steps[0][1]
    return type(model)


def _names(model: Any) -> tuple[str, ...]:
    names = getattr(model, "feature_names_in_", None)
    return tuple(names) if names is not None and all(isinstance(n, str) for n in names) else ()


def _inputs(model: Any) -> tuple[Field, ...] | None:
    if _first(model).__module__ == TEXT:
        return (Field("text", "string"),)
    names = _names(model)
    width = getattr(model, "n_features_in_", None)
    if names:
        known = dict(_categories(model))
        return tuple(known.get(n, Field(n, "float64")) for n in names)
    return None if width is None else (Field("input", "float64", (-1, int(width))),)


def _categories(model: Any) -> Iterator[tuple[str, Field]]:
    """Columns that a fitted encoder of labels takes first hand, by name."""
    transformer = model
    while getattr(transformer, "steps", None):
        transformer = transformer.steps[0][1]
    for _, inner, columns in getattr(transformer, "transformers_", ()):
        encoder = inner.steps[0][1] if getattr(inner, "steps", None) else inner
        labels = getattr(encoder, "categories_", None)
        if labels is None or isinstance(columns, slice) or len(labels) != len(list(columns)):
            continue
        for column, values in zip(columns, labels, strict=True):
            if isinstance(column, str):
                yield column, _field_of_labels(column, np.asarray(values))


def _field_of_labels(name: str, values: np.ndarray) -> Field:
    nulls = values.dtype == object and any(v is None or v != v for v in values)
    given = [v for v in values.tolist() if v is not None and v == v]
    if all(isinstance(v, str) for v in given):
        return Field(name, "string", nullable=nulls)
    if all(isinstance(v, bool) for v in given):
        return Field(name, "bool", nullable=nulls)
    return Field(name, "int64" if all(isinstance(v, int) for v in given) and not nulls else "float64")
