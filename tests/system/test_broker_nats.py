"""NATS JetStream: the contract of brokers, and what is its own; against a real one."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpacker.testing.brokers import BrokerContract, Edge, Given, committed, numbers, outgoing, value
from mlpacker.testing.delivery.servers.nats import Nats, stream_name
from mlpacker_runtime.brokers import Away, Message, Outgoing, Reading, Unusable, nats
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.brokers.nats_wire import Line, hpub
from mlpacker_runtime.errors import BadDescription

MISSING = Nats.missing()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or ""), pytest.mark.timeout(120)]
names = (f"plant.readings{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    with Nats(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
def topic(server: Nats) -> str:
    name = next(names)
    server.make(name)
    return name


@pytest.fixture
def edge(server: Nats, topic: str) -> Iterator[Edge]:
    another = next(names)
    server.make(another)

    def recreate() -> None:
        server.delete(topic)
        server.make(topic)

    made = Edge(
        server.address(topic), another=server.address(another), missing=server.address(next(names)),
        recreate=recreate, starts=("earliest", "latest", "offset", "time"), competing=True, session=4,
    )  # fmt: skip
    yield made
    made.close()


class TestNats(BrokerContract):
    @pytest.fixture
    def edge(self, edge: Edge) -> Edge:
        return edge


# --- Restarts and takeovers ------------------------------------------------------------------------------------------


def opened(server: Nats, topic: str, member: str = "0", *, session: float = 6.0, **options: Any) -> Any:
    listener = options.pop("listener", Given())
    reading = Reading("g", member, session=session, window=100_000, **options)
    return nats.source(parse(server.address(topic)), reading, listener)


def told(server: Nats, topic: str, numbers_: Iterable[int]) -> None:
    sink = nats.sink(parse(server.address(topic)), "test")
    assert dict(sink.publish([Outgoing(value(n), f"{topic}-{n}") for n in numbers_])) == {}
    sink.close()


def taken(source: Any, count: int, seconds: float = 20.0) -> list[Message]:
    got: list[Message] = []
    until = time.monotonic() + seconds
    while len(got) < count and time.monotonic() < until:
        got += source.poll(count - len(got), 0.5)
    return got


def consumers(server: Nats, topic: str) -> list[str]:
    return server.ask(f"CONSUMER.NAMES.{stream_name(topic)}", {})["consumers"] or []


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "default"])
def test_nothing_confirmed_is_lost_when_nats_is_killed_while_it_is_published_to(
    tmp_path: Path, durable: bool
) -> None:
    """With its defaults too: what it has not synced is with the system, which lives on."""
    with Nats(tmp_path, durable=durable) as server:
        server.make("a")
        sink = nats.sink(parse(server.address("a")), "test")
        confirmed = 0
        killer = threading.Timer(0.5, server.kill)
        killer.start()
        with pytest.raises(Away):  # noqa: PT012  until it is killed
            while True:
                sink.publish([Outgoing(value(n), f"id-{n}") for n in range(confirmed, confirmed + 20)])
                confirmed += 20
        sink.close()
        killer.join()
        server.start()
        assert confirmed > 0
        source = opened(server, "a")
        got = numbers(taken(source, confirmed))
        source.close()
        assert got == list(range(confirmed))


def test_after_a_kill_reading_goes_on_behind_the_last_commit_in_order(tmp_path: Path) -> None:
    with Nats(tmp_path) as server:
        server.make("a")
        told(server, "a", range(200))
        source = opened(server, "a", session=60)
        got = taken(source, 120)
        source.commit(committed(got[:50]))
        server.kill()
        with pytest.raises(Away):  # noqa: PT012  what came before it was killed is still handed out
            for _ in range(100):
                source.poll(10, 0.1)
        with pytest.raises(Away):
            source.commit(committed(got))
        source.close()
        with pytest.raises(Away):
            opened(server, "a")
        server.start()
        again = opened(server, "a", session=60)  # its predecessor of this process is known to be gone
        told(server, "a", range(200, 210))
        # A commit that was answered may be forgotten by a server that is killed before it wrote it; nothing else may come.
        found = numbers(taken(again, 160))
        assert found == list(range(found[0], found[0] + len(found)))
        assert found[0] in (0, 50)
        again.close()


def test_a_reader_that_is_silent_for_a_session_is_succeeded_and_knows_it_when_it_wakes(
    server: Nats, topic: str
) -> None:
    told(server, topic, range(6))
    given = Given()
    first = opened(server, topic, "0", session=1.5, listener=given)
    got = taken(first, 6)
    first.commit(committed(got[:2]))
    second = opened(server, topic, "1", session=1.5)
    before = time.monotonic()
    assert numbers(taken(second, 4)) == [2, 3, 4, 5]
    assert time.monotonic() - before > 1.0
    assert first.poll(10, 0.1) == []
    assert given.given == [(frozenset({"0"}), 0)]
    first.commit(committed(got))  # of what was given up: nothing happens
    told(server, topic, [6])
    assert first.poll(10, 0.5) == []
    assert numbers(taken(second, 1)) == [6]
    second.close()
    assert numbers(taken(first, 5)) == [2, 3, 4, 5, 6]
    first.close()


HOLDS = """
import sys, time
from mlpacker_runtime.brokers import Reading, nats
from mlpacker_runtime.brokers.address import parse
source = nats.source(parse(sys.argv[1]), Reading("g", session=60), None)
source.commit({"0": source.poll(1, 10)[0].offset})
print("reads", flush=True)
time.sleep(60)
"""


def test_a_process_that_was_killed_is_succeeded_at_once_on_the_same_machine(server: Nats, topic: str) -> None:
    told(server, topic, range(3))
    command = [sys.executable, "-c", HOLDS, server.address(topic)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "reads\n"
        second = opened(server, topic, "1", session=60)
        assert second.poll(10, 0.6) == []
        holder.kill()
        holder.wait()
        assert numbers(taken(second, 2)) == [1, 2]
        second.close()


def test_a_reader_whose_consumer_was_deleted_is_away(server: Nats, topic: str) -> None:
    told(server, topic, range(2))
    source = opened(server, topic)
    got = taken(source, 2)
    server.ask(f"CONSUMER.DELETE.{stream_name(topic)}.{consumers(server, topic)[0]}", None)
    with pytest.raises(Away):
        source.commit(committed(got))
    source.close()


def test_of_several_consumers_that_a_crash_left_the_furthest_counts_and_one_stays(
    server: Nats, topic: str
) -> None:
    told(server, topic, range(6))
    source = opened(server, topic)
    source.commit(committed(taken(source, 6)[:4]))
    source.close()
    stream, name = stream_name(topic), consumers(server, topic)[0]
    left = name.rpartition("-")[0] + "-7"
    config = {"durable_name": left, "ack_policy": "all", "deliver_policy": "all", "filter_subject": topic}
    server.ask(f"CONSUMER.DURABLE.CREATE.{stream}.{left}", {"stream_name": stream, "config": config})
    again = opened(server, topic)
    assert numbers(taken(again, 2)) == [4, 5]
    again.close()
    assert consumers(server, topic) == [name.rpartition("-")[0] + "-8"]


def test_the_place_is_kept_in_the_lease_too(server: Nats, topic: str) -> None:
    told(server, topic, range(6))
    source = opened(server, topic)
    source.commit(committed(taken(source, 6)[:4]))
    source.close()
    server.ask(f"CONSUMER.DELETE.{stream_name(topic)}.{consumers(server, topic)[0]}", None)
    again = opened(server, topic)
    assert numbers(taken(again, 2)) == [4, 5]
    again.close()


def test_a_topic_made_again_is_read_from_its_beginning(server: Nats, topic: str) -> None:
    told(server, topic, range(6))
    source = opened(server, topic)
    source.commit(committed(taken(source, 6)))
    source.close()
    server.delete(topic)
    server.make(topic, duplicate_window=10**8)
    told(server, topic, range(8))
    again = opened(server, topic)
    assert numbers(taken(again, 8)) == list(range(8))
    again.close()


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
def test_a_stream_that_forgets_what_was_read_is_read_in_order_too(server: Nats, retention: str) -> None:
    topic = next(names)
    server.make(topic, retention=retention)
    source = opened(server, topic)
    told(server, topic, range(10))
    source.commit(committed(taken(source, 10)[:4]))
    source.close()
    told(server, topic, range(10, 12))
    again = opened(server, topic)
    got = taken(again, 8)
    assert numbers(got) == list(range(4, 12))
    again.commit(committed(got))
    again.close()
    state = server.ask(f"STREAM.INFO.{stream_name(topic)}", None)["state"]
    assert state["messages"] == 0


@pytest.mark.parametrize("start", ["latest", "offset:4", "time:"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_group_keeps_its_start_when_nothing_was_committed_yet(
    server: Nats, topic: str, start: str, ordered: bool
) -> None:
    told(server, topic, range(3))
    time.sleep(0.01)
    start = f"time:{time.time()}" if start == "time:" else start
    first = opened(server, topic, start=start, ordered=ordered)
    first.close()
    told(server, topic, range(3, 6))
    for _ in range(3):
        again = opened(server, topic, start=start, ordered=ordered)
        assert numbers(taken(again, 3)) == [3, 4, 5]
        again.close()


# --- Unordered -------------------------------------------------------------------------------------------------------


def test_what_a_dead_member_left_goes_to_the_others_and_offsets_never_fall(server: Nats, topic: str) -> None:
    told(server, topic, range(20))
    dead = opened(server, topic, "0", session=1.5, ordered=False)
    lost = taken(dead, 8)
    dead._line.close()  # without a word
    given = Given()
    other = opened(server, topic, "1", session=1.5, ordered=False, listener=given)
    seen: set[int] = set()
    last, until = 0, time.monotonic() + 20
    while len(seen) < 20 and time.monotonic() < until:
        before = len(given.given)
        for message in other.poll(5, 0.3):
            assert message.offset > last or len(given.given) > before
            last, before = message.offset, len(given.given)
            seen.add(*numbers([message]))
    assert seen == set(range(20))
    assert given.given[0] == (frozenset({"0"}), 0.5)
    assert len(lost) == 8
    other.close()


def test_what_is_worked_on_for_longer_than_a_session_is_not_given_to_others(server: Nats, topic: str) -> None:
    told(server, topic, range(4))
    first = opened(server, topic, "0", session=1.2, ordered=False)
    second = opened(server, topic, "1", session=1.2, ordered=False)
    got = taken(first, 4)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert first.poll(0, 0.1) == []
        assert second.poll(10, 0.1) == []
    first.commit(committed(got))
    first.close()
    second.close()


def test_a_group_keeps_its_place_when_it_is_read_ordered_or_not(server: Nats, topic: str) -> None:
    told(server, topic, range(9))
    for ordered, wanted in ((True, 0), (False, 3), (True, 6)):
        source = opened(server, topic, ordered=ordered)
        got = taken(source, 3)
        assert numbers(got) == [wanted, wanted + 1, wanted + 2]
        source.commit(committed(got))
        source.close()


# --- Publishing ------------------------------------------------------------------------------------------------------


def test_too_large_a_message_is_named_by_its_place_and_the_others_are_published(edge: Edge) -> None:
    sink = edge.sink()
    refused = sink.publish(
        [outgoing(0, edge), Outgoing(b"x" * (1 << 20), "big"), outgoing(1, edge), Outgoing(b"{}", "n", headers=(("a:b", b""),))]
    )  # fmt: skip
    assert set(refused) == {1, 3}
    assert "1048576 bytes" in refused[1]
    assert numbers(edge.take(edge.source(), 2)) == [0, 1]


def test_larger_than_the_stream_takes_is_named_by_its_place_also_where_that_was_set_later(
    server: Nats,
) -> None:
    topic = next(names)
    server.make(topic)
    sink = nats.sink(parse(server.address(topic)), "test")
    config = server.ask(f"STREAM.INFO.{stream_name(topic)}", None)["config"]
    server.ask(f"STREAM.UPDATE.{stream_name(topic)}", {**config, "max_msg_size": 500})
    assert set(sink.publish([Outgoing(b"x" * 1000, "1"), Outgoing(b"x", "2")])) == {0}
    sink.close()
    later = nats.sink(parse(server.address(topic)), "test")
    assert later.max_bytes < 500
    assert set(later.publish([Outgoing(b"x" * 1000, "3")])) == {0}
    later.close()


def test_a_repeat_within_the_duplicate_window_is_kept_once(server: Nats, topic: str) -> None:
    told(server, topic, [1, 2])
    told(server, topic, [1, 2, 3])
    source = opened(server, topic)
    assert numbers(taken(source, 3)) == [1, 2, 3]
    assert source.poll(10, 0.3) == []
    source.close()


def test_a_full_stream_is_away_and_takes_more_when_there_is_room(server: Nats) -> None:
    topic = next(names)
    server.make(topic, max_msgs=3, discard="new")
    sink = nats.sink(parse(server.address(topic)), "test")
    with pytest.raises(Away):
        sink.publish([Outgoing(value(n), f"id-{n}") for n in range(5)])
    sink.close()
    server.ask(f"STREAM.PURGE.{stream_name(topic)}", None)
    told(server, topic, [7])


def test_a_sink_whose_connection_ended_while_nothing_was_under_way_connects_again(
    server: Nats, topic: str
) -> None:
    sink = nats.sink(parse(server.address(topic)), "test")
    sink.publish([Outgoing(value(0), "0")])
    sink._line._socket.shutdown(socket.SHUT_RDWR)
    assert dict(sink.publish([Outgoing(value(1), "1")])) == {}
    sink.close()


def test_another_publishers_header_whatever_it_is_does_not_stop_the_reader(server: Nats, topic: str) -> None:
    line = Line(parse(server.address(topic)), "test")
    for block in (
        b"\xff\x00nonsense",
        b"NATS/1.0\r\nno colon\r\nmlpacker-b64-a: !\r\nb: 1\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
    ):
        line.send(hpub(topic.encode(), b"", block, b"{}"))
    line.close()
    told(server, topic, [1])
    source = opened(server, topic)
    got = taken(source, 4)
    assert [m.headers for m in got][:2] == [(), (("mlpacker-b64-a", b"!"), ("b", b"1"))]
    assert numbers(got[3:]) == [1]
    source.close()


def test_a_pattern_reads_all_its_subjects_in_the_streams_order(server: Nats) -> None:
    server.ask("STREAM.CREATE.lines", {"name": "lines", "subjects": ["lines.>"], "storage": "file"})
    for n, subject in enumerate(["lines.a", "lines.b", "lines.a"]):
        told(server, subject, [n])
    for pattern, wanted in (("lines.*", [0, 1, 2]), ("lines.a", [0, 2])):
        source = opened(server, pattern)
        assert numbers(taken(source, len(wanted))) == wanted
        assert source.poll(10, 0.2) == []
        source.close()
    with pytest.raises(BadDescription):
        nats.sink(parse(server.address("lines.*")), "test")


# --- Coming in -------------------------------------------------------------------------------------------------------


def test_create_makes_a_stream_on_disk(server: Nats) -> None:
    topic = next(names)
    sink = nats.sink(parse(server.address(topic, create="on")), "test")
    sink.publish([Outgoing(value(1), "1")])
    sink.close()
    config = server.ask(f"STREAM.INFO.{stream_name(topic)}", None)["config"]
    assert (config["storage"], config["max_age"], config["max_bytes"]) == ("file", 0, -1)
    again = nats.sink(parse(server.address(topic, create="on")), "test")
    again.close()


def test_several_streams_for_a_pattern_are_named(server: Nats) -> None:
    for name in ("one", "two"):
        server.ask(
            f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"several.{name}"], "storage": "file"}
        )
    with pytest.raises(Unusable, match="one, two"):
        opened(server, "several.*")
    opened(server, "several.*?stream=two").close()
    with pytest.raises(Unusable, match="nosuch"):
        opened(server, "several.*?stream=nosuch")


def test_nobody_there_is_away_and_one_of_several_hosts_is_enough(server: Nats, topic: str) -> None:
    with pytest.raises(Away):
        nats.sink(parse(f"nats://127.0.0.1:1/{topic}"), "test")
    nats.sink(parse(f"nats://127.0.0.1:1,127.0.0.1:{server.port}/{topic}"), "test").close()


def test_credentials_that_are_refused_say_so_and_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush-hush")
    monkeypatch.setenv("WRONG", "loud-loud")
    with Nats(tmp_path, user=("ann", "hush-hush")) as server:
        for place in (f"127.0.0.1:{server.port}/a", f"ann@127.0.0.1:{server.port}/a?password=env:WRONG"):
            with pytest.raises(Unusable) as refused:
                nats.source(parse(f"nats://{place}"), Reading("g"), Given())
            assert "credentials" in str(refused.value)
            assert "loud" not in str(refused.value)
        right = f"nats://ann@127.0.0.1:{server.port}/a?password=env:SECRET&create=on"
        nats.sink(parse(right), "test").close()


def test_a_token_lets_in_and_a_missing_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "t0ken")
    with Nats(tmp_path / "a", settings=['authorization { token: "t0ken" }']) as server:
        nats.sink(parse(server.address("a", token="env:TOKEN", create="on")), "test").close()
    monkeypatch.setenv("PASSWORD", "p")
    users = 'authorization { users: [{ user: u, password: p, permissions: { publish: ["a"], subscribe: [">"] } }] }'
    with Nats(tmp_path / "b", settings=[users]) as server, pytest.raises(Unusable, match=r"\$JS\.API"):
        nats.sink(parse(f"nats://u@127.0.0.1:{server.port}/a?password=env:PASSWORD"), "test")


def test_a_server_without_jetstream_is_unusable(tmp_path: Path) -> None:
    with Nats(tmp_path) as server:
        server._lines = [line for line in server._lines if not line.startswith("jetstream")]
        server.stop()
        server.start()
        with pytest.raises(Unusable, match="JetStream"):
            opened(server, "a")


def test_over_tls_rows_flow_and_only_whom_we_trust_gets_them(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl (apt-get install openssl)")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names_ = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, *names_, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    with Nats(tmp_path / "nats", tls=(cert, cert, key)) as server:
        sink = nats.sink(parse(server.address("a", ca=str(cert), create="on")), "test")
        assert dict(sink.publish([Outgoing(b"x" * 100_000, f"{n}") for n in range(20)])) == {}
        sink.close()
        source = nats.source(parse(server.address("a", ca=str(cert))), Reading("g"), Given())
        got = taken(source, 20)
        assert [len(m.value) for m in got] == [100_000] * 20
        source.commit(committed(got))
        source.close()
        with pytest.raises(Unusable, match="certificate"):
            nats.sink(parse(server.address("a")), "test")
        with pytest.raises(Unusable, match="natss"):
            nats.sink(parse(server.address("a").replace("natss", "nats")), "test")
    with pytest.raises(Away):
        nats.sink(parse(server.address("a", ca=str(cert))), "test")


def test_explain_tells_what_may_lose_rows(server: Nats) -> None:
    topic = next(names)
    server.make(topic, storage="memory", max_msgs=1000, max_age=10**12)
    told_ = {one.name: one for one in nats.explain(parse(server.address(topic)), "source").settings}
    assert {name for name, one in told_.items() if one.good is False} == {"storage", "max_msgs", "max_age"}
    assert (told_["max_age"].value, told_["sync_interval"].value) == ("1000 s", None)
    away = nats.explain(parse("nats://127.0.0.1:1/a"), "sink")
    assert all(one.value is None for one in away.settings)
