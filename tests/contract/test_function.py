"""Plain functions and classes as stages: the adapters' contract, and what is their own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpacker.testing import toys
from mlpacker.testing.formats import Case, FormatContract, check_equal
from mlpacker_runtime import formats
from mlpacker_runtime.batch import Batch, Outcome, to_records
from mlpacker_runtime.engine import run_stage
from mlpacker_runtime.errors import BadInput, ModelFailed, Refused
from mlpacker_runtime.formats import FolderFiles, Predictor, Trust, function
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.signature import Field

pytest.importorskip("pandas")
CODE = Trust(code=True)
DEPTH = np.array([1.0, 20.0, 150.0, 4.0])
STRESS = np.array([0.5, 2.0, 1.0, 0.25])
ROCK = np.array(["clay", "slate", "granite", "clay"], dtype=object)
READINGS = Batch({"depth": DEPTH, "stress": STRESS, "rock": ROCK}, np.array([11, 5, 7, 8]))
FIELDS = (Field("depth", "float64"), Field("stress", "float64"), Field("rock", "string"))
Load = Callable[..., Predictor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(toys.__file__, tmp_path / "toys.py")
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    def load(entry: str, **stage: Any) -> Predictor:
        given = {"inputs": FIELDS, **stage}
        return function.load(
            FolderFiles(folder), Stage("toy", "function", "toys.py", entry=entry, **given), CODE
        )

    return load


def answers(outcome: Outcome) -> list[tuple[int, dict[str, Any]]]:
    return list(zip(outcome.batch.rows.tolist(), to_records(outcome.batch), strict=True))


# --- The contract ----------------------------------------------------------------------------------------------------


def a_case(
    folder: Path, entry: str, inputs: tuple[Field, ...] | None, given: dict[str, Any], **more: Any
) -> Case:
    shutil.copy(toys.__file__, folder / "toys.py")
    batch = Batch({"depth": DEPTH, "stress": STRESS, "rock": ROCK}).select(
        more.pop("columns", READINGS.names)
    )
    return Case(
        "function", folder, "toys.py", inputs, batch, given, trust=CODE, stage={"entry": entry, **more}
    )


CASES: dict[str, Callable[[Path], Case]] = {
    "values": lambda folder: a_case(
        folder,
        "risk",
        (Field("depth", "float64"), Field("stress", "float64", required=False)),
        {"risk": DEPTH * STRESS},
    ),
    "a class": lambda folder: a_case(folder, "Scale", None, {"scaled": DEPTH * 3}, args={"by": 3.0}),
    "a classifier": lambda folder: a_case(
        folder,
        "Threshold",
        None,
        {
            "predict": (DEPTH > 5).astype(int),
            "predict_proba": toys.Threshold(5).predict_proba(DEPTH[:, None]),
        },
        args={"at": 5},
        columns=("depth",),
    ),
    "an array": lambda folder: a_case(
        folder, "halve", None, {"halve": np.column_stack([DEPTH, STRESS]) / 2}, columns=("depth", "stress")
    ),
    "a dict of arrays": lambda folder: a_case(
        folder, "share", None, {"share": DEPTH / (DEPTH + STRESS)}, columns=("depth", "stress")
    ),
    "arrays by name": lambda folder: a_case(
        folder, "quotient", None, {"quotient": DEPTH / STRESS}, columns=("depth", "stress")
    ),
    "records": lambda folder: a_case(
        folder, "pass_on", None, {"depth": DEPTH, "stress": STRESS, "rock": ROCK}
    ),
}


class TestFunctions(FormatContract):
    @pytest.fixture(params=CASES.values(), ids=CASES)
    def case(self, request: pytest.FixtureRequest, tmp_path: Path) -> Case:
        made: Case = request.param(tmp_path)
        return made

    def test_a_model_is_found_by_its_content_whatever_its_name(self, case: Case, tmp_path: Path) -> None:
        """Code is what is called .py and reads as Python: many a text is Python by chance."""
        (tmp_path / "words.py").write_text("these are words\n")
        assert formats.find(case.files, "toys.py") == "function"
        assert not function.matches(case.files, "words.py")

    def test_what_was_learned_from_a_sample_and_what_was_not_answer_alike(self, case: Case) -> None:
        fresh = replace(case.described(), inputs=(), outputs=())
        check_equal(
            case.adapter.load(case.files, fresh, CODE).predict(case.batch, None).batch.columns, case.answers
        )


# --- Records ---------------------------------------------------------------------------------------------------------


def test_a_record_function_fails_for_its_row_alone_and_none_drops(load: Load) -> None:
    depths = np.array([1.0, -3.0, 150.0, 20.0])
    outcome = load("judge").predict(
        Batch({"depth": depths, "stress": STRESS, "rock": ROCK}, READINGS.rows), None
    )
    assert answers(outcome) == [
        (11, {"risk": 0.5, "grade": "low", "bolts": None}),
        (8, {"risk": 5.0, "grade": "low", "bolts": 5}),
    ]
    assert outcome.errors == {5: "Stage 'toy' failed: ValueError: a depth of -3.0 is above ground"}


def test_a_list_or_an_iterator_gives_several_answers_for_a_row_or_none(load: Load) -> None:
    outcome = load("twice").predict(
        Batch({"depth": np.array([2.0, 0.5]), "stress": STRESS[:2], "rock": ROCK[:2]}), None
    )
    assert answers(outcome) == [(0, {"depth": 2.0, "half": 0}), (0, {"depth": 2.0, "half": 1})]
    assert not outcome.errors


def test_annotations_give_the_signature(load: Load) -> None:
    described = load("judge", inputs=()).describe()
    assert described.inputs == FIELDS
    assert described.outputs == (
        Field("risk", "float64"),
        Field("grade", "category", categories=("low", "high")),
        Field("bolts", "int64", nullable=True),
    )
    assert described.takes == "record"
    assert not described.stateful


def test_a_dataclass_is_made_of_what_is_there_and_null_is_none_where_it_is_optional(load: Load) -> None:
    predictor = load("calibrate", inputs=())
    assert predictor.describe().inputs == (
        Field("depth", "float64"),
        Field("stress", "float64", nullable=True),
        Field("rock", "string", nullable=True, required=False),
        Field("seen", "datetime", nullable=True, required=False),
    )
    outcome = predictor.predict(
        Batch({"depth": np.array([1.0, np.nan]), "stress": np.array([np.nan, 2.0])}), None
    )
    rows = answers(outcome)
    assert rows[0] == (0, {"depth": 1.0, "stress": 0.0, "rock": None, "seen": None})
    assert np.isnan(rows[1][1]["depth"])  # a float that is not Optional keeps its NaN
    assert rows[1][1]["stress"] == 4.0


def test_a_value_of_another_type_than_promised_is_its_row_s_error(load: Load) -> None:
    outcome = load("sloppy").predict(READINGS, None)
    assert outcome.batch.rows.tolist() == [11, 7, 8]
    assert outcome.errors == {
        5: "Stage 'toy' failed: toys.py:sloppy returned str 'high' for 'risk', which is float64."
    }


def test_a_list_of_records_keeps_its_length_and_none_drops(load: Load) -> None:
    outcome = load("judge_all").predict(READINGS, None)
    assert outcome.batch.rows.tolist() == [11, 5, 8]


def test_a_missing_column_is_named(load: Load) -> None:
    with pytest.raises(BadInput, match="'stress'"):
        load("judge", inputs=()).predict(READINGS.select(["depth", "rock"]), None)


def test_one_plain_value_takes_the_one_column_there_is_whatever_its_name(load: Load) -> None:
    batch = Batch({"predict": np.array(["a", "b"], dtype=object)})
    assert answers(load("shout", inputs=()).predict(batch, None)) == [
        (0, {"shout": "A"}),
        (1, {"shout": "B"}),
    ]


# --- Frames and arrays -----------------------------------------------------------------------------------------------


def test_rows_that_a_frame_keeps_are_known_by_its_index(load: Load) -> None:
    assert load("drop_deep").predict(READINGS, None).batch.rows.tolist() == [11, 5, 8]
    assert load("deepest_first").predict(READINGS, None).batch.rows.tolist() == [7, 5, 8, 11]
    assert load("expand").predict(READINGS, None).batch.rows.tolist() == [11, 11, 5, 5, 7, 7, 8, 8]


def test_rows_of_a_frame_with_a_new_index_are_recognised_by_asking_one_by_one(load: Load) -> None:
    outcome = load("drop_deep_and_renumber").predict(READINGS, None)
    assert outcome.batch.rows.tolist() == [11, 5, 8]
    assert outcome.batch["depth"].tolist() == [1.0, 20.0, 4.0]


def test_a_frame_whose_rows_nobody_can_know_is_refused(load: Load) -> None:
    with pytest.raises(
        BadInput, match=r"toys.py:drop_below_mean_and_renumber returned 1 rows for 4 under a new index"
    ) as caught:
        load("drop_below_mean_and_renumber").predict(READINGS, None)
    assert caught.value.facts["identity"] == "lost"
    assert "reset_index" in caught.value.next_step


def test_rows_under_a_new_index_are_taken_in_order_unless_they_were_sorted(load: Load) -> None:
    outcome = load("look_up").predict(READINGS, None)
    assert outcome.batch.rows.tolist() == READINGS.rows.tolist()
    assert outcome.batch["hardness"].tolist()[:2] == [1.0, 3.0]
    sorted_ = load("deepest_first_and_renumber")
    for _ in range(2):
        with pytest.raises(BadInput, match="in another order and under a new index") as caught:
            sorted_.predict(READINGS, None)
        assert caught.value.facts["identity"] == "lost"


def test_rows_that_can_not_be_known_fail_whole_and_are_not_tried_in_halves(load: Load) -> None:
    stage = Stage("toy", "function", "toys.py", outputs=FIELDS)
    outcome = run_stage(stage, load("drop_below_mean_and_renumber"), READINGS, None)
    assert sorted(outcome.errors) == sorted(READINGS.rows.tolist())


def test_how_a_function_numbers_its_rows_is_found_out_once(load: Load) -> None:
    calls: list[int] = []
    predictor = load("look_up", outputs=(*FIELDS, Field("hardness", "float64")))
    [call] = predictor.calls.values()
    function_ = call.function
    call.function = lambda frame: (calls.append(len(frame)), function_(frame))[1]
    predictor.predict(READINGS, None)
    predictor.predict(READINGS, None)
    assert calls == [4, 4, 1, 1, 1, 1, 4]


def test_a_function_may_write_into_its_frame_and_nobody_else_sees_it(load: Load) -> None:
    matrix = np.column_stack([DEPTH, STRESS])
    matrix.flags.writeable = False  # as it comes from a request's bytes
    fields = FIELDS[:2]
    given = Batch(rows=np.arange(4), names=("depth", "stress"), matrix=matrix)
    assert load("overwrite", inputs=fields).predict(given, None).batch["depth"].tolist() == [0.0] * 4
    assert load("overwrite").predict(READINGS, None).batch["depth"].tolist() == [0.0] * 4
    assert matrix[:, 0].tolist() == READINGS["depth"].tolist() == DEPTH.tolist()


def test_a_batch_that_fails_is_halved_by_the_engine_until_the_row_stands_alone(load: Load) -> None:
    predictor = load("fail_for_slate")
    outcome = run_stage(Stage("toy", "function", "toys.py", outputs=FIELDS), predictor, READINGS, None)
    assert outcome.batch.rows.tolist() == [11, 7, 8]
    assert outcome.errors == {5: "Stage 'toy' failed: ValueError: no bolts for slate"}


def test_a_column_comes_as_a_series_and_goes_back_as_one(load: Load) -> None:
    outcome = load("negate", inputs=FIELDS[:1]).predict(READINGS, None)
    assert outcome.batch["depth"].tolist() == (-DEPTH).tolist()


def test_an_array_of_another_length_is_refused(load: Load) -> None:
    with pytest.raises(ModelFailed, match=r"toys.py:shorten returned 3 rows for 4 that went in"):
        load("shorten", inputs=FIELDS[:2]).predict(READINGS, None)


def test_a_function_without_a_return_is_told_so(load: Load) -> None:
    with pytest.raises(
        ModelFailed, match=r"toys.py:forgetful returned None where a DataFrame.* belongs .*lack a return\?"
    ):
        load("forgetful").predict(READINGS, None)


# --- Classes ---------------------------------------------------------------------------------------------------------


def test_a_class_is_made_once_and_keeps_its_state(load: Load) -> None:
    predictor = load("Counter")
    assert predictor.describe().stateful
    predictor.predict(READINGS, None)
    assert predictor.predict(READINGS, None).batch["predict"].tolist() == [5, 6, 7, 8]


def test_a_classifier_computes_what_is_wanted(load: Load) -> None:
    predictor = load("Threshold", args={"at": 5.0}, inputs=FIELDS[:1])
    assert predictor.describe().methods == ("predict", "predict_proba")
    assert predictor.predict(READINGS, frozenset({"predict"})).batch.names == ("predict",)
    assert predictor.predict(READINGS, None).batch["predict_proba"].shape == (4, 2)


@pytest.mark.parametrize(
    ("entry", "args", "said"),
    [
        ("Scale", {}, "toys.py:Scale can't be made: missing a required argument: 'by'"),
        ("Scale", {"by": 1, "of": 2}, "toys.py:Scale can't be made: .*'of'"),
        ("drop_deep", {"deep": 2}, "toys.py:drop_deep can't be given its args: .*'deep'"),
        ("Mute", {}, "can't be called and has no predict or transform"),
        ("later", {}, "toys.py:later is an async function"),
        ("nothing", {}, "toys.py:nothing takes no argument"),
        ("jugde", {}, "has no function or class 'jugde'.*Did you mean 'judge'"),
        ("toys.judge", {}, "'toys.judge' is not the name of a function"),
    ],
)
def test_what_can_not_be_a_stage_is_refused_with_a_sentence(
    load: Load, entry: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        load(entry, args=args)


# --- Trust and reading -----------------------------------------------------------------------------------------------


def test_code_is_not_run_without_consent(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        "import os\nos.environ['RAN'] = '1'\nraise SystemExit\ndef f(r): return r\n"
    )
    files = FolderFiles(tmp_path)
    assert function.matches(files, "evil.py")
    assert function.inspect(files, "evil.py", CODE).code
    with pytest.raises(Refused, match="--trust-code") as caught:
        function.load(files, Stage("s", "function", "evil.py", entry="f"), Trust())
    assert caught.value.facts["names"] == ("evil.py:f",)
    assert "evil" not in sys.modules


def test_imports_are_read_from_the_source_and_from_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "clean.py").write_text(
        "from __future__ import annotations\n"
        "import os.path, numpy as np\n"
        "from typing import TYPE_CHECKING\n"
        "from beside import f\n"
        "import folder.inner\n"
        "if TYPE_CHECKING:\n    import pandas as pd\n    import mypy_extensions\n"
        "try:\n    import ujson as json\nexcept ImportError:\n    import json\n"
        "def g(df: pd.DataFrame):\n    import scipy.stats\n    return df\n"
    )
    (tmp_path / "beside.py").write_text("import sklearn\nimport clean\nf = 1\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text("")
    (tmp_path / "folder" / "inner.py").write_text(
        "import importlib\nx = importlib.import_module('xgboost.core')\n"
    )
    files = FolderFiles(tmp_path)
    facts = function.inspect(files, "clean.py", Trust())
    assert facts.modules == ("numpy", "pandas", "scipy", "sklearn", "xgboost")
    assert facts.notes == ("clean.py can use ujson, and does without.",)
    assert function.local_files(files, "clean.py") == (
        "clean.py",
        "beside.py",
        "folder/__init__.py",
        "folder/inner.py",
    )


def test_a_file_called_as_a_library_does_not_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text("def f(row: dict):\n    return row\n")
    import statistics

    stage = Stage("s", "function", "statistics.py", entry="f")
    function.load(FolderFiles(tmp_path), stage, CODE)
    assert sys.modules["statistics"] is statistics


def test_two_files_of_one_name_stay_two(tmp_path: Path) -> None:
    predictors = []
    for i in (1, 2):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "twin.py").write_text(f"N = {i}\ndef f(row: dict) -> int:\n    return N\n")
        stage = Stage("s", "function", f"{i}/twin.py", entry="f")
        predictors.append(function.load(FolderFiles(tmp_path), stage, CODE))
    assert [p.predict(READINGS, None).batch["f"].tolist() for p in predictors] == [[1] * 4, [2] * 4]


def test_what_a_file_raises_on_import_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\ndef f(row): return row\n")
    with pytest.raises(
        BadInput, match=r"broken.py can't be imported: ModuleNotFoundError: No module named 'no_such_module'"
    ):
        function.load(FolderFiles(tmp_path), Stage("s", "function", "broken.py", entry="f"), CODE)


def test_unannotated_functions_get_frames_where_the_file_imports_pandas_else_records(tmp_path: Path) -> None:
    (tmp_path / "frames.py").write_text("import pandas as pd\ndef f(df):\n    return df[['depth']]\n")
    (tmp_path / "records.py").write_text("def f(row):\n    return {'depth': row['depth']}\n")
    described = {}
    for name in ("frames", "records"):
        stage = Stage("s", "function", f"{name}.py", entry="f")
        predictor = function.load(FolderFiles(tmp_path), stage, CODE)
        assert predictor.predict(READINGS, None).batch["depth"].tolist() == DEPTH.tolist()
        described[name] = predictor.describe()
    assert (described["frames"].takes, described["records"].takes) == ("frame", "record")
    assert described["frames"].notes == ("frames.py:f has no annotation: it is given a DataFrame.",)
    assert described["records"].notes == (
        "records.py:f has no annotation: it is given one record at a time, as a dict.",
    )


def test_the_documented_functions_do_what_the_page_says(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "functions.md"
    (tmp_path / "page.py").write_text(
        page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    )
    batch = Batch(
        {
            "depth": np.array([1.0, 150.0]),
            "rock": np.array(["clay", "unknown"], dtype=object),
            "bolts": np.ma.MaskedArray([2, 0], mask=[False, True]),
        }
    )
    answered = {}
    for entry in ("drop_deep", "judge", "risk", "Scale"):
        stage = Stage("s", "function", "page.py", entry=entry, args={"by": 2.0} if entry == "Scale" else {})
        predictor = function.load(FolderFiles(tmp_path), stage, CODE)
        answered[entry, predictor.describe().takes] = answers(predictor.predict(batch, None))
    whole = {"depth": 1.0, "rock": "clay", "bolts": 2}
    assert answered["drop_deep", "frame"] == [(0, whole)]
    assert answered["judge", "record"] == [(0, whole)]
    assert answered["risk", "values"] == [(0, {"risk": 0.5}), (1, {"risk": 150.0})]
    assert [a["depth"] for _, a in answered["Scale", "frame"]] == [2.0, 300.0]
