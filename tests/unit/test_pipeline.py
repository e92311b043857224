"""The descriptor: what is read, what is refused and where, and what a package keeps of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mlpacker import pipeline
from mlpacker.errors import BadDescription
from mlpacker.pipeline import Pipeline, check_between, from_arguments, normalised, parse, read, schema
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.signature import Field

ROOT = Path(__file__).resolve().parents[2]
BOLTS = """\
name: rock-bolts
version: 1.10
stages:
  - name: clean
    function: clean.py:drop_bad_readings
    args: {deepest: 100}
  - name: features
    model: scaler.joblib
  - name: classify
    model: forest.onnx
    after: [features]
    method: predict
    python: 3.10
    requirements: [pandas==2.2.3]
    trust: my.module.Thing
    inputs:
      depth: float64 or null
      rock: {dtype: category, categories: [clay, slate]}
sample: readings.csv
python: "3.11"
requirements: pins.txt
metadata: {licence: Apache-2.0, authors: [Ada, Grace], measured: 2024-01-01, on: yes}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clean.py").write_text("def drop_bad_readings(readings: dict):\n    return readings\n")
    (tmp_path / "pins.txt").write_text(
        "# ours\nscikit-learn == 1.5.2  # the one\nnumpy>=1.26 \\\n  --hash=sha256:00\n"
    )
    for name in ("scaler.joblib", "forest.onnx", "readings.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "pipeline.yaml").write_text(BOLTS)
    return tmp_path


def refused(text: str, folder: Path) -> BadDescription:
    with pytest.raises(BadDescription) as caught:
        read(text.encode(), folder / "pipeline.yaml")
    return caught.value


# --- What is read ----------------------------------------------------------------------------------------------------


def test_a_descriptor_becomes_a_pipeline(folder: Path) -> None:
    bolts = parse(folder / "pipeline.yaml")
    assert bolts == parse(folder)
    assert (bolts.name, bolts.version, bolts.python) == ("rock-bolts", "1.10", "3.11")
    assert bolts.requirements == ("scikit-learn==1.5.2", "numpy>=1.26")
    assert bolts.sample == folder / "readings.csv"
    assert bolts.metadata == {
        "licence": "Apache-2.0",
        "authors": ["Ada", "Grace"],
        "measured": "2024-01-01",
        "on": "yes",
    }
    clean, features, classify = bolts.stages
    assert clean.function == (folder / "clean.py", "drop_bad_readings")
    assert clean.args == {"deepest": 100}
    assert [s.after for s in bolts.stages] == [("input",), ("clean",), ("features",)]
    assert features.model == folder / "scaler.joblib"
    assert (classify.methods, classify.python) == (("predict",), "3.10")
    assert classify.requirements == ("pandas==2.2.3",)
    assert classify.trust == ("my.module.Thing",)
    assert classify.inputs == (
        Field("depth", "float64", nullable=True),
        Field("rock", "category", categories=("clay", "slate")),
    )


def test_a_graph_may_be_written_in_any_order_and_is_kept_near_it(folder: Path) -> None:
    stages = [("join", ["left", "right"]), ("left", "input"), ("right", []), ("report", "join")]
    text = yaml.safe_dump(
        {"name": "g", "stages": [{"name": n, "model": "forest.onnx", "after": a} for n, a in stages]},
        sort_keys=False,
    )
    read_back = read(text.encode(), folder / "pipeline.yaml")
    assert [s.name for s in read_back.stages] == ["left", "right", "join", "report"]
    assert read_back.stage("right").after == ("input",)


def test_what_is_said_for_all_stages_reaches_each(folder: Path) -> None:
    text = BOLTS.replace("name: rock-bolts", "name: rock-bolts\ncode: clean.py\ntrust: [a.b]")
    bolts = read(text.encode(), folder / "pipeline.yaml")
    assert all(s.code == (folder / "clean.py",) for s in bolts.stages)
    assert [s.trust for s in bolts.stages] == [("a.b",), ("a.b",), ("my.module.Thing", "a.b")]


def test_anchors_are_followed(folder: Path) -> None:
    text = "name: a\nstages:\n- &s {name: one, model: forest.onnx, requirements: &r [numpy==2.0]}\n- {name: two, model: forest.onnx, requirements: *r}\n"
    assert [s.requirements for s in read(text.encode(), folder / "p").stages] == [("numpy==2.0",)] * 2


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("after: [features]", "after: [featrues]", "pipeline.yaml:11: stages[2].after[0]: there is no stage 'featrues'. Did you mean 'features'?"),
        ("after: [features]", "after: classify", "pipeline.yaml:11: stages[2].after: the stages go in a circle: classify → classify."),
        ("after: [features]", "after: [clean, clean]", "pipeline.yaml:11: stages[2].after: names a stage twice."),
        ("    model: scaler.joblib", "    model: scaler.joblib\n    after: classify", "pipeline.yaml:12: stages[2].after: the stages go in a circle: classify → features → classify."),
        ("name: features", "name: clean", "pipeline.yaml:7: stages[1].name: there is a stage 'clean' already, on line 4. Each has a name of its own."),
        ("name: features", "name: input", "pipeline.yaml:7: stages[1].name: 'input' is the request's own name. Call the stage something else."),
        ("name: features", "name: a.b", "pipeline.yaml:7: stages[1].name: a name of letters, digits, - and _, not \"a.b\"."),
        ("name: features", "nmae: features", "pipeline.yaml:7: stages[1].nmae: unknown key. Did you mean 'name'?"),
        ("scaler.joblib", "scalar.joblib", "pipeline.yaml:8: stages[1].model: there is no file 'scalar.joblib'. Did you mean 'scaler.joblib'?"),
        ("model: scaler.joblib", "method: predict", "pipeline.yaml:7: stages[1]: one of model and function belongs here; none is given."),
        ("model: scaler.joblib", "model: scaler.joblib\n    function: clean.py:x", "pipeline.yaml:7: stages[1]: one of model and function belongs here; both are given."),
        ("model: scaler.joblib", "model: clean.py:x", "pipeline.yaml:8: stages[1].model: clean.py:x is a function. Write function: clean.py:x"),
        (":drop_bad_readings", ":drop_bad_raedings", "pipeline.yaml:5: stages[0].function: clean.py has no function or class 'drop_bad_raedings'. Did you mean 'drop_bad_readings'?"),
        (":drop_bad_readings", "", 'pipeline.yaml:5: stages[0].function: FILE.py:NAME, relative to this file, not "clean.py".'),
        ("sample: readings.csv", "name: again", "pipeline.yaml:19: name: stands twice: first on line 1."),
        ("sample: readings.csv", "sample: readings.tsv", "pipeline.yaml:19: sample: there is no file 'readings.tsv'. Did you mean 'readings.csv'?"),
        ("version: 1.10", "version:", "pipeline.yaml:2: version: a version of at most 128 letters, digits and . _ -, not nothing. Leave the key out, or say what it is."),
        ("version: 1.10", "version: [1]", "pipeline.yaml:2: version: a version of at most 128 letters, digits and . _ -, not a list."),
        ("name: rock-bolts", "name: Rock Bolts", 'pipeline.yaml:1: name: a name of at most 100 lower-case letters, digits, and . _ - between them, not "Rock Bolts".'),
        ("name: rock-bolts\n", "", "pipeline.yaml:1: name: missing: What the package is called."),
        ("pandas==2.2.3", "pandas=2.2.3", "pipeline.yaml:14: stages[2].requirements[0]: 'pandas=2.2.3' is not a requirement"),
        ("requirements: pins.txt", "requirements: pin.txt", "pipeline.yaml:21: requirements: There is no requirements file pin.txt."),
        ("python: 3.10", "python: 2.7", 'pipeline.yaml:13: stages[2].python: a Python version, as "3.11", not 2.7.'),
        ("float64 or null", "float", "pipeline.yaml:17: stages[2].inputs.depth: a type (bool, "),
        ("dtype: category,", "dtype: string,", "pipeline.yaml:18: stages[2].inputs.rock.categories: a string has no categories. Make its dtype category."),
        ("dtype: category,", "shape: [3], dtype: category,", "pipeline.yaml:18: stages[2].inputs.rock.shape: the first axis is rows and -1"),
        ("metadata: {", "metadata: [", "pipeline.yaml:22: not YAML: "),
        ("version: 1.10", "version: !!python/object/apply:os.system [ls]", "pipeline.yaml:2: version: the YAML tag"),
        ("stages:", "stages: []\nstage:", "pipeline.yaml:4: stage: unknown key. Did you mean 'stages'?"),
    ],
)  # fmt: skip
def test_an_error_says_file_line_path_and_what_to_do(folder: Path, old: str, new: str, said: str) -> None:
    assert old in BOLTS
    error = refused(BOLTS.replace(old, new, 1), folder)
    assert str(error)[: len(said)] == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "just words",
        "- a\n- b\n",
        "name: a\n---\nname: b\n",
        "\x00",
        "name: \xff",
        "? [a]\n: b\n",
        "{" * 2000,
        "[" * 100_000,
    ],
)
def test_what_is_no_descriptor_is_refused(folder: Path, text: str) -> None:
    assert str(refused(text, folder)).startswith("pipeline.yaml")


def test_a_billion_laughs_are_not_laughed(folder: Path) -> None:
    laughs = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n"
    for i in range(1, 12):
        laughs += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    assert "more values" in str(refused(laughs, folder))
    assert "nested deeper" in str(refused("a: &a [*a]\n", folder))


def test_an_absent_descriptor_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDescription, match="There is no descriptor"):
        parse(tmp_path / "pipeline.yaml")


def test_a_requirement_with_a_password_is_refused(folder: Path) -> None:
    text = BOLTS.replace(
        "[pandas==2.2.3]", '["ours @ https://ada:secret@example.org/ours-1-py3-none-any.whl"]'
    )
    error = refused(text, folder)
    assert "holds a password" in str(error)
    assert "secret" not in str(error)


def test_an_option_in_a_requirements_file_is_refused_with_its_line(folder: Path) -> None:
    (folder / "pins.txt").write_text("numpy\n-r more.txt\n")
    assert str(refused(BOLTS, folder)).startswith(
        "pipeline.yaml:21: requirements: pins.txt:2: the option -r is not taken here."
    )


# --- From arguments --------------------------------------------------------------------------------------------------


def test_arguments_are_a_chain_named_after_its_files(folder: Path) -> None:
    chain = from_arguments(
        ["clean.py:drop_bad_readings", "forest.onnx", "forest.onnx"],
        sample="readings.csv",
        requirements=["pins.txt", "pandas==2.2.3"],
        folder=folder,
    )
    assert chain.name == "forest"
    assert [(s.name, s.after) for s in chain.stages] == [
        ("drop_bad_readings", ("input",)),
        ("forest", ("drop_bad_readings",)),
        ("forest-2", ("forest",)),
    ]
    assert chain.requirements == ("scikit-learn==1.5.2", "numpy>=1.26", "pandas==2.2.3")
    assert chain.sample == folder / "readings.csv"


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        ([], {}, "There is nothing to pack."),
        (
            ["clean.py"],
            {},
            "clean.py is code: which of its functions? Say clean.py:NAME; it has drop_bad_readings.",
        ),
        (["clean.py:drop"], {}, "clean.py has no function or class 'drop'."),
        (["forest.onx"], {}, "model: there is no file 'forest.onx'. Did you mean 'forest.onnx'?"),
        (["forest.onnx"], {"sample": "x.csv"}, "sample: there is no file 'x.csv'."),
        (["forest.onnx"], {"name": "My Forest"}, "Take 'my-forest'?"),
        (["forest.onnx"], {"version": "1.0+local"}, "version: a version of at most"),
        (["forest.onnx"], {"requirements": ["="]}, "'=' is not a requirement"),
    ],
)
def test_wrong_arguments_are_refused(
    folder: Path, models: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadDescription) as caught:
        from_arguments(models, folder=folder, **options)
    assert said in str(caught.value)


def test_a_name_that_replaces_the_written_one_is_checked_too(folder: Path) -> None:
    with pytest.raises(BadDescription, match=r"^name: .*Take 'rock-bolts'\?$"):
        dataclasses.replace(parse(folder), name="Rock Bolts")


# --- What a package keeps --------------------------------------------------------------------------------------------


def test_another_folder_gives_the_same_content(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deep"
    folder.rename(elsewhere)
    there = normalised(parse(elsewhere))
    elsewhere.rename(folder)
    assert normalised(parse(folder)) == there
    assert str(folder) not in json.dumps(there)


def test_the_content_reads_back_as_the_same_pipeline(folder: Path) -> None:
    bolts = parse(folder)
    text = yaml.safe_dump(normalised(bolts), sort_keys=False)
    assert read(text.encode(), folder / "pipeline.yaml") == bolts


# --- The schema ------------------------------------------------------------------------------------------------------

PUBLISHED = ROOT / "docs" / "reference" / "pipeline.schema.json"
VALID = jsonschema.Draft202012Validator(schema())
EXAMPLES = sorted((ROOT / "examples").glob("*/pipeline.yaml"))


def test_the_schema_is_one_and_is_the_published_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == schema()


def test_the_reference_page_is_the_published_one() -> None:
    assert PUBLISHED.with_name("pipeline.md").read_text(encoding="utf-8") == pipeline.reference()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.parent.name)
def test_the_schema_accepts_every_example(path: Path) -> None:
    VALID.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_schema_accepts_what_is_read_and_what_is_kept(folder: Path) -> None:
    VALID.validate(yaml.safe_load(BOLTS.replace("2024-01-01", "'2024-01-01'")))
    VALID.validate(normalised(parse(folder)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version:", "versoin:"),
        ("model: scaler.joblib", "modle: scaler.joblib"),
        ("function: clean.py:drop_bad_readings", "function: clean.py"),
        ("model: scaler.joblib", "function: clean.py:x\n    model: scaler.joblib"),
        ("float64 or null", "float"),
        ("name: rock-bolts", "name: Rock Bolts"),
        ("name: rock-bolts\n", ""),
    ],
)
def test_the_schema_refuses_typos(old: str, new: str) -> None:
    assert not VALID.is_valid(yaml.safe_load(BOLTS.replace(old, new, 1)))


def test_every_key_says_what_it_is_for() -> None:
    for name, record in (
        ("pipeline", pipeline.PIPELINE),
        ("stage", pipeline.STAGE),
        ("field", pipeline.FIELD),
    ):
        assert all(key.says.endswith(".") for key in record.keys.values()), name


# --- Between stages --------------------------------------------------------------------------------------------------

DEPTH, STRESS = Field("depth", "float64"), Field("stress", "float64")


def between(outputs: tuple[Field, ...], inputs: tuple[Field, ...], **second: Any) -> str | None:
    stages = (
        Stage("clean", "f", "p", outputs=outputs),
        Stage("classify", "f", "p", after=("clean",), inputs=inputs, **second),
    )
    try:
        check_between(stages)
    except BadDescription as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [
        ((DEPTH, STRESS), (STRESS, DEPTH)),
        ((DEPTH, STRESS), (DEPTH,)),
        ((DEPTH, STRESS), (Field("input", "float64", (-1, 2)),)),
        ((Field("transform", "float64", (-1, 2)),), (Field("input", "float32", (-1, 2)),)),
        ((Field("transform", "float64", (-1, 2)), DEPTH), (Field("input", "float64", (-1, 3)),)),
        ((DEPTH,), (Field("depth", "float32"),)),
        ((Field("n", "int64"),), (Field("n", "float64"),)),
        ((Field("n", "string"),), (Field("n", "category", categories=("a",)),)),
        ((Field("n", "object"),), (Field("n", "datetime"),)),
        ((DEPTH,), (DEPTH, Field("note", "string", required=False))),
        ((), (DEPTH,)),
        ((DEPTH,), ()),
    ],
)
def test_stages_that_fit_fit(outputs: tuple[Field, ...], inputs: tuple[Field, ...]) -> None:
    assert between(outputs, inputs) is None


@pytest.mark.parametrize(
    ("outputs", "inputs", "said"),
    [
        ((DEPTH,), (DEPTH, STRESS), "it takes 'stress', and is given 'depth'."),
        ((Field("depth", "string"),), (DEPTH,), "it takes 'depth' as float64, and is given string."),
        ((DEPTH,), (Field("depth", "int64"),), "it takes 'depth' as int64, and is given float64."),
        (
            (Field("depth", "float64", (-1, 3)),),
            (DEPTH,),
            "it takes 'depth' of shape [-1], and is given [-1, 3].",
        ),
        ((DEPTH, STRESS), (Field("input", "float64", (-1, 3)),), "it takes 3 columns, and is given 2."),
        (
            (DEPTH, Field("rock", "string")),
            (Field("input", "float64", (-1, 2)),),
            "it takes float64, and is given 'rock', which is string.",
        ),
        (
            (Field("i", "float32", (-1, 8, 8)),),
            (Field("input", "float32", (-1, 9, 9)),),
            "it takes the shape [-1, 9, 9], and is given [-1, 8, 8].",
        ),
    ],
)
def test_stages_that_do_not_fit_are_told_both_names(
    outputs: tuple[Field, ...], inputs: tuple[Field, ...], said: str
) -> None:
    assert between(outputs, inputs) == f"stage 'classify' does not fit after 'clean': {said}"


def test_one_plain_value_fits_after_one_column_of_any_name() -> None:
    assert between((Field("predict", "float64"),), (DEPTH,), takes="values") is None
    assert between((DEPTH, STRESS), (Field("x", "float64"),), takes="values") is not None


def test_a_join_is_checked_under_the_names_it_makes() -> None:
    stages = (
        Stage("a", "f", "p", outputs=(DEPTH,)),
        Stage("b", "f", "p", outputs=(DEPTH, STRESS)),
        Stage("c", "f", "p", after=("a", "b"), inputs=(Field("a.depth", "float64"), STRESS)),
    )
    check_between(stages)
    with pytest.raises(
        BadDescription,
        match=r"does not fit after 'a' and 'b': it takes 'depth', and is given 'a.depth', 'b.depth', 'stress'",
    ):
        check_between((*stages[:2], Stage("c", "f", "p", after=("a", "b"), inputs=(DEPTH,))))


def test_a_misfit_names_file_and_line_where_the_pipeline_was_written(folder: Path) -> None:
    bolts: Pipeline = parse(folder)
    stages = (
        Stage("features", "f", "p", outputs=(DEPTH,)),
        Stage("classify", "f", "p", after=("features",), inputs=(STRESS,)),
    )
    with pytest.raises(
        BadDescription, match=r"^pipeline.yaml:9: stages\[2\]: stage 'classify' does not fit after 'features'"
    ):
        check_between(stages, bolts)
