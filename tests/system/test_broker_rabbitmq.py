"""RabbitMQ: the contract of brokers, and what is its own; against a real one."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlpacker.testing.brokers import BrokerContract, Edge, Given, committed, numbers, outgoing
from mlpacker.testing.delivery.servers.rabbitmq import RabbitMQ
from mlpacker_runtime.brokers import Away, Outgoing, Reading, Unusable
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.errors import BadDescription

if MISSING := RabbitMQ.missing():
    pytest.skip(MISSING, allow_module_level=True)

from mlpacker_runtime.brokers.rabbitmq import QUEUE, lock_of

pytestmark = pytest.mark.timeout(120)
names = (f"readings-{n}" for n in itertools.count())


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
    both.chmod(0o644)
    return both


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), certificate=certificate) as running:
        yield running


@pytest.fixture
def edge(server: RabbitMQ) -> Iterator[Edge]:
    """Of a fresh queue, as `create=on` makes it."""
    topic, another, missing = next(names), next(names), next(names)
    server.make(topic)
    server.make(another)
    made = Edge(
        server.address(topic), another=server.address(another), missing=server.address(missing),
        starts=("earliest",), competing=True, session=4,
    )  # fmt: skip
    yield made
    made.close()


def edge_of_kind(server: RabbitMQ, arguments: dict[str, Any], durable: bool = True) -> Edge:
    name = next(names)
    with server.connect() as connection:
        connection.channel().queue_declare(name, durable=durable, arguments=arguments)
    return Edge(server.address(name), session=4)


class TestRabbitMQ(BrokerContract):
    @pytest.fixture
    def edge(self, edge: Edge) -> Edge:
        return edge

    def test_the_incarnation_stays_while_the_topic_does_and_is_no_other_topics(self, edge: Edge) -> None:
        """Turned round: offsets begin anew with each session, so each is an incarnation of its own."""
        edge.publish([1])
        first = edge.source()
        got = edge.take(first, 1)
        first.close()
        second = edge.source()
        assert edge.take(second, 1)[0].offset == got[0].offset
        assert first.incarnation != second.incarnation

    def test_each_group_reads_everything_for_itself(self, edge: Edge) -> None:
        """Turned round: a queue knows no groups; one group's messages are gone for the other."""
        edge.publish(range(3))
        one = edge.source(group="g")
        one.commit(committed(edge.take(one, 3)))
        one.close()
        edge.none(edge.source(group="h"))

    def test_publish_keeps_the_order_of_its_list_and_returns_when_all_can_be_read(self, edge: Edge) -> None:
        """As the suite's, committing on the way: the broker sends no more than the window ahead of the commits."""
        sink, source = edge.sink(), edge.source()
        for start in range(0, 1500, 500):
            assert dict(sink.publish([outgoing(n, edge) for n in range(start, start + 500)])) == {}
        for start in range(0, 1500, 500):
            got = edge.take(source, 500)
            assert numbers(got) == list(range(start, start + 500))
            source.commit(committed(got))


# --- Reading --------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "made by us": dict(QUEUE),
    "plain quorum": {"x-queue-type": "quorum"},
    "classic": {},
    "classic with a single active consumer": {"x-single-active-consumer": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_two_reads_a_queue_of_any_kind_and_the_other_goes_on_where_it_ended(
    server: RabbitMQ, kind: str
) -> None:
    edge = edge_of_kind(server, KINDS[kind])
    edge.publish(range(30))
    first = edge.source("0")
    got = edge.take(first, 20)
    first.commit(committed(got[:7]))
    second = edge.source("1")
    assert second.poll(100, 0.6) == []
    first.close()
    assert numbers(edge.take(second, 23)) == list(range(7, 30))
    edge.close()


READER = """
import sys
from mlpacker_runtime.brokers import Reading, rabbitmq
from mlpacker_runtime.brokers.address import parse
source = rabbitmq.source(parse(sys.argv[1]), Reading("g", "0", window=20, session=2), None)
got = []
while len(got) < 15:
    got += source.poll(15 - len(got), 1)
source.commit({got[4].partition: got[4].offset})
source.lag()  # an answer means that the acknowledgement before it has arrived
print("read", flush=True)
while True:
    source.poll(0, 1)
"""


@pytest.mark.parametrize(
    ("kind", "how"),
    [("made by us", signal.SIGSTOP), ("plain quorum", signal.SIGKILL), ("classic", signal.SIGKILL)],
    ids=["stopped", "killed, of a quorum queue", "killed, of a classic queue"],
)
def test_a_standby_takes_over_from_a_reader_that_is(server: RabbitMQ, kind: str, how: signal.Signals) -> None:
    edge = edge_of_kind(server, KINDS[kind])
    edge.publish(range(50))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(edge.address)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "read\n"
        standby = edge.source("1")
        assert standby.poll(10, 0.5) == []
        reader.send_signal(how)
        assert numbers(edge.take(standby, 45)) == list(range(5, 50))
    finally:
        reader.kill()
        reader.communicate()
        edge.close()


def test_a_reader_that_is_about_to_begin_keeps_the_others_out_already(server: RabbitMQ) -> None:
    edge = edge_of_kind(server, KINDS["plain quorum"])
    edge.publish(range(5))
    with server.connect() as beginning:
        beginning.channel().queue_declare(lock_of(edge.address.path), exclusive=True)
        source = edge.source()
        assert source.poll(10, 0.6) == []
    assert numbers(edge.take(source, 5)) == list(range(5))
    edge.close()


def test_a_consumer_of_another_program_is_not_shared_with_in_ordered_mode(server: RabbitMQ) -> None:
    edge = edge_of_kind(server, KINDS["plain quorum"])
    with server.connect() as foreign:
        foreign.channel().basic_consume(edge.address.path, lambda *_: None)
        foreign.process_data_events(0.2)
        source = edge.source()
        edge.publish(range(5))
        assert source.poll(10, 0.6) == []
    assert numbers(edge.take(source, 5)) == list(range(5))
    edge.close()


def test_more_than_the_window_is_never_out(server: RabbitMQ, edge: Edge) -> None:
    edge.publish(range(30))
    source = edge.broker.source(edge.address, Reading("g", window=10), Given())
    edge.opened.append(source)
    got = edge.take(source, 10)
    edge.none(source, 0.4)
    source.commit(committed(got))
    assert numbers(edge.take(source, 10)) == list(range(10, 20))


def test_a_queue_deleted_under_its_reader_means_away_and_then_unusable(server: RabbitMQ, edge: Edge) -> None:
    source = edge.source()
    with server.connect() as connection:
        connection.channel().queue_delete(edge.address.path)
    with pytest.raises(Away, match="deleted"):
        source.poll(10, 20)
    with pytest.raises(Unusable, match=edge.address.path):
        edge.source()


def test_what_others_write_into_headers_and_properties_is_read(server: RabbitMQ, edge: Edge) -> None:
    import pika

    with server.connect() as connection:
        channel = connection.channel()
        table = {"Plant": "Linz", "n": 7, "on": True, "timestamp_in_ms": 1_700_000_000_123}
        channel.basic_publish(
            "", edge.address.path, b"1", pika.BasicProperties(headers=table, message_id="m-1")
        )
        channel.basic_publish("", edge.address.path, b"2")
    full, bare = edge.take(edge.source(), 2)
    assert dict(full.headers) == {"plant": b"Linz", "n": b"7", "on": b"True", "message-id": b"m-1"}
    assert full.time == 1_700_000_000.123
    assert (bare.headers, bare.key, bare.time) == ((), None, 0.0)


def test_a_place_to_begin_at_is_refused_as_a_queue_has_none(edge: Edge) -> None:
    for start in ("latest", "offset:3", "time:1"):
        with pytest.raises(BadDescription, match="first message"):
            edge.source(start=start)


# --- Publishing -----------------------------------------------------------------------------------------------------


def test_too_large_a_message_is_reported_by_its_place_and_the_others_are_published_in_order(
    edge: Edge,
) -> None:
    sink = edge.sink()
    sizes = {3: 2 << 20, 5: 3 << 20, 8: (1 << 20) + 1}
    batch = [Outgoing(b"x" * sizes[n], f"id-{n}") if n in sizes else outgoing(n, edge) for n in range(12)]
    refused = sink.publish(batch)
    assert set(refused) == set(sizes)
    assert "1048576" in refused[3]
    assert sink.max_bytes == 1 << 20
    edge.publish([100])
    firsts: list[int] = []
    source = edge.source()
    while 100 not in firsts:  # some come twice: what was not confirmed when the broker refused
        firsts = list(dict.fromkeys([*firsts, *numbers(source.poll(100, 1))]))
    assert firsts == [n for n in range(12) if n not in sizes] + [100]


def test_headers_too_large_for_their_frame_are_reported_by_their_place(edge: Edge) -> None:
    heavy = Outgoing(b"1", "id-1", None, (("note", b"x" * 200_000),))
    assert set(edge.sink().publish([outgoing(0, edge), heavy, outgoing(2, edge)])) == {1}
    assert numbers(edge.take(edge.source(), 2)) == [0, 2]


def test_a_queue_deleted_under_its_sink_is_named(server: RabbitMQ, edge: Edge) -> None:
    sink = edge.sink()
    sink.publish([outgoing(0, edge)])
    with server.connect() as connection:
        connection.channel().queue_delete(edge.address.path)
    with pytest.raises(Unusable, match=edge.address.path):
        sink.publish([outgoing(1, edge)])


def test_a_full_queue_that_rejects_means_away_and_loses_nothing(server: RabbitMQ) -> None:
    edge = edge_of_kind(server, {"x-max-length": 5, "x-overflow": "reject-publish"})
    sink = edge.sink()
    with pytest.raises(Away, match="did not take"):
        sink.publish([outgoing(n, edge) for n in range(50)])
    source = edge.source()
    source.commit(committed(edge.take(source, 5)))
    edge.close()


def test_an_exchange_and_a_routing_key_lead_to_the_queues_bound_to_them(server: RabbitMQ, edge: Edge) -> None:
    name = next(names)
    at = server.address(name, exchange=name, routing_key="plant.1")
    with pytest.raises(Unusable, match=f"no exchange '{name}'"):
        edge.sink(at)
    with server.connect() as connection:
        connection.channel().exchange_declare(name, "topic", durable=True)
    with pytest.raises(Unusable, match="no queue bound"):
        edge.sink(at).publish([outgoing(0, edge)])
    with server.connect() as connection:
        connection.channel().queue_bind(edge.address.path, name, "plant.*")
    edge.publish([1, 2], at=at)
    assert numbers(edge.take(edge.source(), 2)) == [1, 2]


def test_a_broker_with_an_alarm_is_waited_for_and_then_away(
    server: RabbitMQ, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = edge.sink()
    sink.publish([outgoing(0, edge)])
    server.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        waits = threading.Thread(target=sink.publish, args=([outgoing(1, edge)],))
        waits.start()
        waits.join(1)
        assert waits.is_alive()
    finally:
        server.control("set_vm_memory_high_watermark", "absolute", "256MB")
    waits.join(20)
    assert not waits.is_alive()
    server.pause()
    try:
        monkeypatch.setattr(edge.broker, "PATIENCE", 0.5)
        with pytest.raises(Away, match="confirms nothing"):
            sink.publish([outgoing(2, edge)])
    finally:
        server.resume()
    assert numbers(edge.take(edge.source(), 2)) == [0, 1]


# --- The broker, its doors and its settings -------------------------------------------------------------------------


def test_a_broker_killed_and_started_again_has_all_that_was_confirmed_and_gives_it_on_in_order(
    server: RabbitMQ, edge: Edge
) -> None:
    edge.publish(range(200))
    source, sink = edge.source(), edge.sink()
    source.commit(committed(edge.take(source, 50)[:20]))
    source.lag()  # an answer means that the acknowledgement before it has arrived
    confirmed = threading.Event()
    ends: list[int] = []

    def publish() -> None:
        with contextlib.suppress(Away):
            for start in range(200, 10_000_000, 20):
                sink.publish([outgoing(n, edge) for n in range(start, start + 20)])
                ends.append(start + 20)
                confirmed.set()

    publishing = threading.Thread(target=publish)
    publishing.start()
    assert confirmed.wait(20)
    server.kill()
    publishing.join(20)
    assert not publishing.is_alive()
    with pytest.raises(Away):
        source.poll(0, 20)
    with pytest.raises(Away):
        source.commit({"0": 30})
    with pytest.raises(Away):
        edge.source()
    source.close()
    server.start()
    again = numbers(edge.take(edge.source(), ends[-1] - 20))
    assert again == list(range(20, ends[-1]))


def test_refused_credentials_are_unusable_and_the_secret_is_not_told(
    server: RabbitMQ, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "hush-hush")
    wrong = replace(edge.address, user="guest", options={"password": "env:THE_PASSWORD"})
    for opening in (edge.source, edge.sink):
        with pytest.raises(Unusable, match="refuses user guest") as refused:
            opening(at=wrong)
        assert "hush" not in str(refused.value) + repr(refused.value.__cause__)
    assert any("refuses user" in sentence for sentence in edge.broker.explain(wrong, "source").holds)
    with pytest.raises(Unusable, match="virtual host /nowhere"):
        edge.source(at=replace(edge.address, options={"vhost": "/nowhere"}))


def test_a_user_needs_no_right_to_declare_but_one_to_read_and_to_write(
    server: RabbitMQ, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "reader")
    user = next(names)
    server.control("add_user", user, "reader")
    server.control("set_permissions", user, "^$", "^.*", "^.*")
    own = replace(edge.address, user=user, options={"password": "env:THE_PASSWORD"})
    edge.publish(range(3), at=own)
    source = edge.source(at=own)
    got = edge.take(source, 3)
    assert edge.source("1", at=own).poll(10, 0.5) == []
    source.commit(committed(got))
    assert all(s.value is None for s in edge.broker.explain(own, "source").settings)
    server.control("set_permissions", user, "^$", "^$", "^$")
    source.close()
    with pytest.raises(Unusable, match=f"User {user} may not use"):
        edge.source(at=own).poll(1, 1)
    with pytest.raises(Unusable, match=f"User {user} may not use"):
        edge.sink(at=own).publish([outgoing(1, edge)])


def test_a_queue_is_made_only_when_asked_for_and_then_durably(server: RabbitMQ, edge: Edge) -> None:
    at = parse(server.address(next(names), create="on"))
    edge.publish([1], at=at)
    assert numbers(edge.take(edge.source(at=at), 1)) == [1]
    kept = {s.name: (s.value, s.good) for s in edge.broker.explain(at, "source").settings}
    assert kept["durable"] == ("True", True)
    assert kept["x-queue-type"] == ("quorum", True)
    assert kept["x-single-active-consumer"] == ("True", True)
    assert kept["x-delivery-limit"][1] is True
    assert kept["policies"] == (None, None)


def test_explain_reads_a_queue_that_loses_messages(server: RabbitMQ) -> None:
    limits = {"x-max-length": 5, "x-message-ttl": 60_000, "x-dead-letter-exchange": "plant's"}
    edge = edge_of_kind(server, limits, durable=False)
    read = {s.name: s for s in edge.broker.explain(edge.address, "source").settings}
    assert (read["durable"].value, read["durable"].good) == ("False", False)
    assert (read["x-max-length"].value, read["x-max-length"].good) == ("5", False)
    assert (read["x-message-ttl"].value, read["x-message-ttl"].good) == ("60000", False)
    assert read["x-expires"].good is True
    assert read["x-single-active-consumer"].good is False


def test_explain_names_a_queue_that_is_not_there_and_does_not_make_it(server: RabbitMQ, edge: Edge) -> None:
    assert edge.missing is not None
    at = parse(str(edge.missing) + "?create=on")
    told = edge.broker.explain(at, "source")
    assert any(at.path in sentence for sentence in told.holds)
    with pytest.raises(Unusable):
        edge.source(at=edge.missing)


def test_tls_is_checked_against_the_authority_that_is_named(
    server: RabbitMQ, edge: Edge, certificate: Path
) -> None:
    tls = f"amqps://localhost:{server.tls_port}/{edge.address.path}"
    edge.publish(range(3), at=f"{tls}?ca={certificate}")
    assert numbers(edge.take(edge.source(at=f"{tls}?ca={certificate}"), 3)) == [0, 1, 2]
    with pytest.raises(Unusable, match="certificate"):
        edge.sink(at=tls)
    edge.sink(at=f"{tls}?verify=off").close()


def test_the_second_host_is_tried_where_the_first_does_not_answer(server: RabbitMQ, edge: Edge) -> None:
    both = replace(edge.address, hosts=(("127.0.0.1", 1), *edge.address.hosts))
    edge.publish([1], at=both)
    assert numbers(edge.take(edge.source(at=both), 1)) == [1]
