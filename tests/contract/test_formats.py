"""Every adapter keeps the contract, with models saved by its own library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker.testing.formats import Case, FormatContract, check_equal
from mlpacker_runtime.batch import Batch
from mlpacker_runtime.errors import BadInput
from mlpacker_runtime.formats import Trust
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


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def sklearn_case(
    folder: Path, model: Any, inputs: tuple[Field, ...] | None, batch: Batch, rows: Any, *methods: str
) -> Case:
    """Saved by joblib; what it answers to the same rows as its own user has them."""
    joblib = pytest.importorskip("joblib")
    joblib.dump(model, folder / "model.joblib")
    answers = {}
    for method in methods:
        answer = getattr(model, method)(rows)
        if isinstance(answer, list):
            answers |= {f"{method}_{i}": a for i, a in enumerate(answer)}
        elif hasattr(answer, "iloc"):
            answers |= {c: answer[c].to_numpy() for c in answer.columns}
        else:
            answers[method] = answer.toarray() if hasattr(answer, "toarray") else answer
    stage = {} if set(methods) & {"predict"} else {"methods": methods}
    return Case("sklearn", folder, "model.joblib", inputs, batch, answers, tolerance=1e-10, stage=stage)


@case_of
def sklearn_forest_on_a_frame(folder: Path) -> Case:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_estimators=7, n_jobs=2, random_state=0).fit(frame(), LABEL)
    return sklearn_case(folder, model, COLUMNS, NAMED, frame(SOME), "predict", "predict_proba")


@case_of
def sklearn_by_pickle_protocol_0(folder: Path) -> Case:
    import pickle

    from sklearn.linear_model import Ridge

    model = Ridge().fit(X, Y)
    (folder / "model.pkl").write_bytes(pickle.dumps(model, protocol=0))
    return Case(
        "sklearn", folder, "model.pkl", MATRIX, PLAIN, {"predict": model.predict(SOME)}, tolerance=1e-10
    )


@case_of
def sklearn_by_skops(folder: Path) -> Case:
    skops = pytest.importorskip("skops.io")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, CLASS)
    skops.dump(model, folder / "model.skops")
    answers = {"predict": model.predict(SOME), "predict_proba": model.predict_proba(SOME)}
    return Case("sklearn", folder, "model.skops", MATRIX, PLAIN, answers, tolerance=1e-10)


@case_of
def sklearn_search_of_an_svc(folder: Path) -> Case:
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    search = GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [1, 10]}, cv=2, n_jobs=1).fit(
        X, LABEL
    )
    return sklearn_case(folder, search, MATRIX, PLAIN, SOME, "predict")


def mixed() -> Any:
    """A frame with nulls as pandas reads them: numbers, labels, a flag, and a column that is dropped."""
    data = frame().assign(kind=KIND_OF, grade=np.arange(60) % 4, wet=np.arange(60) % 2 == 0, note="n")
    data.loc[::7, "width"] = np.nan
    data.loc[3::9, "kind"] = np.nan
    return data


@case_of
def sklearn_column_transformer(folder: Path) -> Case:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    data = mixed()
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), list(NAMES)),
            ("labels", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["kind"]),
            ("grade", OrdinalEncoder(), ["grade"]),
            ("wet", OneHotEncoder(), ["wet"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(data, LABEL)
    fields = (*COLUMNS, Field("kind", "string", nullable=True), Field("grade", "int64"), Field("wet", "bool"))
    some = data[:9]
    given = Batch({f.name: some[f.name].to_numpy() for f in fields})
    kinds = np.array([None if k != k else k for k in some["kind"]], dtype=object)
    batch = Batch({**given.columns, "kind": kinds})
    return sklearn_case(folder, model, fields, batch, some, "predict", "predict_proba")


@case_of
def sklearn_nulls_as_a_category(folder: Path) -> Case:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    data = mixed()[["kind", *NAMES]].fillna(dict.fromkeys(NAMES, 0.0))
    columns = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough")
    model = make_pipeline(columns, RandomForestRegressor(5, random_state=0)).fit(data, Y)
    kinds = np.array([None if k != k else k for k in data["kind"][:9]], dtype=object)
    batch = Batch({"kind": kinds, **{n: data[n][:9].to_numpy() for n in NAMES}})
    return sklearn_case(
        folder, model, (Field("kind", "string", nullable=True), *COLUMNS), batch, data[:9], "predict"
    )


@case_of
def sklearn_histogram_boosting_with_categories(folder: Path) -> Case:
    from sklearn.ensemble import HistGradientBoostingClassifier

    data = frame(kind=KIND_OF)
    options = {"max_iter": 5, "min_samples_leaf": 3, "categorical_features": "from_dtype"}
    model = HistGradientBoostingClassifier(**options).fit(data, LABEL)
    rows = data[:9].copy()
    made = sklearn_case(folder, model, (*COLUMNS, KIND), WITH_KIND, rows, "predict", "predict_proba")
    check = Trust(
        frozenset({"sklearn.utils.validation.check_array"})
    )  # its preprocessor holds a partial of this
    return Case(**{**vars(made), "trust": check})


@case_of
def sklearn_texts(folder: Path) -> Case:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = [f"the {k} is {w}" for k, w in zip(KIND_OF, ["wet", "dry"] * 30, strict=True)]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, LABEL)
    batch = Batch({"text": np.array(texts[:9], dtype=object)})
    return sklearn_case(
        folder, model, (Field("text", "string"),), batch, texts[:9], "predict", "predict_proba"
    )


@case_of
def sklearn_records(folder: Path) -> Case:
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    records = [
        {"kind": k, "width": w} if i % 3 else {"kind": k}
        for i, (k, w) in enumerate(zip(KIND_OF, X[:, 1], strict=True))
    ]
    model = make_pipeline(DictVectorizer(), LogisticRegression()).fit(records, LABEL)
    widths = np.array([r.get("width", np.nan) for r in records[:9]])
    fields = (
        Field("kind", "string", nullable=True, required=False),
        Field("width", "float64", required=False),
    )
    return sklearn_case(
        folder,
        model,
        fields,
        Batch({"kind": KIND_OF[:9], "width": widths}),
        records[:9],
        "predict",
        "predict_proba",
    )


@case_of
def sklearn_several_outputs(folder: Path) -> Case:
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(5, random_state=0).fit(X, np.stack([CLASS, CLASS % 2], axis=1))
    made = sklearn_case(folder, model, MATRIX, PLAIN, SOME, "predict", "predict_proba")
    return Case(**{**vars(made), "stage": {"methods": ("predict", "predict_proba")}})


@case_of
def sklearn_outliers(folder: Path) -> Case:
    from sklearn.ensemble import IsolationForest

    model = IsolationForest(n_estimators=5, random_state=0).fit(X)
    made = sklearn_case(folder, model, MATRIX, PLAIN, SOME, "predict", "decision_function")
    return Case(**{**vars(made), "stage": {"methods": ("predict", "decision_function")}})


@case_of
def sklearn_clusters(folder: Path) -> Case:
    from sklearn.cluster import KMeans

    return sklearn_case(folder, KMeans(3, n_init=1, random_state=0).fit(X), MATRIX, PLAIN, SOME, "predict")


@case_of
def sklearn_scaler(folder: Path) -> Case:
    from sklearn.preprocessing import StandardScaler

    return sklearn_case(folder, StandardScaler().fit(X), MATRIX, PLAIN, SOME, "transform")


@case_of
def sklearn_sparse_transformer(folder: Path) -> Case:
    from sklearn.preprocessing import OneHotEncoder

    kinds = KIND_OF.reshape(-1, 1)
    fields = (Field("input", "string", (-1, 1)),)
    return sklearn_case(
        folder, OneHotEncoder().fit(kinds), fields, Batch({"input": kinds[:9]}), kinds[:9], "transform"
    )


@case_of
def sklearn_frame_out(folder: Path) -> Case:
    from sklearn.preprocessing import StandardScaler

    model = StandardScaler().set_output(transform="pandas").fit(frame())
    return sklearn_case(folder, model, COLUMNS, NAMED, frame(SOME), "transform")


@case_of
def sklearn_wrapped_xgboost(folder: Path) -> Case:
    xgboost = pytest.importorskip("xgboost", minversion="3.1")
    model = xgboost.XGBClassifier(n_estimators=5, enable_categorical=True).fit(frame(kind=KIND_OF), CLASS)
    rows = frame(SOME, KIND_OF[:9])
    return sklearn_case(folder, model, (*COLUMNS, KIND), WITH_KIND, rows, "predict", "predict_proba")


@case_of
def sklearn_wrapped_lightgbm(folder: Path) -> Case:
    lightgbm = pytest.importorskip("lightgbm")
    options = {"n_estimators": 5, "min_child_samples": 2, "min_data_per_group": 2, "verbose": -1}
    model = lightgbm.LGBMClassifier(**options).fit(frame(kind=KIND_OF), LABEL)
    rows = frame(SOME, KIND_OF[:9])
    return sklearn_case(folder, model, (*COLUMNS, KIND), WITH_KIND, rows, "predict", "predict_proba")


@case_of
def sklearn_wrapped_catboost(folder: Path) -> Case:
    catboost = pytest.importorskip("catboost")
    texts = frame().assign(kind=KIND_OF)
    options = {"iterations": 5, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
    model = catboost.CatBoostRegressor(**options, cat_features=["kind"]).fit(texts, Y)
    return sklearn_case(folder, model, (*COLUMNS, TEXT_KIND), WITH_KIND, texts[:9], "predict")


# --- MLflow ----------------------------------------------------------------------------------------------------------

SKLEARN_MLMODEL = """\
artifact_path: model
flavors:
  python_function:
    env: conda.yaml
    loader_module: mlflow.sklearn
    model_path: model.pkl
    predict_fn: predict
    python_version: 3.11.7
  sklearn:
    code: null
    pickled_model: model.pkl
    serialization_format: cloudpickle
    sklearn_version: 1.5.2
mlflow_version: 2.9.2
something_new: 1
signature:
  inputs: '[{"type": "double", "name": "length", "required": true}, {"type": "double",
    "name": "width", "required": true}, {"type": "float", "name": "height", "required":
    true}, {"type": "long", "name": "weight", "required": true}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1]}}]'
  params: null
"""


@case_of
def mlflow_sklearn(folder: Path) -> Case:
    import pickle

    from sklearn.linear_model import Ridge

    whole = frame(np.round(X)).astype({"height": "float32", "weight": "int64"})
    model = Ridge().fit(whole, Y)
    (folder / "MLmodel").write_text(SKLEARN_MLMODEL)
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    (folder / "requirements.txt").write_text("mlflow==2.9.2\nscikit-learn==1.5.2\n")
    fields = (*COLUMNS[:2], Field("height", "float32"), Field("weight", "int64"))
    batch = Batch({n: whole[n][:9].to_numpy() for n in NAMES})
    return Case("mlflow", folder, ".", fields, batch, {"predict": model.predict(whole[:9])}, tolerance=1e-10)


@case_of
def mlflow_xgboost(folder: Path) -> Case:
    inner = xgboost_booster_json(folder)
    (folder / "model.json").rename(folder / "model.xgb")
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    data: model.xgb\n    loader_module: mlflow.xgboost\n"
        "  xgboost:\n    data: model.xgb\n    xgb_version: 3.0.0\n"
    )
    return Case("mlflow", folder, ".", inner.inputs, inner.batch, inner.answers)


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


@pytest.mark.parametrize(
    "name",
    ["onnx_classifier", "xgboost_linear_booster_ubj", "lightgbm_booster", "sklearn_by_pickle_protocol_0"],
)
def test_a_model_without_names_takes_columns_under_the_names_its_stage_gives(
    name: str, models: Callable[[str], Case]
) -> None:
    case = models(name)
    (only,) = case.batch.columns.values()
    fields = tuple(Field(n, "float64") for n in NAMES)
    named = Batch({n: only[:, i] for i, n in reversed(list(enumerate(NAMES)))})
    answers = case.load(inputs=fields).predict(named, None).batch.columns
    check_equal(answers, case.answers, 1e-6)


@pytest.mark.parametrize("name", ["onnx_classifier", "xgboost_linear_booster_ubj", "lightgbm_booster"])
def test_rows_of_another_width_are_refused_with_both_widths(name: str, models: Callable[[str], Case]) -> None:
    case = models(name)
    with pytest.raises(Exception, match="3"):
        case.load(inputs=()).predict(Batch({"input": SOME[:, :3]}), None)


@pytest.mark.parametrize("name", ["xgboost_with_categories", "lightgbm_with_categories"])
def test_a_label_the_model_was_not_trained_on_is_treated_as_its_library_does(
    name: str, models: Callable[[str], Case]
) -> None:
    case = models(name)
    odd = Batch({**case.batch.columns, "kind": np.array(["basalt"] * 9, dtype=object)})
    none = Batch({**case.batch.columns, "kind": np.array([None] * 9, dtype=object)})
    if name.startswith("lightgbm"):  # it reads an unknown label as a null
        check_equal(
            case.load().predict(odd, None).batch.columns, case.load().predict(none, None).batch.columns
        )
    else:
        with pytest.raises(BadInput, match="basalt"):
            case.load().predict(odd, None)


def test_a_label_that_is_null_is_refused_by_catboost(models: Callable[[str], Case]) -> None:
    case = models("catboost_with_labels_in_a_column")
    none = Batch({**case.batch.columns, "kind": np.array([None] * 9, dtype=object)})
    with pytest.raises(BadInput, match="'kind' has a null"):
        case.load().predict(none, None)


def test_a_number_that_is_text_is_refused_naming_the_column(models: Callable[[str], Case]) -> None:
    case = models("xgboost_booster_json")
    odd = Batch({**case.batch.columns, "width": np.array(["wide"] * 9, dtype=object)})
    with pytest.raises(BadInput, match=r"'width' holds 'wide'"):
        case.load().predict(odd, None)
