"""Every adapter keeps the contract, with models saved by its own library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker.testing.formats import Case, FormatContract
from mlpacker_runtime.batch import Batch
from mlpacker_runtime.signature import Field

NAMES = ("length", "width", "height", "weight")
KINDS = ("clay", "granite", "slate")
MATRIX = (Field("input", "float64", (-1, 4)),)
COLUMNS = tuple(Field(n, "float64") for n in NAMES)
KIND = Field("kind", "category", nullable=True, categories=KINDS)
TEXT_KIND = Field("kind", "string")

_rng = np.random.default_rng(11)
X = np.round(_rng.normal(3.0, 1.0, (60, 4)), 3)
KIND_OF = np.array([KINDS[i % 3] for i in range(60)], dtype=object)
Y = X[:, 0] * 2 - X[:, 1] + np.where(KIND_OF == "slate", 1.0, 0.0)
CLASS = np.digitize(Y, np.quantile(Y, (0.33, 0.66)))
LABEL = np.array(["low", "middle", "high"], dtype=object)[CLASS]
SOME = X[:9]
NAMED = Batch({n: SOME[:, i].copy() for i, n in enumerate(NAMES)})
PLAIN = Batch({"input": SOME})
WITH_KIND = Batch({**NAMED.columns, "kind": KIND_OF[:9]})

Build = Callable[[Path], Case]
CASES: dict[str, Build] = {}


def case_of(build: Build) -> Build:
    CASES[build.__name__] = build
    return build


def frame(values: np.ndarray = X, kind: np.ndarray | None = None) -> Any:
    pd = pytest.importorskip("pandas")
    data = pd.DataFrame(values, columns=NAMES)
    if kind is not None:
        data["kind"] = pd.Categorical(kind, categories=KINDS)
    return data


# --- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_case(
    folder: Path, model: Any, inputs: tuple[Field, ...], batch: Batch, feed: dict[str, np.ndarray]
) -> Case:
    runtime = pytest.importorskip("onnxruntime")
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    answers = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
    for name, answer in answers.items():
        if isinstance(answer, list):
            answers[name] = np.array([list(row.values()) for row in answer], dtype=np.float32)
    return Case("onnx", folder, "model.onnx", inputs, batch, answers, tolerance=1e-6)


@case_of
def onnx_classifier(folder: Path) -> Case:
    convert = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(X, LABEL)
    batch = Batch({"X": SOME.astype(np.float32)})
    graph = convert.to_onnx(model, X[:1].astype(np.float32), options={"zipmap": False})
    return onnx_case(folder, graph, (Field("X", "float32", (-1, 4)),), batch, dict(batch.columns))


@case_of
def onnx_zipmap(folder: Path) -> Case:
    convert = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(X, LABEL)
    batch = Batch({"X": SOME.astype(np.float32)})
    graph = convert.to_onnx(model, X[:1].astype(np.float32), options={"zipmap": True}, target_opset=15)
    return onnx_case(folder, graph, (Field("X", "float32", (-1, 4)),), batch, dict(batch.columns))


@case_of
def onnx_mixed_columns(folder: Path) -> Case:
    onnx = pytest.importorskip("onnx")
    h = onnx.helper
    nodes = [
        h.make_node("Mul", ["amount", "two"], ["double"]),
        h.make_node("Identity", ["kind"], ["same"]),
        h.make_node("Cast", ["count"], ["counted"], to=onnx.TensorProto.FLOAT),
        h.make_node("Add", ["double", "counted"], ["sum"]),
    ]
    t = onnx.TensorProto
    inputs = [
        h.make_tensor_value_info(n, k, ["rows", 1])
        for n, k in (("amount", t.FLOAT), ("count", t.INT64), ("kind", t.STRING))
    ]
    outputs = [
        h.make_tensor_value_info("sum", t.FLOAT, ["rows", 1]),
        h.make_tensor_value_info("same", t.STRING, ["rows", 1]),
    ]
    graph = h.make_graph(nodes, "g", inputs, outputs, [h.make_tensor("two", t.FLOAT, [1], [2.0])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 15)], ir_version=8)
    batch = Batch({"amount": SOME[:, 0].astype(np.float32), "count": np.arange(9), "kind": KIND_OF[:9]})
    fields = (Field("amount", "float32"), Field("count", "int64"), Field("kind", "string"))
    return onnx_case(folder, model, fields, batch, {n: c[:, None] for n, c in batch.columns.items()})


@case_of
def onnx_one_row_at_a_time(folder: Path) -> Case:
    onnx = pytest.importorskip("onnx")
    h, t = onnx.helper, onnx.TensorProto
    nodes = [h.make_node("ReduceSum", ["X"], ["total"], keepdims=1)]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("X", t.FLOAT, [1, 4])],
        [h.make_tensor_value_info("total", t.FLOAT, [1, 1])],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8)
    batch = Batch({"X": SOME.astype(np.float32)})
    made = onnx_case(folder, model, (Field("X", "float32", (-1, 4)),), batch, {"X": batch["X"][:1]})
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString())
    answers = np.concatenate([session.run(None, {"X": row[None]})[0] for row in batch["X"]])
    return Case("onnx", folder, made.path, made.inputs, batch, {"total": answers}, tolerance=1e-6)


# --- XGBoost ---------------------------------------------------------------------------------------------------------


@case_of
def xgboost_booster_json(folder: Path) -> Case:
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.train(
        {"objective": "multi:softprob", "num_class": 3},
        xgboost.DMatrix(X, CLASS, feature_names=list(NAMES)),
        5,
    )
    booster.save_model(folder / "model.json")
    answers = {"predict": booster.predict(xgboost.DMatrix(SOME, feature_names=list(NAMES)))}
    return Case("xgboost", folder, "model.json", COLUMNS, NAMED, answers)


@case_of
def xgboost_linear_booster_ubj(folder: Path) -> Case:
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.train({"booster": "gblinear", "nthread": 1}, xgboost.DMatrix(X, Y), 5)
    booster.save_model(folder / "model.ubj")
    return Case(
        "xgboost", folder, "model.ubj", MATRIX, PLAIN, {"predict": booster.predict(xgboost.DMatrix(SOME))}
    )


@case_of
def xgboost_classifier_ubj(folder: Path) -> Case:
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=8, n_jobs=1).fit(frame(), (CLASS > 0).astype(int))
    model.save_model(folder / "model.ubj")
    answers = {"predict": model.predict(frame(SOME)), "predict_proba": model.predict_proba(frame(SOME))}
    return Case("xgboost", folder, "model.ubj", COLUMNS, NAMED, answers)


@case_of
def xgboost_regressor_stopped_early(folder: Path) -> Case:
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBRegressor(n_estimators=50, early_stopping_rounds=1, learning_rate=0.9, n_jobs=1)
    model.fit(X[:40], Y[:40], eval_set=[(X[40:], Y[40:])], verbose=False)
    model.save_model(folder / "model.json")
    assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    return Case("xgboost", folder, "model.json", MATRIX, PLAIN, {"predict": model.predict(SOME)})


@case_of
def xgboost_with_categories(folder: Path) -> Case:
    xgboost = pytest.importorskip("xgboost", minversion="3.1")
    model = xgboost.XGBRegressor(n_estimators=8, enable_categorical=True, n_jobs=1).fit(
        frame(kind=KIND_OF), Y
    )
    model.save_model(folder / "model.json")
    answers = {"predict": model.predict(frame(SOME, KIND_OF[:9]))}
    return Case("xgboost", folder, "model.json", (*COLUMNS, KIND), WITH_KIND, answers)


# --- LightGBM --------------------------------------------------------------------------------------------------------


@case_of
def lightgbm_booster(folder: Path) -> Case:
    lightgbm = pytest.importorskip("lightgbm")
    data = lightgbm.Dataset(X, CLASS, params={"min_data_in_leaf": 2})
    booster = lightgbm.train(
        {"objective": "multiclass", "num_class": 3, "verbose": -1, "min_data_in_leaf": 2}, data, 5
    )
    booster.save_model(folder / "model.txt")
    return Case("lightgbm", folder, "model.txt", MATRIX, PLAIN, {"predict": booster.predict(SOME)})


@case_of
def lightgbm_with_categories(folder: Path) -> Case:
    lightgbm = pytest.importorskip("lightgbm")
    options = {"n_estimators": 8, "min_child_samples": 2, "min_data_per_group": 2, "verbose": -1}
    model = lightgbm.LGBMRegressor(**options).fit(frame(kind=KIND_OF), Y)
    model.booster_.save_model(folder / "model.txt")
    answers = {"predict": model.predict(frame(SOME, KIND_OF[:9]))}
    return Case("lightgbm", folder, "model.txt", (*COLUMNS, KIND), WITH_KIND, answers)


# --- CatBoost --------------------------------------------------------------------------------------------------------


@case_of
def catboost_classifier(folder: Path) -> Case:
    catboost = pytest.importorskip("catboost")
    model = catboost.CatBoostClassifier(
        iterations=8, verbose=0, allow_writing_files=False, thread_count=1
    ).fit(frame(), LABEL)
    model.save_model(folder / "model.cbm")
    answers = {"predict": model.predict(frame(SOME))[:, 0], "predict_proba": model.predict_proba(frame(SOME))}
    return Case("catboost", folder, "model.cbm", COLUMNS, NAMED, answers)


@case_of
def catboost_with_labels_in_a_column(folder: Path) -> Case:
    catboost = pytest.importorskip("catboost")
    texts = frame().assign(kind=KIND_OF)
    options = {"iterations": 8, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
    model = catboost.CatBoostRegressor(**options, cat_features=["kind"]).fit(texts, Y)
    model.save_model(folder / "model.cbm")
    return Case(
        "catboost",
        folder,
        "model.cbm",
        (*COLUMNS, TEXT_KIND),
        WITH_KIND,
        {"predict": model.predict(texts[:9])},
    )


# --- The suite -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """The case of that name, its model trained once and laid beside the others in one folder."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in made:
            (root / name).mkdir()
            built = CASES[name](root / name)
            made[name] = Case(
                **{**vars(built), "folder": root, "path": f"{name}/{built.path}".removesuffix("/.")}
            )
        return made[name]

    return case


class TestFormats(FormatContract):
    @pytest.fixture(params=list(CASES))
    def case(self, request: pytest.FixtureRequest, models: Callable[[str], Case]) -> Case:
        return models(request.param)

    @pytest.fixture
    def foreign(self, case: Case, models: Callable[[str], Case]) -> Mapping[str, bytes]:
        """A model of each other format."""
        others = {n: n.split("_")[0] for n in CASES if n.split("_")[0] != case.format}
        one_each = {kind: n for n, kind in others.items()}
        found = {n: models(n) for n in one_each.values()}
        return {
            n: (c.folder / c.path).read_bytes() for n, c in found.items() if (c.folder / c.path).is_file()
        }
