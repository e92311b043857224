"""What a fitted estimator tells of the rows it was fitted on: their columns, types and labels, and how it wants them.

The names (`feature_names_in_`, `n_features_in_`, `transformers_`, `categories_`, `classes_`) are those of scikit-learn's
developer guide. Nothing is imported: an estimator is known by its attributes and the name of its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..signature import Field
from . import boosters, features

TEXT = "sklearn.feature_extraction.text"
HOLDS = ("best_estimator_", "estimator_", "regressor_")
"""Where a search, a threshold or a transformed target keeps the estimator it found."""
ENSEMBLES = (
    "VotingClassifier",
    "VotingRegressor",
    "StackingClassifier",
    "StackingRegressor",
    "MultiOutputClassifier",
    "MultiOutputRegressor",
    "OneVsRestClassifier",
    "OneVsOneClassifier",
    "OutputCodeClassifier",
    "ClassifierChain",
    "RegressorChain",
)
"""Those whose members see the rows as they come."""
NOTHING = (None, "drop", "passthrough")


def first(model: Any) -> Any:
    """The estimator that sees the rows first, through pipelines, searches and ensembles."""
    for _ in range(64):
        inner = _inner(model)
        if inner is None:
            return model
        model = inner
    return model


def _inner(model: Any) -> Any:
    """The member of a composite that sees the composite's rows; None for what is none."""
    steps = getattr(model, "steps", None)
    if isinstance(steps, list):
        return next((step for _, step in steps if step not in NOTHING), None)
    if isinstance(getattr(model, "transformer_list", None), list):
        return next((t for _, t in model.transformer_list if t not in NOTHING), None)
    for attribute in HOLDS:
        if hasattr(model, attribute) and hasattr(getattr(model, attribute), "get_params"):
            return getattr(model, attribute)
    calibrated = getattr(model, "calibrated_classifiers_", None)
    if calibrated:
        return getattr(calibrated[0], "estimator", None) or getattr(calibrated[0], "base_estimator", None)
    members = getattr(model, "estimators_", None)
    return members[0] if type(model).__name__ in ENSEMBLES and isinstance(members, list) and members else None


def parts(model: Any) -> Iterator[Any]:
    """The estimator and all fitted ones inside it, through composites."""
    waiting, seen = [model], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen or not hasattr(part, "get_params"):
            continue
        seen.add(id(part))
        yield part
        for attribute in ("steps", "transformer_list", "transformers_"):
            waiting += [entry[1] for entry in getattr(part, attribute, ()) if len(entry) > 1]
        waiting += [getattr(part, a) for a in (*HOLDS, "final_estimator_") if hasattr(part, a)]
        waiting += [e for c in getattr(part, "calibrated_classifiers_", ()) for e in vars(c).values()]
        waiting += list(getattr(part, "estimators_", ())) if type(part).__name__ in ENSEMBLES else []


def takes(model: Any) -> str:
    """How the estimator wants its rows: texts, records, a frame or a matrix."""
    kind = type(first(model))
    if _is_text(kind):
        return "texts"
    if kind.__name__ == "DictVectorizer" or (
        kind.__name__ == "FeatureHasher" and first(model).input_type == "dict"
    ):
        return "records"
    return "matrix" if not names(model) and _width(model) is not None else "frame"


def _is_text(kind: type) -> bool:
    return kind.__module__ == TEXT and kind.__name__.endswith("Vectorizer")


def labels(model: Any) -> tuple[Any, ...]:
    """The classes in the order of the probabilities' columns; () for what is no classifier or has several outputs."""
    classes = getattr(model, "classes_", None)
    if not isinstance(classes, np.ndarray) or classes.ndim != 1 or classes.dtype.kind not in "biufUO":
        return ()
    found = tuple(classes.tolist())
    return found if all(isinstance(c, (str, int, float, bool)) for c in found) else ()


def names(model: Any) -> tuple[str, ...]:
    """The columns of the frame it was fitted on; () where it was none, or its names were no strings."""
    for part in (model, first(model)):
        known = getattr(part, "feature_names_in_", None)
        if known is None and _library(part) == "catboost":
            known = [f.name for f in _catboost(part) if f.name != features.UNNAMED]
        if known is None and _library(part) == "lightgbm":  # before LightGBM 4.6
            known = getattr(part, "feature_name_", None)
        if known is None or not len(known) or not all(isinstance(n, str) for n in known):
            continue
        if not all(map(boosters.LIGHTGBM_NAMES.fullmatch, known)):
            return tuple(map(str, known))
    return ()


def inputs(model: Any) -> tuple[tuple[Field, ...] | None, tuple[str, ...]]:
    """The columns it takes (None where it does not know), and the names of those whose type it does not tell."""
    way = takes(model)
    if way == "texts":
        return (Field("text", "string"),), ()
    if way == "records":
        return _record_fields(first(model)), ()
    known = names(model)
    if not known:
        return _unnamed(model), ()
    fields = _fields(first(model), known)
    untyped = tuple(n for n in known if fields.get(n, 0) is None)
    return tuple(fields[n] or Field(n, "float64") for n in known if n in fields), untyped


def _width(model: Any) -> int | None:
    return getattr(model, "n_features_in_", None) or getattr(first(model), "n_features_in_", None)


def _unnamed(model: Any) -> tuple[Field, ...] | None:
    width = _width(model)
    if width is None:
        return None
    positions = tuple(str(i) for i in range(int(width)))
    kinds = {f.dtype if f else "object" for f in _fields(first(model), positions).values()}
    numeric = kinds <= {"float64", "int64", "bool"}
    return features.unnamed(width, "float64" if numeric else "string" if kinds == {"string"} else "object")


def _record_fields(model: Any) -> tuple[Field, ...] | None:
    """A DictVectorizer's keys: `key=value` stands for a key whose values are strings."""
    known = getattr(model, "feature_names_", None)
    if known is None:
        return None
    split = [(str(n).partition(model.separator)) for n in known]
    kinds = {key: "string" if separator else "float64" for key, separator, _ in split}
    return tuple(Field(k, t, nullable=t == "string", required=False) for k, t in kinds.items())


def _library(model: Any) -> str:
    return type(model).__module__.partition(".")[0]


def _fields(model: Any, known: Sequence[str]) -> dict[str, Field | None]:
    """By name what an estimator tells of these columns: None for a type it doesn't tell. What it drops is left out."""
    if hasattr(model, "transformers_"):
        return _column_fields(model, known)
    if _library(model) in ("xgboost", "lightgbm", "catboost"):
        told = _boosted(model)
        return (
            {n: _renamed(f, n) for n, f in zip(known, told, strict=True)}
            if len(told) == len(known)
            else _floats(known)
        )
    if getattr(model, "is_categorical_", None) is not None:
        return {**_floats(known), **_histogram_categories(model, known)}
    return _branch([model], known)


def _floats(known: Sequence[str]) -> dict[str, Field | None]:
    return {n: Field(n, "float64") for n in known}


def _renamed(field: Field, name: str) -> Field:
    return Field(name, field.dtype, nullable=field.nullable, categories=field.categories)


def _column_fields(transformer: Any, known: Sequence[str]) -> dict[str, Field | None]:
    found: dict[str, Field | None] = {}
    by_name = True
    for _, inner, columns in transformer.transformers_:
        chosen, named = _chosen(columns, known)
        by_name = by_name and named
        if isinstance(inner, str) and inner == "drop":
            continue
        told = _floats(chosen) if isinstance(inner, str) else _branch([inner], chosen)
        for name, field in told.items():
            found[name] = found.get(name) or field
    if by_name:
        return {n: found[n] for n in known if n in found}
    return {n: found.get(n, Field(n, "float64")) for n in known}  # positions count: nothing may be left out


def _chosen(columns: Any, known: Sequence[str]) -> tuple[list[str], bool]:
    """Which columns a transformer was given, as names, and whether it names them (or takes positions)."""
    if isinstance(columns, str):
        return [columns], True
    if isinstance(columns, slice) and not isinstance(columns.start or columns.stop, str):
        return list(known[columns]), False
    if isinstance(columns, slice):
        start = known.index(columns.start) if columns.start is not None else 0
        stop = known.index(columns.stop) + 1 if columns.stop is not None else len(known)
        return list(known[start:stop]), True
    listed = np.atleast_1d(np.asarray(columns)).tolist() if not isinstance(columns, list) else columns
    if all(isinstance(c, str) for c in listed):
        return list(listed), True
    if all(isinstance(c, bool) for c in listed):
        return [n for n, c in zip(known, listed, strict=False) if c], False
    return [known[int(c)] for c in listed], False


def _branch(steps: list[Any], known: Sequence[str]) -> dict[str, Field | None]:
    """What a chain of transformers tells of the columns that enter it, by its first step that knows."""
    nullable = text = False
    waiting = list(steps)
    while waiting:
        step = waiting.pop(0)
        if isinstance(getattr(step, "steps", None), list):
            waiting = [s for _, s in step.steps] + waiting
        elif isinstance(step, str) or step is None:
            continue
        elif hasattr(step, "transformers_"):
            return _column_fields(step, known)
        elif isinstance(getattr(step, "transformer_list", None), list):
            waiting = [t for _, t in step.transformer_list][:1] + waiting
        elif _is_text(type(step)):
            return {n: Field(n, "string") for n in known}
        elif len(getattr(step, "categories_", ())) == len(known) > 0:
            return {n: _field_of_labels(n, c, nullable) for n, c in zip(known, step.categories_, strict=True)}
        elif type(step).__name__ == "SimpleImputer":
            nullable, text = True, np.asarray(step.statistics_).dtype == object
        elif type(step).__name__ == "FunctionTransformer" or _library(step) != "sklearn":
            return dict.fromkeys(known)
        else:
            break
    return {n: Field(n, "string", nullable=True) for n in known} if text else _floats(known)


def _field_of_labels(name: str, values: Any, nullable: bool) -> Field:
    """The type of a column whose values an encoder listed."""
    listed = np.asarray(values).tolist()
    given = [v for v in listed if v is not None and v == v]
    nullable = nullable or len(given) < len(listed)
    if all(isinstance(v, str) for v in given):
        return Field(name, "string", nullable=nullable)
    if all(isinstance(v, bool) for v in given):
        return Field(name, "bool", nullable=nullable)
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given):
        return Field(name, "object", nullable=nullable)
    whole = all(isinstance(v, int) for v in given) and not nullable
    return Field(name, "int64" if whole else "float64")


def _histogram_categories(model: Any, known: Sequence[str]) -> dict[str, Field | None]:
    """The pandas categories a histogram gradient boosting was fitted on: its encoder lists them."""
    mask = np.asarray(model.is_categorical_)
    inner = getattr(getattr(model, "_preprocessor", None), "named_transformers_", {})
    listed = getattr(inner.get("encoder") if inner else None, "categories_", None)
    chosen = [n for n, yes in zip(known, mask, strict=False) if yes]
    if listed is None or len(listed) != len(chosen):
        return {}
    found: dict[str, Field | None] = {}
    for name, values in zip(chosen, listed, strict=True):
        given = tuple(v for v in np.asarray(values).tolist() if v is not None and v == v)
        found[name] = Field(name, "category", nullable=True, categories=given)
    return found


def _boosted(model: Any) -> tuple[Field, ...]:
    library = _library(model)
    if library == "xgboost":
        return boosters.xgboost_fields(model.get_booster())
    if library == "catboost":
        return _catboost(model)
    booster = getattr(model, "booster_", model)
    return boosters.lightgbm_fields(booster.feature_name(), booster.model_to_string())


def _catboost(model: Any) -> tuple[Field, ...]:
    texts = {*model.get_cat_feature_indices(), *model.get_text_feature_indices()}
    return boosters.catboost_fields(model.feature_names_, texts)


def encoded(part: Any) -> Iterator[tuple[Sequence[str], Any]]:
    """Encoders in a column transformer, with the names of the columns they encode."""
    for _, inner, columns in getattr(part, "transformers_", ()):
        chosen = columns if isinstance(columns, list) else []
        for step in parts(inner):
            if hasattr(step, "categories_") and all(isinstance(c, str) for c in chosen):
                yield chosen, step
