"""Two outputs, row by row: which rows meet, which differ, and by how much."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlpacker_runtime.brokers import Outgoing
from mlpacker_runtime.brokers.log import Log
from mlpacker_runtime.errors import BadDescription, BadInput, NotFound
from mlpacker_runtime.stream.compare import answer, differences

pytestmark = pytest.mark.unit


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def compared(a: str, b: str, **more: Any) -> dict[str, Any]:
    return answer({"a": a, "b": b, "key": "id", "tolerance": 1e-9, "logs": "", **more})


def test_rows_meet_by_their_key_in_whatever_order(tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", {"n": 1, "x": 1.0}, {"n": 2, "x": 2.0}, {"n": 3, "x": 3.0})
    b = written(tmp_path / "b.jsonl", {"n": 3, "x": 3.5}, {"n": 1, "x": 1.0}, {"n": 4, "x": 0.0})
    told = compared(a, b, key="n", output=str(tmp_path / "diff.jsonl"))
    assert (told["equal"], told["different"], told["only"]) == (1, 1, {"a": 1, "b": 1})
    assert told["fields"] == {"x": {"rows": 1, "max": 0.5, "mean": 0.5}}
    assert told["first"] == [{"key": "3", "fields": {"x": {"a": 3.0, "b": 3.5, "apart": 0.5}}}]
    lines = [json.loads(line) for line in (tmp_path / "diff.jsonl").read_text().splitlines()]
    assert [(line["what"], line["key"]) for line in lines] == [
        ("different", "3"),
        ("only in a", "2"),
        ("only in b", "4"),
    ]


def test_repeats_are_counted_and_the_first_stays(tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", {"n": 1, "x": 1}, {"n": 1, "x": 9}, {"x": 5})
    b = written(tmp_path / "b.jsonl", {"n": 1, "x": 1})
    told = compared(a, b, key="n")
    assert (told["equal"], told["different"]) == (1, 0)
    assert told["repeats"] == {"a": 1, "b": 0}
    assert told["without_key"] == {"a": 1, "b": 0}


def test_answers_of_a_stream_meet_by_the_id_they_carry_in_a_header_or_in_the_payload(tmp_path: Path) -> None:
    with closing(Log(tmp_path / "out.log.db")) as log:
        log.append(
            [
                Outgoing(b'{"y":1}', "", None, (("mlpacker-id", b"aa"),)),
                Outgoing(b"\xff", "", None, (("mlpacker-id", b"bb"),)),
            ]
        )
    b = written(tmp_path / "b.jsonl", {"y": 1, "mlpacker_id": "aa"}, {"y": 2, "mlpacker_id": "bb"})
    told = compared("local:out", b, logs=str(tmp_path))
    assert (told["equal"], told["different"]) == (1, 1)


def test_a_table_meets_json_lines_by_numbers_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("row,label,y\n0,soft,1.0\n1,hard,2\n")
    b = written(
        tmp_path / "b.jsonl", {"row": 0, "label": "soft", "y": 1}, {"row": 1, "label": "hard", "y": 2.0}
    )
    assert compared(str(tmp_path / "a.csv"), b, key="row")["equal"] == 2


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        (1.0, 1.0 + 1e-10, {}),
        (1.0, 1.1, {"x": pytest.approx(0.1)}),
        (1, 1.0, {}),
        (True, 1, {"x": None}),
        (math.nan, math.nan, {}),
        (math.inf, -math.inf, {"x": math.inf}),
        (math.inf, math.inf, {}),
        (math.nan, 1.0, {"x": math.inf}),
        (10**400, 1.5, {"x": math.inf}),
        ("a", "b", {"x": None}),
        (None, 0, {"x": None}),
        ([1.0, 2.0], [1.0, 2.5], {"x": 0.5}),
        ([1.0], [1.0, 2.0], {"x": None}),
        ([1.0, "a"], [1.5, "b"], {"x": None}),
        ({"y": 1}, {"y": 3}, {"x": 2.0}),
    ],
)
def test_what_is_equal_and_how_far_apart_the_rest_is(a: Any, b: Any, found: dict[str, Any]) -> None:
    assert differences({"x": a}, {"x": b}, 1e-9) == found


def test_a_field_that_one_side_lacks_differs() -> None:
    assert differences({"x": 1}, {"x": 1, "y": None}, 0) == {"y": None}


def test_rows_that_nothing_tells_apart_are_refused_with_what_to_name(tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", {"x": 1})
    with pytest.raises(BadInput) as told:
        compared(a, a)
    assert "--key" in told.value.next_step


def test_an_output_that_is_not_there_is_not_found_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        compared("local:nothing", "local:nothing", logs=str(tmp_path))
    with pytest.raises(NotFound):
        compared(str(tmp_path / "no.jsonl"), str(tmp_path / "no.jsonl"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["mqtt://host/answers", "amqp://host/answers"])
def test_a_broker_from_which_looking_would_take_is_refused(text: str) -> None:
    with pytest.raises(BadDescription, match="hands a message out once"):
        compared(text, text)


def test_a_line_that_is_no_json_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(BadInput, match="line 2"):
        compared(str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl"))
