"""Kafka, on a real broker: the contract, and what only Kafka can get wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpacker.testing.brokers import BrokerContract, Edge, Given, committed, numbers, outgoing, value
from mlpacker.testing.delivery.servers.kafka import Kafka
from mlpacker_runtime.brokers import Away, Message, Outgoing, Reading, Unusable, kafka
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.errors import BadDescription

pytestmark = [
    pytest.mark.skipif(Kafka.missing() is not None, reason=str(Kafka.missing())),
    pytest.mark.timeout(120),
]
USER, PASSWORD = "ann", "correct-horse"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Kafka]:
    with Kafka(tmp_path_factory.mktemp("kafka"), users={USER: PASSWORD}, certificate=certificate) as started:
        yield started


@pytest.fixture
def topic(request: pytest.FixtureRequest, server: Kafka) -> str:
    name = f"t{abs(hash(request.node.nodeid))}"
    server.make(name)
    return name


@pytest.fixture
def edge(server: Kafka, topic: str) -> Iterator[Edge]:
    made = edge_of(server, topic)
    yield made
    made.close()


def edge_of(server: Kafka, topic: str, **options: str) -> Edge:
    return Edge(server.address(topic, **options), session=3, starts=("earliest", "latest", "offset", "time"))


class TestKafkaKeepsTheContract(BrokerContract):
    @pytest.fixture
    def edge(self, server: Kafka, topic: str) -> Edge:
        made = edge_of(server, topic)
        made.another = parse(server.address("another", create="on"))
        made.missing = parse(server.address("missing"))
        made.recreate = lambda: recreate(server, topic)
        return made


def recreate(server: Kafka, topic: str) -> None:
    admin = server.admin()
    admin.delete_topics([topic], operation_timeout=10)[topic].result(20)
    for _ in range(50):
        try:
            server.make(topic)
        except Exception:  # its deletion is not through yet
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the topic can't be made again")


def until(done: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "what was awaited did not come"
    return found


# --- Groups ----------------------------------------------------------------------------------------------------------


class Finishes:
    """A listener that commits what it is given up for, from within."""

    def __init__(self) -> None:
        self.source: Any = None
        self.finished: dict[str, int] = {}
        self.given: list[tuple[frozenset[str], float]] = []

    def giving_up(self, partitions: Any, seconds: float) -> None:
        self.given.append((frozenset(partitions), seconds))
        if seconds:
            self.source.commit({p: o for p, o in self.finished.items() if p in partitions})


def test_a_partition_that_moves_is_given_up_first_and_what_is_committed_then_does_not_come_again(
    server: Kafka,
) -> None:
    server.make("moving", 2)
    edge, listener = edge_of(server, "moving"), Finishes()
    for key in (b"a", b"b", b"c", b"d"):
        edge.sink().publish([Outgoing(value(n), "", key) for n in range(10)])
    first = kafka.source(parse(server.address("moving")), Reading("g", "0", session=3), listener)
    edge.opened.append(first)
    listener.source = first
    got = edge.take(first, 40)
    listener.finished = committed(got)
    assert set(listener.finished) == {"0", "1"}
    second = edge.source("1")

    def moved() -> bool:
        assert first.poll(100, 0.1) == []
        assert second.poll(100, 0.1) == []
        return bool(listener.given) and len(first.lag().messages) == len(second.lag().messages) == 1

    until(moved)
    assert [seconds for _, seconds in listener.given] == [3.0]
    (partitions,) = [p for p, _ in listener.given]
    assert set(second.lag().messages) == set(partitions)
    edge.close()


READER = """
import sys, time
from mlpacker.testing.brokers import Given
from mlpacker_runtime.brokers import Reading, kafka
from mlpacker_runtime.brokers.address import parse

source = kafka.source(parse(sys.argv[1]), Reading("g", "0", session=2), Given())
got = []
while True:
    got += source.poll(100, 0.1)
    if len(got) == 6:
        source.commit({"0": got[1].offset})
        print("committed", flush=True)
        got.append(None)
"""


def test_a_standby_takes_over_from_a_reader_that_was_killed_in_order_from_its_last_commit(edge: Edge) -> None:
    edge.publish(range(6))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(edge.address)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "committed\n"
        second = edge.source("1")
        for _ in range(5):
            assert second.poll(10, 0.2) == []
    finally:
        reader.kill()
        reader.communicate()
    edge.publish([6])
    assert numbers(edge.take(second, 5)) == [2, 3, 4, 5, 6]


def test_the_same_member_made_anew_goes_on_at_once_and_the_older_one_is_told(edge: Edge) -> None:
    edge.publish(range(4))
    first = edge.source("0")
    first.commit(committed(edge.take(first, 4)[:1]))
    second = edge.source("0")
    assert numbers(edge.take(second, 3)) == [1, 2, 3]
    with pytest.raises(Unusable, match="member 0 of the group g"):
        until(lambda: first.poll(10, 0.1) and False)


def test_a_partition_that_is_no_longer_ours_is_not_committed(edge: Edge) -> None:
    edge.publish(range(4))
    first = edge.source("0")
    got = edge.take(first, 4)
    first.commit({"0": got[0].offset, "7": 99})
    first._give_up([kafka.TopicPartition("", 0)], 0.0)
    first.commit(committed(got))
    first.close()
    assert edge.listener.given == [(frozenset({"0"}), 0.0)]
    assert numbers(edge.take(edge.source("0"), 3)) == [1, 2, 3]


def test_latest_is_settled_once_so_that_nothing_is_skipped_before_the_first_commit(edge: Edge) -> None:
    edge.publish(range(3))
    first = edge.source(start="latest")
    until(lambda: first.poll(10, 0.1) == [] and first.lag().messages)
    edge.publish(range(3, 6))
    edge.take(first, 3)
    first.close()
    edge.publish([6])
    assert numbers(edge.take(edge.source(start="latest"), 4)) == [3, 4, 5, 6]


def test_a_long_pause_keeps_the_place_and_still_tells_the_lag(edge: Edge) -> None:
    edge.publish(range(10))
    source = edge.source()
    first = edge.take(source, 3)
    end = time.monotonic() + 1.6
    while time.monotonic() < end:
        assert source.poll(0, 0.2) == []
    assert source._paused == {0}
    edge.publish(range(10, 15))
    assert source.lag().total == 12
    assert numbers(first + edge.take(source, 12)) == list(range(15))


def test_messages_that_were_deleted_before_they_were_read_are_said_aloud(
    edge: Edge, server: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    edge.publish(range(10))
    source = edge.source()
    source.commit(committed(edge.take(source, 10)[:2]))
    source.close()
    admin = server.admin()
    place = kafka.TopicPartition(topic, 0, 6)
    admin.delete_records([place])[place].result(10)
    assert numbers(edge.take(edge.source(), 4)) == [6, 7, 8, 9]
    assert "has deleted 4 offsets that were not read yet" in caplog.text


# --- Publishing ------------------------------------------------------------------------------------------------------


def test_a_message_too_large_is_told_by_its_place_and_the_others_are_published(edge: Edge) -> None:
    sink = edge.sink()
    assert 0 < sink.max_bytes < 1_048_588
    messages = [outgoing(0, edge), Outgoing(b"x" * 2_000_000, "big"), outgoing(1, edge)]
    refused = sink.publish(messages)
    assert set(refused) == {1}
    assert "max.message.bytes" in refused[1]
    assert numbers(edge.take(edge.source(), 2)) == [0, 1]


def test_a_limit_that_sank_meanwhile_blames_only_the_message_itself(
    edge: Edge, server: Kafka, topic: str
) -> None:
    """Kafka refuses the whole batch then."""
    sink = edge.sink()
    alter(server, topic, "max.message.bytes", "3000")
    messages = [outgoing(n, edge) for n in range(100)]
    messages[40] = Outgoing(b"x" * 5000, "big")
    refused = sink.publish(messages)
    assert set(refused) == {40}
    assert sorted(numbers(edge.take(edge.source(), 99))) == [n for n in range(100) if n != 40]
    assert sink.publish([outgoing(100, edge)]) == {}


def alter(server: Kafka, topic: str, name: str, text: str) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

    entry = ConfigEntry(name, text, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = server.admin()
    admin.incremental_alter_configs([resource])[resource].result(10)


def test_a_message_without_a_key_is_refused_by_a_compacted_topic_alone(server: Kafka) -> None:
    server.make("compacted", cleanup_policy="compact")
    edge = edge_of(server, "compacted")
    refused = edge.sink().publish(
        [Outgoing(value(0), "0", b"k"), Outgoing(value(1), "1"), Outgoing(value(2), "2", b"l")]
    )
    assert set(refused) == {1}
    assert numbers(edge.take(edge.source(), 2)) == [0, 2]
    edge.close()


def test_a_topic_is_made_where_that_is_asked_for(server: Kafka) -> None:
    edge = edge_of(server, "asked", create="on", partitions="3")
    edge.publish([1])
    assert numbers(edge.take(edge.source(), 1)) == [1]
    assert len(server.admin().list_topics("asked", timeout=10).topics["asked"].partitions) == 3
    edge.close()


# --- Who may come in -------------------------------------------------------------------------------------------------


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
    monkeypatch.setenv("KAFKA_WRONG", "battery-staple")


@pytest.mark.usefixtures("password")
def test_tls_and_a_password_let_us_in(server: Kafka, topic: str, certificate: Path) -> None:
    address = server.guarded_address(
        topic, USER, password="env:KAFKA_PASSWORD", ca=str(certificate.with_name("cert.pem"))
    )
    edge = Edge(address, session=3)
    edge.publish([1, 2])
    assert numbers(edge.take(edge.source(), 2)) == [1, 2]
    edge.close()


@pytest.mark.usefixtures("password")
def test_a_wrong_password_is_unusable_and_never_shown(server: Kafka, topic: str, certificate: Path) -> None:
    address = parse(
        server.guarded_address(
            topic, USER, password="env:KAFKA_WRONG", ca=str(certificate.with_name("cert.pem"))
        )
    )
    for opening in (lambda: kafka.source(address, Reading("g"), Given()), lambda: kafka.sink(address, "d")):
        with pytest.raises(Unusable, match="the user ann") as refused:
            opening()
        assert "battery-staple" not in str(refused.value)


@pytest.mark.usefixtures("password")
def test_a_certificate_nobody_vouches_for_is_unusable(server: Kafka, topic: str) -> None:
    address = parse(server.guarded_address(topic, USER, password="env:KAFKA_PASSWORD"))
    with pytest.raises(Unusable, match="can't be trusted"):
        kafka.sink(address, "d")


def test_a_user_without_a_password_and_a_strange_mechanism_are_refused() -> None:
    for said in (
        "kafka://ann@localhost/t",
        "kafka://ann@localhost/t?password=env:HOME&mechanism=MAGIC",
        "kafka://h/a%20b",
    ):
        with pytest.raises(BadDescription):
            kafka.sink(parse(said), "d")


def test_a_session_kafka_does_not_allow_is_said(server: Kafka, topic: str) -> None:
    source = kafka.source(parse(server.address(topic)), Reading("g", session=0.5), Given())
    try:
        with pytest.raises(Unusable, match="session"):
            until(lambda: source.poll(1, 0.1) and False)
    finally:
        source.close()


def test_nobody_there_is_away() -> None:
    for opening in (
        lambda: kafka.source(parse("kafka://127.0.0.1:1/t"), Reading("g"), Given()),
        lambda: kafka.sink(parse("kafka://127.0.0.1:1/t"), "d"),
    ):
        with pytest.raises(Away, match="127.0.0.1:1"):
            opening()


def test_explain_tells_what_one_replica_means_and_what_makes_up_for_it(server: Kafka, topic: str) -> None:
    told = {s.name: s for s in kafka.explain(parse(server.address(topic)), "source").settings}
    assert (told["replication.factor"].value, told["replication.factor"].good) == ("1", True)
    server.make("careless", flush_messages="1000", retention_ms="1000")
    told = {s.name: s for s in kafka.explain(parse(server.address("careless")), "source").settings}
    assert told["replication.factor"].good is False
    assert told["retention.ms"].good is False


# --- The broker dies -------------------------------------------------------------------------------------------------


def test_nothing_confirmed_is_lost_and_order_is_kept_when_the_broker_is_killed(tmp_path: Path) -> None:
    with Kafka(tmp_path) as server:
        server.make("rows")
        edge = edge_of(server, "rows", timeout="2")
        source, sink = edge.source(), edge.sink()
        assert dict(sink.publish([outgoing(n, edge) for n in range(200)])) == {}
        got = edge.take(source, 150)
        source.commit(committed(got[:100]))
        confirmed = killed_while_publishing(server, edge, sink)
        with pytest.raises(Away):
            until(lambda: source.poll(0, 0.1))
        source.close()
        sink.close()
        server.start()
        edge.publish(range(confirmed, confirmed + 100))
        again = read_through(edge, edge.source(), confirmed + 99)
        assert again[0] == 100
        assert list(dict.fromkeys(again)) == list(range(100, confirmed + 100))
        edge.close()


def killed_while_publishing(server: Kafka, edge: Edge, sink: Any) -> int:
    """How many were confirmed (in hundreds, from 200 on) when the sink said Away."""
    confirmed = 200
    killer = threading.Timer(0.3, server.kill)
    killer.start()
    try:
        while True:
            sink.publish([outgoing(n, edge) for n in range(confirmed, confirmed + 100)])
            confirmed += 100
    except Away:
        killer.join()
    assert confirmed > 200
    with pytest.raises(Away):
        sink.publish([outgoing(0, edge)])
    return confirmed


def test_a_commit_that_a_hanging_broker_does_not_answer_is_away_and_closing_does_not_wait_for_it(
    server: Kafka, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "ANSWER_SECONDS", 1.0)
    edge.publish(range(4))
    source = edge.source()
    got = edge.take(source, 4)
    server.pause()
    try:
        with pytest.raises(Away, match="has not confirmed a commit"):
            source.commit(committed(got[:2]))
        with pytest.raises(Away):
            source.poll(0, 0.1)
        source.close()
    finally:
        server.resume()
    again = edge.take(edge.source(), 2)
    assert numbers(again)[-1:] in ([1], [3])  # the commit may have come through after all, never more than it


def read_through(edge: Edge, source: Any, last: int) -> list[int]:
    got: list[Message] = []
    until(lambda: got.extend(source.poll(1000, 0.3)) or (got and numbers(got[-1:]) == [last]))
    return numbers(got)


def test_a_broker_that_hangs_for_less_than_our_patience_costs_nothing(server: Kafka, edge: Edge) -> None:
    sink = edge.sink()
    sink.publish([outgoing(0, edge)])
    server.pause()
    awake = threading.Timer(1.0, server.resume)
    awake.start()
    try:
        assert dict(sink.publish([outgoing(n, edge) for n in range(1, 50)])) == {}
    finally:
        awake.join()
    assert numbers(edge.take(edge.source(), 50)) == list(range(50))
