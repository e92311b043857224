"""Name what a model file may import from the libraries of *this* interpreter. Prints `list module name use`, one a line.

Run inside an environment that holds the libraries; `generate.py` runs it in many and unites what they print. Only the
standard library is needed besides them. What is looked for, and what is left out and why, stands in README.md.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

Line = tuple[str, str, str, str]

# Modules whose classes are estimators or belong to one. Everything else needs to be an estimator to be listed.
SKLEARN_PARTS = re.compile(
    r"""sklearn\.(
      _loss\.(loss|link|_loss|glm_distribution)
    | calibration
    | cluster\.(_birch|_bisect_k_means)
    | compose\._column_transformer
    | ensemble\.(_gb_losses|_hist_gradient_boosting\.(loss|_loss|predictor|binning|common))
    | gaussian_process\.kernels
    | impute\._iterative
    | linear_model\.(_sgd_fast|_linear_loss|_glm\.link)
    | metrics\.(_dist_metrics|_scorer)
    | model_selection\.(_split|_search)
    | neighbors\.(_ball_tree|_kd_tree|_quad_tree|_dist_metrics)
    | neural_network\._stochastic_optimizers
    | tree\._tree
    | utils(\._bunch|\._encode|\._metadata_requests|\._tags)?
    )\Z""",
    re.VERBOSE,
)
SKLEARN_NEVER = re.compile(
    r"\.(tests?|externals|datasets|experimental|conftest|callback|inspection|_plot|_build_utils|__check_build)(\.|\Z)"
    r"|_testing|estimator_checks|_mocking|_test_common|_repr_html|_estimator_html_repr|parallel"
)
# Helpers that no fitted model holds: plots, progress, context managers, and whatever calls what it is given.
NOT_STATE = re.compile(
    r"Display|Mixin\Z|Protocol|Exporter|_AvailableIf|_FuncWrapper|Parallel|Builder\Z|ParameterSampler"
)
SKLEARN_VALUES = {
    "sklearn.feature_selection._univariate_selection": ("f_classif", "f_regression", "r_regression", "chi2"),
    "sklearn.feature_selection._mutual_info": ("mutual_info_classif", "mutual_info_regression"),
    "sklearn.metrics._scorer": ("_passthrough_scorer",),
    "sklearn.utils.validation": ("check_array",),
    "sklearn.cluster._kmeans": ("_kmeans_single_lloyd", "_kmeans_single_elkan"),
}


def modules(package: str, never: re.Pattern[str]) -> Iterator[ModuleType]:
    """All importable modules of an installed package; none when it is not installed."""
    try:
        root = importlib.import_module(package)
    except ImportError:
        return
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda name: None):
        if never.search(info.name):
            continue
        try:
            yield importlib.import_module(info.name)
        except Exception as error:  # noqa: BLE001 - optional parts fail in ways of their own
            print(f"skipped {info.name}: {error}", file=sys.stderr)


def own_classes(module: ModuleType) -> Iterator[type]:
    """The classes a module defines itself, by the name they are pickled under."""
    for name, value in vars(module).items():
        names = (
            module.__name__,
            module.__name__.rpartition(".")[2],
        )  # some compiled modules do not know their package
        if isinstance(value, type) and value.__module__ in names and value.__qualname__ == name:
            yield value


def use_of(cls: type) -> str:
    """`call` for a class with a reduction of its own, which may call it with arguments; else `new`."""
    plain = cls.__reduce__ is object.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__
    return "new" if plain else "call"


def constructors(module: ModuleType) -> Iterator[str]:
    """What Cython writes to make its classes again."""
    for name in vars(module):
        if name == "newObj" or (name.startswith("__pyx_unpickle_") and name != "__pyx_unpickle_Enum"):
            yield name


def sklearn_lines() -> Iterator[Line]:
    try:
        from sklearn.base import BaseEstimator
    except ImportError:
        return
    for module in modules("sklearn", SKLEARN_NEVER):
        part = SKLEARN_PARTS.match(module.__name__)
        for cls in own_classes(module):
            if (part and not NOT_STATE.search(cls.__name__)) or issubclass(cls, BaseEstimator):
                yield "scikit-learn", module.__name__, cls.__name__, use_of(cls)
        if part:
            for name in constructors(module):
                yield "scikit-learn", module.__name__, name, "call"
    yield from score_functions()


def score_functions() -> Iterator[Line]:
    """Pure functions of arrays that a selector or a search holds: they may be mentioned, not called."""
    for module, names in SKLEARN_VALUES.items():
        for name in names:
            if hasattr(importlib.import_module(module), name):
                yield "scikit-learn", module, name, "value"
    for scorer in scorers():
        function = getattr(scorer, "_score_func", None)
        if inspect.isfunction(function) and function.__module__.startswith("sklearn.metrics."):
            yield "scikit-learn", function.__module__, function.__qualname__, "value"


def scorers() -> list[object]:
    import sklearn.metrics as metrics

    if hasattr(metrics, "get_scorer_names"):
        return [metrics.get_scorer(name) for name in metrics.get_scorer_names()]
    return list(metrics.SCORERS.values())


def numpy_lines() -> Iterator[Line]:
    """Scalar types and ufuncs: they may be mentioned. What builds arrays is written by hand in `by_hand/numpy.txt`."""
    import numpy

    for value in vars(numpy).values():
        if isinstance(value, type) and issubclass(value, numpy.generic) and value.__module__ == "numpy":
            yield "numpy", "numpy", value.__name__, "value"
    for module in modules("numpy.random", re.compile(r"\.tests|_examples|conftest")):
        yield from random_lines(module)


def random_lines(module: ModuleType) -> Iterator[Line]:
    for cls in own_classes(module):
        if re.search(r"MT19937|PCG64|Philox|SFC64|SeedSequence|Generator|RandomState", cls.__name__):
            yield "numpy", cls.__module__, cls.__name__, use_of(cls)
    for name in (*constructors(module), *vars(module)):
        if name.startswith("__pyx_unpickle_Seed") or re.fullmatch(
            r"__(randomstate|generator|bit_generator)_ctor", name
        ):
            yield "numpy", module.__name__, name, "call"


SCIPY_CLASSES: dict[str, tuple[str, ...]] = {
    "scipy.sparse": tuple(
        f"{form}_{kind}"
        for form in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
        for kind in ("matrix", "array")
    ),
    "scipy.interpolate": ("BSpline", "PPoly", "CubicSpline", "PchipInterpolator", "Akima1DInterpolator"),
    "scipy.spatial": ("cKDTree", "KDTree"),
    "scipy.optimize": ("OptimizeResult",),
}


def scipy_lines() -> Iterator[Line]:
    for package, names in SCIPY_CLASSES.items():
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        for name in names:
            cls = getattr(module, name, None)
            if isinstance(cls, type):
                yield "scipy", cls.__module__, cls.__name__, use_of(cls)


UFUNC_HOMES = re.compile(
    r"(numpy(\._?core\.(_multiarray_umath|umath|multiarray))?|scipy\.special(\._\w*ufuncs)?)\Z"
)


def ufunc_lines() -> Iterator[Line]:
    """A ufunc knows no module: pickle writes the first one it finds it in."""
    try:
        import numpy
    except ImportError:
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("scipy.special")
    for module in sorted(filter(UFUNC_HOMES.match, sys.modules)):
        for name, value in vars(sys.modules[module]).items():
            if isinstance(value, numpy.ufunc):
                yield module.partition(".")[0], module, name, "value"


def boosting_lines(package: str, wanted: dict[str, str]) -> Iterator[Line]:
    """Classes of a boosting library: those whose name fits, in the modules named."""
    for name, pattern in wanted.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for cls in own_classes(module):
            if re.fullmatch(pattern, cls.__name__):
                yield package, cls.__module__, cls.__name__, use_of(cls)


BOOSTING = {
    "xgboost": {
        "xgboost.sklearn": r"XGB(RF)?(Model|Classifier|Regressor|Ranker)|XGBRankerMixIn",
        "xgboost.core": "Booster",
        "xgboost.callback": "EarlyStopping",
        "xgboost.compat": "XGBoostLabelEncoder",
    },
    "lightgbm": {"lightgbm.sklearn": "LGBM(Model|Classifier|Regressor|Ranker)", "lightgbm.basic": "Booster"},
    "catboost": {"catboost.core": "CatBoost(Classifier|Regressor|Ranker)?"},
}

PANDAS_CLASSES = re.compile(
    r"""DataFrame | Series | \w*Index | \w*Dtype | \w*Array | BlockManager | SingleBlockManager | \w*Block | Timestamp | Timedelta
      | Interval | Period | NaTType | NAType | Flags | Categorical""",
    re.VERBOSE,
)
PANDAS_PARTS = re.compile(
    r"pandas\.core\.(frame|series|flags|indexes\.\w+|dtypes\.dtypes|arrays\.[\w.]+|internals\.(managers|blocks))\Z"
)
PANDAS_FUNCTIONS = {
    "pandas.core.indexes.base": ("_new_Index",),
    "pandas.core.indexes.datetimes": ("_new_DatetimeIndex",),
    "pandas.core.indexes.period": ("_new_PeriodIndex",),
    "pandas.core.internals.blocks": ("new_block",),
    "pandas._libs.internals": ("_unpickle_block", "__pyx_unpickle_BlockManager"),
    "pandas._libs.arrays": ("__pyx_unpickle_NDArrayBacked",),
    "pandas._libs.tslibs.timestamps": ("_unpickle_timestamp",),
    "pandas._libs.tslibs.timedeltas": ("_timedelta_unpickle",),
    "pandas._libs.tslibs.nattype": ("_nat_unpickle", "__nat_unpickle"),
}


def pandas_lines() -> Iterator[Line]:
    for module in modules(
        "pandas", re.compile(r"\.(tests|io|plotting|api|compat|util|_testing|computation)(\.|\Z)|conftest")
    ):
        if PANDAS_PARTS.match(module.__name__):
            yield from pandas_classes(module)
    for name, functions in PANDAS_FUNCTIONS.items():
        module_found = sys.modules.get(name)
        for function in functions:
            if module_found is not None and hasattr(module_found, function):
                yield "pandas", name, function, "call"
    yield from compiled_pandas_classes()
    yield from pandas_offsets()


def pandas_classes(module: ModuleType) -> Iterator[Line]:
    """Classes of a module; pandas 3 pickles public ones under `pandas` itself."""
    for name, cls in vars(module).items():
        if isinstance(cls, type) and PANDAS_CLASSES.fullmatch(name) and cls.__name__ == name:
            if cls.__module__ in (module.__name__, "pandas", "pandas.arrays"):
                yield "pandas", cls.__module__, name, use_of(cls)


def pandas_offsets() -> Iterator[Line]:
    """Frequencies of a date index."""
    offsets = sys.modules.get("pandas._libs.tslibs.offsets")
    for name, cls in list(vars(offsets).items()) if offsets else ():
        if isinstance(cls, type) and issubclass(cls, offsets.BaseOffset) and cls.__name__ == name:
            yield "pandas", cls.__module__, name, use_of(cls)


def compiled_pandas_classes() -> Iterator[Line]:
    names = ("Timestamp", "Timedelta", "Interval", "Period", "NaTType", "NAType", "BlockManager")
    for module in [module for name, module in sys.modules.items() if name.startswith("pandas._libs.")]:
        for name in names:
            cls = vars(module).get(name)
            if isinstance(cls, type) and cls.__module__ in (module.__name__, "pandas", "pandas.api.typing"):
                yield "pandas", cls.__module__, name, use_of(cls)


def all_lines() -> Iterator[Line]:
    yield from sklearn_lines()
    yield from numpy_lines()
    yield from scipy_lines()
    yield from ufunc_lines()
    yield from pandas_lines()
    for package, wanted in BOOSTING.items():
        yield from boosting_lines(package, wanted)


def main(write: Callable[[str], object] = print) -> None:
    warnings.simplefilter("ignore")
    for line in sorted(set(all_lines())):
        write(" ".join(line))


if __name__ == "__main__":
    main()
