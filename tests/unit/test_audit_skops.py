"""The audit of skops files."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker_runtime.audit import Limits, kind, load_skops, scan, scan_skops
from mlpacker_runtime.errors import BadInput, MlpackerError, Refused

skops_io = pytest.importorskip("skops.io")


@pytest.fixture(scope="module")
def model() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    steps = StandardScaler(), FunctionTransformer(np.exp), DecisionTreeClassifier(random_state=0)
    return make_pipeline(*steps).fit([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0]], [0, 1, 1])


def zipped(schema: object, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("schema.json", schema if isinstance(schema, bytes) else json.dumps(schema))
    return buffer.getvalue()


def part(module: str, name: str, loader: str, **told: object) -> dict[str, object]:
    return {"__module__": module, "__class__": name, "__loader__": loader, "protocol": 2, "__id__": 1, **told}


def text(value: str) -> dict[str, object]:
    return part("builtins", "str", "JsonNode", content=json.dumps(value), is_json=True, __id__=2)


def arguments(*values: str) -> dict[str, object]:
    return part("builtins", "tuple", "TupleNode", content=[text(value) for value in values], __id__=3)


def attacks(canary: Path) -> dict[str, dict[str, object]]:
    touch = f"touch {canary}"
    generator = part("builtins", "dict", "DictNode", content={"bit_generator": text("seed")}, __id__=4)
    generator["key_types"] = part("builtins", "list", "ListNode", content=[], __id__=5)
    return {
        "a call": part("os", "system", "ConstructorFromReduceNode", content=arguments(touch)),
        "a function": part(
            "os", "system", "FunctionNode", content={"module_path": "os", "function": "system"}
        ),
        "a type": part("subprocess", "Popen", "TypeNode"),
        "an object": part("subprocess", "Popen", "ObjectNode", content=arguments(touch)),
        "a container": part("os", "system", "ListNode", content=[text(touch)]),
        "an array": part("os", "system", "NdArrayNode", type="json", content=[], shape=arguments()),
        "a memory map": part("numpy", "memmap", "NdArrayNode", type="json", content=[], shape=arguments()),
        "an operator": part("operator", "attrgetter", "OperatorFuncNode", attrs=arguments("system")),
        "a method": part("builtins", "str", "MethodNode", content={"func": "join", "obj": text(touch)}),
        "a partial": part("functools", "partial", "PartialNode", content={}),
        "a codec": part("_codecs", "encode", "ConstructorFromReduceNode", content=arguments("x", "rot13")),
        "a generator": part(
            "numpy.random._generator",
            "Generator",
            "RandomGeneratorNode",
            content={"bit_generator": generator},
        ),
        "a dotted name": part("sklearn.datasets._base", "os.system", "FunctionNode"),
        "an unknown loader": part("builtins", "dict", "NewNode"),
        "no class": {"__module__": "os", "__loader__": "ObjectNode"},
    }


def test_a_model_saved_by_skops_loads_without_asking(model: Any):
    import sklearn
    import skops

    data = skops_io.dumps(model)
    report = scan_skops(data)
    assert report.refused == ()
    assert report.container == "skops"
    assert report.versions == {"scikit-learn": (sklearn.__version__,), "skops": (skops.__version__,)}
    assert report.modules == ("numpy", "sklearn", "skops")
    rows = [[0.5, 2.0], [2.0, 0.5]]
    assert (load_skops(data).predict(rows) == model.predict(rows)).all()


@pytest.mark.parametrize("name", attacks(Path()))
def test_a_malicious_skops_file_is_refused_and_nothing_in_it_runs(name: str, tmp_path: Path):
    canary = tmp_path / "canary"
    schema = attacks(canary)[name] | {"_skops_version": "0.10", "protocol": 2}
    for described in (schema, part("builtins", "list", "ListNode", content=[schema], __id__=9)):
        with pytest.raises(Refused):
            load_skops(zipped(described | {"protocol": 2}))
    assert not canary.exists()


def test_the_error_names_the_class_and_the_flag(tmp_path: Path):
    with pytest.raises(Refused) as refused:
        load_skops(zipped(part("shop", "Till", "ObjectNode")))
    assert refused.value.facts["names"] == ("shop.Till",)
    assert "--trust shop.Till" in refused.value.next_step


def test_a_class_of_the_training_script_comes_from_the_script_given():
    import types

    module = types.ModuleType("train")
    exec("class Scaler: pass", vars(module))
    data = zipped(part("__main__", "Scaler", "ObjectNode"))
    assert scan_skops(data).main_classes == ("Scaler",)
    with pytest.raises(Refused, match="Scaler"):
        load_skops(data)
    schema = part("__main__", "Scaler", "ObjectNode", _skops_version="0.10") | {"protocol": 2}
    assert type(load_skops(zipped(schema), main_module=module)) is module.Scaler


def test_a_generator_may_not_be_swapped_by_its_id(model: Any):
    from sklearn.ensemble import HistGradientBoostingClassifier

    forest = HistGradientBoostingClassifier(max_iter=1).fit(np.arange(40.0).reshape(20, 2), [0, 1] * 10)
    data = skops_io.dumps(forest)
    assert scan_skops(data).refused == ()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        schema = archive.read("schema.json")
    for name in (b"PCG64", b"MT19937"):
        schema = schema.replace(name, b"seed")
    with pytest.raises(Refused, match="generator"):
        scan_skops(zipped(schema))


def test_damaged_and_foreign_zips_are_bad_input(model: Any):
    data = skops_io.dumps(model)
    for broken in (
        b"",
        b"PK\x03\x04",
        data[:-30],
        data[:40],
        zipped(b"{"),
        zipped([1]),
        zipped(b"[" * 100_000),
    ):
        with pytest.raises(BadInput):
            scan_skops(broken)


def test_members_outside_of_the_file_are_refused():
    for name in ("../up.npy", "/root.npy", "a/../../b", "c:\\x.npy"):
        with pytest.raises(Refused, match="outside"):
            scan_skops(zipped(part("builtins", "list", "ListNode", content=[]), **{name: b"x"}))


def test_a_zip_bomb_is_stopped():
    small = Limits(ratio=10, ratio_from=1000)
    with pytest.raises(BadInput, match="unpacks"):
        scan_skops(zipped({}, **{"1.npy": bytes(1_000_000)}), limits=small)
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", bytes(1_000_000))
    with pytest.raises(BadInput, match="unpacks"):
        scan_skops(zipped({}, **{"1.npz": nested.getvalue()}), limits=small)


def test_kind_tells_skops_from_other_zips(model: Any):
    data = skops_io.dumps(model)
    assert kind(data) == "skops"
    assert kind(data[:512], "model.skops") == "skops"
    assert kind(zipped({}, other=b"")[:10]) is None


def test_a_skops_file_is_not_read_as_a_pickle(model: Any):
    with pytest.raises(MlpackerError, match="skops"):
        scan(skops_io.dumps(model))
