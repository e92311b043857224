"""From messages to answers: which lane a row goes to, what a lane says of each row, and patience with a worker that dies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.brokers import Message
from mlpacker_runtime.calls import CallablePredictor
from mlpacker_runtime.engine import Engine
from mlpacker_runtime.errors import BadInput, ModelFailed
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.rest.rows import Read
from mlpacker_runtime.signature import Field
from mlpacker_runtime.stream import ids, payloads
from mlpacker_runtime.stream.intake import Intake
from mlpacker_runtime.stream.patience import CRASHED, Patient, Stopped
from mlpacker_runtime.stream.payloads import Rows
from mlpacker_runtime.stream.repeats import Repeats
from mlpacker_runtime.stream.scoring import Done, Lane, Part, Wording
from mlpacker_runtime.stream.settings import Settings
from mlpacker_runtime.stream.tracking import Delivery, Tracker

INPUTS = (Field("k", "string"), Field("x", "float64"))
OUTPUTS = (Field("y", "float64"),)


def settings(**changed: Any) -> Settings:
    return Settings(name="n", source="local:a", sink="local:b", state="s", **changed)


def message(offset: int, value: Any, key: bytes | None = None, headers: Any = ()) -> Message:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Message("0", offset, body, key, headers)


# --- Intake ----------------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """What an intake made of some messages. lanes: for each, (offset, numbers) of its parts."""

    intake: Intake
    tracker: Tracker
    lanes: list[list[tuple[int, list[int]]]] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)

    def take(self, *messages: Message) -> Taken:
        lanes, self.done = self.intake.take(messages)
        self.lanes = [[(p.delivery.message.offset, list(p.numbers)) for p in parts] for parts in lanes]
        return self

    def lefts(self) -> list[int]:
        return [d.left for queue in self.tracker.out.values() for d in queue]


def intake(
    folder: Path, *, lanes: int = 1, apart: bool = False, inputs: Any = INPUTS, **changed: Any
) -> Taken:
    tracker = Tracker()
    folder.mkdir(exist_ok=True)
    decoder = payloads.decoder("auto", inputs, {})
    made = Intake(
        settings(**changed), "i", tracker, Repeats(folder), decoder, lanes=lanes, stage="s", apart=apart
    )
    return Taken(made, tracker)


def lane_of(key: str, lanes: int) -> int:
    return crc32(key.encode()) % lanes


def test_rows_of_one_key_go_to_one_lane_in_order(tmp_path: Path) -> None:
    rows = [message(n, {"k": f"k{n % 3}", "x": n}) for n in range(30)]
    taken = intake(tmp_path, lanes=4, key="k").take(*rows)
    for lane, parts in enumerate(taken.lanes):
        offsets = [offset for offset, _ in parts]
        assert offsets == [n for n in range(30) if lane_of(f"k{n % 3}", 4) == lane]


def test_without_a_key_field_the_messages_key_chooses_the_lane_and_without_one_the_partition(
    tmp_path: Path,
) -> None:
    taken = intake(tmp_path, lanes=4).take(
        message(1, {"k": "a", "x": 1}, b"pump-7"),
        message(2, {"k": "b", "x": 1}),
        message(3, {"k": "c", "x": 1}),
    )
    assert (1, [0]) in taken.lanes[lane_of("pump-7", 4)]
    assert [o for o, _ in taken.lanes[lane_of("0", 4)] if o > 1] == [2, 3]


def test_a_row_without_the_key_field_keeps_its_messages_order(tmp_path: Path) -> None:
    taken = intake(tmp_path, lanes=4, key="k").take(
        message(1, {"x": 1}, b"pump-7"),
        message(2, {"k": None, "x": 1}, b"pump-7"),
        message(3, [1, 2], b"pump-7"),
    )
    assert [o for o, _ in taken.lanes[lane_of("pump-7", 4)]] == [1, 2, 3]


def test_a_list_of_rows_is_spread_by_key_and_finished_with_its_last_part(tmp_path: Path) -> None:
    keys = ["a", "b", "c", "d", "a"]
    taken = intake(tmp_path, lanes=3, key="k").take(message(1, [{"k": k, "x": 1} for k in keys]))
    for lane, parts in enumerate(taken.lanes):
        wanted = [n for n, k in enumerate(keys) if lane_of(k, 3) == lane]
        assert parts == ([(1, wanted)] if wanted else [])
    assert taken.lefts() == [sum(bool(parts) for parts in taken.lanes)]


@pytest.mark.parametrize("changed", [{"apart": True}, {"key": None}, {"lanes": 1}])
def test_a_list_stays_whole_where_its_rows_belong_together(tmp_path: Path, changed: dict[str, Any]) -> None:
    options: dict[str, Any] = {"lanes": 3, "key": "k", **changed}
    taken = intake(tmp_path, **options).take(message(1, [{"k": k, "x": 1} for k in "abcd"]))
    assert [p for parts in taken.lanes for p in parts] == [(1, [0, 1, 2, 3])]
    assert taken.lefts() == [1]


def test_a_message_larger_than_allowed_is_a_letter_and_is_not_read(tmp_path: Path) -> None:
    taken = intake(tmp_path, max_message=20).take(message(1, b"x" * 21), message(2, b"x" * 20))
    huge, small = taken.done
    assert "21 bytes" in huge.letters[0].reason
    assert "bytes" not in small.letters[0].reason
    assert huge.letters[0].row is None
    assert taken.lanes == [[]]


@pytest.mark.parametrize(
    "value", [b"", b"{", b"\xff\xfe", b"7", b"null", b"[]", b'"a"', b'{"x": NaN}', b"\0" * 9]
)
def test_what_holds_no_row_is_one_letter_with_a_reason_and_the_rows_behind_go_on(
    tmp_path: Path, value: bytes
) -> None:
    taken = intake(tmp_path).take(message(1, value), message(2, {"k": "a", "x": 1}))
    assert len(taken.done) == 1
    letter = taken.done[0].letters[0]
    assert letter.reason
    assert (letter.row, letter.stage, letter.message.value) == (None, "input", value)
    assert letter.id == ids.answer(taken.intake.ids.message("0", 1), 0, "s", 0)
    assert taken.lanes == [[(2, [0])]]
    assert taken.tracker.count == 2


@pytest.mark.parametrize(("given", "used"), [(None, "mlpacker-id"), ("X-Reading", "x-reading")])
def test_a_header_may_say_who_a_message_is(tmp_path: Path, given: str | None, used: str) -> None:
    row = {"k": "a", "x": 1}
    taken = intake(tmp_path, id_from=given).take(
        message(1, row, headers=((used, b"r-1"),)),
        message(2, row, headers=((used, b"r-1"),)),
        message(3, row, headers=((used, b""),)),
        message(4, row, headers=(("other", b"r-1"),)),
    )
    found = [d.id for d in taken.tracker.out["0"]]
    ours = taken.intake.ids
    assert found == [ours.named(b"r-1"), ours.named(b"r-1"), ours.message("0", 3), ours.message("0", 4)]


def test_a_repeat_is_finished_at_once_and_counted(tmp_path: Path) -> None:
    taken = intake(tmp_path)
    taken.intake.repeats.answered(taken.intake.ids.message("0", 1))
    taken.take(message(1, {"k": "a", "x": 1}), message(2, {"k": "a", "x": 1}))
    assert taken.lanes == [[(2, [0])]]
    assert taken.lefts() == [0, 1]
    assert taken.intake.dropped == 1


def test_equal_messages_are_as_many_rows(tmp_path: Path) -> None:
    row = {"k": "a", "x": 1}
    taken = intake(tmp_path).take(message(1, row), message(2, row))
    assert len({d.id for d in taken.tracker.out["0"]}) == 2


def test_a_message_has_its_places_id_whatever_it_says(tmp_path: Path) -> None:
    one, other = intake(tmp_path / "a"), intake(tmp_path / "b")
    one.take(message(1, {"k": "a", "x": 1}))
    other.take(message(1, {"k": "b", "x": 2}, b"key", (("site", b"north"),)))
    assert one.tracker.out["0"][0].id == other.tracker.out["0"][0].id


def test_a_replay_gives_the_ids_of_the_deployment_that_it_replays(tmp_path: Path) -> None:
    replay = intake(tmp_path, ids_as="first").intake.ids
    assert replay.message("0", 1) == ids.Ids("first", "i").message("0", 1)


# --- A lane ----------------------------------------------------------------------------------------------------------


class Runs:
    """A runner of a function of a batch, which is asked and counted."""

    def __init__(self, answer: Callable[[Batch], Outcome]) -> None:
        self.answer = answer
        self.asked: list[list[int]] = []

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        self.asked.append(batch.rows.tolist())
        return self.answer(batch)


def doubled(batch: Batch) -> Outcome:
    """Fails for 13, drops what is below zero."""
    x = batch.columns["x"]
    bad = {int(r): "unlucky" for r, v in zip(batch.rows, x, strict=True) if v == 13}
    good = (x != 13) & ~(x < 0)
    return Outcome(Batch({"y": x[good] * 2}, batch.rows[good]), bad)


def stage(**changed: Any) -> Stage:
    return Stage("double", "toy", "code/toy.py", inputs=INPUTS, outputs=OUTPUTS, **changed)


def lane(answer: Callable[[Batch], Outcome] | Runs = doubled, *, inputs: Any = INPUTS, **given: Any) -> Lane:
    runner = answer if isinstance(answer, Runs) else Runs(answer)
    words = {k: given.pop(k) for k in ("keep", "key", "in_payload", "encoder") if k in given}
    wording = Wording(
        package="sha256:p", stage="double", **{"encoder": payloads.encoder("json", OUTPUTS, {}), **words}
    )
    return Lane(Engine((stage(),), {"double": runner}), inputs, wording, pause=lambda seconds: None, **given)


def part(
    offset: int, value: Any, *, key: bytes | None = None, headers: Any = (), inputs: Any = INPUTS
) -> Part:
    """One message as one part."""
    came = message(offset, value, key, headers)
    rows = payloads.decoder("auto", inputs, {}).decode(came)
    return Part(Delivery(came, ids.Ids("n", "i").message("0", offset), 0.0), rows, range(rows.count))


def values(done: Done) -> list[Any]:
    return [json.loads(o.value) for o in done.outgoing]


def test_each_row_has_its_outcome_and_messages_keep_their_order() -> None:
    rows = [{"k": "a", "x": x} for x in (1, 13, -1)]
    dones = lane().answer([part(1, rows[0]), part(2, rows[1]), part(3, rows[2]), part(4, [rows[0], rows[1]])])
    assert [d.delivery.message.offset for d in dones] == [1, 2, 3, 4]
    assert [values(d) for d in dones] == [[{"y": 2.0}], [], [], [{"y": 2.0}]]
    assert [[(w.reason, w.row) for w in d.letters] for d in dones] == [
        [],
        [("unlucky", None)],
        [],
        [("unlucky", 1)],
    ]
    assert [d.dropped for d in dones] == [0, 0, 1, 0]
    assert [d.rows for d in dones] == [1, 1, 1, 2]


def test_a_row_that_can_not_be_read_fails_alone_and_its_reason_does_not_count_rows() -> None:
    dones = lane().answer(
        [
            part(1, {"k": "a", "x": 1}),
            part(2, {"k": "a", "x": "high"}),
            part(3, {"k": "a"}),
            part(4, {"k": "a", "x": 2}),
        ]
    )
    assert [values(d) for d in dones] == [[{"y": 2.0}], [], [], [{"y": 4.0}]]
    for done in dones[1:3]:
        assert done.letters[0].stage == "input"
        assert not done.letters[0].reason.startswith("Row ")
    assert "high" in dones[1].letters[0].reason
    assert "'x' is missing" in dones[2].letters[0].reason


def test_where_no_row_can_be_read_the_stage_is_not_asked() -> None:
    runs = Runs(doubled)
    (done,) = lane(runs).answer([part(1, {"wrong": 1})])
    assert runs.asked == []
    assert len(done.letters) == 1


def test_a_row_may_have_several_answers_each_with_an_id() -> None:
    def thrice(batch: Batch) -> Outcome:
        rows = np.repeat(batch.rows, 3)
        return Outcome(Batch({"y": np.arange(float(len(rows)))}, rows))

    dones = lane(thrice).answer([part(1, {"k": "a", "x": 1}), part(2, {"k": "a", "x": 2})])
    assert [[v["y"] for v in values(d)] for d in dones] == [[0, 1, 2], [3, 4, 5]]
    one = ids.Ids("n", "i").message("0", 1)
    assert [o.id for o in dones[0].outgoing] == [ids.answer(one, 0, "double", i) for i in range(3)]
    assert len({o.id for d in dones for o in d.outgoing}) == 6


def test_a_stage_may_answer_in_any_order_and_the_rows_keep_theirs_and_their_ids() -> None:
    def shuffled(batch: Batch) -> Outcome:
        rows = np.concatenate([batch.rows[::-1], batch.rows])
        return Outcome(Batch({"y": rows + np.repeat([0.0, 0.5], len(batch))}, rows))

    parts = [part(1, [{"k": "a", "x": x} for x in range(3)]), part(2, {"k": "a", "x": 9})]
    dones = lane(shuffled).answer(parts)
    assert [[v["y"] for v in values(d)] for d in dones] == [[0, 0.5, 1, 1.5, 2, 2.5], [3, 3.5]]
    made = [o.id for d in dones for o in d.outgoing]
    assert len(set(made)) == 8
    assert made[1] == ids.answer(ids.Ids("n", "i").message("0", 1), 0, "double", 1)


def test_a_row_is_asked_again_as_often_as_told_and_its_answer_takes_its_place() -> None:
    failing = {0: 2, 2: 1}  # row → how often it still fails

    def flaky(batch: Batch) -> Outcome:
        bad = {int(r): "not yet" for r in batch.rows if failing.get(int(r), 0) > 0}
        for row in bad:
            failing[row] -= 1
        good = ~np.isin(batch.rows, list(bad))
        return Outcome(Batch({"y": batch.rows[good] * 1.0}, batch.rows[good]), bad)

    runs = Runs(flaky)
    dones = lane(runs, retries=2).answer([part(n, {"k": "a", "x": n}) for n in range(4)])
    assert [values(d) for d in dones] == [[{"y": 0.0}], [{"y": 1.0}], [{"y": 2.0}], [{"y": 3.0}]]
    assert runs.asked == [[0, 1, 2, 3], [0, 2], [0]]


def test_a_row_that_fails_each_time_is_a_letter_that_counts_the_attempts() -> None:
    runs = Runs(doubled)
    dones = lane(runs, retries=2).answer([part(1, {"k": "a", "x": 13}), part(2, {"k": "a", "x": 1})])
    assert runs.asked == [[0, 1], [0], [0]]
    assert dones[0].letters[0].attempts == 3
    assert values(dones[1]) == [{"y": 2.0}]


def test_what_a_stage_raises_names_the_stage_in_the_letter() -> None:
    def raises(batch: Batch) -> Outcome:
        if (batch.columns["x"] == 13).any():
            raise ValueError("thirteen")
        return doubled(batch)

    dones = lane(raises).answer([part(1, {"k": "a", "x": 1}), part(2, {"k": "a", "x": 13})])
    assert values(dones[0]) == [{"y": 2.0}]
    letter = dones[1].letters[0]
    assert (letter.stage, letter.attempts) == ("double", 1)
    assert "ValueError: thirteen" in letter.reason


def test_an_answer_that_can_not_be_written_is_a_letter_and_the_others_are_written() -> None:
    class Choosy:
        content_type = "text/plain"

        def encode(self, rows: Sequence[dict[str, Any]]) -> list[bytes]:
            if any(row["y"] == 4 for row in rows):
                raise ModelFailed("Four can't be written.")
            return [b"%d" % row["y"] for row in rows]

    dones = lane(encoder=Choosy()).answer([part(n, {"k": "a", "x": n}) for n in (1, 2, 3)])
    assert [[o.value for o in d.outgoing] for d in dones] == [[b"2"], [], [b"6"]]
    assert dones[1].letters[0].reason == "Four can't be written."
    assert dones[1].letters[0].stage == "double"


def test_fields_of_the_row_are_echoed_and_the_key_field_is_the_answers_key() -> None:
    keeping = lane(keep=("k", "site"), key="k")
    dones = keeping.answer(
        [
            part(1, {"k": "pump", "x": 1, "site": 7}, key=b"old"),
            part(2, {"k": "fan", "x": 2}),
            part(3, ["fan", 3.0], key=b"old"),
        ]
    )
    assert [values(d) for d in dones] == [
        [{"k": "pump", "site": 7, "y": 2.0}],
        [{"k": "fan", "y": 4.0}],
        [{"k": "fan", "y": 6.0}],
    ]
    assert [d.outgoing[0].key for d in dones] == [b"pump", b"fan", b"fan"]


def test_without_a_key_field_the_messages_key_goes_on() -> None:
    (done,) = lane().answer([part(1, {"k": "a", "x": 1}, key=b"\xff")])
    assert done.outgoing[0].key == b"\xff"


def test_the_id_goes_in_a_header_with_package_stage_and_trace() -> None:
    came = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    (done,) = lane().answer([part(1, {"k": "a", "x": 1}, headers=(("traceparent", came),))])
    out = done.outgoing[0]
    assert dict(out.headers) == {
        "mlpacker-id": out.id.encode(),
        "mlpacker-package": b"sha256:p",
        "mlpacker-stage": b"double",
        "traceparent": ids.trace(came, out.id),
    }
    assert values(done) == [{"y": 2.0}]


def test_where_a_sink_has_no_headers_the_id_is_a_field_of_the_answer() -> None:
    (done,) = lane(in_payload=True).answer([part(1, {"k": "a", "x": 1})])
    assert done.outgoing[0].headers == ()
    assert values(done) == [{"y": 2.0, "mlpacker_id": done.outgoing[0].id}]


def test_the_id_does_not_change_with_the_package() -> None:
    one, other = lane(), lane()
    other.wording = Wording("sha256:q", "double", other.wording.encoder)
    row = part(1, {"k": "a", "x": 1})
    assert one.answer([row])[0].outgoing[0].id == other.answer([row])[0].outgoing[0].id


def test_rows_as_lists_and_as_objects_stand_in_one_batch() -> None:
    runs = Runs(doubled)
    dones = lane(runs).answer(
        [
            part(1, {"k": "a", "x": 1}),
            part(2, [["b", 2.0], {"k": "c", "x": 3}, ["d"], 5]),
            part(3, ["e", 4.0]),
        ]
    )
    assert [values(d) for d in dones] == [[{"y": 2.0}], [{"y": 4.0}, {"y": 6.0}], [{"y": 8.0}]]
    assert [w.row for w in dones[1].letters] == [2, 3]
    assert [w.record for w in dones[1].letters] == [["d"], 5]
    assert len(runs.asked) == 1


def test_rows_that_came_as_columns_stand_beside_others() -> None:
    v2 = {
        "inputs": [
            {"name": "k", "shape": [2], "datatype": "BYTES", "data": ["v", "w"]},
            {"name": "x", "shape": [2], "datatype": "FP64", "data": [5.0, 13.0]},
        ]
    }
    runs = Runs(doubled)
    parts = [part(1, {"k": "a", "x": 1}), part(2, v2), part(3, {"k": "b", "x": 2})]
    assert parts[1].rows.read is not None
    dones = lane(runs, keep=("k",), key="k").answer(parts)
    assert [values(d) for d in dones] == [
        [{"k": "a", "y": 2.0}],
        [{"k": "v", "y": 10.0}],
        [{"k": "b", "y": 4.0}],
    ]
    assert dones[1].outgoing[0].key == b"v"
    assert [(w.row, w.reason) for w in dones[1].letters] == [(1, "unlucky")]
    assert runs.asked == [[0, 1, 2, 3]]


def test_a_bad_row_among_columns_is_a_letter_of_its_number() -> None:
    read = Read(
        Batch({"k": np.array(["v"], object), "x": np.array([1.0])}, np.array([1])), 2, {0: "Row 0: no."}
    )
    came = message(1, b"columns")
    one = Part(Delivery(came, b"i" * 16, 0.0), Rows([], read, one=False), range(2))
    (done,) = lane().answer([one])
    assert values(done) == [{"y": 2.0}]
    assert [(w.row, w.reason) for w in done.letters] == [(0, "no.")]
    assert done.outgoing[0].id == ids.answer(b"i" * 16, 1, "double", 0)


def test_rows_whose_shapes_differ_are_asked_apart_and_a_ragged_message_is_a_letter() -> None:
    def summed(batch: Batch) -> Outcome:
        return Outcome(Batch({"y": batch["t"].sum(axis=1)}, batch.rows))

    tensor = (Field("t", "float64", (-1, -1)),)
    rows = ({"t": [1.0, 2.0]}, {"t": [1.0, 2.0, 3.0]}, [{"t": [1.0]}, {"t": [1.0, 2.0]}], {"t": [5.0]})
    dones = lane(summed, inputs=tensor).answer([part(i, row) for i, row in enumerate(rows)])
    assert [values(d) for d in dones] == [[{"y": 3.0}], [{"y": 6.0}], [], [{"y": 5.0}]]
    assert ["shape" in letter.reason for letter in dones[2].letters] == [True, True]


def test_what_was_forgotten_is_not_asked() -> None:
    runs = Runs(doubled)
    parts = [part(1, {"k": "a", "x": 1}), part(2, {"k": "a", "x": 2})]
    parts[0].delivery.forgotten = True
    dones = lane(runs).answer(parts)
    assert [values(d) for d in dones] == [[], [{"y": 4.0}]]
    assert runs.asked == [[0]]


def test_what_goes_wrong_between_the_stages_fails_the_rows_and_not_the_lane() -> None:
    class Broken(Engine):
        def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
            raise BadInput("The branches do not fit.")

    made = lane()
    made.engine = Broken((stage(),), {})
    dones = made.answer([part(1, {"k": "a", "x": 1}), part(2, {"k": "a", "x": 2})])
    assert [d.letters[0].reason for d in dones] == ["The branches do not fit."] * 2


def test_only_the_outputs_that_are_wanted_are_asked_for() -> None:
    asked: list[frozenset[str] | None] = []

    class Told(Runs):
        def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
            asked.append(want)
            return super().predict(batch, want)

    lane(Told(doubled), want=frozenset({"y"})).answer([part(1, {"k": "a", "x": 1})])
    assert asked == [frozenset({"y"})]


def test_a_real_function_answers_in_a_lane() -> None:
    def double(row: dict[str, Any]) -> dict[str, Any]:
        return {"y": row["x"] * 2}

    made = lane()
    taking = stage(takes="record")
    made.engine = Engine((taking,), {"double": CallablePredictor(double, taking)})
    dones = made.answer([part(1, {"k": "a", "x": 1}), part(2, {"k": "a", "x": None})])
    assert values(dones[0]) == [{"y": 2.0}]
    assert len(dones[1].letters) + len(dones[1].outgoing) == 1


# --- Patience --------------------------------------------------------------------------------------------------------

DIED, AWAY = "died", "away"


class Mortal:
    """A worker at the end of a hop. deadly: values of x that kill it. away: how many questions find nobody first."""

    def __init__(self, deadly: Mapping[float, int] | None = None, away: int = 0) -> None:
        self.deadly = dict(deadly or {})
        self.away = away
        self.asked: list[list[float]] = []

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        if self.away:
            self.away -= 1
            raise ModelFailed("Nobody there.", hop=AWAY)
        x = batch.columns["x"].tolist()
        self.asked.append(x)
        for value in x:
            if self.deadly.get(value, 0):
                self.deadly[value] -= 1
                raise ModelFailed("It ended.", hop=DIED)
        if 99.0 in x:
            raise ModelFailed("No 99 here.")
        return doubled(batch)


def numbers(*x: float) -> Batch:
    return Batch({"x": np.array(x)}, np.arange(len(x)) + 10)


def patient(
    worker: Mortal, stopped: Callable[[], bool] = lambda: False, **given: Any
) -> tuple[Patient, list[float]]:
    pauses: list[float] = []
    return Patient(worker, stopped, pauses.append, **given), pauses


def test_a_worker_that_is_away_is_waited_for_and_no_row_fails() -> None:
    worker = Mortal(away=3)
    asked, pauses = patient(worker)
    outcome = asked.predict(numbers(1, 2), None)
    assert outcome.batch.columns["y"].tolist() == [2, 4]
    assert outcome.errors == {}
    assert len(pauses) == 3


def test_after_a_death_rows_are_asked_alone_and_the_innocent_have_their_answers() -> None:
    worker = Mortal({7.0: 99})
    outcome = patient(worker)[0].predict(numbers(1, 7, 13, 3), None)
    assert outcome.batch.rows.tolist() == [10, 13]
    assert outcome.batch.columns["y"].tolist() == [2, 6]
    assert outcome.errors == {11: CRASHED, 12: "unlucky"}
    assert worker.asked == [[1, 7, 13, 3], [1], [7], [7], [13], [3]]


def test_a_row_that_was_there_when_the_worker_died_once_is_answered() -> None:
    worker = Mortal({7.0: 2})  # with the others, and once alone: killed by something else
    outcome = patient(worker)[0].predict(numbers(1, 7), None)
    assert outcome.errors == {}
    assert outcome.batch.columns["y"].tolist() == [2, 14]


def test_a_lone_row_is_not_blamed_before_it_killed_twice_alone() -> None:
    assert patient(Mortal({7.0: 1}))[0].predict(numbers(7), None).errors == {}
    assert patient(Mortal({7.0: 9}))[0].predict(numbers(7), None).errors == {10: CRASHED}


def test_what_a_row_raises_when_it_is_asked_alone_is_its_own_failure() -> None:
    outcome = patient(Mortal({7.0: 9}))[0].predict(numbers(7, 99, 1), None)
    assert outcome.errors == {10: CRASHED, 11: "No 99 here."}
    assert outcome.batch.rows.tolist() == [12]


def test_what_a_living_worker_raises_passes_through() -> None:
    with pytest.raises(ModelFailed, match="No 99"):
        patient(Mortal())[0].predict(numbers(99), None)


def test_a_stage_with_a_memory_is_not_asked_twice() -> None:
    worker = Mortal({7.0: 1})
    with pytest.raises(ModelFailed, match="what it remembered is gone"):
        patient(worker, again=False)[0].predict(numbers(1, 7), None)
    assert worker.asked == [[1, 7]]


def test_rows_that_depend_on_their_neighbours_are_asked_together_again_and_fail_together() -> None:
    worker = Mortal({7.0: 1})
    outcome = patient(worker, together=True)[0].predict(numbers(1, 7), None)
    assert worker.asked == [[1, 7], [1, 7]]
    assert outcome.batch.columns["y"].tolist() == [2, 14]
    fatal = Mortal({7.0: 99})
    outcome = patient(fatal, together=True)[0].predict(numbers(1, 7), None)
    assert outcome.errors == {10: CRASHED, 11: CRASHED}
    assert len(outcome.batch) == 0


def test_waiting_ends_with_the_stream() -> None:
    ended = threading.Event()
    worker = Mortal(away=10**9)
    asked = Patient(worker, ended.is_set, lambda seconds: ended.set())
    with pytest.raises(Stopped):
        asked.predict(numbers(1), None)


def test_a_killed_row_in_a_lane_is_a_letter_and_its_neighbours_are_answered() -> None:
    worker = Mortal({7.0: 99})
    made = lane()
    made.engine = Engine((stage(),), {"double": patient(worker)[0]})
    dones = made.answer([part(n, {"k": "a", "x": x}) for n, x in enumerate((1, 7, 3))])
    assert [values(d) for d in dones] == [[{"y": 2.0}], [], [{"y": 6.0}]]
    assert dones[1].letters[0].reason == CRASHED
