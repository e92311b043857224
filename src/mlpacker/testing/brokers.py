"""The contract of a broker adapter, as a suite to subclass.

    from mlpacker.testing.brokers import BrokerContract, Edge

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        def edge(self, server):          # a fresh topic for each test
            server.make("t"), server.make("u")
            return Edge(server.address("t"), another=server.address("u"), session=6)

That is all where the broker can do everything; what yours can't is said by the fields of `Edge`, which turn a rule off or turn it
round (a sink without headers must say `headers = False`). The module is found by the address's scheme (`mlpacker_runtime.brokers.get`,
which looks at the entry points too), or given as `Edge(broker=…)`.

What your adapter has to be able to do, in the order in which it is best written:

1. `sink.publish(list)`, which returns when all of it is confirmed. The rules `publish_…` need the source as well.
2. `source.poll` and `commit`. The suite calls them as the runtime does: from one thread, `poll` again and again, `commit` with the
   contiguous finished prefix by partition; a source is closed and another made, and everything that was not committed must come
   again *in order and before anything newer*. Offsets may have gaps; they never fall within a partition.
3. `start`, `lag`, `incarnation`, a second member in ordered mode, options, `explain`.

The topic of the suite should have one partition, where a topic has several: the suite uses one key throughout, and awaits that a
second member of the group stands by. Rules with several partitions and with crashes are your broker's own: write them yourself.
Every value here is a line of JSON, save in the rule of bytes that are not.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Guarantee, Message, Outgoing, Reading, Sink, Source, Unusable
from mlpacker_runtime.brokers.address import Address, parse
from mlpacker_runtime.errors import BadDescription

KEY = b"pump-7"


class Given:
    """A listener that remembers: `given[(partitions, seconds), …]`, what it was told."""

    def __init__(self) -> None:
        self.given: list[tuple[frozenset[str], float]] = []

    def giving_up(self, partitions: Collection[str], seconds: float) -> None:
        self.given.append((frozenset(partitions), seconds))


@dataclass
class Edge:
    """A fresh, empty, durable topic, and what its broker can do.

    address: of source and sink both; to: the sink's, where it reads otherwise (an option that is the source's only). another: of a second topic. missing: of a topic that is not there (`Unusable` is awaited).
    away: where nobody answers (made from `address` where it has hosts). recreate: deletes the topic and makes it again.
    broker: the adapter; None: by the scheme.
    headers, keys, times: whether messages carry them. binary: whether a value may be any bytes, else one line of JSON.
    largest: bytes of a value that must pass. lag: whether the source can say it. starts: what of `earliest`, `latest`, `offset`,
    `time` a new group may begin at; without `earliest` a source of the group is opened before anything is published.
    standby: whether one member reads and the others stand by in ordered mode. competing: whether unordered readers share.
    session: seconds until a silent reader is taken for dead. patience: seconds the suite waits for what must come.
    state: a folder, for sources that need one; the suite gives one.
    """

    address: Address | str
    to: Address | str | None = None
    another: Address | str | None = None
    missing: Address | str | None = None
    away: Address | str | None = None
    recreate: Callable[[], None] | None = None
    broker: Any = None
    headers: bool = True
    keys: bool = True
    times: bool = True
    binary: bool = True
    largest: int = 200_000
    lag: bool = True
    starts: Sequence[str] = ("earliest", "latest")
    standby: bool = True
    competing: bool = False
    session: float = 6.0
    patience: float = 20.0
    state: str = ""
    listener: Given = field(default_factory=Given)
    opened: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.address = _address(self.address)
        if self.broker is None:
            self.broker = brokers.get(self.address.scheme)

    def source(
        self,
        member: str = "0",
        *,
        group: str = "g",
        start: str | None = None,
        ordered: bool = True,
        at: Address | str | None = None,
    ) -> Source:
        """A new source of `at` (else the address); closed at the end of the test."""
        start = start or ("earliest" if "earliest" in self.starts else "latest")
        reading = Reading(group, member, start, ordered, window=1000, session=self.session, state=self.state)
        made: Source = self.broker.source(_address(at or self.address), reading, self.listener)
        self.opened.append(made)
        return made

    def sink(self, at: Address | str | None = None) -> Sink:
        made: Sink = self.broker.sink(_address(at or self.to or self.address), "contract")
        self.opened.append(made)
        return made

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    # What tests say in one line.

    def publish(self, numbers: Sequence[int], at: Address | str | None = None) -> None:
        """Values with these numbers, in a sink of their own."""
        sink = self.sink(at)
        assert dict(sink.publish([outgoing(n, self) for n in numbers])) == {}
        sink.close()

    def take(self, source: Source, count: int, limit: int = 1000) -> list[Message]:
        """Exactly `count` messages, whatever number of polls it takes. The last poll asks for no more than are left."""
        got: list[Message] = []
        until = time.monotonic() + self.patience
        while len(got) < count and time.monotonic() < until:
            got += source.poll(min(limit, count - len(got)), 0.5)
        assert len(got) == count, f"{count} messages were awaited, {len(got)} came in {self.patience} s"
        return got

    def none(self, source: Source, seconds: float = 0.7) -> None:
        """Nothing comes for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert numbers(source.poll(1000, 0.2)) == []


def _address(given: Address | str) -> Address:
    return given if isinstance(given, Address) else parse(given)


def value(number: int) -> bytes:
    return b'{"n": %d}' % number


def numbers(messages: Sequence[Message]) -> list[int]:
    return [json.loads(m.value)["n"] for m in messages]


def outgoing(number: int, edge: Edge) -> Outgoing:
    """With a key and headers where the broker carries them."""
    headers = (("mlpacker-id", b"id-%d" % number), ("traceparent", b"\x00\xff")) if edge.headers else ()
    return Outgoing(value(number), f"id-{number}", KEY if edge.keys else None, headers)


def committed(messages: Sequence[Message]) -> dict[str, int]:
    """What `commit` is told when these, all that were delivered, are finished."""
    return {m.partition: m.offset for m in messages}


class BrokerContract:
    """What every adapter promises. The fixture `edge`, an `Edge` with a fresh topic, is the subclass's to give."""

    @pytest.fixture
    def edge(self) -> Edge:
        raise NotImplementedError("give the suite a topic: a fixture `edge`")

    @pytest.fixture(autouse=True)
    def opened(self, edge: Edge, tmp_path: Path) -> Iterator[None]:
        """Gives the edge a state folder, begins the group where it can't begin in the past, and closes what was opened."""
        edge.state = edge.state or str(tmp_path / "state")
        Path(edge.state).mkdir(parents=True, exist_ok=True)
        if "earliest" not in edge.starts:
            source = edge.source()
            source.poll(0, 0.5)
            source.close()
        yield
        edge.close()

    # Reading

    def test_messages_arrive_in_the_order_they_were_published_with_offsets_that_grow(
        self, edge: Edge
    ) -> None:
        edge.publish(range(50))
        edge.publish(range(50, 80))
        got = edge.take(edge.source(), 80)
        assert numbers(got) == list(range(80))
        assert all(a.offset < b.offset for a, b in itertools.pairwise(got))
        assert len({m.partition for m in got}) == 1

    def test_poll_returns_nothing_after_its_seconds_when_nothing_comes(self, edge: Edge) -> None:
        source = edge.source()
        edge.publish([1])
        edge.take(source, 1)
        before = time.monotonic()
        assert source.poll(10, 0.3) == []
        assert 0.25 < time.monotonic() - before < 5

    def test_poll_returns_when_a_message_comes_and_does_not_sit_out_its_seconds(self, edge: Edge) -> None:
        source, sink = edge.source(), edge.sink()
        sink.publish([outgoing(0, edge)])
        edge.take(source, 1)
        later = threading.Timer(0.5, lambda: sink.publish([outgoing(1, edge)]))
        later.start()
        before = time.monotonic()
        got = source.poll(10, 30)
        assert (numbers(got), time.monotonic() - before < 20) == ([1], True)
        later.join()

    def test_poll_gives_no_more_than_its_limit_and_the_rest_at_the_next(self, edge: Edge) -> None:
        edge.publish(range(20))
        source = edge.source()
        got = edge.take(source, 1)
        while len(got) < 20:
            more = source.poll(3, edge.patience)
            assert 0 < len(more) <= 3
            got += more
        assert numbers(got) == list(range(20))

    def test_limit_0_delivers_nothing_and_loses_nothing(self, edge: Edge) -> None:
        edge.publish(range(5))
        source = edge.source()
        for _ in range(5):
            assert source.poll(0, 0.2) == []
        assert numbers(edge.take(source, 5)) == list(range(5))
        for _ in range(3):
            assert source.poll(0, 0.1) == []

    # Committing

    def test_what_was_not_committed_is_delivered_again_in_order_and_before_what_is_newer(
        self, edge: Edge
    ) -> None:
        edge.publish(range(6))
        first = edge.source()
        edge.take(first, 6)
        first.close()
        edge.publish(range(6, 10))
        assert numbers(edge.take(edge.source(), 10)) == list(range(10))

    def test_what_was_committed_is_not_delivered_again(self, edge: Edge) -> None:
        edge.publish(range(6))
        first = edge.source()
        first.commit(committed(edge.take(first, 6)))
        edge.none(first)
        first.close()
        second = edge.source()
        edge.none(second)
        edge.publish([6])
        assert numbers(edge.take(second, 1)) == [6]

    def test_a_commit_finishes_what_came_before_it_and_nothing_behind(self, edge: Edge) -> None:
        edge.publish(range(8))
        first = edge.source()
        got = edge.take(first, 8)
        first.commit(committed(got[:2]))
        first.commit(committed(got[2:5]))
        first.close()
        edge.publish([8])
        assert numbers(edge.take(edge.source(), 4)) == [5, 6, 7, 8]

    def test_the_same_commit_twice_and_an_empty_one_are_harmless(self, edge: Edge) -> None:
        edge.publish(range(4))
        first = edge.source()
        got = edge.take(first, 4)
        first.commit({})
        first.commit(committed(got[:3]))
        first.commit(committed(got[:3]))
        first.close()
        assert numbers(edge.take(edge.source(), 1)) == [3]

    def test_each_group_reads_everything_for_itself(self, edge: Edge) -> None:
        one = edge.source(group="g")
        if "earliest" not in edge.starts:
            edge.source(group="h").poll(0, 0.5)
            edge.opened.pop().close()
        edge.publish(range(3))
        one.commit(committed(edge.take(one, 3)))
        assert numbers(edge.take(edge.source(group="h"), 3)) == [0, 1, 2]

    # Publishing

    def test_publish_keeps_the_order_of_its_list_and_returns_when_all_can_be_read(self, edge: Edge) -> None:
        sink = edge.sink()
        for start in range(0, 600, 200):
            assert dict(sink.publish([outgoing(n, edge) for n in range(start, start + 200)])) == {}
        assert numbers(edge.take(edge.source(), 600)) == list(range(600))

    def test_publishing_nothing_is_nothing(self, edge: Edge) -> None:
        assert dict(edge.sink().publish([])) == {}

    def test_the_key_the_headers_and_the_time_come_along(self, edge: Edge) -> None:
        sink = edge.sink()
        assert sink.headers is edge.headers
        sink.publish([outgoing(1, edge)])
        got = edge.take(edge.source(), 1)[0]
        wanted = outgoing(1, edge)
        assert got.key == wanted.key
        carried = dict(got.headers)
        assert {name: carried.get(name) for name, _ in wanted.headers} == dict(wanted.headers)
        if edge.times:
            assert abs(got.time - time.time()) < 60

    def test_any_bytes_pass_and_none_at_all(self, edge: Edge) -> None:
        values = [value(1)]
        if edge.binary:
            values = [b"", b"\x00", bytes(range(256)), b"two\nlines\r\n", "grüße".encode(), b"\xff\xfe"]
        edge.sink().publish(
            [Outgoing(v, f"id-{n}", KEY if edge.keys else None) for n, v in enumerate(values)]
        )
        assert [m.value for m in edge.take(edge.source(), len(values))] == values

    def test_a_large_value_passes_whole(self, edge: Edge) -> None:
        large = b'"' + b"0123456789abcdef" * (edge.largest // 16) + b'"'
        sink = edge.sink()
        assert sink.max_bytes == 0 or sink.max_bytes >= len(large)
        assert dict(sink.publish([Outgoing(large, "id-0"), Outgoing(value(1), "id-1")])) == {}
        assert [m.value for m in edge.take(edge.source(), 2)] == [large, value(1)]

    # Topic, members, starts

    def test_the_incarnation_stays_while_the_topic_does_and_is_no_other_topics(self, edge: Edge) -> None:
        edge.publish([1])
        first = edge.source()
        known = first.incarnation
        assert known
        first.close()
        edge.publish([2])
        second = edge.source()
        assert second.incarnation == known
        second.close()
        if edge.another is not None:
            assert edge.source(at=edge.another).incarnation != known

    def test_a_topic_made_again_is_another(self, edge: Edge) -> None:
        if edge.recreate is None:
            pytest.skip("this edge can't delete its topic and make it again")
        edge.publish([1])
        first = edge.source()
        known = first.incarnation
        first.close()
        edge.recreate()
        assert edge.source().incarnation != known

    def test_a_second_ordered_member_stands_by_until_the_first_leaves(self, edge: Edge) -> None:
        if not edge.standby:
            pytest.skip("this broker has one reader only")
        edge.publish(range(4))
        first = edge.source("0")
        got = edge.take(first, 4)
        first.commit(committed(got[:1]))
        second = edge.source("1")
        for _ in range(4):
            assert second.poll(10, 0.3) == []
            first.poll(0, 0.1)
        edge.publish([4])
        assert edge.take(first, 1)[0].value == value(4)
        assert second.poll(10, 0.3) == []
        first.close()
        assert numbers(edge.take(second, 4)) == [1, 2, 3, 4]

    def test_unordered_members_share_and_none_is_lost(self, edge: Edge) -> None:
        if not edge.competing:
            pytest.skip("this broker's readers do not compete")
        members = [edge.source(str(n), ordered=False) for n in range(2)]
        edge.publish(range(60))
        seen: set[int] = set()
        until = time.monotonic() + edge.patience
        while len(seen) < 60 and time.monotonic() < until:
            for member in members:
                got = member.poll(5, 0.2)
                member.commit(committed(got))
                seen |= set(numbers(got))
        assert seen == set(range(60))
        for member in members:
            member.close()
        edge.none(edge.source(ordered=False))

    def test_latest_begins_behind_what_is_there(self, edge: Edge) -> None:
        if "latest" not in edge.starts:
            pytest.skip("a group can't begin at the latest here")
        edge.publish(range(3))
        source = edge.source(group="late", start="latest")
        sink, until = edge.sink(), time.monotonic() + edge.patience
        got: list[Message] = []
        while not got and time.monotonic() < until:  # where the source begins may be settled some polls later
            got = source.poll(10, 0.5)
            sink.publish([outgoing(100, edge)])
        assert set(numbers(got)) == {100}

    def test_a_group_can_begin_at_a_time(self, edge: Edge) -> None:
        if "time" not in edge.starts:
            pytest.skip("a group can't begin at a time here")
        edge.publish(range(3))
        time.sleep(1.1)
        middle = time.time()
        time.sleep(0.1)
        edge.publish(range(3, 6))
        assert numbers(edge.take(edge.source(group="timed", start=f"time:{middle}"), 3)) == [3, 4, 5]

    def test_a_group_can_begin_at_an_offset(self, edge: Edge) -> None:
        if "offset" not in edge.starts:
            pytest.skip("a group can't begin at an offset here")
        edge.publish(range(5))
        third = edge.take(edge.source(), 5)[2]
        assert numbers(edge.take(edge.source(group="placed", start=f"offset:{third.offset}"), 3)) == [2, 3, 4]

    @pytest.mark.parametrize("start", ["yesterday", "offset:", "offset:x", "time:noon", ""])
    def test_a_start_that_is_none_is_refused(self, edge: Edge, start: str) -> None:
        reading = Reading("strange", start=start, state=edge.state)
        with pytest.raises((BadDescription, Unusable)):
            edge.opened.append(edge.broker.source(edge.address, reading, edge.listener))

    def test_the_lag_counts_what_was_not_delivered(self, edge: Edge) -> None:
        edge.publish(range(10))
        source = edge.source()
        source.commit(committed(edge.take(source, 4)))
        if not edge.lag:
            assert source.lag() is None
            return
        assert self._lag(edge, source, 6) == 6
        source.commit(committed(edge.take(source, 6)))
        assert self._lag(edge, source, 0) == 0

    @staticmethod
    def _lag(edge: Edge, source: Source, wanted: int) -> int | None:
        """The lag when it is what is wanted, else the last that was told."""
        until, found = time.monotonic() + edge.patience, None
        while time.monotonic() < until:
            lag = source.lag()
            found = None if lag is None else lag.total
            if found == wanted:
                return found
            source.poll(0, 0.2)
        return found

    # Manners

    def test_closing_twice_is_harmless(self, edge: Edge) -> None:
        for opened in (edge.source(), edge.sink()):
            opened.close()
            opened.close()

    def test_an_option_nobody_knows_is_refused(self, edge: Edge) -> None:
        for opening, given in ((edge.source, edge.address), (edge.sink, edge.to or edge.address)):
            address = _address(given)
            strange = replace(address, options={**address.options, "no_such_option": "1"})
            with pytest.raises(BadDescription, match="no_such_option"):
                opening(at=strange)

    def test_a_topic_that_is_not_there_is_named(self, edge: Edge) -> None:
        if edge.missing is None:
            pytest.skip("a topic can't be missing here")
        topic = _address(edge.missing).path
        for opening in (edge.source, edge.sink):
            with pytest.raises(Unusable) as refused:
                opening(at=edge.missing)
            assert topic in str(refused.value)

    @pytest.mark.parametrize("role", ["source", "sink"])
    def test_explain_answers_with_sentences(self, edge: Edge, role: str) -> None:
        self._sentences(edge.broker.explain(edge.address, role))

    @pytest.mark.parametrize("role", ["source", "sink"])
    def test_explain_answers_when_the_broker_is_away(self, edge: Edge, role: str) -> None:
        address = _address(edge.address)
        if edge.away is None and not address.hosts:
            pytest.skip("this broker can't be away")
        self._sentences(edge.broker.explain(_address(edge.away or _away(address)), role))

    @staticmethod
    def _sentences(guarantee: Guarantee) -> None:
        assert guarantee.holds
        for sentence in guarantee.holds:
            assert sentence[:1].isupper() or sentence[:1] == "`"
            assert sentence.endswith(".")
        for setting in guarantee.settings:
            assert setting.name
            assert setting.consequence.endswith(".")
            assert setting.good is None or setting.value is not None


def _away(address: Address) -> Address:
    """Port 1 of this machine: nobody listens there."""
    return replace(address, hosts=(("127.0.0.1", 1),))


__all__ = ["BrokerContract", "Edge", "Given", "committed", "numbers", "outgoing", "value"]
