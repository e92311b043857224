"""A replay: times as a person writes them, a deployment of its own, and a source that ends where its past does."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from mlpacker.errors import BadDescription
from mlpacker.replays import moment, place, settings
from mlpacker_runtime.brokers import Lag, Message
from mlpacker_runtime.stream import ids
from mlpacker_runtime.stream.past import LONG_SECONDS, QUIET_SECONDS, Past
from mlpacker_runtime.stream.settings import Settings

pytestmark = pytest.mark.unit

NOW = 1_700_000_000.0
STREAM = Settings(
    "bolts", "local:rows", "local:answers", "/home/streams/bolts", group="mine", spool=5, logs="/logs"
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", NOW - 90),
        ("2h", NOW - 7200),
        ("1.5d", NOW - 129_600),
        ("now", NOW),
        ("2026-05-01T08:00:00Z", datetime(2026, 5, 1, 8, tzinfo=timezone.utc).timestamp()),
        ("2026-05-01T08:00+02:00", datetime(2026, 5, 1, 6, tzinfo=timezone.utc).timestamp()),
    ],
)
def test_a_time_is_ago_or_iso_8601(text: str, seconds: float) -> None:
    assert moment(text, NOW) == seconds


@pytest.mark.parametrize("text", ["yesterday", "", "2y", "25:00", "-3h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadDescription, match="no time"):
        moment(text, NOW)


def test_a_place_is_the_start_an_offset_or_a_time() -> None:
    assert [place(t, NOW) for t in ("earliest", "offset:7", "1h")] == [
        "earliest",
        "offset:7",
        f"time:{NOW - 3600:.3f}",
    ]


def test_a_replay_has_a_name_a_group_a_place_and_letters_of_its_own() -> None:
    made = settings(replace(STREAM, sink="local:shadow"), "2h", "", NOW)
    assert made.name == "bolts-replay-20231114-221320"
    assert made.reads_as == "mlpacker-bolts-replay-20231114-221320"
    assert made.state == "/home/streams/bolts-replay-20231114-221320"
    assert made.state in made.letters
    assert (made.start, made.until, made.spool) == (f"time:{NOW - 7200:.3f}", f"time:{NOW:.3f}", 0)


def test_a_row_has_the_id_in_a_replay_that_it_had_in_the_stream() -> None:
    made = settings(replace(STREAM, sink="local:shadow"), "earliest", "", NOW)
    again = ids.Ids(made.ids_as or made.name, "log").message("0", 3)
    assert again == ids.Ids(STREAM.ids_as or STREAM.name, "log").message("0", 3)


@pytest.mark.parametrize("source", ["mqtt://host/a", "amqp://host/queue", "-"])
def test_a_source_without_a_past_is_refused_with_where_there_is_one(source: str) -> None:
    with pytest.raises(BadDescription) as told:
        settings(replace(STREAM, source=source), "earliest", "", NOW)
    assert "Kafka" in told.value.next_step


def test_a_file_can_t_be_replayed_from_a_time() -> None:
    with pytest.raises(BadDescription, match="no times"):
        settings(replace(STREAM, source="file:rows.jsonl"), "2h", "", NOW)


def test_answers_of_a_replay_never_go_to_its_source() -> None:
    with pytest.raises(BadDescription, match="--to|source"):
        settings(replace(STREAM, sink="local:rows?path=/logs"), "earliest", "", NOW)


def test_a_replay_is_not_named_as_the_stream() -> None:
    with pytest.raises(BadDescription, match="--as|itself"):
        settings(replace(STREAM, sink="local:shadow"), "earliest", "", NOW, "bolts")


class Told:
    """A source that says what it is told to. now: its clock."""

    incarnation = "one"

    def __init__(self, *batches: list[Message]) -> None:
        self.batches = list(batches)
        self.now = 0.0
        self.left: Lag | None = Lag({"0": 0})

    def poll(self, limit: int, seconds: float) -> list[Message]:
        return self.batches.pop(0) if limit and self.batches else []

    def commit(self, finished: object) -> None:
        pass

    def lag(self) -> Lag | None:
        return self.left

    def close(self) -> None:
        pass


def past(source: Told, until: str = "") -> Past:
    return Past(source, until, lambda: source.now)


def test_the_past_ends_when_the_source_has_been_silent_and_says_that_nothing_is_left() -> None:
    source = Told([Message("0", 1, b"")])
    read = past(source)
    assert len(read.poll(10, 0)) == 1
    source.now = QUIET_SECONDS / 2
    read.poll(10, 0)
    assert not read.ended
    source.now = QUIET_SECONDS
    read.poll(10, 0)
    assert read.ended


@pytest.mark.parametrize("left", [Lag({"0": 3}), Lag(), None])
def test_the_past_waits_longer_where_something_is_left_or_it_is_not_known(left: Lag | None) -> None:
    source = Told()
    source.left = left
    read = past(source)
    source.now = LONG_SECONDS - 0.1
    read.poll(10, 0)
    assert not read.ended
    source.now = LONG_SECONDS
    read.poll(10, 0)
    assert read.ended


def test_what_lies_behind_the_bound_is_left_out_and_does_not_keep_the_past_open() -> None:
    source = Told([Message("0", 1, b"", time=10.0), Message("0", 2, b"", time=10.1)])
    source.left = Lag({"0": 50})
    read = past(source, "time:10.0")
    assert [m.offset for m in read.poll(10, 0)] == [1]
    source.now = QUIET_SECONDS
    source.batches.append([Message("0", 3, b"", time=11.0)])
    assert read.poll(10, 0) == []
    assert (read.ended, read.left_out) == (True, 2)


def test_the_past_does_not_end_while_nobody_wants_messages() -> None:
    source = Told()
    read = past(source)
    source.now = 100.0
    read.poll(0, 0)
    read.poll(10, 0)
    assert not read.ended


def test_a_bound_may_be_an_offset() -> None:
    source = Told([Message("0", n, b"") for n in range(5)])
    assert [m.offset for m in past(source, "offset:2").poll(10, 0)] == [0, 1, 2]
