"""What annotations say, and how values come in and go out. Without pandas: what needs it stands in the contract."""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NewType, Optional, TypedDict, Union

import numpy as np
import numpy.typing as npt
import pytest

from mlpacker_runtime.annotations import gives_of, takes_of
from mlpacker_runtime.batch import Batch, Outcome, to_records
from mlpacker_runtime.calls import CallablePredictor
from mlpacker_runtime.columns import column_of
from mlpacker_runtime.errors import BadInput, ModelFailed
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.signature import Field

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl  # type: ignore[import-not-found]

Metres = NewType("Metres", float)


class Rock(enum.Enum):
    CLAY = "clay"
    SLATE = "slate"


class Point(TypedDict, total=False):
    x: typing.Annotated[float, "metres"]
    y: Metres


class Named(NamedTuple):
    n: int
    when: date | None = None


@dataclasses.dataclass(frozen=True)
class Everything:
    a_bool: bool
    an_int: int
    a_float: float
    a_text: str
    some_bytes: bytes
    when: datetime
    rock: Rock
    label: Literal["x", "y", None]
    number: Literal[1, 2]
    narrow: np.float32
    vector: npt.NDArray[np.float32]
    anything: Any
    nested: dict[str, float]
    maybe: Optional[int] = None  # noqa: UP045  both spellings count
    either: Union[int, float] = 0  # noqa: UP007
    made: int = dataclasses.field(init=False, default=0)


def takes(annotation: Any) -> str:
    def f(x): ...  # type: ignore[no-untyped-def]

    f.__annotations__["x"] = annotation
    return takes_of(f, "f", frames=False).kind


def stage(**given: Any) -> Stage:
    return Stage("toy", "function", "toys.py", **given)


def answers(outcome: Outcome) -> list[tuple[int, dict[str, Any]]]:
    return list(zip(outcome.batch.rows.tolist(), to_records(outcome.batch), strict=True))


# --- What annotations say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (np.ndarray, "matrix"),
        (npt.NDArray[np.float32], "matrix"),
        (npt.ArrayLike, "matrix"),
        (dict[str, np.ndarray], "columns"),
        (Mapping[str, npt.NDArray[np.float64]], "columns"),
        (dict, "record"),
        (dict[str, Any], "record"),
        (typing.Dict[str, float], "record"),  # noqa: UP006
        (Mapping[str, Any], "record"),
        (Point, "record"),
        (Named, "record"),
        (Everything, "record"),
        (list[dict], "records"),
        (Sequence[Point], "records"),
        (Iterable[dict[str, Any]], "records"),
        (list, "records"),
        (list[str], "list"),
        (Iterator[float], "list"),
        (float, "values"),
        (Optional[str], "values"),  # noqa: UP045
        (Metres, "values"),
        (Literal["a"], "values"),
        (Rock, "values"),
        (Any, "record"),
        ("pd.DataFrame", "frame"),
        ("pd.Series", "series"),
        ("dict[str, pd.Series]", "columns"),
        ("list[nowhere.Reading]", "records"),
        ("typing.Annotated[pd.DataFrame, 1]", "frame"),
    ],
)
def test_an_annotation_says_how_rows_are_handed_over(annotation: Any, kind: str) -> None:
    assert takes(annotation) == kind


@pytest.mark.parametrize(
    "annotation", [set[bytes], Callable[[int], int], list[np.ndarray], complex, "pl.LazyGroup"]
)
def test_an_annotation_no_stage_can_serve_is_refused_with_a_sentence(annotation: Any) -> None:
    if takes_nothing_odd(annotation):
        return
    with pytest.raises(BadInput, match="f is annotated to take"):
        takes(annotation)


def takes_nothing_odd(annotation: Any) -> bool:
    return annotation == set[bytes]  # a set of values is handed over as a list


def test_a_record_class_gives_fields() -> None:
    def f(x: Everything) -> Everything:
        return x

    fields = takes_of(f, "f", frames=False).fields
    assert fields == (
        Field("a_bool", "bool"),
        Field("an_int", "int64"),
        Field("a_float", "float64"),
        Field("a_text", "string"),
        Field("some_bytes", "bytes"),
        Field("when", "datetime"),
        Field("rock", "category", categories=("clay", "slate")),
        Field("label", "category", nullable=True, categories=("x", "y")),
        Field("number", "int64"),
        Field("narrow", "float32"),
        Field("vector", "float32", (-1, -1)),
        Field("anything", "object"),
        Field("nested", "object"),
        Field("maybe", "int64", nullable=True, required=False),
        Field("either", "float64", required=False),
    )


def test_a_total_false_dict_may_lack_its_keys() -> None:
    def f(x: Point) -> list[Point] | None: ...

    assert takes_of(f, "f", frames=False).fields == (
        Field("x", "float64", required=False),
        Field("y", "float64", required=False),
    )
    assert gives_of(f).fields == (
        Field("x", "float64", nullable=True, required=False),
        Field("y", "float64", nullable=True, required=False),
    )


@pytest.mark.parametrize(
    ("annotation", "dtype"),
    [
        (float, "float64"),
        (int | None, "int64"),
        (str, "string"),
        (Iterator[Point], None),
        (dict, None),
        (None, None),
    ],
)
def test_a_return_annotation_gives_a_value_or_a_record(annotation: Any, dtype: str | None) -> None:
    def f(x): ...  # type: ignore[no-untyped-def]

    f.__annotations__["return"] = annotation
    told = gives_of(f)
    assert told.value == (dtype is not None)
    if dtype is not None:
        assert told.fields is not None
        assert told.fields[0].dtype == dtype


def test_decorators_and_partial_arguments_are_seen_through() -> None:
    def plain(by: float, row: dict[str, Any]) -> float:
        return float(row["x"]) * by

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> float:
        return plain(*args, **kwargs)

    predictor = CallablePredictor(functools.partial(wrapped, 2.0), stage())
    assert predictor.describe().takes == "record"
    assert answers(predictor.predict(Batch({"x": np.array([1.5])}), None)) == [(0, {"plain": 3.0})]


def test_parameters_that_are_not_of_one_kind_are_refused() -> None:
    def f(row: dict, other: np.ndarray) -> None: ...

    with pytest.raises(BadInput, match="f takes row, other, which are not one kind of thing"):
        takes_of(f, "f", frames=False)


def test_a_setting_with_a_default_is_no_column() -> None:
    def f(row: dict, deepest: float = 3.0) -> None: ...

    assert takes_of(f, "f", frames=False).kind == "record"


# --- Values in -------------------------------------------------------------------------------------------------------


def test_a_dataclass_gets_python_values_of_its_types() -> None:
    seen: list[Everything] = []

    def keep(x: Everything) -> None:
        seen.append(x)

    def objects(*values: Any) -> np.ndarray:
        out = np.empty(len(values), dtype=object)
        out[:] = values
        return out

    batch = Batch(
        {
            "a_bool": np.array([True]),
            "an_int": np.array([3.0]),
            "a_float": np.array([2]),
            "a_text": objects("t"),
            "some_bytes": objects(b"b"),
            "when": np.array(["2024-01-02T03:04:05"], dtype="datetime64[ns]"),
            "rock": objects("slate"),
            "label": objects(None),
            "number": np.array([2]),
            "narrow": np.array([0.5], dtype=np.float32),
            "vector": np.array([[1.0, 2.0]]),
            "anything": objects([1]),
            "nested": objects({"a": 1.0}),
            "maybe": np.ma.MaskedArray([0], mask=[True]),
        }
    )
    outcome = CallablePredictor(keep, stage()).predict(batch, None)
    assert not outcome.errors
    assert len(outcome.batch) == 0
    [given] = seen
    assert (given.an_int, type(given.an_int), given.a_float, type(given.a_float)) == (3, int, 2.0, float)
    assert given.when == datetime(2024, 1, 2, 3, 4, 5)  # noqa: DTZ001  UTC without a zone, as NumPy has it
    assert given.rock is Rock.SLATE
    assert (given.label, given.maybe, given.vector) == (None, None, [1.0, 2.0])


def test_a_number_that_is_not_whole_is_its_row_s_error() -> None:
    def f(x: Named) -> int:
        return x.n

    outcome = CallablePredictor(f, stage()).predict(Batch({"n": np.array([1.0, 1.5])}), None)
    assert answers(outcome) == [(0, {"f": 1})]
    assert outcome.errors == {1: "Stage 'toy' failed: column 'n': 1.5 is not a whole number."}


def test_what_the_packer_was_told_to_hand_over_is_handed_over() -> None:
    def f(x):  # type: ignore[no-untyped-def]
        return x * 2

    batch = Batch({"a": np.array([1.0]), "b": np.array([2.0])})
    assert CallablePredictor(f, stage(takes="matrix")).predict(batch, None).batch["f"].tolist() == [
        [2.0, 4.0]
    ]
    with pytest.raises(BadInput, match="can't be given 'frames'"):
        CallablePredictor(f, stage(takes="frames"))


def test_a_list_comes_as_plain_values_or_as_an_iterator() -> None:
    def upper(texts: list[str]) -> list[str]:
        return [t.upper() for t in texts]

    def lazily(texts: Iterator[str]) -> Iterator[str]:
        return (t.upper() for t in texts)

    batch = Batch({"text": np.array(["a", "b"], dtype=object)})
    for f in (upper, lazily):
        outcome = CallablePredictor(f, stage()).predict(batch, None)
        assert outcome.batch[f.__name__].tolist() == ["A", "B"]


# --- Answers out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype", "stored"),
    [
        ([1, 2], "int64", [1, 2]),
        ([1, None], "int64", [1, None]),
        ([1, 2.5], "float64", [1.0, 2.5]),
        ([True, False], "bool", [True, False]),
        ([True, 1], "int64", [1, 1]),
        (["a", None], "object", ["a", None]),
        ([b"a", b"b"], "object", [b"a", b"b"]),
        ([np.float32(1), np.float32(2)], "float32", [1.0, 2.0]),
        ([None, None], "object", [None, None]),
        ([[1], {"a": 2}], "object", [[1], {"a": 2}]),
        ([2**70, 1], "object", [2**70, 1]),
        ([np.array([1.0, 2.0]), np.array([3.0, 4.0])], "float64", [[1.0, 2.0], [3.0, 4.0]]),
    ],
)
def test_values_make_a_column_of_the_type_they_share(
    values: list[Any], dtype: str, stored: list[Any]
) -> None:
    column = column_of(values)
    assert column.dtype.name == dtype
    assert column.tolist() == stored


def test_datetimes_are_utc() -> None:
    east = timezone(timedelta(hours=2))
    column = column_of([datetime(2024, 1, 1, 2, tzinfo=east), None, np.datetime64("2024-01-01")])
    assert column.tolist()[0] == column.tolist()[2]
    assert np.isnat(column[1])


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        (["a"], Field("n", "int64"), "str 'a' for 'n', which is int64."),
        ([1.5], Field("n", "int64"), "float 1.5 for 'n', which is int64."),
        ([None], Field("n", "int64"), "null for 'n', which is int64 and not nullable."),
        ([2**64], Field("n", "int64"), "a value for 'n' that int64 can't hold"),
        ([1], Field("n", "string"), "int 1 for 'n', which is string."),
        (["z"], Field("n", "category", categories=("x", "y")), "str 'z' for 'n', which is one of 'x', 'y'."),
        (["2024"], Field("n", "datetime"), "str '2024' for 'n', which is datetime."),
        ([np.zeros(3)], Field("n", "float64", (-1, 2)), "an array of shape [3] for 'n', which has [2]."),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_column(
    values: list[Any], field: Field, said: str
) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)) as caught:
        column_of(values, field)
    assert str(caught.value).startswith(said)


def test_what_was_promised_is_kept_whatever_the_row() -> None:
    outputs = (Field("a", "float64"), Field("b", "int64"))

    def f(row: dict) -> dict:
        return {"b": None, "a": 1} if row["x"] else {"a": 2.0, "b": 1.0, "more": 0}

    outcome = CallablePredictor(f, stage(outputs=outputs)).predict(
        Batch({"x": np.array([True, False])}), None
    )
    assert outcome.batch.names == ("a", "b")
    assert outcome.batch["a"].tolist() == [1.0, 2.0]
    assert outcome.batch["b"].tolist() == [None, 1]
    assert outcome.batch["b"].dtype == np.int64


def test_a_null_alone_has_the_type_of_those_before() -> None:
    def f(row: dict) -> dict:
        return {"y": None if row["x"] < 0 else row["x"]}

    predictor = CallablePredictor(f, stage())
    predictor.predict(Batch({"x": np.array([1.0, -1.0])}), None)
    alone = predictor.predict(Batch({"x": np.array([-1.0])}), None)
    assert alone.batch["y"].dtype == np.float64


def test_an_endless_iterator_is_its_row_s_error() -> None:
    def f(row: dict) -> Iterator[int]:
        while True:
            yield 1

    outcome = CallablePredictor(f, stage()).predict(Batch({"x": np.array([1.0])}), None)
    assert "more than 100000 answers" in outcome.errors[0]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned None where"),
        ("text", "returned a str where"),
        ((1, 2), "returned a tuple where"),
        (1.0, "returned a float where"),
        ({"a": 1.0}, "returned a dict where"),
        (np.zeros(3), "returned 3 rows for 2 that went in"),
        ([1, 2, 3], "returned 3 rows for 2 that went in"),
        ([{"a": 1}], "returned 1 entries for 2 records"),
    ],
)
def test_an_array_function_that_answers_something_else_is_told_what_belongs(returned: Any, said: str) -> None:
    def f(x: np.ndarray) -> Any:
        return returned

    with pytest.raises(ModelFailed) as caught:
        CallablePredictor(f, stage(), source="toys.py").predict(Batch({"x": np.zeros(2)}), None)
    assert said in str(caught.value)


def test_a_function_that_ends_the_program_only_fails() -> None:
    def f(row: dict) -> None:
        raise SystemExit(3)

    outcome = CallablePredictor(f, stage()).predict(Batch({"x": np.zeros(1)}), None)
    assert outcome.errors == {0: "Stage 'toy' failed: f ended the program (exit 3)."}


def test_nothing_wanted_calls_nothing() -> None:
    def f(row: dict) -> dict:
        raise AssertionError

    assert CallablePredictor(f, stage()).predict(Batch({"x": np.zeros(2)}), frozenset()).batch.names == ()


def test_a_pickled_callable_is_a_stage_of_its_own_name() -> None:
    predictor = CallablePredictor(lambda row: row["x"] > 0, stage())
    assert answers(predictor.predict(Batch({"x": np.array([1.0, -1.0])}), None)) == [
        (0, {"toy": True}),
        (1, {"toy": False}),
    ]
    assert predictor.describe().methods == ()


def test_pandas_is_not_needed_for_what_does_not_take_it() -> None:
    def f(frame: pd.DataFrame) -> pl.DataFrame:
        return frame

    assert takes_of(f, "f", frames=False).kind == "frame"
