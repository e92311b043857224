"""What the adapters read from a file's bytes, and what they refuse to."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpacker_runtime import formats
from mlpacker_runtime.errors import BadInput, EnvironmentFailed
from mlpacker_runtime.formats import FolderFiles, Trust, onnx, xgboost
from mlpacker_runtime.manifest import Stage


def written(folder: Path, name: str, data: bytes) -> FolderFiles:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return FolderFiles(folder)


# --- ONNX: messages written by hand, field by field


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_in(location: str) -> bytes:
    return field(13, field(1, b"location") + field(2, location.encode())) + field(14, 1)


def model(*graph: bytes, opset: int = 17) -> bytes:
    inside = b"".join(graph) + field(12, field(1, b"y"))
    return field(1, 8) + field(2, b"somebody") + field(7, inside) + field(8, field(2, opset))


def nested(location: str, depth: int) -> bytes:
    """A tensor in a graph in an attribute of a node, that many times over."""
    graph = field(5, tensor_in(location))
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return graph


def test_an_onnx_file_is_known_by_its_messages(tmp_path: Path) -> None:
    assert onnx.matches(written(tmp_path, "a", model()), "a")
    assert not onnx.matches(written(tmp_path, "b", model() + field(9, b"no such field")), "b")
    assert not onnx.matches(written(tmp_path, "c", field(1, 8) + field(8, field(2, 17))), "c")
    assert not onnx.matches(written(tmp_path, "d", field(1, 4000) + model()[2:]), "d")


@given(st.binary(max_size=300))
def test_no_bytes_make_the_walk_of_messages_raise_anything_but_its_own_error(data: bytes) -> None:
    try:
        list(onnx.walk(data, 0, len(data)))
        onnx.external(data)
    except ValueError:
        pass


def test_the_opset_and_the_producer_are_read(tmp_path: Path) -> None:
    facts = onnx.inspect(written(tmp_path, "m", model(opset=18)), "m", Trust())
    assert facts.requirements == ("onnxruntime>=1.14",)
    assert "somebody" in facts.notes[0]


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "..\\secret", "", "a\0b"])
def test_tensors_outside_the_model_s_folder_are_refused(location: str, tmp_path: Path) -> None:
    files = written(tmp_path, "m", model(field(5, tensor_in(location))))
    with pytest.raises(BadInput, match="outside its own folder"):
        onnx.inspect(files, "m", Trust())


def test_tensors_deep_inside_subgraphs_are_found(tmp_path: Path) -> None:
    files = written(tmp_path, "models/m", model(nested("weights.bin", 5)))
    assert onnx.inspect(files, "models/m", Trust()).beside == ("models/weights.bin",)


def test_subgraphs_without_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="deeper"):
        onnx.inspect(written(tmp_path, "m", model(nested("weights.bin", 200))), "m", Trust())


def test_a_model_whose_tensors_are_missing_says_so(tmp_path: Path) -> None:
    files = written(tmp_path, "m", model(nested("weights.bin", 0)))
    with pytest.raises(BadInput, match="which is not there"):
        onnx.load(files, Stage("s", "onnx", "m"), Trust())


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    files = written(tmp_path, "models/m", model(nested("weights.bin", 0)))
    os.symlink(tmp_path / "secret", tmp_path / "models" / "weights.bin")
    with pytest.raises(BadInput, match="link"):
        onnx.load(files, Stage("s", "onnx", "models/m"), Trust())


# --- XGBoost


def old_binary(prefix: bytes) -> bytes:
    parameters = struct.pack("<fIiiiII", 0.5, 4, 0, 1, 0, 1, 7).ljust(136, b"\0")
    return prefix + parameters + struct.pack("<Q", 16) + b"reg:squarederror" + bytes(64)


@pytest.mark.parametrize("prefix", [b"", b"binf"])
def test_the_old_binary_format_of_xgboost_is_refused_with_the_way_out(prefix: bytes, tmp_path: Path) -> None:
    files = written(tmp_path, "model.bin", old_binary(prefix))
    assert formats.find(files, "model.bin") == "xgboost"
    with pytest.raises(BadInput, match="old binary format") as caught:
        xgboost.inspect(files, "model.bin", Trust())
    assert "save_model('model.json')" in caught.value.next_step


@pytest.mark.parametrize("space", ["", " ", "\n  "])
def test_an_xgboost_document_tells_its_version_however_it_is_laid_out(space: str, tmp_path: Path) -> None:
    text = '{"learner":{"attributes":{}},"version":[1,7,6]}'.replace(":", f":{space}").replace(
        ",", f",{space}"
    )
    facts = xgboost.inspect(written(tmp_path, "m", text.encode()), "m", Trust())
    assert facts.versions == {"xgboost": "1.7.6"}


@pytest.mark.parametrize(
    "array", [b"#L" + bytes(7) + b"\x03i\x02i\x01i\x04", b"$U#U\x03\x02\x01\x04", b"#U\x03U\x02U\x01U\x04"]
)
def test_a_ubj_document_tells_its_version_in_each_way_an_array_can_be_written(
    array: bytes, tmp_path: Path
) -> None:
    def key(name: bytes) -> bytes:
        return b"L" + bytes(7) + bytes([len(name)]) + name

    data = b"{" + key(b"learner") + b"{}" + key(b"version") + b"[" + array + b"}"
    assert xgboost.inspect(written(tmp_path, "m", data), "m", Trust()).versions == {"xgboost": "2.1.4"}


def test_only_a_wrapped_classifier_needs_scikit_learn(tmp_path: Path) -> None:
    def saved(kind: str) -> bytes:
        said = '{\\"_estimator_type\\": \\"' + kind + '\\"}'
        return f'{{"learner":{{"attributes":{{"scikit_learn":"{said}"}}}},"version":[2,0,0]}}'.encode()

    assert xgboost.inspect(written(tmp_path, "c", saved("classifier")), "c", Trust()).requirements == (
        "scikit-learn",
    )
    assert xgboost.inspect(written(tmp_path, "r", saved("regressor")), "r", Trust()).requirements == ()


# --- Libraries that are not there


@pytest.mark.parametrize(
    ("name", "library", "data"),
    [
        ("onnx", "onnxruntime", model()),
        ("xgboost", "xgboost", b'{"learner":{},"version":[2,0,0]}'),
        ("lightgbm", "lightgbm", b"tree\nversion=v4\nend of trees\n"),
        ("catboost", "catboost", b"CBM1\x01\0\0\0\0"),
    ],
)
def test_a_missing_library_is_named(
    name: str, library: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    files = written(tmp_path, "m", data)
    with pytest.raises(EnvironmentFailed, match="not installed") as caught:
        formats.get(name).load(files, Stage("s", name, "m"), Trust())
    assert library in caught.value.next_step


def test_a_missing_shared_library_of_lightgbm_comes_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lightgbm.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    files = written(tmp_path, "m", b"tree\nversion=v4\nend of trees\n")
    with pytest.raises(EnvironmentFailed, match="libgomp") as caught:
        formats.get("lightgbm").load(files, Stage("s", "lightgbm", "m"), Trust())
    assert "apt-get install libgomp1" in caught.value.next_step
