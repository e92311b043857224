"""A stream as a person sees it: a process that says it is ready, answers every message or tells why not, and ends with a code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlpacker.testing.delivery.subject import draft
from mlpacker_runtime.brokers import Message
from mlpacker_runtime.brokers.log import Log

PATIENCE = 60.0
NOBODY = "nats://127.0.0.1:1/rows"
"""Where no broker answers, and says so at once."""


def until(reached: Callable[[], Any], said: Callable[[], str] = str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := reached()):
        assert time.monotonic() < end, said()
        time.sleep(0.03)
    return found


class Topic:
    """A topic of the embedded log, as the test writes and reads it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Log(folder / f"{name}.log.db")

    def add(self, messages: Sequence[Message | bytes | dict[str, Any]]) -> None:
        self.log.append([_message(m) for m in messages])

    def values(self) -> list[dict[str, Any]]:
        return [json.loads(m.value) for m in self.log.read(0, 0, 100_000)]

    def messages(self) -> list[Message]:
        return self.log.read(0, 0, 100_000)

    def committed(self, group: str = "mlpacker-ledger") -> int:
        return int(self.log.one("SELECT last FROM place WHERE reader = ?", (group,)) or 0)


def _message(given: Message | bytes | dict[str, Any]) -> Message:
    if isinstance(given, Message):
        return given
    return Message("0", 0, given if isinstance(given, bytes) else json.dumps(given).encode())


def row(number: int, kind: str = "sound", x: float = 1.0, key: str = "k") -> dict[str, Any]:
    return {"number": number, "key": key, "kind": kind, "x": x}


class Stream:
    """A running stream. Its standard output and error go to files; it ends with the test."""

    def __init__(self, folder: Path, *, name: str = "a", stdin: bytes | None = None, **changed: Any) -> None:
        self.folder = folder
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        package = folder / "package"
        if not package.exists():
            draft(package)
        settings = {
            "name": "ledger",
            "source": "local:in",
            "sink": "local:out",
            "dead_letters": "local:letters",
            "state": str(folder / "state"),
            "logs": str(folder / "logs"),
            "keep": ["number", "key"],
            "key": "key",
            "session": 3,
            **changed,
        }
        argv = [sys.executable, "-m", "mlpacker_runtime", "serve", "--package", str(package), "--accepted"]
        argv += ["--port", "0", "--timeout", "15", "--log", "json", "--stream", json.dumps(settings)]
        argv += ["--stage-worker", json.dumps({"environment": "default", "argv": [sys.executable]})]
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        if stdin is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    def said(self) -> str:
        return self.out.read_text() + self.err.read_text()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.err.read_text().splitlines() if line.startswith("{")]

    def actions(self) -> list[str]:
        return [line["action"] for line in self.log()]

    def ready(self) -> Stream:
        def told() -> list[str] | None:
            assert self.process.poll() is None, self.said()
            return re.findall(r"^ready (http://\S+) (\S+)$", self.out.read_text(), re.MULTILINE)

        (found, *_) = until(told, self.said)
        self.url, self.reference = found
        return self

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(c) for task in tasks.iterdir() for c in (task / "children").read_text().split()]

    def worker(self) -> int:
        """The process that reads."""
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.children()}
        return next(pid for pid, said in words.items() if b"stream.worker" in said)

    def kill(self) -> None:
        """All of it at once."""
        if self.process.poll() is None:
            for pid in [*self.children(), self.process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.process.wait()


Start = Callable[..., Stream]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a stream over topics in this test's folder."""
    made: list[Stream] = []

    def begin(**changed: Any) -> Stream:
        made.append(Stream(tmp_path, **changed))
        return made[-1]

    yield begin
    for stream in made:
        stream.kill()


@pytest.fixture
def topics(tmp_path: Path) -> Callable[[str], Topic]:
    return lambda name: Topic(tmp_path / "logs", name)


# --- What becomes of a message ---------------------------------------------------------------------------------------


@dataclass
class Case:
    """Messages, how many answers they have, and what the dead letter says of each that has none."""

    messages: list[Message | bytes | dict[str, Any]]
    answers: int = 0
    letters: list[str] = field(default_factory=list)
    stage: str = "input"


def with_headers(value: bytes, **headers: bytes) -> Message:
    return Message("0", 0, value, b"k", tuple((n.replace("_", "-"), v) for n, v in headers.items()))


BODY = json.dumps(row(0)).encode()
LARGEST = 5000
CASES = {
    "sound": Case([BODY], 1),
    "empty": Case([b""], letters=["empty"]),
    "huge": Case(
        [b'{"filling": "' + b"x" * LARGEST + b'"}'], letters=[r"has 50\d\d bytes; this stream takes 5000"]
    ),
    "not UTF-8": Case([b'{"key": "\xff\xfe"}'], letters=["UTF-8|utf-8"]),
    "not JSON": Case([b"key=1, x=2"], letters=["JSON"]),
    "cut": Case([BODY[:-4]], letters=["JSON"]),
    "a number": Case([b"7"], letters=["."]),
    "wrong columns": Case([{"depth": 1}], letters=["'key' is missing"]),
    "one column missing": Case([{"number": 1, "key": "k", "kind": "sound"}], letters=["'x' is missing"]),
    "wrong type": Case([{**row(0), "x": "high"}], letters=["high"]),
    "number not whole": Case([{**row(0), "number": 1.5}], letters=["1.5"]),
    "a literal NaN": Case([BODY.replace(b"1.0", b"NaN")], letters=["NaN|JSON"]),
    "a list of values": Case([json.dumps(["k", 3, "sound", 1.0]).encode()], 1),
    "a list of rows": Case([json.dumps([row(1), row(2), {"x": 1}, row(4)]).encode()], 3, ["missing"]),
    "an empty list": Case([b"[]"], letters=["empty list"]),
    "deeply nested": Case([b"[" * 2000 + b"]" * 2000], letters=["."]),
    "more columns than needed": Case([{**row(0), "site": "north"}], 1),
    "without a key": Case([{**row(0), "key": None}], letters=["."]),
    "lying content type": Case([with_headers(BODY, content_type=b"application/msgpack")], letters=["."]),
    "lying lengths": Case([with_headers(BODY, inference_header_content_length=b"9999")], letters=["."]),
    "unknown content type": Case([with_headers(BODY, content_type=b"application/x-unknown")], 1),
    "header of no sense": Case([with_headers(BODY, traceparent=b"\xff" * 55)], 1),
    "duplicates": Case([BODY, BODY, BODY], 3),
    "out of order": Case([row(9), row(3), row(7)], 3),
    "from the future": Case([Message("0", 0, BODY, b"k", (), time.time() + 1e6)], 1),
    "from long ago": Case([Message("0", 0, BODY, b"k", (), 1.0)], 1),
    "raising": Case([row(0, "poison")], letters=["ValueError: a poisoned row"], stage="double"),
    "crashing": Case([row(0, "crash"), row(1)], 1, ["crashed the worker"], stage=""),
}


@dataclass
class Ended:
    """What every case came to: answers and letters by the case's name."""

    stream: Stream
    answers: dict[str, list[Message]]
    letters: dict[str, list[dict[str, Any]]]
    order: list[int]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """One stream that all the cases went through, in turn, one row at a time, and that still runs."""
    folder = tmp_path_factory.mktemp("cases")
    came, out, letters = (Topic(folder / "logs", name) for name in ("in", "out", "letters"))
    places: dict[int, str] = {}
    for name, case in CASES.items():
        came.add(case.messages)
        places.update({len(places) + n: name for n in range(1, 1 + len(case.messages))})
    stream = Stream(folder, max_message=LARGEST)
    try:
        stream.ready()
        until(lambda: came.committed() == len(places), stream.said)
        found = Ended(stream, {n: [] for n in CASES}, {n: [] for n in CASES}, [])
        for letter in letters.values():
            found.letters[places[letter["offset"]]].append(letter)
        answered = _by_id(came, len(places))
        for message in out.messages():
            offset = answered[dict(message.headers)["mlpacker-id"].decode()]
            found.answers[places[offset]].append(message)
            found.order.append(offset)
        yield found
    finally:
        stream.kill()


def _by_id(came: Topic, count: int) -> dict[str, int]:
    """The id of every answer that there can be → the offset of its message."""
    from mlpacker_runtime.stream import ids

    ours = ids.Ids("ledger", came.log.uuid)
    found = {}
    for message in came.messages() if came.log.count() == count else []:
        named = dict(message.headers).get("mlpacker-id")
        own = ours.named(named) if named else ours.message(message.partition, message.offset)
        for number in range(10):
            found.setdefault(ids.answer(own, number, "double", 0), message.offset)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_message_ends_in_answers_or_in_a_dead_letter_with_its_reason(ended: Ended, name: str) -> None:
    case = CASES[name]
    assert len(ended.answers[name]) == case.answers
    letters = ended.letters[name]
    assert len(letters) == len(case.letters), letters
    for letter, reason in zip(letters, case.letters, strict=True):
        assert re.search(reason, letter["reason"]), letter["reason"]
        assert letter.get("stage", "") == case.stage
        assert (letter["deployment"], letter["source"]) == ("ledger", "local:in")


def test_a_row_of_several_has_a_letter_of_its_own(ended: Ended) -> None:
    (letter,) = ended.letters["a list of rows"]
    assert (letter["row"], letter["record"]) == (2, {"x": 1})
    assert [json.loads(m.value)["number"] for m in ended.answers["a list of rows"]] == [1, 2, 4]


def test_bad_messages_hold_up_nobody_and_answers_come_in_the_order_of_arrival(ended: Ended) -> None:
    assert ended.order == sorted(ended.order)


def test_an_answer_carries_its_id_key_and_trace_and_echoes_what_is_kept(ended: Ended) -> None:
    (message,) = ended.answers["sound"]
    assert json.loads(message.value) == {"number": 0, "key": "k", "double": 2.0}
    assert message.key == b"k"
    headers = dict(message.headers)
    assert headers.keys() == {"mlpacker-id", "mlpacker-package", "mlpacker-stage", "traceparent"}
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", headers["traceparent"])


def test_equal_rows_have_ids_of_their_own(ended: Ended) -> None:
    assert len({dict(m.headers)["mlpacker-id"] for m in ended.answers["duplicates"]}) == 3


def test_a_message_that_names_itself_is_answered_once_whenever_it_comes_again(ended: Ended) -> None:
    came, out = (Topic(ended.stream.folder / "logs", name) for name in ("in", "out"))
    for _ in range(2):
        came.add([with_headers(BODY, mlpacker_id=b"reading-7")])
        until(lambda: came.committed() == came.log.last(), ended.stream.said)
    assert out.log.last() == len(ended.order) + 1
    assert "mlpacker_stream_repeats_total 1\n" in ended.stream.get("/metrics")[1]


def test_a_stream_tells_its_health_its_numbers_and_where_it_stands(ended: Ended) -> None:
    stream = ended.stream
    assert stream.reference == "ledger@draft"
    assert stream.get("/v2/health/live")[0] == 200
    until(lambda: stream.get("/v2/health/ready")[0] == 200, stream.said)
    status = json.loads(stream.get("/status")[1])
    assert status["package"] == "ledger@draft"
    assert (status["source"], status["sink"], status["dead_letters"]) == ("up", "up", "up")
    assert (status["in_flight"], status["lost"]) == (0, 0)
    answers = Topic(stream.folder / "logs", "out").log.last()
    letters = sum(len(found) for found in ended.letters.values())
    assert status["rows"] == {"answered": answers, "dropped": 0, "failed": letters}
    code, text = stream.get("/metrics")
    assert code == 200
    assert f'mlpacker_stream_rows_total{{outcome="answered"}} {answers}\n' in text
    assert f"mlpacker_stream_dead_letters_total {letters}\n" in text
    assert "mlpacker_stream_repeats_total" in text
    assert stream.get("/v2/models/ledger/infer")[0] == 404


# --- Its life --------------------------------------------------------------------------------------------------------


def test_told_to_end_it_finishes_and_commits_what_it_has(
    start: Start, topics: Callable[[str], Topic]
) -> None:
    came, out = topics("in"), topics("out")
    stream = start().ready()
    came.add([row(0, "slow", 1.0), *(row(n) for n in range(1, 50))])
    until(lambda: json.loads(stream.get("/status")[1])["in_flight"] > 0 or out.values(), stream.said)
    assert stream.terminate() == 0, stream.said()
    finished = [v["number"] for v in out.values()]
    assert finished == list(range(len(finished)))
    assert finished
    assert came.committed() == len(finished)
    assert stream.actions()[-2:] == ["draining", "stopped"]
    assert stream.out.read_text().count("\n") == 1


def test_a_kill_in_the_middle_loses_nothing_and_keys_keep_their_order_over_two_lanes(
    start: Start, topics: Callable[[str], Topic]
) -> None:
    came, out = topics("in"), topics("out")
    rows = [row(n, key=f"k{n % 5}") for n in range(3000)]
    stream = start(lanes=2, window=200, batch=10).ready()
    came.add(rows)
    until(lambda: out.log.last() > 300, stream.said)
    os.kill(stream.worker(), signal.SIGKILL)
    until(lambda: came.committed() == len(rows), stream.said)
    first = list(dict.fromkeys(v["number"] for v in out.values()))
    assert sorted(first) == list(range(len(rows)))
    for key in range(5):
        numbers = [n for n in first if n % 5 == key]
        assert numbers == sorted(numbers)
    made = {dict(m.headers)["mlpacker-id"] for m in out.messages()}
    assert len(made) == len(rows)
    assert "died" in stream.actions()


def test_one_of_two_processes_reads_and_the_other_takes_over_when_it_is_killed(
    start: Start, topics: Callable[[str], Topic]
) -> None:
    came, out = topics("in"), topics("out")
    first = start(name="first").ready()
    second = start(name="second").ready()
    came.add([row(n) for n in range(100)])
    until(lambda: came.committed() == 100, first.said)
    counts = [json.loads(s.get("/status")[1])["finished"] for s in (first, second)]
    assert counts == [100, 0]
    first.kill()
    came.add([row(n) for n in range(100, 150)])
    until(lambda: came.committed() == 150, second.said)
    assert [v["number"] for v in out.values()] == list(range(150))
    assert json.loads(second.get("/status")[1])["finished"] == 50


# --- Files and pipes -------------------------------------------------------------------------------------------------


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in rows)


def test_rows_pass_through_a_pipe_and_nothing_else_is_on_standard_output(start: Start) -> None:
    stream = start(source="-", sink="-", stdin=lines(row(0), row(1)) + b"no row\n\n" + lines(row(2)))
    assert stream.wait() == 0, stream.said()
    answers = [json.loads(line) for line in stream.out.read_text().splitlines()]
    assert [(a["number"], a["double"]) for a in answers] == [(0, 2.0), (1, 2.0), (2, 2.0)]
    assert len({a["mlpacker_id"] for a in answers}) == 3


def test_a_file_ends_and_the_next_run_finds_nothing_new_until_it_grows(start: Start, tmp_path: Path) -> None:
    rows, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"

    def run() -> list[dict[str, Any]]:
        stream = start(source=f"file:{rows}", sink=f"file:{answers}")
        assert stream.wait() == 0, stream.said()
        return [json.loads(line) for line in answers.read_text().splitlines()]

    rows.write_bytes(lines(*(row(n) for n in range(30)), row(30, "poison"), row(31)))
    first = run()
    assert [a["number"] for a in first] == [*range(30), 31]
    assert len({a["mlpacker_id"] for a in first}) == 31
    assert run() == first
    with rows.open("ab") as more:
        more.write(lines(row(32)))
    grown = run()
    assert grown[:-1] == first
    assert grown[-1]["number"] == 32


# --- What stops it at the start --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        ({"lanes": 0}, 2, "lanes: a whole number from 1"),
        ({"sauce": 1}, 2, "sauce: unknown key"),
        ({"source": "pigeon://loft/rows"}, 2, "There is no broker for pigeon://"),
        ({"source": "local:in?colour=red"}, 2, "no option 'colour'"),
        ({"sink": "file:answers.csv"}, 2, "answers are written as JSON lines"),
        ({"answer": "smoke"}, 2, "no payload 'smoke'"),
        ({"source": "file:/nowhere/rows.jsonl"}, 1, "/nowhere/rows.jsonl"),
        ({"source": NOBODY, "patient": False}, 1, "127.0.0.1:1"),
        ({"sink": NOBODY, "patient": False}, 1, "127.0.0.1:1"),
    ],
)
def test_what_can_not_be_mended_by_waiting_ends_it_with_a_code_and_a_sentence(
    start: Start, changed: dict[str, Any], code: int, told: str
) -> None:
    stream = start(**changed)
    assert stream.wait() == code, stream.said()
    last = stream.log()[-1]
    assert last["action"] == "failed"
    assert told in last["reason"], last
    assert stream.out.read_text() == ""


def test_a_broker_that_is_away_is_waited_for_and_the_log_says_so(start: Start) -> None:
    stream = start(source=NOBODY)
    until(lambda: "waiting" in stream.actions(), stream.said)
    told = next(line for line in stream.log() if line["action"] == "waiting")
    assert told["at"] == NOBODY
    assert told["level"] == "warning"
    assert stream.process.poll() is None
    assert stream.out.read_text() == ""
    assert stream.terminate() == 0, stream.said()
