"""Whatever stands in a descriptor, it is read or refused with its place; and what is kept of it reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlpacker.errors import BadDescription
from mlpacker.pipeline import PIPELINE, STAGE, normalised, read, schema
from mlpacker_runtime.signature import DTYPES

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
VALID = jsonschema.Draft202012Validator(schema())

words = st.sampled_from(
    [*PIPELINE.keys, *STAGE.keys, *DTYPES, "m.onnx", "f.py:g", "f.py", "input", "a", "b", "<<", "1.10", "float64 or null", "../x", "\x00"]
)  # fmt: skip
scalars = st.one_of(words, st.text(max_size=8), st.none(), st.booleans(), st.integers(), st.floats())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)),
    max_leaves=20,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "s.csv").write_bytes(b"")
    (tmp_path / "f.py").write_text("def g(row: dict):\n    return row\n")
    return tmp_path / "pipeline.yaml"


def read_or_refused(data: bytes, file: Path) -> None:
    try:
        kept: dict[str, Any] | str = normalised(read(data, file))
    except BadDescription as error:
        kept = str(error)
    assert isinstance(kept, dict) or kept.startswith("pipeline.yaml"), kept
    json.dumps(kept, allow_nan=False)


@SHARED
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(file: Path, data: bytes) -> None:
    read_or_refused(data, file)


@SHARED
@given(text=st.text(alphabet="abn1:-[]{}&*!|>?%@`'\"#,. \n\t~<", max_size=80))
def test_any_yaml_like_text_is_read_or_refused(file: Path, text: str) -> None:
    read_or_refused(b"name: a\nstages:\n" + text.encode(), file)


@SHARED
@given(
    value=values,
    more=st.dictionaries(st.sampled_from(list(PIPELINE.keys)), values, max_size=3),
    stage=st.dictionaries(st.sampled_from(list(STAGE.keys)), values, max_size=3),
)
def test_any_value_in_any_key_is_read_or_refused(
    file: Path, value: Any, more: dict[str, Any], stage: dict[str, Any]
) -> None:
    read_or_refused(yaml.safe_dump(value).encode(), file)
    whole = {"name": "a", "stages": [{"name": "s", "model": "m.onnx", **stage}], **more}
    read_or_refused(yaml.safe_dump(whole, sort_keys=False).encode(), file)


names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True).filter(lambda n: n != "input")
plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(-1e15, 1e15), st.text(max_size=10)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
field = st.one_of(
    st.sampled_from(DTYPES),
    st.sampled_from([f"{d} or null" for d in DTYPES]),
    st.fixed_dictionaries(
        {"dtype": st.sampled_from(DTYPES), "shape": st.just([-1, 3]), "required": st.booleans()}
    ),
    st.fixed_dictionaries(
        {"dtype": st.just("category"), "categories": st.lists(st.text(min_size=1, max_size=4), max_size=3)}
    ),
)
fields = st.dictionaries(st.text(min_size=1, max_size=6), field, max_size=3)


@st.composite
def descriptors(draw: st.DrawFn) -> dict[str, Any]:
    """Valid descriptors: acyclic graphs written in any order."""
    called = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    stages = []
    for i, name in enumerate(called):
        stage: dict[str, Any] = {"name": name}
        stage |= {"model": "m.onnx"} if draw(st.booleans()) else {"function": "f.py:g"}
        stage["after"] = draw(st.lists(st.sampled_from([*called[:i], "input"]), unique=True, max_size=3))
        for key, kind in {
            "args": st.dictionaries(st.text(min_size=1, max_size=5), plain, max_size=3),
            "method": st.just(["predict"]),
            "takes": st.sampled_from(["frame", "record"]),
            "batch": st.sampled_from(["rows", "request"]),
            "stateful": st.booleans(),
            "python": st.sampled_from(["3.10", "3.11"]),
            "requirements": st.just(["numpy==2.0.0"]),
            "trust": st.just(["a.b"]),
            "code": st.just(["f.py"]),
            "inputs": fields,
            "outputs": fields,
        }.items():
            if draw(st.integers(0, 3)) == 0:
                stage[key] = draw(kind)
        stages.append(stage)
    whole: dict[str, Any] = {
        "name": draw(st.sampled_from(["a", "rock-bolts", "a1.b_c"])),
        "stages": draw(st.permutations(stages)),
    }
    whole |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "version": st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._-]{0,8}", fullmatch=True),
                "sample": st.just("s.csv"),
                "metadata": st.dictionaries(st.text(min_size=1, max_size=5), plain, max_size=3),
                "signature": st.fixed_dictionaries({"inputs": fields, "outputs": fields}),
            },
        )
    )
    return whole


@SHARED
@given(whole=descriptors())
def test_what_is_kept_reads_back_as_the_same_pipeline_and_fits_the_schema(
    file: Path, whole: dict[str, Any]
) -> None:
    first = read(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True).encode(), file)
    kept = normalised(first)
    VALID.validate(whole)
    VALID.validate(kept)
    again = read(json.dumps(kept).encode(), file)
    assert again == first
    assert normalised(again) == kept
    place = {s.name: i for i, s in enumerate(first.stages)}
    assert all(a == "input" or place[a] < place[s.name] for s in first.stages for a in s.after)
