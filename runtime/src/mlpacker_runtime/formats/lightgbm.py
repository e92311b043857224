"""LightGBM boosters in their text form, as `Booster.save_model` writes it.

The keys of the header are those of LightGBM's `gbdt_model_text.cpp`; `pandas_categorical` is written by its Python package.
The answer is what `Booster.predict` gives: a probability for `binary`, one a class for `multiclass`, a value for regression.
The text does not hold the labels of the classes: a pickled LGBMClassifier does.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np

from ..batch import Batch, Outcome
from ..errors import BadInput, EnvironmentFailed
from ..manifest import Stage
from ..signature import Field
from . import HEAD, Description, Facts, Files, Trust, boosters, features, versions

name = "lightgbm"

HEADER = re.compile(rb"\Atree\r?\nversion=v(\d+)\r?\n")
END = re.compile(rb"^end of trees\s*$", re.MULTILINE)
GOMP = "On Debian and Ubuntu: apt-get install libgomp1."


def matches(files: Files, path: str) -> bool:
    try:
        with files.file(path).open("rb") as stream:
            return HEADER.match(stream.read(HEAD)) is not None and END.search(stream.read()) is not None
    except OSError:
        return False


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    """The text tells no version of the library, only of itself: version 4 is read since LightGBM 4."""
    text = files.read(path)
    header = HEADER.match(text)
    if b"\nparameters:" in text and b"\nend of parameters" not in text:  # LightGBM itself crashes on it
        raise BadInput(f"{path} ends in the middle of its parameters: half a file.", "Save or send it again.")
    if header is None:
        raise BadInput(f"{path} is not a LightGBM text model.")
    since = ">=4" if int(header[1]) >= 4 else ""
    return Facts(
        modules=("lightgbm",), requirements=(f"lightgbm{since}",), notes=("The text holds no class labels.",)
    )


def load(files: Files, stage: Stage, trust: Trust) -> Trees:
    text = files.read(stage.path).decode("utf-8", "replace")
    lightgbm = _library()
    log = logging.getLogger(f"{__name__}.library")
    log.setLevel(logging.ERROR)
    lightgbm.register_logger(log)  # its remarks are no part of the worker's output
    try:
        booster = lightgbm.Booster(model_str=text)
    except Exception as cause:
        raise BadInput(f"{stage.path} can't be read by LightGBM {lightgbm.__version__}: {cause}.") from cause
    return Trees(booster, boosters.lightgbm_fields(booster.feature_name(), text), stage)


def _library() -> Any:
    try:
        import lightgbm
    except ImportError as cause:
        raise EnvironmentFailed(
            "LightGBM is not installed here.", "Add lightgbm to the stage's requirements."
        ) from cause
    except OSError as cause:
        raise EnvironmentFailed(
            f"LightGBM can't be loaded: {cause}.", GOMP if "libgomp" in str(cause) else ""
        ) from cause
    return lightgbm


class Trees:
    """A LightGBM booster as a predictor."""

    def __init__(self, booster: Any, inputs: tuple[Field, ...], stage: Stage) -> None:
        self.booster = booster
        self.inputs = inputs
        self.stage = stage
        self.threads = int(stage.options.get("threads", 1))

    def describe(self) -> Description:
        here = versions("lightgbm", "numpy", "scipy")
        return Description(self.inputs, ("predict",), ("predict",), "matrix", here)

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        if want is not None and "predict" not in want:
            return Outcome(Batch({}, batch.rows))
        values = features.matrix(batch, self.stage.inputs, self.inputs, strict=False)
        answer = self.booster.predict(values, num_threads=self.threads)
        return Outcome(Batch({"predict": np.asarray(answer)}, batch.rows))
