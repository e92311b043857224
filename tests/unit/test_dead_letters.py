"""Dead letters: which are meant, what is sent again of them, and that none goes before its message is confirmed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlpacker.errors import BadDescription, NotFound
from mlpacker.events import Silent
from mlpacker.letters import Letters, Wanted, choose
from mlpacker_runtime.brokers import Message
from mlpacker_runtime.brokers.log import Log
from mlpacker_runtime.stream import dlq
from mlpacker_runtime.stream.letters import Letter, outgoing

pytestmark = pytest.mark.unit

ABOUT = {"deployment": "bolts", "package": "sha256:a", "source": "local:rows"}


def write(log: Log, *letters: Letter, most: int | None = None) -> None:
    log.append([outgoing(letter, ABOUT, most=most) for letter in letters])


def letter(id: str, value: bytes = b'{"x":1}', offset: int = 1, **more: Any) -> Letter:
    return Letter(Message("0", offset, value, b"k", (("colour", b"red"),), 5.0), "too deep", id, **more)


def order(folder: Path, do: str, **more: Any) -> dict[str, Any]:
    at = f"local:dead-letters?path={folder}"
    return {"do": do, "at": at, "name": "bolts", "logs": str(folder / "logs"), "state": str(folder), **more}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with closing(Log(tmp_path / "dead-letters.log.db")) as made:
        yield made


def left(folder: Path) -> list[str]:
    return [one["id"] for one in dlq.answer(order(folder, "list"))["letters"]]


def published(folder: Path) -> list[Message]:
    with closing(Log(folder / "logs" / "rows.log.db")) as rows:
        return rows.read(0, 0, 100)


def test_a_letter_is_sent_again_with_its_value_key_and_headers_and_is_gone(tmp_path: Path, log: Log) -> None:
    write(log, letter("aa"), letter("bb", b"\xff\x00", 2))
    told = dlq.answer(order(tmp_path, "replay", ids=["aa", "bb"]))
    assert told["done"] == ["aa", "bb"]
    sent = published(tmp_path)
    assert [(m.value, m.key, m.headers) for m in sent] == [
        (b'{"x":1}', b"k", (("colour", b"red"),)),
        (b"\xff\x00", b"k", (("colour", b"red"),)),
    ]
    assert left(tmp_path) == []


def test_a_letter_whose_message_was_cut_off_stays_and_says_so(tmp_path: Path, log: Log) -> None:
    write(log, letter("aa", b"x" * 100), most=10)
    write(log, letter("bb"))
    told = dlq.answer(order(tmp_path, "replay", ids=["aa", "bb"]))
    assert told["done"] == ["bb"]
    assert told["stay"] == [{"id": "aa", "reason": dlq.CUT}]
    assert left(tmp_path) == ["aa"]


def test_only_the_letters_that_were_named_are_dropped_whatever_lies_before_them(
    tmp_path: Path, log: Log
) -> None:
    write(log, letter("aa"), letter("bb"), letter("cc"))
    assert dlq.answer(order(tmp_path, "drop", ids=["bb"]))["done"] == ["bb"]
    assert left(tmp_path) == ["aa", "cc"]
    write(log, letter("dd"))
    assert left(tmp_path) == ["aa", "cc", "dd"]


def test_a_row_among_several_is_sent_alone(tmp_path: Path, log: Log) -> None:
    write(log, letter("aa", b'[{"x":1},{"x":2}]', row=1, record={"x": 2}))
    dlq.answer(order(tmp_path, "replay", ids=["aa"]))
    assert [json.loads(m.value) for m in published(tmp_path)] == [{"x": 2}]


def test_rows_without_a_record_of_their_own_share_one_sending_of_their_message(
    tmp_path: Path, log: Log
) -> None:
    write(log, letter("aa", b"columns", row=0), letter("bb", b"columns", row=4), letter("cc", b"columns", 9))
    told = dlq.answer(order(tmp_path, "replay", ids=["aa", "bb", "cc"]))
    assert (told["done"], told["repeated"]) == (["aa", "bb", "cc"], 1)
    assert len(published(tmp_path)) == 2


def test_what_is_no_letter_is_listed_stays_at_a_replay_and_can_be_dropped(tmp_path: Path, log: Log) -> None:
    log.append([Message("0", 0, b"\xffhello"), Message("0", 0, b"[1]")])
    assert left(tmp_path) == ["0-1", "0-2"]
    assert dlq.answer(order(tmp_path, "replay", ids=["0-1"]))["stay"][0]["reason"] == dlq.NO_LETTER
    dlq.answer(order(tmp_path, "drop", ids=["0-1", "0-2"]))
    assert left(tmp_path) == []


def test_no_log_is_made_by_looking_for_letters(tmp_path: Path) -> None:
    assert dlq.answer(order(tmp_path / "nothing", "list"))["letters"] == []
    assert not (tmp_path / "nothing").exists()


class Kept:
    """A box in memory. log: what was done, in order."""

    def __init__(self, found: Sequence[dlq.Found], any_goes: bool, log: list[str]) -> None:
        self.found = found
        self.any_goes = any_goes
        self.log = log

    def read(self) -> Iterator[dlq.Found]:
        return iter(self.found)

    def remove(self, found: Sequence[dlq.Found]) -> None:
        self.log += [f"removed {one.id}" for one in found]


def found(id: str, offset: int, **more: Any) -> dlq.Found:
    value = {"id": id, "reason": "", "source": "s", "value": "v", "bytes": 1, "offset": offset, **more}
    return dlq.Found("0", offset, value)


def test_a_letter_goes_only_after_its_message_is_confirmed() -> None:
    log: list[str] = []

    def send(some: Sequence[dlq.Found]) -> Mapping[int, str]:
        log.extend(f"sent {one.id}" for one in some)
        return {}

    dlq.clear(Kept([found("a", 1), found("b", 2)], True, log), {"a", "b"}, send)
    assert log == ["sent a", "sent b", "removed a", "removed b"]


def test_a_letter_stays_when_its_source_is_away() -> None:
    log: list[str] = []

    def send(some: Sequence[dlq.Found]) -> Mapping[int, str]:
        raise dlq.brokers.Away("nobody there")

    with pytest.raises(dlq.brokers.Away):
        dlq.clear(Kept([found("a", 1)], True, log), {"a"}, send)
    assert log == []


def test_a_letter_whose_message_is_refused_stays_with_the_reason() -> None:
    log: list[str] = []
    box = Kept([found("a", 1), found("b", 2)], True, log)
    told = dlq.clear(box, {"a", "b"}, lambda some: {0: "too large"})
    assert told["done"] == ["b"]
    assert told["stay"] == [{"id": "a", "reason": "Its topic does not take it: too large"}]


def test_where_only_the_oldest_can_go_nothing_behind_one_that_stays_is_sent_or_dropped() -> None:
    log: list[str] = []
    sent: list[str] = []

    def send(some: Sequence[dlq.Found]) -> Mapping[int, str]:
        sent.extend(one.id for one in some)
        return {}

    box = Kept([found("a", 1), found("b", 2), found("c", 3)], False, log)
    told = dlq.clear(box, {"a", "c"}, send)
    assert (told["done"], sent, log) == (["a"], ["a"], ["removed a"])
    assert told["stay"] == [{"id": "c", "reason": dlq.BEHIND}]


def test_where_only_the_oldest_can_go_a_refusal_holds_what_lies_behind_it() -> None:
    log: list[str] = []
    box = Kept([found("a", 1), found("b", 2)], False, log)
    told = dlq.clear(box, {"a", "b"}, lambda some: {0: "too large"})
    assert (told["done"], log) == ([], [])


def test_letters_in_a_file_are_dropped_from_the_oldest_on(tmp_path: Path) -> None:
    lines = [outgoing(letter(id), ABOUT).value + b"\n" for id in ("aa", "bb", "cc")]
    (tmp_path / "dead.jsonl").write_bytes(b"".join(lines))
    at = {"at": f"file:{tmp_path / 'dead.jsonl'}"}
    assert dlq.answer({**order(tmp_path, "drop", ids=["bb"]), **at})["done"] == []
    assert dlq.answer({**order(tmp_path, "drop", ids=["aa"]), **at})["done"] == ["aa"]
    assert [o["id"] for o in dlq.answer({**order(tmp_path, "list"), **at})["letters"]] == ["bb", "cc"]


def test_a_broker_that_keeps_nothing_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadDescription, match="keeps no letters"):
        dlq.answer({**order(tmp_path, "list"), "at": "mqtt://host/dead"})


def test_what_came_from_standard_input_needs_an_address_to_go_to(tmp_path: Path, log: Log) -> None:
    log.append([outgoing(letter("aa"), {**ABOUT, "source": "-"})])
    with pytest.raises(BadDescription, match="standard input"):
        dlq.answer(order(tmp_path, "replay", ids=["aa"]))
    assert dlq.answer(order(tmp_path, "replay", ids=["aa"], to="local:rows"))["done"] == ["aa"]


def test_an_id_may_be_shortened_as_long_as_one_letter_is_meant() -> None:
    letters = [{"id": "abc1"}, {"id": "abd2"}, {"id": "abd2"}, {"id": "ab"}]
    assert choose(letters, ["abc", "abd", "ab"], "bolts") == ["abc1", "abd2", "ab"]
    with pytest.raises(NotFound):
        choose(letters, ["x"], "bolts")
    with pytest.raises(BadDescription):
        choose(letters, ["a"], "bolts")


def test_filters_leave_letters_that_fit_all_of_them() -> None:
    one = {"reason": "column 'depth': no number", "stage": "input", "failed_at": 100.0}
    assert Wanted("DEPTH", "input", 100.0).fits(one)
    assert not Wanted("width").fits(one)
    assert not Wanted(stage="model").fits(one)
    assert not Wanted(since=100.5).fits(one)


def test_a_deployment_that_never_ran_here_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "streams" / "bolts").mkdir(parents=True)
    with pytest.raises(NotFound, match="bolts"):
        Letters(tmp_path, "bolt", "", Silent())
