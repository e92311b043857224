"""CatBoost models in their own binary form (cbm): the magic `CBM1`, the length of the core, the core, further parts.

A model that knows class labels answers as CatBoostClassifier, another as CatBoostRegressor: labels and values a row in one
list, though the library gives a multiclass model's labels as a column.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..batch import Batch, Outcome, as_column, to_frame
from ..errors import BadInput, EnvironmentFailed
from ..manifest import Stage
from ..signature import Field
from . import Description, Facts, Files, Trust, boosters, features, versions

name = "catboost"

MAGIC = b"CBM1"
VERSION = re.compile(rb"CatBoost release (\d+(?:\.\d+)+)|tags/v(\d+(?:\.\d+)+)")
DISTRIBUTIONS = ("catboost", "numpy", "pandas", "scipy")


def matches(files: Files, path: str) -> bool:
    try:
        with files.file(path).open("rb") as stream:
            head = stream.read(8)
            size = stream.seek(0, 2)
    except OSError:
        return False
    return head[:4] == MAGIC and 0 < int.from_bytes(head[4:], "little") <= size - 8


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    found = VERSION.search(files.read(path))
    known = {"catboost": (found[1] or found[2]).decode()} if found else {}
    return Facts(versions=known, modules=("catboost",), requirements=() if known else ("catboost",))


def load(files: Files, stage: Stage, trust: Trust) -> Trees:
    data = files.read(stage.path)
    try:
        import catboost
    except ImportError as cause:
        raise EnvironmentFailed(
            "CatBoost is not installed here.", "Add catboost to the stage's requirements."
        ) from cause
    try:
        model = catboost.CatBoost().load_model(blob=data)
        if len(model.classes_):
            model = catboost.CatBoostClassifier().load_model(blob=data)
    except catboost.CatBoostError as cause:
        raise BadInput(f"{stage.path} can't be read by CatBoost {catboost.__version__}: {cause}.") from cause
    if model.get_embedding_feature_indices():
        raise BadInput(f"{stage.path} takes embeddings, which a plain column can't hold.")
    return Trees(model, stage)


class Trees:
    """A CatBoost model as a predictor."""

    def __init__(self, model: Any, stage: Stage) -> None:
        self.model = model
        self.stage = stage
        self.threads = int(stage.options.get("threads", 1))
        self.texts = {*model.get_cat_feature_indices(), *model.get_text_feature_indices()}
        self.inputs = boosters.catboost_fields(model.feature_names_, self.texts)
        self.labels = tuple(np.asarray(model.classes_).tolist())
        self.methods = ("predict", "predict_proba") if hasattr(model, "predict_proba") else ("predict",)

    def describe(self) -> Description:
        takes = "frame" if self.texts else "matrix"
        return Description(
            self.inputs, self.methods, ("predict",), takes, versions(*DISTRIBUTIONS), labels=self.labels
        )

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        rows = self._rows(batch)
        answers = {
            method: self._column(getattr(self.model, method)(rows, thread_count=self.threads))
            for method in self.stage.methods or self.methods
            if want is None or method in want
        }
        return Outcome(Batch(answers, batch.rows))

    def _rows(self, batch: Batch) -> Any:
        if not self.texts:
            return features.matrix(batch, self.stage.inputs, self.inputs)
        batch = features.arranged(batch, self.stage.inputs or self.inputs)
        named = zip(batch.names, self.inputs, strict=True)
        return to_frame(Batch({f.name: _feature(batch.columns[n], f) for n, f in named}, batch.rows))

    def _column(self, answer: Any) -> Any:
        answer = np.asarray(answer)
        return as_column(answer[:, 0] if answer.ndim == 2 and answer.shape[1] == 1 else answer)


def _feature(column: Any, field: Field) -> Any:
    """A column as CatBoost reads it: labels as strings, numbers as floats. Raises BadInput for a label that is null."""
    if field.dtype != "string":
        return features.numbers(Batch({field.name: column}))[:, 0]
    if (isinstance(column, np.ma.MaskedArray) and np.ma.getmaskarray(column).any()) or any(
        v is None for v in column.tolist()
    ):
        raise BadInput(f"Column {field.name!r} has a null, which CatBoost does not take among labels.")
    if column.dtype.kind == "f":
        raise BadInput(f"Column {field.name!r} holds floats where labels (strings or integers) belong.")
    return column if column.dtype.kind in "iu" else np.asarray(column, dtype=object)
