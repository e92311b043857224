"""The ways in and out with a broker held in memory that can be away, refuse and be cut: publishing, spool, journal, and the job."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.brokers import Lag, Message, Outgoing
from mlpacker_runtime.engine import Engine
from mlpacker_runtime.errors import Away, Unusable
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.signature import Field
from mlpacker_runtime.stream import ids, payloads
from mlpacker_runtime.stream import letters as dead
from mlpacker_runtime.stream.job import Ends, Job
from mlpacker_runtime.stream.journal import Journal
from mlpacker_runtime.stream.letters import Letter
from mlpacker_runtime.stream.numbers import StreamNumbers
from mlpacker_runtime.stream.patience import Stopped
from mlpacker_runtime.stream.publishing import SLICE_BYTES, SLICE_MESSAGES, Outlet, Publisher, slices
from mlpacker_runtime.stream.repeats import Repeats
from mlpacker_runtime.stream.scoring import Done, Lane, Wording
from mlpacker_runtime.stream.settings import Settings
from mlpacker_runtime.stream.spool import Spool
from mlpacker_runtime.stream.tracking import Delivery

PATIENCE = 20.0


def until(reached: Callable[[], Any], what: str = "it") -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.005)


class Said:
    """A log that is remembered."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, action: str, *, level: str = "info", **facts: Any) -> None:
        self.lines.append((action, {"level": level, **facts}))

    def actions(self) -> list[str]:
        return [action for action, _ in self.lines]


@dataclass
class Topic:
    """Where a sink's messages are. aways: publications that raise Away first. half: how many of those are taken all the same.
    limit: bytes; what is larger is refused."""

    taken: list[Outgoing] = field(default_factory=list)
    aways: int = 0
    half: bool = False
    limit: int = 0
    asked: int = 0
    opened: int = 0
    unusable: str = ""
    headers: bool = True
    max_bytes: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self) -> Topic:
        self.opened += 1
        if self.unusable:
            raise Unusable(self.unusable)
        return self

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        self.asked += 1
        self.gate.wait(PATIENCE)
        if self.aways:
            self.aways -= 1
            if self.half:
                self.taken += messages[: len(messages) // 2]
            raise Away("The topic is away.")
        refused = {n: "too large" for n, m in enumerate(messages) if 0 < self.limit < len(m.value)}
        self.taken += [m for n, m in enumerate(messages) if n not in refused]
        return refused

    def close(self) -> None:
        pass

    def ids(self) -> list[str]:
        return [m.id for m in self.taken]


def out(*numbers: int, size: int = 2) -> list[Outgoing]:
    return [Outgoing(b"x" * size, f"id-{n}") for n in numbers]


def names(*numbers: int) -> list[str]:
    return [f"id-{n}" for n in numbers]


# --- Publishing ------------------------------------------------------------------------------------------------------


def outlet(topic: Topic, said: Said | None = None, ended: threading.Event | None = None) -> Outlet:
    over = ended or threading.Event()
    return Outlet(
        "there", topic.open, said or Said(), stopped=over.is_set, pause=lambda s: over.wait(s / 100)
    )


def test_a_sink_that_is_away_is_asked_again_until_all_is_there_in_order() -> None:
    topic, said = Topic(aways=3), Said()
    assert outlet(topic, said).publish(out(*range(5))) == {}
    assert topic.ids() == names(*range(5))
    assert topic.opened == 4
    assert said.actions() == ["away", "back"]


def test_what_was_taken_before_the_line_was_cut_is_repeated_and_nothing_is_left_out() -> None:
    topic = Topic(aways=1, half=True)
    outlet(topic).publish(out(*range(4)))
    assert topic.ids() == names(0, 1, 0, 1, 2, 3)


def test_waiting_for_a_sink_ends_with_the_stream_and_nothing_counts_as_published() -> None:
    ended = threading.Event()
    ended.set()
    topic = Topic(aways=1)
    with pytest.raises(Stopped):
        outlet(topic, ended=ended).publish(out(1))
    assert topic.taken == []


def test_what_waiting_can_not_mend_is_told_at_the_start() -> None:
    with pytest.raises(Unusable):
        outlet(Topic(unusable="No such topic.")).begin(patient=True)


def test_the_place_of_a_refused_message_is_counted_over_all_slices() -> None:
    topic = Topic(limit=3)
    sizes = [2] * (SLICE_MESSAGES + 5)
    sizes[3] = sizes[SLICE_MESSAGES + 2] = 4
    refused = outlet(topic).publish([Outgoing(b"x" * s, str(n)) for n, s in enumerate(sizes)])
    assert set(refused) == {3, SLICE_MESSAGES + 2}
    assert topic.asked == 2


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([], []),
        ([10], [1]),
        ([SLICE_BYTES + 1], [1]),
        ([SLICE_BYTES, 1, 1], [1, 2]),
        ([1, SLICE_BYTES, 1], [1, 1, 1]),
        ([SLICE_BYTES // 2, SLICE_BYTES // 2, 1], [2, 1]),
        ([1] * (2 * SLICE_MESSAGES + 1), [SLICE_MESSAGES, SLICE_MESSAGES, 1]),
    ],
)
def test_slices_are_cut_by_bytes_and_hold_all_in_order(sizes: list[int], lengths: list[int]) -> None:
    one = bytes(SLICE_BYTES + 1)
    messages = [Outgoing(one[:s], str(n)) for n, s in enumerate(sizes)]
    found = list(slices(messages))
    assert [len(part) for part in found] == lengths
    assert [m.id for part in found for m in part] == [str(n) for n in range(len(sizes))]


@dataclass
class Bench:
    """A publisher with its topics and what it did."""

    publisher: Publisher
    answers: Topic
    letters: Topic
    repeats: Repeats
    numbers: StreamNumbers
    said: Said
    ended: threading.Event


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    answers, letters, said, ended = Topic(), Topic(), Said(), threading.Event()
    repeats, numbers = Repeats(tmp_path, places=64), StreamNumbers(tmp_path, ["s"], {})
    publisher = Publisher(
        outlet(answers, said, ended),
        outlet(letters, said, ended),
        {"deployment": "d"},
        repeats,
        numbers,
        lambda: None,
    )
    yield Bench(publisher, answers, letters, repeats, numbers, said, ended)
    repeats.close()


def done(
    offset: int, *, answers: int = 1, letters: int = 0, size: int = 2, value: bytes = b"{}", left: int = 1
) -> Done:
    delivery = Delivery(Message("0", offset, value), bytes([offset]) * 16, time.time(), left)
    made = [Letter(delivery.message, "because", f"letter-{offset}-{n}") for n in range(letters)]
    return Done(
        delivery, [Outgoing(b"x" * size, f"{offset}-{n}") for n in range(answers)], made, answers + letters
    )


def test_a_message_is_finished_when_its_answers_and_letters_are_there(bench: Bench) -> None:
    dones = [done(1), done(2, answers=0, letters=1), done(3, answers=2), done(4, left=2)]
    bench.publisher.deliver(dones)
    assert bench.answers.ids() == ["1-0", "3-0", "3-1", "4-0"]
    assert bench.letters.ids() == ["letter-2-0"]
    assert [d.delivery.left for d in dones] == [0, 0, 0, 1]
    known = [bench.repeats.is_repeat(bytes([n]) * 16, "i", "0", n) for n in (1, 2, 3, 4)]
    assert known == [True, False, True, False], (
        "what became a dead letter may be sent again, and is no repeat then"
    )
    numbers = bench.numbers
    assert [numbers.get(numbers.outcomes, n) for n in range(3)] == [4, 0, 1]


def test_nothing_is_finished_while_the_sink_is_away(bench: Bench) -> None:
    bench.ended.set()
    bench.answers.aways = 1
    waiting = done(1)
    with pytest.raises(Stopped):
        bench.publisher.deliver([waiting])
    assert waiting.delivery.left == 1
    assert not bench.repeats.is_repeat(bytes([1]) * 16, "i", "0", 1)


def test_nothing_is_finished_while_the_dead_letters_are_away_and_none_is_dropped(bench: Bench) -> None:
    bench.letters.aways = 2
    waiting = done(1, answers=0, letters=1)
    bench.publisher.deliver([waiting])
    assert bench.letters.ids() == ["letter-1-0"]
    assert waiting.delivery.left == 0
    bench.letters.aways = 1
    bench.ended.set()
    late = done(2, answers=1, letters=1)
    with pytest.raises(Stopped):
        bench.publisher.deliver([late])
    assert late.delivery.left == 1


def test_an_answer_that_the_sink_never_takes_is_a_letter_and_no_answer(bench: Bench) -> None:
    bench.answers.limit = 3
    dones = [done(1), done(2, size=4, value=b'{"big": 1}'), done(3)]
    bench.publisher.deliver(dones)
    assert bench.answers.ids() == ["1-0", "3-0"]
    (letter,) = bench.letters.taken
    told = json.loads(letter.value)
    assert (told["id"], told["stage"], told["value"]) == ("2-0", "sink", '{"big": 1}')
    assert "too large" in told["reason"]
    assert all(d.delivery.left == 0 for d in dones)
    numbers = bench.numbers
    assert [numbers.get(numbers.outcomes, n) for n in range(3)] == [2, 0, 1]


def test_a_letter_too_large_for_its_topic_is_cut_and_still_written(bench: Bench) -> None:
    bench.letters.limit = dead.SHOWN_BYTES + 2000
    bench.publisher.deliver([done(1, answers=0, letters=1, value=b"y" * (2 * dead.SHOWN_BYTES))])
    told = json.loads(bench.letters.taken[0].value)
    assert len(told["value"]) == dead.SHOWN_BYTES
    assert told["bytes"] == 2 * dead.SHOWN_BYTES
    assert told["offset"] == 1


def test_a_letter_that_is_refused_even_shortened_stops_the_stream_and_is_not_lost(bench: Bench) -> None:
    bench.letters.limit = 10
    stuck = done(1, answers=0, letters=1)
    with pytest.raises(Away, match="not even a shortened letter"):
        bench.publisher.deliver([stuck])
    assert stuck.delivery.left == 1
    assert "undeliverable" in bench.said.actions()


def test_what_was_forgotten_is_not_published(bench: Bench) -> None:
    gone = done(1, letters=1)
    gone.delivery.forgotten = True
    bench.publisher.deliver([gone, done(2)])
    assert bench.answers.ids() == ["2-0"]
    assert bench.letters.taken == []


def test_what_waits_is_published_together_and_the_end_comes_after_it(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.publisher.queue.put([done(number)])
    bench.publisher.queue.put(None)
    bench.publisher.queue.put([done(4)])
    bench.publisher.run()
    assert bench.answers.ids()[:3] == ["1-0", "2-0", "3-0"]
    assert bench.answers.asked <= 2


@pytest.mark.parametrize("patient", [True, False])
def test_a_sink_that_is_away_at_the_start_is_waited_for_or_not_as_told(bench: Bench, patient: bool) -> None:
    def nobody() -> Topic:
        raise Away("Nobody is there.")

    bench.publisher.patient = patient
    bench.publisher.answers.open = nobody
    bench.publisher.queue.put(None)
    if patient:
        bench.publisher.run()
        assert bench.said.actions() == ["waiting"]
    else:
        with pytest.raises(Away, match="Nobody"):
            bench.publisher.run()
    assert bench.publisher.begun.is_set()


# --- The spool -------------------------------------------------------------------------------------------------------


@contextmanager
def spool(
    folder: Path,
    topic: Topic,
    *,
    bound: int = 1 << 24,
    drop_oldest: bool = False,
    said: Said | None = None,
    bury: Callable[[Sequence[Letter]], None] = lambda found: None,
) -> Iterator[Spool]:
    made = Spool(
        folder, topic.open, bury, bound=bound, drop_oldest=drop_oldest, at="there", log=said or Said()
    )
    try:
        yield made
    finally:
        made.close()


FOREVER = 1 << 30


def test_a_sink_that_is_there_gets_its_messages_at_once(tmp_path: Path) -> None:
    topic = Topic(limit=5)
    with spool(tmp_path, topic) as kept:
        assert kept.publish([*out(1), *out(2, size=9)]) == {1: "too large"}
        assert topic.ids() == names(1)
        assert kept.waiting() == 0


def test_what_came_while_the_sink_was_away_is_forwarded_in_order_and_new_rows_queue_behind(
    tmp_path: Path,
) -> None:
    topic, said = Topic(aways=3), Said()
    with spool(tmp_path, topic, said=said) as kept:
        for number in range(6):
            assert kept.publish(out(number)) == {}
        until(lambda: kept.depth == 0 and len(topic.taken) == 6)
        kept.publish(out(6))
        assert topic.ids() == names(*range(7))
    assert said.actions()[0] == "spooling"
    assert "forwarded" in said.actions()


def test_what_was_spooled_is_forwarded_by_the_next_process_without_a_new_row(tmp_path: Path) -> None:
    gone = Topic(aways=FOREVER)
    with spool(tmp_path, gone) as kept:
        kept.publish(out(1, 2))
        kept.publish(out(3))
        assert kept.depth == 3
    there = Topic()
    with spool(tmp_path, there) as kept:
        until(lambda: len(there.taken) == 3)
        assert there.taken == out(1, 2, 3)
        until(lambda: kept.depth == 0)


def test_a_line_cut_while_forwarding_repeats_and_loses_nothing(tmp_path: Path) -> None:
    topic = Topic(aways=2, half=True)
    with spool(tmp_path, topic) as kept:
        kept.publish(out(*range(10)))
        until(lambda: kept.waiting() == 0)
    first = list(dict.fromkeys(topic.ids()))
    assert first == names(*range(10))


def test_at_its_bound_the_spool_takes_nothing_more_and_drops_nothing(tmp_path: Path) -> None:
    topic = Topic(aways=FOREVER)
    with spool(tmp_path, topic, bound=200_000) as kept:
        while kept.kept.size_bytes() + 20_000 <= 200_000:
            kept.publish(out(0, size=20_000))
        written = kept.waiting()
        with pytest.raises(Away, match="spool holds"):
            kept.publish(out(1, size=20_000))
        assert kept.waiting() == written > 0
        assert kept.dropped == 0


def test_where_told_to_the_oldest_rows_give_way_and_are_counted(tmp_path: Path) -> None:
    topic, said = Topic(aways=FOREVER), Said()
    with spool(tmp_path, topic, bound=200_000, drop_oldest=True, said=said) as kept:
        for number in range(40):
            kept.publish(out(number, size=20_000))
        assert kept.dropped > 0
        assert kept.waiting() + kept.dropped == 40
        newest = kept.kept.read_outgoing(0, 0, 100)[-1][1]
        assert newest.id == "id-39"
    told = [facts for action, facts in said.lines if action == "dropped"]
    assert sum(facts["count"] for facts in told) == kept.dropped
    assert all(facts["level"] == "error" for facts in told)


def test_what_the_sink_refuses_when_it_is_back_is_buried_before_it_leaves_the_spool(tmp_path: Path) -> None:
    topic = Topic(aways=2, limit=5)
    buried: list[Letter] = []
    left: list[int] = []

    def bury(found: Sequence[Letter]) -> None:
        left.append(kept.waiting())
        buried.extend(found)

    with spool(tmp_path, topic, bury=bury) as kept:
        kept.publish([*out(1), *out(2, size=9), *out(3)])
        until(lambda: kept.waiting() == 0)
    assert topic.ids() == names(1, 3)
    assert [(w.id, w.stage, w.message.value) for w in buried] == [("id-2", "sink", b"x" * 9)]
    assert left == [3]


def test_a_spool_whose_sink_can_not_be_used_any_more_says_so(tmp_path: Path) -> None:
    topic = Topic(aways=FOREVER)
    with spool(tmp_path, topic) as kept:
        kept.publish(out(1))
        topic.unusable = "The topic was deleted."
        until(lambda: kept.failure is not None)
        with pytest.raises(Unusable, match="deleted"):
            kept.publish(out(2))
        assert kept.waiting() == 1


def test_the_end_of_the_stream_ends_forwarding_in_peace(tmp_path: Path) -> None:
    def stops(found: Sequence[Letter]) -> None:
        raise Stopped

    topic = Topic(aways=1, limit=5)
    with spool(tmp_path, topic, bury=stops) as kept:
        kept.publish(out(1, size=9))
        until(lambda: not kept.thread.is_alive())
        assert kept.waiting() == 1


# --- A source in memory ----------------------------------------------------------------------------------------------


class Gone(BaseException):
    """The process ends here."""


@dataclass
class Feed:
    """A topic that is read. A source of it delivers from behind the last commit; `cut` makes the next poll raise Away;
    `give_up` gives partitions up within it, for good where another reads them."""

    messages: list[Message] = field(default_factory=list)
    committed: dict[str, int] = field(default_factory=dict)
    commits: list[dict[str, int]] = field(default_factory=list)
    polls: list[int] = field(default_factory=list)
    opened: int = 0
    aways: int = 0
    incarnation: str = "i"
    finite: bool = False
    cut: bool = False
    cut_commits: int = 0
    another_reads: bool = False
    give_up: tuple[frozenset[str], float] | None = None
    gave_up: threading.Event = field(default_factory=threading.Event)
    most: int = 1000

    def open(self, listener: Any = None) -> Reader:
        if self.aways:
            self.aways -= 1
            raise Away("The topic is away.")
        self.opened += 1
        return Reader(self, listener)

    def add(self, *values: Any, partition: str = "0") -> Feed:
        for value in values:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            offset = 1 + sum(m.partition == partition for m in self.messages)
            self.messages.append(Message(partition, offset, body))
        return self


class Reader:
    def __init__(self, feed: Feed, listener: Any) -> None:
        self.feed = feed
        self.listener = listener
        self.incarnation = feed.incarnation
        self.place = dict(feed.committed)
        self.closed = False
        self.ended = False
        self.lost: list[int] = []

    def poll(self, limit: int, seconds: float) -> list[Message]:
        feed = self.feed
        feed.polls.append(limit)
        if feed.cut:
            feed.cut = False
            raise Away("The line was cut.")
        if feed.give_up is not None:
            partitions, patience = feed.give_up
            feed.give_up = None
            self.listener.giving_up(partitions, patience)
            if feed.another_reads:
                feed.messages = [m for m in feed.messages if m.partition not in partitions]
            for partition in partitions:
                self.place[partition] = feed.committed.get(partition, 0)
            feed.gave_up.set()
        found = [m for m in feed.messages if m.offset > self.place.get(m.partition, 0)][
            : min(limit, feed.most)
        ]
        for message in found:
            self.place[message.partition] = message.offset
        self.ended = feed.finite and not found and limit > 0
        if not found:
            time.sleep(min(seconds, 0.01))
        return found

    def commit(self, finished: Mapping[str, int]) -> None:
        if self.feed.cut_commits:
            self.feed.cut_commits -= 1
            raise Away("The line was cut in a commit.")
        self.feed.commits.append(dict(finished))
        self.feed.committed.update(finished)

    def lag(self) -> Lag:
        return Lag({"0": sum(m.offset > self.place.get(m.partition, 0) for m in self.feed.messages)})

    def close(self) -> None:
        self.closed = True


# --- The journal -----------------------------------------------------------------------------------------------------


@contextmanager
def journal(folder: Path, feed: Feed, *, bound: int = 1 << 30, said: Said | None = None) -> Iterator[Journal]:
    made = Journal(folder, feed.open, bound=bound, at="there", log=said or Said())  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def read(source: Journal, count: int) -> list[Message]:
    found: list[Message] = []
    until(
        lambda: found.extend(source.poll(count - len(found), 0.05)) or len(found) >= count,
        f"{count} messages",
    )
    return found


def test_a_message_is_in_the_journal_before_its_broker_is_told(tmp_path: Path) -> None:
    feed = Feed().add(b"a", b"b", b"c")
    held: list[int] = []
    with journal(tmp_path, feed) as kept:
        taken = feed.commits
        until(lambda: taken)
        held.append(kept.kept.count())
        found = read(kept, 3)
    assert [m.value for m in found] == [b"a", b"b", b"c"]
    assert [m.offset for m in found] == [1, 2, 3]
    assert held == [3]
    assert feed.committed == {"0": 3}


def test_what_is_in_the_journal_and_not_finished_comes_again_from_the_disk(tmp_path: Path) -> None:
    feed = Feed().add(b"a", b"b", b"c")
    with journal(tmp_path, feed) as kept:
        first = read(kept, 3)
        kept.commit({"0": first[0].offset})
        name = kept.incarnation
    empty = Feed()
    with journal(tmp_path, empty) as kept:
        assert kept.incarnation == name
        assert [m.value for m in read(kept, 2)] == [b"b", b"c"]
        assert [m.offset for m in first[1:]] == [2, 3]


def test_a_crash_between_journal_and_acknowledgement_repeats_a_message_and_loses_none(tmp_path: Path) -> None:
    feed = Feed(cut_commits=1).add(b"a", b"b")
    with journal(tmp_path, feed) as kept:
        found = read(kept, 4)
    assert [m.value for m in found] == [b"a", b"b", b"a", b"b"]
    assert feed.opened == 2
    assert feed.committed == {"0": 2}


def test_a_broker_that_is_away_does_not_keep_what_is_journalled_from_being_read(tmp_path: Path) -> None:
    with journal(tmp_path, Feed().add(b"a")) as kept:
        read(kept, 1)
    said = Said()
    away = Feed(aways=FOREVER)
    with journal(tmp_path, away, said=said) as kept:
        assert [m.value for m in read(kept, 1)] == [b"a"]
        until(lambda: "away" in said.actions())
        away.add(b"b").aways = 0
        assert [m.value for m in read(kept, 1)] == [b"b"]
        assert "back" in said.actions()


def test_with_nothing_to_read_a_broker_that_is_away_is_away(tmp_path: Path) -> None:
    with pytest.raises(Away):
        Journal(tmp_path, Feed(aways=1).open, bound=1, at="there", log=Said())  # type: ignore[arg-type]
    with journal(tmp_path, Feed().add(b"a")) as kept:  # and it can be had again
        read(kept, 1)


def test_at_its_bound_the_journal_takes_nothing_more_until_there_is_room(tmp_path: Path) -> None:
    feed, said = Feed(most=5), Said()
    feed.add(*[b"x" * 20_000 for _ in range(60)])
    with journal(tmp_path, feed, bound=400_000, said=said) as kept:
        until(lambda: "full" in said.actions())
        polls = len(feed.polls)
        until(lambda: len(feed.polls) > polls + 1)
        assert feed.polls[-1] == 0
        taken = feed.committed["0"]
        assert taken < 60
        found: list[Message] = []
        while len(found) < 60:
            found += read(kept, 1)
            kept.commit({"0": found[-1].offset})
    assert [m.offset for m in found] == list(range(1, 61))


def test_what_the_brokers_source_can_not_mend_reaches_the_reader(tmp_path: Path) -> None:
    feed = Feed()

    def broken() -> Any:
        if feed.opened:
            raise Unusable("The queue was deleted.")
        return feed.open()

    feed.cut = True
    made = Journal(tmp_path, broken, bound=1 << 20, at="there", log=Said())
    until(lambda: made.failure is not None)
    with pytest.raises(Unusable, match="deleted"):
        made.poll(1, 0)
    made.close()


# --- The job ---------------------------------------------------------------------------------------------------------

INPUTS = (Field("x", "float64"),)
OUTPUTS = (Field("y", "float64"),)
UNLUCKY = -13.0


class Doubling:
    """A stage that doubles; waits at its gate; fails for UNLUCKY."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[list[float]] = []
        self.raises: BaseException | None = None

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        x = batch.columns["x"]
        self.asked.append(x.tolist())
        assert self.gate.wait(PATIENCE)
        if self.raises is not None:
            raise self.raises
        bad = {int(r): "unlucky" for r, v in zip(batch.rows, x, strict=True) if v == UNLUCKY}
        good = x != UNLUCKY
        return Outcome(Batch({"y": x[good] * 2}, batch.rows[good]), bad)


class Running:
    """A job in a thread, over topics in memory. Ends with the test."""

    def __init__(
        self,
        folder: Path,
        feed: Feed | None = None,
        *,
        lanes: int = 1,
        drain: float = PATIENCE,
        **changed: Any,
    ) -> None:
        self.feed = feed or Feed()
        self.answers, self.letters, self.said = Topic(), Topic(), Said()
        self.stages = [Doubling() for _ in range(lanes)]
        self.stage = self.stages[0]
        folder.mkdir(parents=True, exist_ok=True)
        self.repeats = Repeats(folder, places=256)
        self.numbers = StreamNumbers(folder, ["s"], {})
        self.ready = threading.Event()
        settings = Settings(name="n", source="local:a", sink="local:b", state="s", lanes=lanes, **changed)
        wording = Wording("sha256:p", "s", payloads.encoder("json", OUTPUTS, {}), keep=("x",))
        stage = Stage("s", "toy", "code/toy.py", inputs=INPUTS, outputs=OUTPUTS)
        self.job = Job(
            settings,
            Ends(self.feed.open, self.answers.open, self.letters.open),  # type: ignore[arg-type]
            [Lane(Engine((stage,), {"s": s}), INPUTS, wording) for s in self.stages],
            payloads.decoder("json", INPUTS, {}),
            self.repeats,
            self.numbers,
            self.said,
            about={},
            stage="s",
            opened=self.ready.set,
        )
        self.failure: BaseException | None = None
        self.drain = drain
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.job.run(self.drain)
        except BaseException as cause:
            self.failure = cause

    def start(self) -> Running:
        self.thread.start()
        return self

    def stop(self) -> Running:
        for stage in self.stages:
            stage.gate.set()
        self.answers.gate.set()
        self.job.stop()
        return self.join()

    def join(self) -> Running:
        if self.thread.ident is not None:
            self.thread.join(PATIENCE)
            assert not self.thread.is_alive()
        return self

    def close(self) -> None:
        self.stop()
        self.repeats.close()

    def answered(self) -> list[float]:
        return [json.loads(m.value)["x"] for m in self.answers.taken]

    def count(self, name: str, at: int = 0) -> float:
        return self.numbers.get(getattr(self.numbers, name), at)


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Makes and starts a job over the same state folder each time."""
    made: list[Running] = []

    def start(*args: Any, **changed: Any) -> Running:
        made.append(Running(tmp_path, *args, **changed))
        return made[-1].start()

    yield start
    for job in made:
        job.close()


def rows(*x: float) -> list[dict[str, float]]:
    return [{"x": float(v)} for v in x]


def test_rows_are_answered_in_order_and_committed(run: Run) -> None:
    feed = Feed().add(*rows(*range(50)))
    job = run(feed, batch=7)
    until(lambda: feed.committed.get("0") == 50)
    assert job.answered() == list(range(50))
    assert job.ready.is_set()
    job.stop()
    assert job.failure is None
    assert job.job.state()["in_flight"] == 0


def test_nothing_is_committed_before_its_answer_is_confirmed(run: Run) -> None:
    feed = Feed()
    job = run(feed)
    until(job.ready.is_set)
    job.answers.gate.clear()
    feed.add(*rows(1, 2, 3))
    until(lambda: job.answers.asked)
    polls = len(feed.polls)
    until(lambda: len(feed.polls) > polls + 3)
    assert feed.commits == []
    job.answers.gate.set()
    until(lambda: feed.committed == {"0": 3})
    assert job.answered() == [1, 2, 3]


def test_a_partition_is_not_committed_beyond_a_row_that_is_still_out(run: Run) -> None:
    feed = Feed()
    job = run(feed, lanes=2, key="x", batch=1)
    lane_of = {x: crc32(str(float(x)).encode()) % 2 for x in range(20)}
    slow = next(x for x in range(20) if lane_of[x] == 0)
    quick = [x for x in range(20) if lane_of[x] == 1][:3]
    job.stages[0].gate.clear()
    feed.add(*rows(quick[0], slow, *quick[1:]))
    until(lambda: len(job.answers.taken) == 3)
    until(lambda: feed.committed == {"0": 1})
    assert job.answered() == quick
    job.stages[0].gate.set()
    until(lambda: feed.committed == {"0": 4})
    assert job.answered() == [*quick, slow]


def test_a_failed_row_is_buried_and_committed_and_the_rows_behind_it_are_answered(run: Run) -> None:
    feed = Feed().add({"x": 1.0}, {"x": UNLUCKY}, b"no row", {"x": 2.0})
    job = run(feed)
    until(lambda: feed.committed == {"0": 4})
    assert job.answered() == [1, 2]
    assert sorted(json.loads(w.value)["offset"] for w in job.letters.taken) == [2, 3]
    assert [job.count("outcomes", n) for n in range(3)] == [2, 0, 2]


def test_a_source_that_was_away_is_opened_anew_and_what_was_out_comes_again_in_order(run: Run) -> None:
    feed = Feed().add(*rows(1, 2, 3))
    job = run(feed, batch=1)
    job.stage.gate.clear()
    until(lambda: job.job.tracker.count)
    feed.cut = True
    until(lambda: feed.opened == 2)
    feed.add(*rows(4, 5))
    job.stage.gate.set()
    until(lambda: feed.committed == {"0": 5})
    assert job.answered() == [1, 2, 3, 4, 5]
    assert "away" in job.said.actions()
    assert "back" in job.said.actions()


def test_a_lost_commit_costs_no_row_and_no_second_answer(run: Run) -> None:
    feed = Feed(cut_commits=1).add(*rows(1, 2, 3))
    job = run(feed)
    until(lambda: feed.committed == {"0": 3})
    assert job.answered() == [1, 2, 3]
    assert job.count("repeated") == 3


def test_the_next_process_drops_what_the_last_one_answered_and_did_not_commit(run: Run) -> None:
    feed = Feed().add(*rows(1, 2, 3))
    first = run(feed)
    until(lambda: feed.committed == {"0": 3})
    first.close()
    feed.committed = {"0": 1}  # as the broker has it when the last commits never came
    first_notes = first.repeats.committed_file
    first_notes.write_text(json.dumps({"i/0": 1}))
    feed.add(*rows(4))
    second = run(feed)
    until(lambda: feed.committed == {"0": 4})
    assert second.answered() == [4]
    assert second.count("repeated") == 2


def test_a_full_window_pauses_reading_and_keeps_the_session(run: Run) -> None:
    feed = Feed(most=3).add(*rows(*range(20)))
    job = run(feed, window=5, batch=2)
    until(lambda: feed.committed == {"0": 20})
    assert job.answered() == list(range(20))
    job.stage.gate.clear()
    feed.add(*rows(*range(20, 40)))
    until(lambda: job.job.tracker.count >= 5)
    polls = len(feed.polls)
    until(lambda: len(feed.polls) > polls + 3)
    assert set(feed.polls[polls + 1 :]) == {0}
    assert job.job.tracker.count == 5
    job.stage.gate.set()
    until(lambda: feed.committed == {"0": 40})
    assert max(feed.polls) <= 5


def test_a_window_is_full_by_bytes_too(run: Run) -> None:
    feed = Feed(most=1)
    job = run(feed, window_bytes=100)
    until(job.ready.is_set)
    job.stage.gate.clear()
    feed.add(*[{"x": 1.0, "filling": "y" * 60} for _ in range(5)])
    until(lambda: job.job.tracker.size >= 100)
    polls = len(feed.polls)
    until(lambda: len(feed.polls) > polls + 3)
    assert job.job.tracker.count == 2
    job.stage.gate.set()
    until(lambda: feed.committed == {"0": 5})


def test_partitions_that_are_given_up_are_finished_and_committed_first(run: Run) -> None:
    feed = Feed().add(*rows(1, 2)).add(*rows(3), partition="1")
    job = run(feed)
    until(lambda: feed.committed == {"0": 2, "1": 1})
    job.stage.gate.clear()
    feed.add(*rows(4, 5))
    until(lambda: job.job.tracker.count == 2)
    feed.give_up = (frozenset(["0"]), PATIENCE)
    until(lambda: feed.give_up is None)
    assert feed.committed["0"] == 2
    job.stage.gate.set()
    until(feed.gave_up.is_set)
    assert feed.committed == {"0": 4, "1": 1}
    told = next(facts for action, facts in job.said.lines if action == "gave up")
    assert (told["partitions"], told["unfinished"]) == (["0"], 0)
    assert job.answered() == [1, 2, 3, 4, 5]


def test_what_is_not_finished_in_time_is_fenced_and_neither_committed_nor_published(run: Run) -> None:
    feed = Feed()
    job = run(feed, batch=1)
    job.stage.gate.clear()
    feed.add(*rows(1, 2, 3))
    until(lambda: job.stage.asked)
    feed.another_reads = True
    feed.give_up = (frozenset(["0"]), 0.1)
    until(feed.gave_up.is_set)
    told = next(facts for action, facts in job.said.lines if action == "gave up")
    assert told["unfinished"] == 3
    assert feed.commits == []
    job.stage.gate.set()
    job.stop()
    assert job.answered() == []
    assert feed.commits == []


def test_partitions_that_are_gone_already_are_forgotten_at_once(run: Run) -> None:
    feed = Feed()
    job = run(feed)
    job.stage.gate.clear()
    feed.add(*rows(1))
    until(lambda: job.job.tracker.count)
    feed.give_up = (frozenset(["0"]), 0.0)
    until(feed.gave_up.is_set)
    job.stage.gate.set()
    until(lambda: feed.committed == {"0": 1})
    assert set(job.answered()) == {1}
    assert job.count("given_up") == 1


def test_stopping_finishes_and_commits_what_is_out(run: Run) -> None:
    feed = Feed()
    job = run(feed)
    until(job.ready.is_set)
    job.stage.gate.clear()
    feed.add(*rows(1, 2, 3))
    until(lambda: job.job.tracker.count == 3)
    job.job.stop()
    feed.add(*rows(4))
    job.stage.gate.set()
    job.join()
    assert job.failure is None
    assert job.answered() == [1, 2, 3]
    assert feed.committed == {"0": 3}


def test_stopping_does_not_wait_for_ever_and_says_what_is_left(run: Run) -> None:
    feed = Feed()
    job = run(feed, drain=0.1)
    until(job.ready.is_set)
    job.answers.aways = FOREVER
    feed.add(*rows(1, 2))
    until(lambda: job.answers.asked)
    job.job.stop()
    job.join()
    assert feed.commits == []
    assert any(a == "unfinished" and f["messages"] == 2 for a, f in job.said.lines)


def test_a_source_that_has_an_end_ends_the_job_with_everything_committed(run: Run) -> None:
    feed = Feed(finite=True).add(*rows(*range(30)))
    job = run(feed, batch=4).join()
    assert job.failure is None
    assert job.job.ended
    assert job.answered() == list(range(30))
    assert feed.committed == {"0": 30}


def test_a_sink_that_is_away_pauses_and_nothing_is_buried_or_lost(run: Run) -> None:
    feed = Feed().add(*rows(*range(30)))
    job = run(feed, window=10, batch=5)
    job.answers.aways = 4
    until(lambda: feed.committed == {"0": 30})
    assert list(dict.fromkeys(job.answered())) == list(range(30))
    assert job.letters.taken == []


def test_a_source_that_is_away_at_the_start_is_waited_for_with_a_line_of_log(run: Run) -> None:
    feed = Feed(aways=2).add(*rows(1))
    job = run(feed)
    until(lambda: feed.committed == {"0": 1})
    assert job.said.actions().count("waiting") == 1


def test_an_impatient_job_fails_where_an_end_is_away_at_the_start(run: Run) -> None:
    job = run(Feed(aways=FOREVER), patient=False).join()
    assert isinstance(job.failure, Away)
    assert not job.ready.is_set()


def test_what_waiting_can_not_mend_fails_the_job(tmp_path: Path) -> None:
    job = Running(tmp_path)
    job.answers.unusable = "No such topic."
    job.start().join()
    assert isinstance(job.failure, Unusable)
    job.close()


def test_a_thread_that_fails_takes_the_job_with_it(run: Run) -> None:
    feed = Feed()
    job = run(feed)
    job.stage.raises = Gone()
    feed.add(*rows(1))
    job.join()
    assert isinstance(job.failure, Gone)
    assert feed.commits == []


def test_the_watchdog_looks_only_where_there_is_something_to_do_and_nobody_to_wait_for(run: Run) -> None:
    feed = Feed()
    job = run(feed)
    until(job.ready.is_set)
    assert not job.job.blocked
    assert not job.job.due
    job.stage.gate.clear()
    feed.add(*rows(1))
    until(lambda: job.job.due)
    assert not job.job.blocked
    job.stage.gate.set()
    until(lambda: not job.job.due)
    job.answers.aways = FOREVER
    feed.add(*rows(2))
    until(lambda: job.job.blocked)
    assert job.job.state()["sink"] == "away"
    job.answers.aways = 0
    until(lambda: feed.committed == {"0": 2})
    assert not job.job.blocked
    feed.aways = FOREVER
    feed.cut = True
    until(lambda: job.job.blocked)
    assert job.job.state()["source"] == "away"


def test_a_message_in_parts_is_committed_once_with_its_last_part(run: Run) -> None:
    feed = Feed()
    job = run(feed, lanes=3, key="x")
    feed.add([{"x": float(x)} for x in range(12)], {"x": 50.0})
    until(lambda: feed.committed == {"0": 2})
    assert sorted(job.answered()) == [*map(float, range(12)), 50.0]
    made = [m.id for m in job.answers.taken]
    one = ids.Ids("n", "i").message("0", 1)
    assert {ids.answer(one, n, "s", 0) for n in range(12)} < set(made)


def test_a_message_that_a_source_lost_is_counted_and_told(run: Run) -> None:
    feed = Feed()
    job = run(feed)
    until(lambda: job.job.source is not None)
    source: Any = job.job.source
    source.lost.append(7)
    until(lambda: job.count("lost") == 1)
    assert any(a == "lost" and f["count"] == 1 for a, f in job.said.lines)
    assert source.lost == []


def test_a_listener_is_what_a_source_is_given(run: Run) -> None:
    job = run(Feed())
    until(lambda: job.job.source is not None)
    source: Any = job.job.source
    assert source.listener is job.job
