"""MQTT against a real Mosquitto: the contract, and what a broker that dies, refuses or forgets does to rows."""

from __future__ import annotations

import itertools
import subprocess
import time

import pytest
from paho.mqtt import client as paho

from mlpacker.testing.brokers import BrokerContract, Edge
from mlpacker.testing.delivery.servers.mosquitto import Mosquitto
from mlpacker_runtime.brokers import Away, Outgoing, Reading, Unusable, mqtt
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.errors import BadDescription

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(Mosquitto.missing() is not None, reason=str(Mosquitto.missing())),
    pytest.mark.timeout(60),
]
topics = (f"plant/{n}/readings" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as server:
        yield server


@pytest.fixture
def opened():
    opened = []
    yield opened
    for each in opened:
        each.close()


@pytest.fixture
def reader(opened):
    def reader(address, group="g", **more):
        made = mqtt.source(parse(address), Reading(group, **more), None)
        opened.append(made)
        return made

    return reader


@pytest.fixture
def sender(opened):
    def sender(address):
        made = mqtt.sink(parse(address), "tests")
        opened.append(made)
        return made

    return sender


def rows(*numbers):
    return [Outgoing(b"%d" % n, f"id-{n}") for n in numbers]


def take(source, count, seconds=10.0):
    got, until = [], time.monotonic() + seconds
    while len(got) < count and time.monotonic() < until:
        got += source.poll(1000, 0.2)
    return got


def read(messages):
    return [int(m.value) for m in messages]


def send_as_a_sensor(server, topic, *payloads, qos=1, retain=False):
    """As a device would that knows nothing of us: MQTT 3.1.1."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", server.port)
    client.loop_start()
    for payload in payloads:
        client.publish(topic, payload, qos, retain).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def until_away(act):
    """Until a broker that was killed is known to be gone."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            act()
        except Away:
            return
    pytest.fail("the broker's end was not noticed")


class TestMqtt5(BrokerContract):
    @pytest.fixture
    def edge(self, server):
        return Edge(
            server.address(next(topics)), another=server.address(next(topics)),
            times=False, lag=False, starts=("latest",), standby=False, competing=True,
        )  # fmt: skip


class TestMqtt3:
    """The rules that the older protocol has a part in; it shares the rest with MQTT 5."""

    opened = BrokerContract.opened

    @pytest.fixture
    def edge(self, server):
        return Edge(
            server.address(next(topics), version="3", keys="none"),
            headers=False, keys=False, times=False, lag=False, starts=("latest",), standby=False,
        )  # fmt: skip

    test_order = BrokerContract.test_messages_arrive_in_the_order_they_were_published_with_offsets_that_grow
    test_again = (
        BrokerContract.test_what_was_not_committed_is_delivered_again_in_order_and_before_what_is_newer
    )
    test_not_again = BrokerContract.test_what_was_committed_is_not_delivered_again
    test_prefix = BrokerContract.test_a_commit_finishes_what_came_before_it_and_nothing_behind
    test_no_headers = BrokerContract.test_the_key_the_headers_and_the_time_come_along
    test_bytes = BrokerContract.test_any_bytes_pass_and_none_at_all
    test_large = BrokerContract.test_a_large_value_passes_whole


# A broker that dies


@pytest.mark.parametrize("version", ["5", "3"])
@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("away", [True, False], ids=["reader away", "reader connected"])
def test_nothing_confirmed_is_lost_when_a_durable_broker_is_killed(
    tmp_path, reader, sender, version, count, away
):
    with Mosquitto(tmp_path) as server:
        address = server.address("plant/a", version=version)
        source = reader(address)
        if away:
            source.close()
        sender(address).publish(rows(*range(count)))
        server.kill()
        source.close()  # what had come to this machine already is thrown away with it
        server.start()
        assert read(take(reader(address), count)) == list(range(count))


def test_debians_default_loses_what_it_confirmed_when_it_is_killed(tmp_path, reader, sender, caplog):
    with Mosquitto(tmp_path, durable=False) as server:
        address, state = server.address("plant/a"), str(tmp_path / "state")
        reader(address, state=state).close()
        sender(address).publish(rows(*range(20)))
        server.kill()
        server.start()
        again = reader(address, state=state)
        assert "forgotten our session" in caplog.text
        assert take(again, 1, 1.0) == []


def test_what_a_connection_brought_before_it_ended_is_delivered_before_that_is_told(tmp_path, reader):
    with Mosquitto(tmp_path, durable=False) as server:
        source = reader(server.address("plant/a"))
        send_as_a_sensor(server, "plant/a", *map(str, range(20)))
        server.kill()
        got = []
        until_away(lambda: got.extend(source.poll(3, 0.1)))
        assert read(got) == list(range(20))


def test_after_away_a_new_source_goes_on_behind_the_last_commit_and_in_order(tmp_path, reader, sender):
    with Mosquitto(tmp_path) as server:
        address = server.address("plant/a")
        source, sink = reader(address), sender(address)
        sink.publish(rows(*range(30)))
        got = take(source, 30)
        source.commit({got[9].partition: got[9].offset})
        server.kill()
        until_away(lambda: source.poll(10, 0.1))
        with pytest.raises(Away):
            source.commit({got[19].partition: got[19].offset})
        with pytest.raises(Away):
            sink.publish(rows(30))
        source.close()
        server.start()
        sender(address).publish(rows(30, 31))
        again = take(reader(address), 22)
        assert read(again) == list(range(10, 32))
        assert again[0].offset > got[-1].offset
        assert dict(again[0].headers)["mqtt-dup"] == b"1"


def test_an_idle_sink_whose_connection_has_ended_connects_anew(tmp_path, sender, reader):
    with Mosquitto(tmp_path) as server:
        sink = sender(server.address("plant/a"))
        reader(server.address("plant/a")).close()
        server.stop()
        server.start()
        assert dict(sink.publish(rows(1))) == {}
        assert read(take(reader(server.address("plant/a")), 1)) == [1]


# Sessions


def test_two_processes_of_an_ordered_group_do_not_fight_for_ever(server, reader, sender):
    """Debian's Mosquitto does not say that a session was taken over; one that does is believed at once."""
    address = server.address(next(topics))
    sources = [reader(address, member="0"), reader(address, member="1")]
    sender(address).publish(rows(1, 2))
    with pytest.raises(Unusable, match="Another process reads"):  # noqa: PT012  whichever turn it is
        for turn in range(2 * mqtt.CUTS):
            until_away(lambda: sources[turn % 2].poll(10, 0.1))  # noqa: B023
            sources[turn % 2] = reader(address)
    assert read(take(sources[turn % 2 - 1], 2)) == [1, 2]


def test_the_rows_of_an_unordered_member_that_is_away_wait_for_it(server, reader, sender):
    address = server.address(next(topics))
    members = [reader(address, member=m, ordered=False) for m in "01"]
    members[1].close()
    sender(address).publish(rows(*range(10)))
    here = read(take(members[0], 10, 1.0))
    there = read(take(reader(address, member="1", ordered=False), 10 - len(here)))
    assert sorted(here + there) == list(range(10))


@pytest.mark.parametrize("version", ["5", "3"])
def test_retained_messages_come_at_the_subscription_unless_they_are_not_wanted(server, reader, version):
    topic = next(topics)
    send_as_a_sensor(server, topic, "7", retain=True)
    got = take(reader(server.address(topic, version=version), "a"), 1)
    assert (read(got), dict(got[0].headers)["mqtt-retain"]) == ([7], b"1")
    without = reader(server.address(topic, version=version, retained="off"), "b")
    assert take(without, 1, 0.7) == []
    send_as_a_sensor(server, topic, "8")
    assert read(take(without, 1)) == [8]


def test_with_mqtt_5_a_retained_message_comes_once(server, reader):
    topic = next(topics)
    send_as_a_sensor(server, topic, "7", retain=True)
    first = reader(server.address(topic))
    got = take(first, 1)
    first.commit({got[0].partition: got[0].offset})
    first.close()
    assert take(reader(server.address(topic)), 1, 0.7) == []


def test_the_topic_is_the_key_where_the_sender_gave_none(server, reader):
    plant = next(topics).removesuffix("/readings")
    source = reader(server.address(f"{plant}/+"))
    keyless = reader(server.address(f"{plant}/+", keys="none"), "h")
    for line in ("a", "b"):
        send_as_a_sensor(server, f"{plant}/{line}", "1")
    send_as_a_sensor(server, f"{plant}/c", "2", qos=0)
    got = take(source, 3)
    assert [m.key for m in got] == [f"{plant}/{line}".encode() for line in "abc"]
    assert [dict(m.headers)["mqtt-topic"] for m in got] == [m.key for m in got]
    source.commit({got[2].partition: got[2].offset})
    assert [m.key for m in take(keyless, 3)] == [None, None, None]


def test_more_than_is_held_in_memory_is_left_with_the_broker_and_comes_in_order(
    server, reader, sender, monkeypatch, caplog
):
    monkeypatch.setattr(mqtt, "MOST", 10)
    monkeypatch.setattr(mqtt, "AT_ONCE", 5)
    address = server.address(next(topics))
    source = reader(address)
    sender(address).publish(rows(*range(50)))
    for _ in range(20):
        assert source.poll(0, 0.05) == []
    assert len(source._arrived) <= 15
    assert caplog.text.count("wait in memory") == 1
    assert read(take(source, 50)) == list(range(50))


# What a broker refuses


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("message_size_limit 1000", {}),
        ("max_packet_size 1400", {}),
        ("log_type error", {"max_bytes": "1000"}),
        ("log_type error", {"max_bytes": "1000", "version": "3"}),
    ],
)
def test_a_message_too_large_is_named_by_its_place_and_the_others_are_published(
    tmp_path, reader, sender, setting, options
):
    with Mosquitto(tmp_path, extra=(setting,)) as server:
        address = server.address("plant/a", **options)
        source = reader(address)
        refused = sender(address).publish([*rows(0), Outgoing(b"x" * 2000, "id"), *rows(2)])
        assert list(refused) == [1]
        assert "more than" in refused[1] or "larger" in refused[1]
        came = read(take(source, 3, 1.0))  # a broker that hangs up may have been sent the first one twice
        assert list(dict.fromkeys(came)) == [0, 2]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A broker with one user who may read but not write `plant/closed`, and a port with TLS."""
    folder = tmp_path_factory.mktemp("guarded")
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", folder / "users", "plant", "open sesame"], check=True, timeout=30
    )
    (folder / "acl").write_text("user plant\ntopic readwrite plant/open\ntopic read plant/closed\n")
    (folder / "right").write_text("open sesame\n")
    (folder / "wrong").write_text("let me in\n")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, timeout=30, capture_output=True,
    )  # fmt: skip
    extra = ("allow_anonymous false", f"password_file {folder / 'users'}", f"acl_file {folder / 'acl'}")
    with Mosquitto(folder / "data", extra=extra, tls=(cert, cert, key)) as server:
        server.files = folder
        yield server


def as_plant(server, topic, password="right", **options):
    address = server.address(topic, password=f"file:{server.files / password}", **options)
    return address.replace("mqtt://", "mqtt://plant@")


@pytest.mark.parametrize("version", ["5", "3"])
def test_refused_credentials_are_unusable_and_are_not_repeated(guarded, reader, sender, version):
    for address in (
        as_plant(guarded, "plant/open", "wrong", version=version),
        guarded.address("plant/open", version=version),
    ):
        for open_it in (reader, sender):
            with pytest.raises(Unusable, match="refuses these credentials") as refused:
                open_it(address)
            assert "let me in" not in str(refused.value)


def test_with_the_right_credentials_rows_flow(guarded, reader, sender):
    source = reader(as_plant(guarded, "plant/open"))
    sender(as_plant(guarded, "plant/open")).publish(rows(1))
    assert read(take(source, 1)) == [1]


def test_a_topic_that_may_not_be_written_is_unusable(guarded, sender):
    with pytest.raises(Unusable, match="plant/closed"):
        sender(as_plant(guarded, "plant/closed")).publish(rows(1))


def test_rows_flow_over_tls_and_a_stranger_is_not_trusted(guarded, reader, sender):
    address = as_plant(guarded, "plant/open").replace("mqtt://", "mqtts://")
    address = address.replace(str(guarded.port), str(guarded.tls_port))
    trusting = f"{address}&ca={guarded.files / 'cert.pem'}"
    source = reader(trusting, "tls")
    sender(trusting).publish([Outgoing(b"%d" % n + b" " * 2000, "id") for n in range(300)])
    assert read(take(source, 300)) == list(range(300))
    with pytest.raises(Unusable, match="not trusted"):
        reader(address)


def test_nobody_there_is_away():
    with pytest.raises(Away):
        mqtt.source(parse("mqtt://127.0.0.1:1/plant"), Reading("g"), None)


# What an address can't say


@pytest.mark.parametrize("path", ["", "a+/b", "#/b", "a/b#", "$share/g/a"])
def test_what_is_no_filter_is_refused_before_connecting(path):
    with pytest.raises(BadDescription, match="no topic filter"):
        mqtt.source(parse(f"mqtt://127.0.0.1:1/{path}"), Reading("g"), None)


@pytest.mark.parametrize("path", ["", "plant/+", "plant/#"])
def test_a_sink_names_one_topic(path):
    with pytest.raises(BadDescription, match="no topic to publish to"):
        mqtt.sink(parse(f"mqtt://127.0.0.1:1/{path}"), "tests")


@pytest.mark.parametrize(
    "option", ["qos=0", "qos=2", "version=4", "keys=some", "retained=perhaps", "max_bytes=-1"]
)
def test_an_option_says_what_it_takes(option):
    with pytest.raises(BadDescription, match=option.partition("=")[0]):
        mqtt.source(parse(f"mqtt://127.0.0.1:1/plant?{option}"), Reading("g"), None)


def test_client_ids_stay_the_same_and_differ_by_group_topic_and_unordered_member():
    here, there = parse("mqtt://h/a"), parse("mqtt://h/b")
    given = parse("mqtt://h/a?client=press")
    ids = [
        mqtt.client_id(here, Reading("g")), mqtt.client_id(here, Reading("h")), mqtt.client_id(there, Reading("g")),
        mqtt.client_id(here, Reading("g", ordered=False)), mqtt.client_id(here, Reading("g", "1", ordered=False)),
    ]  # fmt: skip
    assert len(set(ids)) == 5
    assert all(i.isalnum() and len(i) <= 23 for i in ids)
    assert mqtt.client_id(here, Reading("g", "1")) == ids[0]
    assert mqtt.client_id(given, Reading("g")) == "press"
    assert mqtt.client_id(given, Reading("g", "1", ordered=False)) == "press-1"


def test_explain_says_what_it_was_told_and_what_not(server):
    told = mqtt.explain(parse(server.address("plant")), "source")
    named = {s.name: s for s in told.settings}
    assert named["version"].value == f"mosquitto version {server.version().split()[-1]}"
    assert named["max_queued_messages"].value is None
    assert not any("could not be asked" in sentence for sentence in told.holds)
    away = mqtt.explain(parse("mqtt://127.0.0.1:1/plant"), "sink")
    assert any("could not be asked" in sentence for sentence in away.holds)
