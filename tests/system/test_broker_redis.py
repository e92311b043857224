"""Redis Streams: the contract, and what is Redis's own, against a real server of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpacker.testing.brokers import BrokerContract, Edge, Given, committed, numbers, outgoing
from mlpacker.testing.delivery.servers.redis import Redis
from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Away, Outgoing, Reading, Unusable
from mlpacker_runtime.brokers.address import parse

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(60),
    pytest.mark.skipif(Redis.missing() is not None, reason=Redis.missing() or ""),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Redis]:
    """One that a test may kill or set otherwise."""
    with Redis(tmp_path / "redis") as server:
        yield server


def edge_of(server: Redis, name: str, **fields: object) -> Edge:
    for topic in (name, f"{name}-2"):
        server.make(topic)

    def recreate() -> None:
        with server.connect() as client:
            client.delete(name)
        server.make(name)

    return Edge(
        server.address(name),
        another=server.address(f"{name}-2"),
        missing=server.address(f"{name}-missing"),
        recreate=recreate,
        starts=("earliest", "latest", "time", "offset"),
        competing=True,
        **fields,
    )


class TestRedis(BrokerContract):
    @pytest.fixture
    def edge(self, shared: Redis, request: pytest.FixtureRequest) -> Edge:
        return edge_of(shared, request.node.name)


@pytest.fixture
def edge(shared: Redis, request: pytest.FixtureRequest) -> Iterator[Edge]:
    made = edge_of(shared, request.node.name)
    yield made
    made.close()


@pytest.fixture
def owned(own: Redis) -> Iterator[Edge]:
    made = edge_of(own, "rows", session=600)
    yield made
    made.close()


def group(server: Redis, topic: str, name: str = "g") -> dict:
    with server.connect() as client:
        return next(g for g in client.xinfo_groups(topic) if g["name"] == name.encode())


# --- Crashes of the broker -------------------------------------------------------------------------------------------


def test_a_kill_of_the_broker_loses_nothing_that_was_confirmed_or_committed(own: Redis, owned: Edge) -> None:
    sink, source = owned.sink(), owned.source()
    for start in range(0, 300, 100):
        sink.publish([outgoing(n, owned) for n in range(start, start + 100)])
    got = owned.take(source, 200)
    source.commit(committed(got[:50]))
    known = source.incarnation
    own.kill()
    with pytest.raises(Away):
        source.poll(10, 1)
    with pytest.raises(Away):
        sink.publish([outgoing(300, owned)])
    own.start()
    owned.close()
    owned.publish([300])
    source = owned.source()
    assert numbers(owned.take(source, 251)) == list(range(50, 301))
    assert source.incarnation == known


def test_what_debian_sets_loses_everything_at_a_kill_and_a_known_group_begins_at_the_first_new_entry(
    tmp_path: Path,
) -> None:
    with Redis(tmp_path / "redis", durable=False) as server:
        at = server.address("rows", create="on")
        edge = Edge(at, session=600)
        first = edge.source(start="latest")
        edge.publish(range(10))
        assert numbers(edge.take(first, 10)) == list(range(10))
        server.kill()
        with pytest.raises(Away):
            first.poll(1, 1)
        server.start()
        with server.connect() as client:
            assert client.exists("rows") == 0
        edge.publish([10, 11])
        first.close()
        second = edge.source(start="latest")
        assert numbers(edge.take(second, 2)) == [10, 11]
        assert second.incarnation != first.incarnation
        edge.close()


def test_a_group_destroyed_under_a_reader_is_made_again_from_the_first_entry(
    shared: Redis, edge: Edge
) -> None:
    first = edge.source(start="latest")
    edge.publish(range(3))
    first.commit(committed(edge.take(first, 2)))
    with shared.connect() as client:
        client.xgroup_destroy(edge.address.path, "g")
    with pytest.raises(Away):
        first.poll(10, 1)
    first.close()
    assert numbers(edge.take(edge.source(start="latest"), 3)) == [0, 1, 2]


def test_while_the_broker_is_frozen_poll_says_away(
    own: Redis, owned: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owned.broker, "SILENCE", 1.5)
    source = owned.source()
    owned.publish([1])
    owned.take(source, 1)
    own.pause()
    try:
        with pytest.raises(Away):
            source.poll(10, 0.2)
    finally:
        own.resume()
    source.close()
    assert numbers(owned.take(owned.source(), 1)) == [1]


@pytest.mark.parametrize("state", ["", "state"])
def test_a_source_made_anew_goes_on_in_order_without_waiting_for_its_own_lease(
    own: Redis, owned: Edge, tmp_path: Path, state: str
) -> None:
    owned.state = state and str(tmp_path / state)
    owned.publish(range(6))
    first = owned.source()
    got = owned.take(first, 4)
    first.commit(committed(got[:2]))
    with own.connect() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(Away):
        first.poll(10, 1)
    with pytest.raises(Away):
        first.commit(committed(got))
    first.close()
    assert numbers(owned.take(owned.source(), 4)) == [2, 3, 4, 5]


# --- Readers that die, and that are taken for dead -------------------------------------------------------------------

READER = """
import sys
from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Reading
from mlpacker_runtime.brokers.address import parse
class Deaf:
    def giving_up(self, partitions, seconds): pass
at, member, session, state, ordered = sys.argv[1:]
reading = Reading("g", member, session=float(session), state=state, ordered=ordered == "1")
source = brokers.get("redis").source(parse(at), reading, Deaf())
seen = 0
while True:
    seen += len(source.poll(100, 0.1))
    print(seen, flush=True)
"""


def reader(
    edge: Edge, count: int, member: str = "0", ordered: bool = True, state: str = ""
) -> subprocess.Popen:
    """A process that has read so many and commits nothing."""
    words = [str(edge.address), member, str(edge.session), state, str(int(ordered))]
    process = subprocess.Popen([sys.executable, "-c", READER, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= count:
            return process
    raise AssertionError("the reader ended")


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_standby_takes_over_from_a_killed_reader_in_order(edge: Edge) -> None:
    edge.session = 1.5
    edge.publish(range(5))
    first = reader(edge, 5)
    standby = edge.source("1")
    assert standby.poll(10, 0.3) == []
    kill(first)
    edge.publish([5])
    assert numbers(edge.take(standby, 6)) == list(range(6))


def test_a_replica_started_again_takes_its_lease_over_at_once(edge: Edge, tmp_path: Path) -> None:
    edge.session, edge.state = 600, str(tmp_path / "state")
    edge.publish(range(5))
    kill(reader(edge, 5, state=edge.state))
    assert numbers(edge.take(edge.source(), 5)) == list(range(5))


def test_another_replica_takes_no_lease_of_a_process_that_lives(edge: Edge, tmp_path: Path) -> None:
    edge.session, edge.state = 600, str(tmp_path / "state")
    edge.publish(range(5))
    first = reader(edge, 5, state=edge.state)
    for member in ("0", "1"):
        edge.none(edge.source(member), 0.3)
    kill(first)


def test_a_reader_that_closes_hands_over_without_waiting_for_its_lease_to_expire(edge: Edge) -> None:
    edge.session = 600
    edge.publish(range(3))
    first, second = edge.source("0"), edge.source("1")
    first.commit(committed(edge.take(first, 3)[:1]))
    assert second.poll(10, 0) == []
    first.close()
    assert numbers(edge.take(second, 2)) == [1, 2]


def test_a_reader_taken_for_dead_takes_nothing_from_its_successor(shared: Redis, edge: Edge) -> None:
    edge.session = 1.0
    edge.publish(range(3))
    first, second = edge.source("0"), edge.source("1")
    got = edge.take(first, 3)
    time.sleep(1.2)
    assert numbers(edge.take(second, 3)) == [0, 1, 2]
    edge.publish([3, 4])
    assert first.poll(10, 0.2) == []
    assert edge.listener.given == [(frozenset([got[0].partition]), 0)]
    first.commit(committed(got))
    assert numbers(edge.take(second, 2)) == [3, 4]
    assert group(shared, edge.address.path)["pending"] == 5


def test_a_lease_that_vanished_is_taken_again_and_what_is_out_comes_again(shared: Redis, edge: Edge) -> None:
    edge.publish(range(4))
    source = edge.source()
    source.commit(committed(edge.take(source, 4)[:1]))
    with shared.connect() as client:
        assert client.delete(*client.keys(f"mlpacker:lease:{{{edge.address.path}}}:*")) == 1
    assert numbers(edge.take(source, 3)) == [1, 2, 3]
    assert len(edge.listener.given) == 1


def test_the_lease_is_kept_by_poll_alone_even_where_nothing_is_delivered(edge: Edge) -> None:
    edge.session = 1.0
    source, standby = edge.source("0"), edge.source("1")
    for limit in (10, 0, 10, 0):
        assert source.poll(limit, 0.6) == []
        assert standby.poll(10, 0) == []
    edge.publish([1])
    assert standby.poll(10, 0) == []
    assert numbers(edge.take(source, 1)) == [1]
    assert edge.listener.given == []


def test_what_a_dead_unordered_member_left_goes_to_another(edge: Edge) -> None:
    edge.session = 1.5
    edge.publish(range(6))
    kill(reader(edge, 6, member="0", ordered=False))
    other = edge.source("1", ordered=False)
    edge.publish([6])
    got = edge.take(other, 1)
    assert numbers(got) == [6]
    assert numbers(edge.take(other, 7)) == list(
        range(7)
    )  # told to the listener, what it had out comes again too
    assert len(edge.listener.given) == 1


@pytest.mark.parametrize("limit", [0, 10])
def test_an_unordered_member_that_is_slow_but_polls_keeps_what_it_reads(edge: Edge, limit: int) -> None:
    edge.session = 1.0
    edge.publish(range(4))
    slow, other = edge.source("0", ordered=False), edge.source("1", ordered=False)
    got = edge.take(slow, 4)
    until = time.monotonic() + 2.2
    while time.monotonic() < until:
        assert slow.poll(limit, 0.1) == []
        assert other.poll(10, 0.1) == []
    slow.commit(committed(got))
    assert edge.listener.given == []


def test_limit_0_takes_nothing_from_an_unordered_group(shared: Redis, edge: Edge) -> None:
    source = edge.source(ordered=False)
    edge.publish(range(3))
    assert source.poll(0, 0.1) == []
    assert group(shared, edge.address.path)["pending"] == 0
    assert numbers(edge.take(source, 3)) == [0, 1, 2]


def test_a_group_that_becomes_ordered_gets_what_unordered_members_left_first(edge: Edge) -> None:
    edge.publish(range(6))
    members = [edge.source(str(n), ordered=False) for n in range(2)]
    for member in members:
        edge.take(member, 3)
        member.close()
    edge.publish([6])
    assert numbers(edge.take(edge.source(), 7)) == list(range(7))


# --- What others write and remove ------------------------------------------------------------------------------------


def test_an_entry_of_others_is_read_as_an_object_of_its_fields(shared: Redis, edge: Edge) -> None:
    fields = [
        {"sensor": "p-7", "value": "3.5"},
        {"value": "3.5"},
        {"key": "k", "value": "v"},
        {"key": "k"},
        {b"\xff": "ä"},
    ]
    with shared.connect() as client:
        for one in fields:
            client.xadd(edge.address.path, one)
    got = edge.take(edge.source(), 5)
    assert json.loads(got[0].value) == fields[0]
    assert [(m.key, m.value) for m in got[1:3]] == [(None, b"3.5"), (b"k", b"v")]
    assert [json.loads(m.value) for m in got[3:]] == [{"key": "k"}, {"\\xff": "ä"}]


def test_an_entry_removed_while_it_was_out_is_counted_as_lost_and_blocks_nothing(
    shared: Redis, edge: Edge
) -> None:
    edge.publish(range(5))
    first = edge.source()
    got = edge.take(first, 5)
    first.close()
    with shared.connect() as client:
        client.xtrim(edge.address.path, maxlen=3, approximate=False)
    second = edge.source()
    assert numbers(edge.take(second, 3)) == [2, 3, 4]
    assert second.lost == [m.offset for m in got[:2]]
    assert group(shared, edge.address.path)["pending"] == 3


def test_an_entry_removed_while_a_dead_member_had_it_is_counted_as_lost(shared: Redis, edge: Edge) -> None:
    edge.publish(range(3))
    first = edge.source(ordered=False)
    got = edge.take(first, 3)
    first.close()
    with shared.connect() as client:
        client.xtrim(edge.address.path, maxlen=2, approximate=False)
    second = edge.source()
    assert numbers(edge.take(second, 2)) == [1, 2]
    assert second.lost == [got[0].offset]


def test_trimming_stops_at_the_slowest_groups_first_unacknowledged_entry(shared: Redis, edge: Edge) -> None:
    edge.publish(range(1000))
    fast, slow = edge.source(), edge.source(group="slow")
    fast.commit(committed(edge.take(fast, 1000)))
    assert edge.broker.trim(edge.address) == 0
    got = edge.take(slow, 900)
    slow.commit(committed(got[:600]))
    assert 400 < edge.broker.trim(edge.address) <= 600
    slow.close()
    assert numbers(edge.take(edge.source(group="slow"), 400)) == list(range(600, 1000))


def test_a_source_trims_only_when_told(shared: Redis, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.broker, "TRIMS", 0.1)
    edge.publish(range(500))
    for option, left in (("off", 500), ("on", 100)):
        source = edge.source(at=shared.address(edge.address.path, trim=option), group="one")
        if option == "off":
            source.commit(committed(edge.take(source, 500)))
        source.poll(1, 0.3)
        source.close()
        with shared.connect() as client:
            assert client.xlen(edge.address.path) <= left
            assert option == "on" or client.xlen(edge.address.path) == 500


# --- What Redis refuses ----------------------------------------------------------------------------------------------


def test_too_large_a_value_is_named_by_its_place_and_the_others_are_published(
    own: Redis, owned: Edge
) -> None:
    with own.connect() as client:
        client.config_set("proto-max-bulk-len", 1 << 20)
    sink = owned.sink()
    assert sink.max_bytes == 1 << 20
    large = Outgoing(b"x" * ((1 << 20) + 1), "id-1")
    refused = sink.publish([outgoing(0, owned), large, outgoing(2, owned)])
    assert set(refused) == {1}
    assert "proto-max-bulk-len" in refused[1]
    assert numbers(owned.take(owned.source(), 2)) == [0, 2]


def test_when_memory_is_full_publishing_is_away_and_nothing_of_a_batch_is_there(
    own: Redis, owned: Edge
) -> None:
    owned.publish([0])
    sink = owned.sink()
    with own.connect() as client:
        client.config_set("maxmemory", 1)
        for batch in ([outgoing(1, owned)], [outgoing(1, owned), outgoing(2, owned)]):
            with pytest.raises(Away, match="maxmemory"):
                sink.publish(batch)
        client.config_set("maxmemory", 0)
        assert client.xlen("rows") == 1
    sink.publish([outgoing(1, owned), outgoing(2, owned)])
    assert numbers(owned.take(owned.source(), 3)) == [0, 1, 2]


def test_when_memory_is_full_reading_goes_on_and_a_new_reader_can_begin(own: Redis, owned: Edge) -> None:
    owned.publish(range(4))
    first = owned.source()
    got = owned.take(first, 2)
    with own.connect() as client:
        client.config_set("maxmemory", 1)
    first.commit(committed(got))
    got = owned.take(first, 1)
    first.close()
    assert numbers(owned.take(owned.source("1"), 2)) == [2, 3]


def test_a_key_that_is_no_stream_is_refused(shared: Redis) -> None:
    with shared.connect() as client:
        client.set("a-string", "x")
    edge = Edge(shared.address("a-string"))
    for opening in (edge.source, edge.sink):
        with pytest.raises(Unusable, match="a-string is a string"):
            opening()


def test_a_stream_that_is_deleted_under_a_sink_is_not_made_again_unasked(shared: Redis, edge: Edge) -> None:
    sink = edge.sink()
    with shared.connect() as client:
        client.delete(edge.address.path)
    for count in (1, 2):
        with pytest.raises(Unusable, match="no stream"):
            sink.publish([outgoing(n, edge) for n in range(count)])


def test_with_create_a_source_waits_for_a_stream_that_nobody_wrote_to_yet(shared: Redis) -> None:
    edge = Edge(shared.address("not-yet", create="on"))
    source = edge.source()
    assert source.poll(1, 0) == []
    edge.publish([1])
    assert numbers(edge.take(source, 1)) == [1]
    edge.close()


RIGHTS = "resetkeys ~rows ~mlpacker:lease:{rows}:* -@all +@connection +type +@stream +eval +get +set +del +pexpire +exists"


@pytest.fixture
def guarded(own: Redis, owned: Edge, monkeypatch: pytest.MonkeyPatch) -> Redis:
    monkeypatch.setenv("REDIS_PASSWORD", "s3cret-word")
    monkeypatch.setenv("REDIS_WRONG", "wr0ng-word")
    with own.connect() as client:
        client.execute_command("ACL", "SETUSER", "edge", "on", ">s3cret-word", *RIGHTS.split())
        client.execute_command("ACL", "SETUSER", "mute", "on", ">s3cret-word", "~*", "+@connection")
        client.execute_command("ACL", "SETUSER", "default", "off")
    return own


def as_user(server: Redis, user: str, variable: str = "REDIS_PASSWORD") -> str:
    return server.address("rows", password=f"env:{variable}").replace("//", f"//{user}@", 1)


def test_a_user_with_the_rights_of_the_howto_reads_and_publishes_and_may_not_ask_for_settings(
    guarded: Redis,
) -> None:
    edge = Edge(as_user(guarded, "edge"))
    edge.publish(range(3))
    source = edge.source()
    source.commit(committed(edge.take(source, 3)))
    assert edge.broker.trim(edge.address) == 0
    told = edge.broker.explain(edge.address, "sink").settings
    assert {s.name: s.value for s in told} == dict.fromkeys(
        ["appendonly", "appendfsync", "maxmemory-policy", "save"]
    )
    edge.close()


@pytest.mark.parametrize(
    ("user", "variable"), [("edge", "REDIS_WRONG"), ("nobody", "REDIS_PASSWORD"), ("mute", "REDIS_PASSWORD")]
)
def test_credentials_that_are_refused_are_for_good_and_never_shown(
    guarded: Redis, user: str, variable: str
) -> None:
    edge = Edge(as_user(guarded, user, variable))
    for opening in (edge.source, edge.sink):
        with pytest.raises(Unusable) as refused:
            opening()
        assert os.environ[variable] not in str(refused.value) + repr(refused.value.__cause__)


def test_without_credentials_a_guarded_server_is_unusable(guarded: Redis) -> None:
    with pytest.raises(Unusable):
        Edge(guarded.address("rows")).source()


# --- TLS, replicas ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl here to make a certificate; apt-get install openssl"
)
def test_tls_is_checked_against_the_authority_that_is_named(tmp_path: Path) -> None:
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    with Redis(tmp_path / "free") as other:
        port = other.port  # free again when it stops
    tls = [
        f"tls-port {port}",
        "tls-auth-clients no",
        f"tls-cert-file {tmp_path}/cert.pem",
        f"tls-key-file {tmp_path}/key.pem",
    ]
    with Redis(tmp_path / "redis", settings=tls) as server:
        server.make("rows")
        at = f"rediss://localhost:{port}/rows"
        edge = Edge(f"{at}?ca={tmp_path}/cert.pem")
        edge.publish(range(3))
        assert numbers(edge.take(edge.source(), 3)) == [0, 1, 2]
        edge.close()
        for wrong in (at, f"rediss://127.0.0.1:{port}/rows?ca={tmp_path}/cert.pem"):
            with pytest.raises(Unusable):
                Edge(wrong).source()
        Edge(f"{at}?verify=off").sink().close()


def test_replicas_are_waited_for_and_a_replica_is_nobody_to_write_to(
    own: Redis, owned: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis(
        tmp_path / "second", settings=[f"replicaof 127.0.0.1 {own.port}", "repl-diskless-sync-delay 0"]
    ) as second:
        with own.connect() as client:
            client.config_set("repl-diskless-sync-delay", 0)
            until = time.monotonic() + 30
            while client.wait(1, 200) < 1:
                assert time.monotonic() < until
        assert dict(owned.sink(own.address("rows", replicas="1")).publish([outgoing(0, owned)])) == {}
        monkeypatch.setattr(owned.broker, "REPLICATES", 0.2)
        with pytest.raises(Away, match="1 of 2 replicas"):
            owned.sink(own.address("rows", replicas="2")).publish([outgoing(0, owned)])
        with pytest.raises(Away, match="replica"):
            owned.sink(second.address("rows"))
        both = f"redis://127.0.0.1:{second.port},127.0.0.1:{own.port}/rows"
        owned.publish([1], at=both)


# --- Explaining ------------------------------------------------------------------------------------------------------


def test_explain_tells_the_durable_settings_from_debians(shared: Redis, tmp_path: Path) -> None:
    broker = brokers.get("redis")
    good = broker.explain(parse(shared.address("any")), "sink").settings
    assert [s.good for s in good] == [True, True, True]
    with Redis(tmp_path / "redis", durable=False) as server:
        told = {
            s.name: (s.value, s.good) for s in broker.explain(parse(server.address("any")), "source").settings
        }
    assert told["appendonly"] == ("no", False)
    assert told["appendfsync"] == ("everysec", False)
    assert told["save"][1] is False


def test_an_address_without_a_stream_is_refused(shared: Redis) -> None:
    with pytest.raises(brokers.BadDescription, match="stream"):
        brokers.get("redis").source(parse(shared.address("")), Reading("g"), Given())
