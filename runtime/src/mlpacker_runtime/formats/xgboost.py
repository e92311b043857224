"""XGBoost models as `save_model` writes them: JSON and UBJ (the binary form of the same document).

The document's keys (`learner`, `version`, `feature_names`, `feature_types`, `attributes`) are those of XGBoost's model schema.
A model saved through the scikit-learn wrapper says so in its attributes and is loaded as that estimator, which gives labels
and probabilities; a bare booster answers with what `Booster.predict` gives.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import numpy as np

from ..batch import Batch, Outcome
from ..errors import BadInput, EnvironmentFailed
from ..manifest import Stage
from . import Description, Facts, Files, Trust, boosters, features, versions

name = "xgboost"

TAIL = 1 << 16
JSON_HEAD = re.compile(rb'\A\s*\{\s*"(learner|version|Config)"\s*:')
JSON_VERSION = re.compile(rb'"version"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]')
JSON_END = re.compile(rb"\}\s*\}\s*\Z|\]\s*\}\s*\Z")
UBJ_HEAD = re.compile(rb"\A\{L\x00{7}.(learner|version)[\{\[]", re.DOTALL)
UBJ_VERSION = re.compile(rb"L\x00{7}\x07version\[", re.DOTALL)
WRAPPED_CLASSIFIER = re.compile(rb'scikit_learn.{1,8192}?_estimator_type\\*": \\*"classifier', re.DOTALL)
OLD = struct.Struct("<fIiiiII")
OLD_PARAMETERS = 136
SIZES = {b"i": "b", b"U": "B", b"I": ">h", b"l": ">i", b"L": ">q"}
DISTRIBUTIONS = ("xgboost", "xgboost-cpu", "scikit-learn", "numpy", "scipy")


def matches(files: Files, path: str) -> bool:
    """Old binary files match too, so that `inspect` can say what to do about them."""
    try:
        head, tail = _ends(files, path)
    except OSError:
        return False
    return _version(head, tail) is not None or _is_old(head)


def _ends(files: Files, path: str) -> tuple[bytes, bytes]:
    with files.file(path).open("rb") as stream:
        head = stream.read(TAIL)
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TAIL))
        return head, stream.read()


def _version(head: bytes, tail: bytes) -> tuple[int, ...] | None:
    """The version in the document, or None where it isn't one, or not a whole one."""
    if UBJ_HEAD.match(head) and tail.endswith(b"}"):
        return _ubj_version(tail) or _ubj_version(head)
    if JSON_HEAD.match(head) and JSON_END.search(tail) and b'"learner"' in head:
        found = JSON_VERSION.search(tail) or JSON_VERSION.search(head)
        return tuple(int(n) for n in found.groups()) if found else None
    return None


def _ubj_version(data: bytes) -> tuple[int, ...] | None:
    for found in reversed(list(UBJ_VERSION.finditer(data))):
        numbers = _ubj_integers(data[found.end() :])
        if numbers is not None and len(numbers) == 3:
            return numbers
    return None


def _ubj_integers(data: bytes) -> tuple[int, ...] | None:
    """The integers of a small counted UBJ array that follows its `[`; None where it is something else."""
    try:
        at = 0
        kind = b""
        if data[at : at + 1] == b"$":
            kind, at = data[1:2], 2
        count, at = (
            _ubj_integer(data[at + 1 : at + 2], data, at + 2) if data[at : at + 1] == b"#" else (0, at)
        )
        out = []
        for _ in range(min(count, 8)):
            mark, at = (kind, at) if kind else (data[at : at + 1], at + 1)
            value, at = _ubj_integer(mark, data, at)
            out.append(value)
    except (KeyError, struct.error):
        return None
    return tuple(out)


def _ubj_integer(mark: bytes, data: bytes, at: int) -> tuple[int, int]:
    layout = SIZES[mark]
    return struct.unpack_from(layout, data, at)[0], at + struct.calcsize(layout)


def _is_old(head: bytes) -> bool:
    """The binary form before 3.1: a fixed block of parameters, then the objective's name, each after its length."""
    start = 4 if head.startswith(b"binf") else 0
    try:
        _, columns, classes, *_ = OLD.unpack_from(head, start)
        (length,) = struct.unpack_from("<Q", head, start + OLD_PARAMETERS)
    except struct.error:
        return False
    objective = head[start + OLD_PARAMETERS + 8 :][: min(length, 64)]
    return (
        0 < length <= 64
        and 0 <= classes < 1 << 20
        and columns < 1 << 31
        and re.fullmatch(rb"[a-z]+:[a-z0-9_:]+", objective) is not None
    )


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    head, tail = _ends(files, path)
    version = _version(head, tail)
    if version is None:
        raise BadInput(
            f"{path} is {'in the old binary format of XGBoost' if _is_old(head) else 'not a whole XGBoost model'}.",
            "Load it in the XGBoost that wrote it and save it again: booster.save_model('model.json').",
        )
    wrapped = (
        WRAPPED_CLASSIFIER.search(head) is not None
    )  # labels are the wrapper's work, which needs scikit-learn
    return Facts(
        versions={"xgboost": ".".join(map(str, version))},
        modules=("xgboost", "sklearn") if wrapped else ("xgboost",),
        requirements=("scikit-learn",) if wrapped else (),
    )


def load(files: Files, stage: Stage, trust: Trust) -> Trees | Wrapped:
    data = files.read(stage.path)
    inspect(files, stage.path, trust)
    library = _library()
    try:
        booster = library.Booster()
        booster.load_model(bytearray(data))
    except Exception as cause:
        raise BadInput(
            f"{stage.path} can't be read by XGBoost {library.__version__}: {_first_line(cause)}"
        ) from cause
    booster.set_param({"nthread": int(stage.options.get("threads", 1))})
    said = json.loads(booster.attr("scikit_learn") or "{}")
    kind = said.get("_estimator_type") or said.get("type", "")
    if kind.lower().endswith("classifier"):
        return Wrapped(library.XGBClassifier(), booster, data, stage)
    return Trees(booster, stage, best=bool(said))


def _first_line(cause: Exception) -> str:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def _library() -> Any:
    try:
        import xgboost
    except ImportError as cause:
        raise EnvironmentFailed(
            "XGBoost is not installed here.", "Add xgboost-cpu to the stage's requirements."
        ) from cause
    return xgboost


class Trees:
    """A booster as a predictor.

    best: stop at the best iteration where training found one, as the scikit-learn wrapper does and a bare booster doesn't.
    """

    def __init__(self, booster: Any, stage: Stage, best: bool) -> None:
        self.booster = booster
        self.stage = stage
        self.inputs = boosters.xgboost_fields(booster)
        self.trees = json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] != "gblinear"
        self.range = (
            (0, int(booster.attr("best_iteration")) + 1)
            if best and booster.attr("best_iteration")
            else (0, 0)
        )

    def describe(self) -> Description:
        return Description(self.inputs, ("predict",), ("predict",), "matrix", versions(*DISTRIBUTIONS))

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        if want is not None and "predict" not in want:
            return Outcome(Batch({}, batch.rows))
        values = features.matrix(batch, self.stage.inputs, self.inputs)
        return Outcome(Batch({"predict": np.asarray(self._answer(values))}, batch.rows))

    def _answer(self, values: Any) -> Any:
        if self.trees:  # spares the copy into a DMatrix
            return self.booster.inplace_predict(values, iteration_range=self.range, validate_features=False)
        from xgboost import DMatrix

        return self.booster.predict(DMatrix(values), iteration_range=self.range, validate_features=False)


class Wrapped:
    """An XGBClassifier as a predictor."""

    def __init__(self, model: Any, booster: Any, data: bytes, stage: Stage) -> None:
        self.model = model
        self.stage = stage
        self.inputs = boosters.xgboost_fields(booster)
        self.model.load_model(bytearray(data))
        self.model.set_params(n_jobs=int(stage.options.get("threads", 1)))
        self.model.get_booster().set_param({"nthread": int(stage.options.get("threads", 1))})

    def describe(self) -> Description:
        methods = ("predict", "predict_proba")
        return Description(self.inputs, methods, ("predict",), "matrix", versions(*DISTRIBUTIONS))

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        methods = self.stage.methods or ("predict", "predict_proba")
        values = features.matrix(batch, self.stage.inputs, self.inputs)
        answers = {
            m: np.asarray(getattr(self.model, m)(values, validate_features=False))
            for m in methods
            if want is None or m in want
        }
        return Outcome(Batch(answers, batch.rows))
