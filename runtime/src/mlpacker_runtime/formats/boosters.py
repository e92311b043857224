"""What a boosted model of XGBoost, LightGBM or CatBoost knows of its columns. Read from the model; no library is imported."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from ..signature import Field
from . import features

LIGHTGBM_NAMES = re.compile(r"Column_\d+")
LIGHTGBM_LABELS = "pandas_categorical:"


def xgboost_fields(booster: Any) -> tuple[Field, ...]:
    """Integers are asked for as floats: XGBoost computes in floats, and a null is a NaN."""
    names, types = booster.feature_names, booster.feature_types
    if not names:
        return features.unnamed(booster.num_features())
    types = types or ["float"] * len(names)
    labels = _xgboost_labels(booster) if "c" in types else {}
    return tuple(
        _xgboost_field(n, t, labels.get(i)) for i, (n, t) in enumerate(zip(names, types, strict=True))
    )


def _xgboost_field(name: str, kind: str, labels: tuple[Any, ...] | None) -> Field:
    if kind != "c":
        return Field(name, "bool" if kind == "i" else "float64")
    if labels is None:  # models before XGBoost 3.1 hold no labels and take their codes
        return Field(name, "int64", nullable=True)
    return Field(name, "category", nullable=True, categories=labels)


def _xgboost_labels(booster: Any) -> dict[int, tuple[Any, ...]]:
    """The labels of categorical columns by position, from the model's document (its keys: `cats`, `enc`)."""
    model = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"].get("model", {})
    encoders = model.get("cats", {}).get("enc", [])
    return {i: tuple(_xgboost_values(e)) for i, e in enumerate(encoders) if e.get("values")}


def _xgboost_values(encoder: dict[str, Any]) -> list[Any]:
    """Strings lie end to end as UTF-8 bytes between offsets, numbers as they are."""
    if "offsets" not in encoder:
        return list(encoder["values"])
    raw = bytes(b & 0xFF for b in encoder["values"])
    return [raw[a:b].decode("utf-8", "replace") for a, b in itertools.pairwise(encoder["offsets"])]


def lightgbm_fields(names: Sequence[str], text: str) -> tuple[Field, ...]:
    """From the text of a model. LightGBM writes `_` for a blank in a name, and what a name was is lost."""
    labels = _lightgbm_labels(text)
    if all(map(LIGHTGBM_NAMES.fullmatch, names)) and not labels:
        return features.unnamed(len(names))
    return tuple(
        Field(n, "category", nullable=True, categories=labels[i]) if i in labels else Field(n, "float64")
        for i, n in enumerate(names)
    )


def _lightgbm_labels(text: str) -> dict[int, tuple[Any, ...]]:
    """Labels of the columns that were pandas categories in training, by position."""
    start = text.rfind(f"\n{LIGHTGBM_LABELS}")
    if start < 0:
        return {}
    try:
        labels = json.loads(text[start + 1 + len(LIGHTGBM_LABELS) :].splitlines()[0])
    except (ValueError, IndexError, RecursionError):
        return {}
    at = _lightgbm_categorical(text)
    return {i: tuple(v) for i, v in zip(at, labels, strict=True)} if labels and len(at) == len(labels) else {}


def _lightgbm_categorical(text: str) -> list[int]:
    """Positions of the categorical columns, from the parameters or, without them, the ranges seen in training."""
    given = re.search(r"^\[categorical_feature: ([\d,]+)\]$", text, re.MULTILINE)
    if given:
        return sorted(int(n) for n in given[1].split(","))
    infos = re.search(r"^feature_infos=(.*)$", text, re.MULTILINE)
    seen = infos[1].split(" ") if infos else []
    return [i for i, info in enumerate(seen) if info != "none" and not info.startswith("[")]


def catboost_fields(names: Sequence[str], texts: Collection[int]) -> tuple[Field, ...]:
    """texts: positions of the columns of labels or words. A model without names calls its columns 0, 1, 2 …"""
    if not texts and list(names) == [str(i) for i in range(len(names))]:
        return features.unnamed(len(names))
    return tuple(Field(n, "string" if i in texts else "float64") for i, n in enumerate(names))
