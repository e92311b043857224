"""What is read from an MLmodel folder without MLflow, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("yaml")

from mlpacker_runtime import formats
from mlpacker_runtime.errors import BadInput, Refused
from mlpacker_runtime.formats import FolderFiles, Trust, mlflow
from mlpacker_runtime.signature import Field

BOOSTER = b'{"learner":{"attributes":{}},"version":[2,1,0]}'
XGBOOST = """\
flavors:
  python_function:
    data: {data}
    env: conda.yaml
    loader_module: mlflow.xgboost
    python_version: 3.10.4
  xgboost:
    data: {data}
    xgb_version: 2.1.0
mlflow_version: 2.3.0
"""
PYTHON = "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: m.pkl\nmlflow_version: 2.3.0\n"


def logged(folder: Path, text: str, **others: bytes | str) -> FolderFiles:
    (folder / "model").mkdir(exist_ok=True)
    for name, data in {"MLmodel": text, "model.xgb": BOOSTER, **others}.items():
        (folder / "model" / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return FolderFiles(folder)


def test_a_folder_and_its_mlmodel_file_are_the_same_model(tmp_path: Path) -> None:
    files = logged(tmp_path, XGBOOST.format(data="model.xgb"))
    assert formats.find(files, "model") == formats.find(files, "model/MLmodel") == "mlflow"
    assert mlflow.inspect(files, "model", Trust()) == mlflow.inspect(files, "model/MLmodel", Trust())


def test_a_native_flavour_needs_no_mlflow(tmp_path: Path) -> None:
    lines = "mlflow==2.3.0\nxgboost==2.1.0\nmlflow-skinny\nnumpy==1.26.4 # pinned\n\n-r other.txt\n--index-url https://x\n"
    facts = mlflow.inspect(
        logged(tmp_path, XGBOOST.format(data="model.xgb"), **{"requirements.txt": lines}), "model", Trust()
    )
    assert facts.versions == {"xgboost": "2.1.0"}
    assert facts.requirements == ("numpy==1.26.4",)
    assert facts.python == "3.10"
    assert not facts.code
    assert "mlflow" not in facts.modules


@pytest.mark.parametrize("data", ["../model.xgb", "/etc/passwd", "a/../../x", "'..\\x'"])
def test_a_path_out_of_the_folder_is_refused(data: str, tmp_path: Path) -> None:
    (tmp_path / "model.xgb").write_bytes(BOOSTER)
    with pytest.raises(BadInput, match="not in its folder"):
        mlflow.inspect(logged(tmp_path, XGBOOST.format(data=data)), "model", Trust())


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(BOOSTER)
    files = logged(tmp_path, XGBOOST.format(data="linked"))
    os.symlink(tmp_path / "secret", tmp_path / "model" / "linked")
    with pytest.raises(BadInput, match="link"):
        mlflow.inspect(files, "model", Trust())


def test_a_model_of_mlflow_s_own_is_code(tmp_path: Path) -> None:
    files = logged(tmp_path, PYTHON, **{"m.pkl": b"", "requirements.txt": "mlflow\ncloudpickle==3.0.0\n"})
    with pytest.raises(Refused, match="runs code") as caught:
        mlflow.inspect(files, "model", Trust())
    assert "--trust-code" in caught.value.next_step
    facts = mlflow.inspect(files, "model", Trust(code=True))
    assert facts.code
    assert facts.versions == {"mlflow": "2.3.0"}
    assert facts.requirements == ("cloudpickle==3.0.0",)


def test_a_flavour_without_a_function_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="only vega"):
        mlflow.inspect(logged(tmp_path, "flavors:\n  vega:\n    data: x\n"), "model", Trust())


@pytest.mark.parametrize(
    "text",
    [
        "flavors:\n",
        "flavors:\n  - a\n",
        "flavors:\n  python_function: 3\n",
        "flavors:\n  a: [\n",
        "flavors:\n  a: " + "[" * 5000,
        "flavors:\n  a: !!python/object/apply:os.system ['true']\n",
        "flavors:\n\tx\n",
        "- 1\n",
    ],
)
def test_what_is_no_mlmodel_is_told_so(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        mlflow.inspect(logged(tmp_path, text), "model", Trust(code=True))


def test_an_mlmodel_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    assert not mlflow.matches(logged(tmp_path, "flavors:\n" + "#" * mlflow.MAX_BYTES), "model")


SIGNATURE = """\
signature:
  inputs: '[{"type": "boolean", "name": "a"}, {"type": "integer", "name": "b"}, {"type":
    "long", "name": "c"}, {"type": "float", "name": "d"}, {"type": "double", "name": "e",
    "required": false}, {"type": "string", "name": "f"}, {"type": "binary", "name": "g"},
    {"type": "datetime", "name": "h"}, {"type": "array", "items": {"type": "long"}, "name":
    "i", "optional": true}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'
"""


def test_a_signature_s_columns_have_our_types(tmp_path: Path) -> None:
    facts = mlflow.inspect(logged(tmp_path, XGBOOST.format(data="model.xgb") + SIGNATURE), "model", Trust())
    assert facts.inputs == (
        Field("a", "bool"),
        Field("b", "int32"),
        Field("c", "int64"),
        Field("d", "float32"),
        Field("e", "float64", nullable=True, required=False),
        Field("f", "string", nullable=True),
        Field("g", "bytes"),
        Field("h", "datetime"),
        Field("i", "object", nullable=True, required=False),
    )
    assert facts.outputs == (Field("predict", "float32", (-1, 3)),)


@pytest.mark.parametrize("inputs", ["'[1]'", "'[{}]'", "'{'", '\'[{"type": "tensor"}]\''])
def test_a_signature_that_is_none_is_an_error(inputs: str, tmp_path: Path) -> None:
    text = XGBOOST.format(data="model.xgb") + f"signature:\n  inputs: {inputs}\n"
    with pytest.raises(BadInput, match="signature"):
        mlflow.inspect(logged(tmp_path, text), "model", Trust())


def test_columns_without_names_are_one_input(tmp_path: Path) -> None:
    columns = '[{"type": "double"}, {"type": "double"}]'
    text = XGBOOST.format(data="model.xgb") + f"signature:\n  inputs: '{columns}'\n"
    facts = mlflow.inspect(logged(tmp_path, text), "model", Trust())
    assert facts.inputs == (Field("input", "float64", (-1, 2)),)


def test_the_requirements_of_a_conda_file_are_read_as_pip_would_write_them(tmp_path: Path) -> None:
    conda = "dependencies:\n- python=3.8.2\n- scikit-learn=0.23\n- scipy>=1.4\n- pip\n- pip:\n  - mlflow\n  - cloudpickle==1.6.0\n"
    text = XGBOOST.format(data="model.xgb").replace("    python_version: 3.10.4\n", "")
    facts = mlflow.inspect(logged(tmp_path, text, **{"conda.yaml": conda}), "model", Trust())
    assert facts.requirements == ("scikit-learn==0.23", "scipy>=1.4", "cloudpickle==1.6.0")
    assert facts.python == "3.8"


def test_the_logged_example_is_the_sample(tmp_path: Path) -> None:
    text = XGBOOST.format(data="model.xgb") + (
        "saved_input_example_info:\n  artifact_path: input_example.json\n  serving_input_path: ../serving.json\n"
    )
    files = logged(tmp_path, text, **{"input_example.json": "[[1]]"})
    assert mlflow.inspect(files, "model", Trust()).sample == "model/input_example.json"
