"""Logged MLflow models: a folder with an `MLmodel` file, in the layouts of MLflow 1, 2 and 3.

scikit-learn, XGBoost, LightGBM, CatBoost and ONNX flavours are loaded by their own formats, without MLflow. Any other
model with a `python_function` flavour is loaded by MLflow, which runs code that lies in the folder.
MLmodel is read where a package is made (PyYAML is there); what loading needs of it travels in the stage's options.
Keys are those of MLflow's model format; unknown ones are tolerated.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from .. import formats
from ..batch import Batch, Outcome, from_result, to_frame
from ..errors import BadInput, EnvironmentFailed, MlpackerError, Refused
from ..manifest import Stage
from ..signature import DTYPES, Field
from . import Description, Facts, Files, Predictor, Trust, features, versions

name = "mlflow"

MODEL = "MLmodel"
MAX_BYTES = 1 << 20
FLAVORS = re.compile(rb"^flavors:[ \t]*\r?$", re.MULTILINE)
NATIVE = {
    "sklearn": "pickled_model",
    "xgboost": "data",
    "lightgbm": "data",
    "catboost": "data",
    "onnx": "data",
}
"""Flavours that our own formats load, and the key that says where the model lies."""
VERSIONS = {
    "sklearn": ("scikit-learn", "sklearn_version"),
    "xgboost": ("xgboost", "xgb_version"),
    "lightgbm": ("lightgbm", "lgb_version"),
    "catboost": ("catboost", "catboost_version"),
}
MLFLOW = re.compile(r"mlflow(-skinny|-tracing)?\b(?![-_.])", re.IGNORECASE)
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*(@|;|[<>=!~].*|$)")
CONDA = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:(==?|>=|<=|>|<)\s*([\w.*]+))?$")
TYPES = {
    "boolean": "bool",
    "integer": "int32",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "string": "string",
    "binary": "bytes",
    "datetime": "datetime",
}


def matches(files: Files, path: str) -> bool:
    try:
        place = files.file(_model_file(files, path))
        if not place.is_file() or place.stat().st_size > MAX_BYTES:
            return False
        return FLAVORS.search(place.read_bytes()) is not None
    except OSError:
        return False


def _model_file(files: Files, path: str) -> str:
    """The path of the MLmodel file: in the folder that was named, or the file itself."""
    return f"{path}/{MODEL}" if files.file(path).is_dir() else path


def _folder(files: Files, path: str) -> PurePosixPath:
    return PurePosixPath(_model_file(files, path)).parent


def inspect(files: Files, path: str, trust: Trust) -> Facts:
    """Raises Refused for a model that only MLflow can load, where code is not trusted."""
    told = _read(files, path)
    folder = _folder(files, path)
    native = _native(told)
    facts = (
        _inspect_native(files, folder, told, native, trust)
        if native
        else _inspect_code(files, folder, told, trust)
    )
    inputs, outputs = _signature(told)
    return dataclasses.replace(
        facts,
        inputs=inputs,
        outputs=outputs,
        sample=_sample(files, folder, told),
        python=_python(files, folder, told) or facts.python,
        options={**facts.options, **_signature_options(told)},
    )


def _read(files: Files, path: str) -> dict[str, Any]:
    """What MLmodel says. Raises BadInput for what is not an MLmodel."""
    value = _yaml(files, _model_file(files, path))
    flavors = value.get("flavors")
    if not isinstance(flavors, dict) or not all(isinstance(f, dict) for f in flavors.values()):
        raise BadInput(f"{path}: MLmodel names no flavors.")
    return value


def _yaml(files: Files, path: str) -> dict[str, Any]:
    data = files.read(path)
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path} is {len(data)} bytes long; at most {MAX_BYTES} are read.")
    try:
        import yaml
    except ImportError as cause:
        raise EnvironmentFailed(
            "PyYAML is not installed here, and MLmodel is YAML.", "Install pyyaml."
        ) from cause
    try:
        value = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        raise BadInput(f"{path} is not YAML: {str(cause).splitlines()[0]}.") from cause
    if not isinstance(value, dict):
        raise BadInput(f"{path} is not a mapping.")
    return value


def _native(told: dict[str, Any]) -> str | None:
    """The flavour one of our formats loads; None where the model is MLflow's own (a loader of somebody else's code)."""
    flavors = told["flavors"]
    loader = flavors.get("python_function", {}).get("loader_module", "")
    for flavor, key in NATIVE.items():
        if isinstance(flavors.get(flavor), dict) and loader in ("", f"mlflow.{flavor}"):
            python = flavors.get("python_function", {})
            if isinstance(flavors[flavor].get(key) or python.get("model_path") or python.get("data"), str):
                return flavor
    return None


def _inspect_native(
    files: Files, folder: PurePosixPath, told: dict[str, Any], flavor: str, trust: Trust
) -> Facts:
    said = told["flavors"][flavor]
    python = told["flavors"].get("python_function", {})
    place = _inside(files, folder, said.get(NATIVE[flavor]) or python.get("model_path") or python.get("data"))
    found = _format_of(files, place)
    code = _code(files, folder, told)
    facts = _inspect_model(files, found, place, code, trust)
    distribution, key = VERSIONS.get(flavor, ("", ""))
    stated = {distribution: str(said[key])} if isinstance(said.get(key), str) else {}
    known = {**stated, **facts.versions}
    return dataclasses.replace(
        facts,
        versions=known,
        requirements=_beside(known, (*_requirements(files, folder, mlflow=False), *facts.requirements)),
        code=facts.code or bool(code and trust.code),
        options={
            **facts.options,
            "format": found,
            "model": PurePosixPath(place).relative_to(folder).as_posix(),
            "answer": _answer(python.get("predict_fn")),
            "code": [PurePosixPath(c).relative_to(folder).as_posix() for c in code if trust.code],
        },
    )


def _inspect_model(files: Files, found: str, place: str, code: tuple[str, ...], trust: Trust) -> Facts:
    """What the model's own format says. A refusal tells of the code that was logged with the model, which may hold it."""
    try:
        facts: Facts = formats.get(found).inspect(files, place, _with_code(trust, files, code))
    except Refused as refused:
        if trust.code or not code:
            raise
        step = f"Code was logged with the model, in {', '.join(code)}. If you know who made it, add --trust-code."
        raise Refused(refused.sentence, step, **refused.facts) from refused
    return facts


def _beside(known: Mapping[str, str], lines: Iterable[str]) -> tuple[str, ...]:
    """One line a distribution, none for those whose version the model itself tells (by any name of theirs)."""
    found: dict[str, str] = {}
    for line in lines:
        called = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")
        if called.removesuffix("-cpu") not in known:
            found.setdefault(called, line)
    return tuple(found.values())


def _answer(method: Any) -> str | None:
    return method if isinstance(method, str) and method != "predict" else None


def _format_of(files: Files, path: str) -> str:
    """Whose the flavour's own file is. Raises BadInput where it is nobody's we know."""
    for candidate in ("onnx", "xgboost", "lightgbm", "catboost", "sklearn"):
        if formats.get(candidate).matches(files, path):
            return candidate
    raise BadInput(f"{path} is not a model that {', '.join(NATIVE)} wrote.")


def _inspect_code(files: Files, folder: PurePosixPath, told: dict[str, Any], trust: Trust) -> Facts:
    python = told["flavors"].get("python_function")
    if not isinstance(python, dict):
        raise BadInput(
            f"{folder}: MLmodel has no python_function flavor, only {', '.join(told['flavors']) or 'none'}.",
            "Log it with a flavor that has one.",
        )
    loader = python.get("loader_module")
    if not trust.code:
        raise Refused(
            f"{folder} is loaded by MLflow ({loader}), which runs code that lies in the folder.",
            "If you know who made it, add --trust-code.",
            names=(f"mlflow:{loader}",),
        )
    for key in ("data", "model_path", "python_model", "code", "model_code_path"):
        if isinstance(python.get(key), str):
            _inside(files, folder, python[key])
    requirements = _requirements(files, folder, mlflow=True)
    own = next((found[0].lower() for r in requirements if (found := MLFLOW.match(r))), "mlflow")
    version = str(told.get("mlflow_version", ""))
    known = {own: version} if re.fullmatch(r"\d+(\.\d+)+", version) else {}
    return Facts(
        versions=known,
        modules=("mlflow", "pandas"),
        requirements=_beside(known, (*requirements, own)),
        code=True,
        options={"format": None},
    )


def _inside(files: Files, folder: PurePosixPath, value: Any) -> str:
    """The path of what MLmodel names. Raises BadInput where it is not in the model's folder, or not there."""
    relative = PurePosixPath(str(value))
    if (
        not isinstance(value, str)
        or relative.is_absolute()
        or ".." in relative.parts
        or "\\" in value
        or "\0" in value
    ):
        raise BadInput(f"{folder}: MLmodel names {value!r}, which is not in its folder.")
    path = (folder / relative).as_posix()
    place, root = files.file(path), files.file(folder.as_posix()).resolve()
    if not place.exists():
        raise BadInput(f"{folder}: MLmodel names {value!r}, which is not there.")
    if place.resolve() != root and root not in place.resolve().parents:
        raise BadInput(f"{folder}: {value!r} is a link that leaves its folder.")
    return path


def _code(files: Files, folder: PurePosixPath, told: dict[str, Any]) -> tuple[str, ...]:
    """The folders of code that were logged with the model."""
    named = [f.get("code") for f in told["flavors"].values()]
    return tuple(dict.fromkeys(_inside(files, folder, c) for c in named if isinstance(c, str) and c))


def _with_code(trust: Trust, files: Files, code: tuple[str, ...]) -> Trust:
    """Logged code is accepted where code is: its modules may be named by the model."""
    if not trust.code or not code:
        return trust
    return dataclasses.replace(trust, modules=trust.modules | {m for c in code for m in _modules(files, c)})


def _modules(files: Files, code: str) -> Iterator[str]:
    root = files.file(code)
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


# --- What goes in and comes out


def _signature(told: dict[str, Any]) -> tuple[tuple[Field, ...] | None, tuple[Field, ...] | None]:
    """Inputs and outputs, where MLmodel states them: each is a JSON string of columns or tensors."""
    said = told.get("signature")
    if not isinstance(said, dict):
        return None, None
    return _fields(said.get("inputs"), features.UNNAMED), _fields(said.get("outputs"), "predict")


def _signature_options(told: dict[str, Any]) -> dict[str, Any]:
    inputs, _ = _signature(told)
    tensors = '"tensor"' in str((told.get("signature") or {}).get("inputs"))
    return {"inputs": [_plain(f) for f in inputs], "tensors": tensors} if inputs else {}


def _plain(field: Field) -> dict[str, Any]:
    return {**dataclasses.asdict(field), "shape": list(field.shape)}


def _fields(text: Any, unnamed: str) -> tuple[Field, ...] | None:
    if not isinstance(text, str):
        return None
    try:
        columns = json.loads(text)
        found = [_field(c, unnamed if len(columns) == 1 else str(i)) for i, c in enumerate(columns)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise BadInput(f"MLmodel's signature can't be read: {cause}.") from cause
    nameless = not any(c.get("name") for c in columns)
    if nameless and len(found) > 1 and len({f.dtype for f in found}) == 1 and found[0].numeric:
        return features.unnamed(len(found), found[0].dtype)
    return tuple(found) or None


def _field(column: dict[str, Any], unnamed: str) -> Field:
    called = str(column.get("name") or unnamed)
    needed = column.get("required", not column.get("optional", False))
    if column["type"] == "tensor":
        spec = column["tensor-spec"]
        dtype = str(spec["dtype"])
        dtype = (
            "datetime" if dtype.startswith("datetime") else "string" if dtype in ("str", "object") else dtype
        )
        shape = (-1, *(int(n) for n in spec["shape"][1:]))
        return Field(called, dtype if dtype in DTYPES else "object", shape, required=bool(needed))
    dtype = TYPES.get(str(column["type"]), "object")
    return Field(called, dtype, nullable=not needed or dtype in ("string", "object"), required=bool(needed))


def _sample(files: Files, folder: PurePosixPath, told: dict[str, Any]) -> str | None:
    """The example that was logged, in the form the scoring server takes where there is one (it says what it is)."""
    said = told.get("saved_input_example_info")
    if not isinstance(said, dict):
        return None
    for key in ("serving_input_path", "artifact_path"):
        if isinstance(said.get(key), str) and said[key].endswith(".json"):
            try:
                return _inside(files, folder, said[key])
            except BadInput:
                continue
    return None


# --- The environment it came with


def _requirements(files: Files, folder: PurePosixPath, *, mlflow: bool) -> tuple[str, ...]:
    """PEP 508 lines from requirements.txt, else from conda.yaml."""
    path = (folder / "requirements.txt").as_posix()
    lines = (
        files.read(path).decode("utf-8", "replace").splitlines()
        if path in files.paths
        else _conda(files, folder)
    )
    stripped = [line.partition(" #")[0].strip() for line in lines]
    kept = [r for r in stripped if REQUIREMENT.match(r)]
    return tuple(r for r in kept if mlflow or not MLFLOW.match(r))


def _conda(files: Files, folder: PurePosixPath) -> list[str]:
    """pip's lines of a conda environment, and its packages as pip would write them."""
    lines: list[str] = []
    for entry in _conda_entries(files, folder):
        if isinstance(entry, dict):
            lines += [str(line) for line in entry.get("pip", ()) or ()]
        elif (found := CONDA.match(str(entry))) and found[1] not in ("python", "pip"):
            lines.append(
                f"{found[1]}{found[2].replace('=', '==', 1) if found[2] == '=' else found[2]}{found[3]}"
                if found[2]
                else found[1]
            )
    return lines


def _conda_entries(files: Files, folder: PurePosixPath) -> list[Any]:
    path = (folder / "conda.yaml").as_posix()
    entries = _yaml(files, path).get("dependencies", []) if path in files.paths else []
    return entries if isinstance(entries, list) else []


def _python(files: Files, folder: PurePosixPath, told: dict[str, Any]) -> str | None:
    """The minor version it was logged with, as "3.11"."""
    path = (folder / "python_env.yaml").as_posix()
    said = [told["flavors"].get("python_function", {}).get("python_version")]
    said += [_yaml(files, path).get("python")] if path in files.paths else []
    said += [
        found[3]
        for e in _conda_entries(files, folder)
        if (found := CONDA.match(str(e))) and found[1] == "python"
    ]
    for version in said:
        found = re.match(r"(\d+\.\d+)", str(version))
        if found:
            return found[1]
    return None


# --- Loading


def load(files: Files, stage: Stage, trust: Trust) -> Predictor:
    options = stage.options if "format" in stage.options else inspect(files, stage.path, trust).options
    inputs = tuple(Field(**{**f, "shape": tuple(f["shape"])}) for f in options.get("inputs", ()))
    if options["format"] is None:
        return _load_code(files, stage, inputs, trust, bool(options.get("tensors")))
    folder = _folder(files, stage.path)
    place = _inside(files, folder, options["model"])
    code = tuple(_inside(files, folder, c) for c in options.get("code", ()) if trust.code)
    for path in code:
        _use(files, path)
    inner = dataclasses.replace(stage, format=options["format"], path=place, inputs=stage.inputs or inputs)
    if options["format"] not in ("onnx", "xgboost", "lightgbm", "catboost", "sklearn"):
        raise BadInput(f"{stage.path}: {options['format']!r} is not a format of a flavor.")
    loaded = formats.get(options["format"]).load(files, inner, _with_code(trust, files, code))
    return Logged(loaded, inputs, options.get("answer"))


def _use(files: Files, code: str) -> None:
    place = str(files.file(code))
    if place not in sys.path:
        sys.path.insert(0, place)


class Logged:
    """A model of another format, with the signature and the plain answer it was logged with."""

    def __init__(self, inner: Predictor, inputs: tuple[Field, ...], answer: str | None) -> None:
        self.inner = inner
        self.inputs = inputs
        self.answer = answer

    def describe(self) -> Description:
        said = self.inner.describe()
        methods = (
            (self.answer, *(m for m in said.methods if m != self.answer))
            if self.answer in said.methods
            else said.methods
        )
        if not self.inputs:
            return dataclasses.replace(said, methods=methods)
        return dataclasses.replace(said, inputs=self.inputs, untyped=(), methods=methods)

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        return self.inner.predict(batch, want)


def _load_code(
    files: Files, stage: Stage, inputs: tuple[Field, ...], trust: Trust, tensors: bool
) -> PythonFunction:
    if not trust.code:
        raise Refused(
            f"{stage.path} is loaded by MLflow, which runs code that lies in it.",
            "If you know who made it, add --trust-code.",
        )
    try:
        import mlflow.pyfunc
    except ImportError as cause:
        raise EnvironmentFailed(
            "MLflow is not installed here.", "Add mlflow to the stage's requirements."
        ) from cause
    try:
        model = mlflow.pyfunc.load_model(str(files.file(_folder(files, stage.path).as_posix())))
    except MlpackerError:
        raise
    except ImportError as cause:
        raise EnvironmentFailed(f"{stage.path} needs a module that is not here: {cause}.") from cause
    except Exception as cause:
        raise BadInput(f"MLflow can't load {stage.path}: {type(cause).__name__}: {cause}.") from cause
    return PythonFunction(model, stage, inputs, tensors)


class PythonFunction:
    """A model that MLflow loaded, whatever is in it. It takes frames, or arrays where its signature says tensors."""

    def __init__(self, model: Any, stage: Stage, inputs: tuple[Field, ...], tensors: bool) -> None:
        self.model = model
        self.stage = stage
        self.inputs = inputs
        self.tensors = tensors

    def describe(self) -> Description:
        takes = "columns" if self.tensors else "frame"
        return Description(
            self.inputs or None, (), (), takes, versions("mlflow", "mlflow-skinny", "numpy", "pandas")
        )

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        if want is not None and not want:
            return Outcome(Batch({}, batch.rows))
        batch = features.arranged(batch, self.stage.inputs or self.inputs)
        answer = _positional(self.model.predict(self._rows(batch)))
        answers = from_result(answer, batch.rows, "predict").columns
        return Outcome(Batch({n: c for n, c in answers.items() if want is None or n in want}, batch.rows))

    def _rows(self, batch: Batch) -> Any:
        if not self.tensors:
            return to_frame(batch, self.stage.inputs or self.inputs).reset_index(drop=True)
        if len(self.inputs) > 1:
            return dict(batch.columns)
        return (
            features.numbers(batch)
            if self.inputs[0].numeric and len(batch.names) > 1
            else batch.columns[batch.names[0]]
        )


def _positional(answer: Any) -> Any:
    """MLflow's answers are in the order of the rows, whatever index a frame among them has."""
    if hasattr(answer, "iloc") and answer.ndim == 2:
        return {str(c): answer[c].array if hasattr(answer[c], "array") else answer[c] for c in answer.columns}
    if hasattr(answer, "iloc"):
        return answer.to_numpy()
    return np.asarray(answer, dtype=object) if _is_ragged(answer) else answer


def _is_ragged(answer: Any) -> bool:
    return isinstance(answer, list) and any(isinstance(a, (dict, list)) for a in answer)
