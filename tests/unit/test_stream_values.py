"""A stream's values: ids, what is out, what was answered, settings, slots, dead letters, and what it says of itself."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpacker_runtime.brokers import Message
from mlpacker_runtime.errors import BadDescription
from mlpacker_runtime.rest import Request, Response
from mlpacker_runtime.stream import ids, letters, line, slots
from mlpacker_runtime.stream import settings as settings_of
from mlpacker_runtime.stream.door import Door
from mlpacker_runtime.stream.numbers import StreamNumbers
from mlpacker_runtime.stream.repeats import HEADER, Repeats
from mlpacker_runtime.stream.settings import Settings, from_json, from_value, to_json
from mlpacker_runtime.stream.tracking import Delivery, Tracker


def delivery(offset: int, partition: str = "0", value: bytes = b"12345") -> Delivery:
    return Delivery(Message(partition, offset, value), bytes([offset]) * 16, 0.0)


def tracker(*out: Delivery) -> Tracker:
    made = Tracker()
    for one in out:
        made.add(one)
    return made


# --- What is out -----------------------------------------------------------------------------------------------------


def test_only_the_finished_prefix_can_be_committed() -> None:
    first, second, third = (delivery(n) for n in (1, 2, 3))
    out = tracker(first, second, third)
    third.left = second.left = 0
    assert out.advance() == 0
    assert out.take_commit() == {}
    first.left = 0
    assert out.advance() == 3
    assert out.take_commit() == {"0": 3}
    assert out.take_commit() == {}
    assert (out.count, out.size) == (0, 0)


def test_a_partition_waits_for_none_of_the_others() -> None:
    slow, quick = delivery(1, "a"), delivery(7, "b")
    out = tracker(slow, quick)
    quick.left = 0
    assert out.advance() == 1
    assert out.take_commit() == {"b": 7}
    assert out.idle(["b"])
    assert not out.idle(["a", "b"])


def test_a_message_in_parts_is_finished_with_its_last_part() -> None:
    both = Delivery(Message("0", 1, b""), b"i" * 16, 0.0, left=2)
    out = tracker(both)
    both.left -= 1
    assert out.advance() == 0
    both.left -= 1
    assert out.advance() == 1


def test_what_is_forgotten_is_neither_awaited_nor_committed() -> None:
    done, waiting, other = delivery(1, "a"), delivery(2, "a"), delivery(1, "b")
    out = tracker(done, waiting, other)
    done.left = 0
    out.advance()
    assert out.forget(["a", "c"]) == 1
    assert waiting.forgotten
    assert not other.forgotten
    assert out.take_commit() == {}
    assert (out.count, out.size) == (1, 5)
    assert out.forget() == 1
    assert (out.count, out.size) == (0, 0)


def test_forgetting_never_leaves_a_gap_to_who_looks_from_the_front() -> None:
    """The publisher looks while the reader forgets: a later row must not pass as wanted when an earlier one no longer is."""
    seen: list[list[bool]] = []

    class Watched(Delivery):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "forgotten" and value:
                seen.append([d.forgotten for d in out_now])

    out_now = [Watched(Message("0", n, b""), b"i" * 16, 0.0) for n in range(1, 6)]
    tracker(*out_now).forget()
    assert len(seen) == 5
    assert all(states == sorted(states) for states in seen)


# --- Ids -------------------------------------------------------------------------------------------------------------


def test_an_id_is_the_same_whenever_it_is_made() -> None:
    assert ids.Ids("d", "i").message("0", 7) == ids.Ids("d", "i").message("0", 7)
    own = ids.answer(b"m" * 16, 0, "s", 0)
    assert own == ids.answer(b"m" * 16, 0, "s", 0)
    assert len(bytes.fromhex(own)) == ids.SIZE


def test_an_id_outlives_the_process() -> None:
    code = "from mlpacker_runtime.stream.ids import Ids; print(Ids('d', 'i').message('p', 9).hex())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == ids.Ids("d", "i").message("p", 9).hex()


def test_each_part_of_a_place_makes_another_id() -> None:
    places = [
        ("d", "i", "0", 7, 0, "s", 0),
        ("e", "i", "0", 7, 0, "s", 0),
        ("d", "j", "0", 7, 0, "s", 0),
        ("d", "i", "1", 7, 0, "s", 0),
        ("d", "i", "0", 8, 0, "s", 0),
        ("d", "i", "0", 7, 1, "s", 0),
        ("d", "i", "0", 7, 0, "t", 0),
        ("d", "i", "0", 7, 0, "s", 1),
    ]
    made = {ids.answer(ids.Ids(d, i).message(p, o), r, s, x) for d, i, p, o, r, s, x in places}
    assert len(made) == len(places)


def test_a_header_that_names_a_message_makes_its_id_alone_whatever_the_place() -> None:
    assert ids.Ids("d", "i").named(b"x") == ids.Ids("d", "another").named(b"x")
    assert ids.Ids("d", "i").named(b"x") != ids.Ids("e", "i").named(b"x")
    assert ids.Ids("d", "i").named(b"x") != ids.Ids("d", "i").named(b"y")


def test_an_answer_goes_on_the_trace_it_came_in() -> None:
    own = ids.answer(b"m" * 16, 0, "s", 0)
    came = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    told = ids.trace(came, own)
    assert told == b"00-" + b"a" * 32 + b"-" + own[:16].encode() + b"-01"
    assert ids.trace(came, own) == told
    for broken in (None, b"", b"00-short", b"ff" + came[2:]):
        assert ids.trace(broken, own) == f"00-{own}-{own[:16]}-01".encode()


# --- What was answered -----------------------------------------------------------------------------------------------


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_an_answered_id_is_a_repeat_also_for_the_next_process(tmp_path: Path) -> None:
    first = Repeats(tmp_path, places=8)
    assert not first.is_repeat(name(1), "i", "0", 1)
    first.answered(name(1))
    assert first.is_repeat(name(1), "i", "0", 1)
    first.close()
    again = Repeats(tmp_path, places=8)
    assert again.is_repeat(name(1), "i", "0", 1)
    assert not again.is_repeat(name(2), "i", "0", 2)
    again.close()


def test_the_oldest_id_gives_way_when_the_ring_is_full(tmp_path: Path) -> None:
    repeats = Repeats(tmp_path, places=4)
    for number in range(1, 7):
        repeats.answered(name(number))
    known = [n for n in range(1, 7) if repeats.is_repeat(name(n), "i", "0", n)]
    assert known == [3, 4, 5, 6]
    repeats.close()
    again = Repeats(tmp_path, places=4)
    assert [n for n in range(1, 7) if again.is_repeat(name(n), "i", "0", n)] == known
    again.answered(name(7))
    assert not again.is_repeat(name(3), "i", "0", 3)
    again.close()


def test_an_id_that_was_answered_twice_is_known_as_long_as_its_later_place(tmp_path: Path) -> None:
    repeats = Repeats(tmp_path, places=4)
    for number in (1, 2, 1, 3, 4):
        repeats.answered(name(number))
    assert repeats.is_repeat(name(1), "i", "0", 1)
    repeats.close()


def test_a_place_that_somebody_moved_back_is_no_repeat(tmp_path: Path) -> None:
    repeats = Repeats(tmp_path, places=8)
    for number in (1, 2, 3):
        repeats.answered(name(number))
    repeats.commit("i", {"0": 2})
    repeats.close()
    again = Repeats(tmp_path, places=8)
    assert [again.is_repeat(name(n), "i", "0", n) for n in (1, 2, 3)] == [False, False, True]
    assert again.is_repeat(name(1), "another", "0", 1)
    assert again.is_repeat(name(1), "i", "1", 1)
    again.close()


@pytest.mark.parametrize("damaged", [b"", b"[1", b"[]", b'{"a": "b"}', b"\xff\xfe", b"null"])
def test_damaged_notes_cost_repeats_and_stop_nothing(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "committed.json").write_bytes(damaged)
    (tmp_path / "answered.ring").write_bytes(b"\xff" * 50)
    repeats = Repeats(tmp_path, places=8)
    assert repeats.committed == {}
    assert not repeats.is_repeat(b"\xff" * 16, "i", "0", 1)
    repeats.answered(name(1))
    assert repeats.is_repeat(name(1), "i", "0", 1)
    repeats.close()


def test_a_damaged_place_in_the_ring_is_taken_into_the_ring(tmp_path: Path) -> None:
    (tmp_path / "answered.ring").write_bytes(b"\xff" * (HEADER + 8 * 16))
    repeats = Repeats(tmp_path, places=8)
    assert 0 <= repeats.next < 8
    repeats.answered(name(1))
    repeats.close()


# --- Settings --------------------------------------------------------------------------------------------------------

LEAST: dict[str, Any] = {"name": "n", "source": "local:a", "sink": "local:b", "state": "s"}

# key → a value that it takes, and values that it does not
KEYS: dict[str, tuple[Any, list[Any]]] = {
    "name": ("rock-bolts", [5, "", None]),
    "source": ("kafka://h:9092/t", ["", "nothing", "kafka:t", "redis://u:secret@h/t", 5]),
    "sink": ("-", ["local:", 5]),
    "state": ("folder", [5, ""]),
    "dead_letters": ("local:d", ["nothing", None]),
    "group": ("g", [1]),
    "member": ("m", [1]),
    "start": ("time:1700000000.5", ["first", "offset:", "offset:-1", "time:", "time:soon", 5]),
    "ordered": (False, [0, "no", None]),
    "key": ("pump", [5]),
    "keep": (["a", "b"], ["a", [1], None, {}]),
    "outputs": (["risk"], ["risk", [None]]),
    "payload": ("v2", [5]),
    "payload_options": ({"columns": "a,b"}, [[], "a", {"columns": 5}]),
    "answer": ("msgpack", [None]),
    "answer_options": ({"columns": "a"}, [{"a": None}]),
    "batch": (1, [0, -1, 1.5, "1", True]),
    "wait": (1.5, [-1, "1", float("nan"), float("inf")]),
    "lanes": (2, [0, "two", 2.0]),
    "retries": (3, [-1, 0.5]),
    "id_from": ("x-id", [7]),
    "window": (10, [0]),
    "window_bytes": (10, [0]),
    "max_message": (10, [0]),
    "session": (6, [-1, "6", float("nan")]),
    "watchdog": (0, [-1, None]),
    "spool": (1 << 20, [-1, 0.5]),
    "spool_full": ("drop_oldest", ["drop", ""]),
    "journal": (1 << 20, ["1"]),
    "patient": (False, [0, "no"]),
    "logs": ("logs", [5]),
    "ids_as": ("other", [5]),
    "until": ("offset:9", ["9", "time:", "latest"]),
}


def test_every_setting_is_tried_here() -> None:
    assert set(KEYS) == {f.name for f in fields(Settings)}


@pytest.mark.parametrize("key", KEYS)
def test_a_setting_takes_what_it_is_meant_for(key: str) -> None:
    value = KEYS[key][0]
    read = getattr(from_value({**LEAST, key: value}), key)
    assert read == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(("key", "wrong"), [(k, w) for k, (_, wrongs) in KEYS.items() for w in wrongs])
def test_a_setting_refuses_what_it_is_not_meant_for_and_is_named(key: str, wrong: Any) -> None:
    with pytest.raises(BadDescription) as told:
        from_value({**LEAST, key: wrong})
    assert told.value.sentence.startswith(f"{key}: ")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("missing", LEAST)
def test_a_missing_end_is_named(missing: str) -> None:
    with pytest.raises(BadDescription, match=f"{missing}: missing"):
        from_value({k: v for k, v in LEAST.items() if k != missing})


def test_an_unknown_key_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(BadDescription, match="sauce: unknown key.*source"):
        from_value({**LEAST, "sauce": "local:a"})


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"a"'])
def test_what_is_no_object_is_no_settings(text: str) -> None:
    with pytest.raises(BadDescription, match="settings of a stream"):
        from_json(text)


def test_whole_seconds_are_seconds() -> None:
    read = from_value({**LEAST, "session": 6})
    assert isinstance(read.session, float)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
topics = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)


@given(
    st.builds(
        Settings,
        name=words,
        source=topics.map(lambda t: f"kafka://h:9092/{t}"),
        sink=topics.map(lambda t: f"local:{t}"),
        state=words,
        dead_letters=st.sampled_from(["", "local:d", "-"]),
        start=st.sampled_from(["earliest", "latest", "offset:12", "time:17.25"]),
        ordered=st.booleans(),
        key=st.none() | words,
        keep=st.lists(words, max_size=3).map(tuple),
        outputs=st.lists(words, max_size=3).map(tuple),
        payload_options=st.dictionaries(words, words, max_size=2),
        batch=st.integers(1, 1 << 40),
        wait=st.floats(0, 1e6),
        lanes=st.integers(1, 64),
        id_from=st.none() | words,
        session=st.floats(0, 1e6),
        spool=st.integers(0, 1 << 60),
        patient=st.booleans(),
    )
)
def test_settings_survive_being_written_and_read(settings: Settings) -> None:
    assert from_json(to_json(settings)) == settings


def test_defaults_lie_in_the_value() -> None:
    read = from_value(LEAST)
    assert read == Settings(**LEAST)
    assert read.reads_as == "mlpacker-n"
    assert replace(read, group="g").reads_as == "g"
    assert read.letters == "local:dead-letters?path=s"
    assert settings_of.addresses(read) == {
        "source": "local:a",
        "sink": "local:b",
        "dead_letters": read.letters,
    }


def test_an_embedded_log_lies_with_the_machines_logs_unless_it_names_a_folder() -> None:
    read = from_value({**LEAST, "logs": "the-logs"})
    assert settings_of.placed("local:a", read).option("path") == "the-logs"
    assert settings_of.placed("local:a?path=own", read).option("path") == "own"
    assert settings_of.placed("kafka://h/t", read).options == {}


@pytest.mark.parametrize("state", ["/a b", "/a&partitions=7", "/50%", "/a+b", "/ä#1?"])
def test_dead_letters_lie_in_the_state_folder_whatever_its_name(state: str) -> None:
    read = from_value({**LEAST, "state": state, "logs": "the-logs"})
    assert settings_of.placed(read.letters, read).options == {"path": state}


def test_reading_is_what_the_settings_say() -> None:
    read = from_value(
        {**LEAST, "ordered": False, "window": 5, "session": 9, "member": "m", "start": "latest"}
    )
    reading = settings_of.reading(read)
    assert (reading.group, reading.member, reading.start) == ("mlpacker-n", "m", "latest")
    assert (reading.ordered, reading.window, reading.session, reading.state) == (False, 5, 9.0, "s")


# --- Slots -----------------------------------------------------------------------------------------------------------


def test_a_slot_has_one_holder_and_its_successor_finds_its_folder(tmp_path: Path) -> None:
    first, second = slots.take(tmp_path, only_first=False), slots.take(tmp_path, only_first=False)
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (0, 1)
    (first.folder / "left").write_text("behind")
    first.release()
    successor = slots.take(tmp_path, only_first=False)
    assert successor is not None
    assert successor.number == 0
    assert (successor.folder / "left").read_text() == "behind"
    second.release()
    successor.release()


def test_where_one_may_read_the_others_get_no_slot_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from mlpacker_runtime.stream.slots import take;"
        "held = take(pathlib.Path(sys.argv[1]), only_first=True); print(held.number, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == b"0\n"
    assert slots.take(tmp_path, only_first=True) is None
    other.kill()  # the kernel lets go for it
    other.wait()
    other.stdin.close()
    other.stdout.close()
    mine = slots.take(tmp_path, only_first=True)
    assert mine is not None
    mine.release()


def test_a_machine_has_one_name_for_each_deployment(tmp_path: Path) -> None:
    assert slots.machine(tmp_path / "a") == slots.machine(tmp_path / "a")
    assert slots.machine(tmp_path / "a") != slots.machine(tmp_path / "b")


# --- Dead letters ----------------------------------------------------------------------------------------------------

ABOUT = {"deployment": "d", "package": "sha256:p", "source": "local:a"}
header_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda n: n != ids.ID)


@given(
    value=st.binary(max_size=60) | st.text(max_size=20).map(str.encode),
    key=st.none() | st.binary(max_size=12),
    headers=st.dictionaries(header_names, st.binary(max_size=12), max_size=3),
)
def test_a_letter_gives_back_the_message_it_was_written_of(
    value: bytes, key: bytes | None, headers: dict[str, bytes]
) -> None:
    message = Message("0", 4, value, key, tuple(headers.items()), 12.0)
    written = letters.outgoing(letters.Letter(message, "because", "id-1"), ABOUT)
    read = json.loads(written.value)
    assert letters.original(read) == (value, key, message.headers)
    assert written.key == key


def test_a_letter_says_whence_why_and_with_what() -> None:
    headers = (("traceparent", b"00-t"), (ids.ID, b"old"))
    message = Message("3", 44, b'{"x": 1}', b"pump", headers, 1700000000.0)
    letter = letters.Letter(message, "It fell.", "id-1", stage="judge", attempts=2)
    written = letters.outgoing(letter, ABOUT)
    read = json.loads(written.value)
    assert read.pop("failed_at") > 0
    assert read == {
        **ABOUT,
        "id": "id-1",
        "reason": "It fell.",
        "stage": "judge",
        "attempts": 2,
        "partition": "3",
        "offset": 44,
        "time": 1700000000.0,
        "trace": "00-t",
        "headers": {"traceparent": "00-t", ids.ID: "old"},
        "key": "pump",
        "value": '{"x": 1}',
        "bytes": 8,
    }
    assert written.headers == ((ids.ID, b"id-1"), (ids.PACKAGE, b"sha256:p"))
    assert letters.original(read) == (b'{"x": 1}', b"pump", (("traceparent", b"00-t"),))


def test_a_letter_that_was_cut_says_so_and_gives_no_message_back() -> None:
    message = Message("0", 1, "ä".encode() * 50)
    read = json.loads(letters.outgoing(letters.Letter(message, "too large", "i"), ABOUT, most=11).value)
    assert read["bytes"] == 100
    assert "value" not in read  # it ends within a letter, so it is no text
    assert letters.original(read) is None


def test_a_row_of_several_is_sent_again_alone() -> None:
    message = Message("0", 1, b'[{"x": 1}, {"x": "b"}]')
    letter = letters.Letter(message, "no number", "i", row=1, record={"x": "b"})
    read = json.loads(letters.outgoing(letter, ABOUT).value)
    assert read["row"] == 1
    assert letters.original(read) == (b'{"x": "b"}', None, ())


# --- What it says of itself ------------------------------------------------------------------------------------------

STATE = {
    "rows": {"answered": 12345, "dropped": 0, "failed": 1},
    "lag": 0,
    "source": "up",
    "sink": "up",
    "dead_letters": "up",
    "lost": 0,
}


def test_the_line_at_a_terminal_tells_rate_lag_age_and_dead_letters() -> None:
    assert line.line(STATE, 8123.4, 0.012) == "12,345 rows  8,123/s  lag 0  age 12 ms  dead letters 1"
    trouble = {**STATE, "lag": None, "sink": "away", "dead_letters": "away", "lost": 3}
    trouble["rows"] = {"answered": 1, "dropped": 2, "failed": 0}
    told = line.line(trouble, 0, 65)
    assert (
        told
        == "1 rows  0/s  lag ?  age 65.0 s  dropped 2  dead letters 0  sink away  dead letters away  LOST 3"
    )
    assert "age 10 min" in line.line(STATE, 0, 600)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_is_drawn_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    numbers = StreamNumbers(tmp_path, ["s"], {})
    for to, drawn in ((Terminal(), True), (io.StringIO(), False)):
        line.Line(to).show(STATE, numbers)
        assert bool(to.getvalue()) == drawn


def ask(door: Door, path: str, method: str = "GET") -> Response:
    found: list[Response] = []
    door.handle(Request(method, path, "", {}, b""), found.append)
    assert len(found) == 1
    return found[0]


def test_the_door_tells_numbers_life_and_state_and_takes_no_rows() -> None:
    ready = True
    door = Door(lambda: "mlpacker_up 1\n", lambda: {"lag": 3}, lambda: ready)
    assert ask(door, "/metrics").body == b"mlpacker_up 1\n"
    for path in ("/v2/health/live", "/ping", "/health", "/v2/health/ready", "/status", "/"):
        assert ask(door, path).status == 200, path
    assert json.loads(ask(door, "/status").body) == {"lag": 3}
    ready = False
    assert ask(door, "/v2/health/ready").status == 503
    assert ask(door, "/v2/health/live").status == 200
    assert ask(door, "/v2/models/m/infer", "POST").status == 405
    assert ask(door, "/nowhere").status == 404
    assert "/metrics" in json.loads(ask(door, "/nowhere").body)["error"]
