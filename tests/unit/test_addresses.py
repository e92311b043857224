"""Addresses: what is written is what is meant, and is written again the same; secrets never stand in one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlpacker_runtime.brokers import BUILT_IN, get
from mlpacker_runtime.brokers.address import SECRETS, Address, parse, reveal
from mlpacker_runtime.errors import BadDescription

DOCUMENTED = {
    "local:readings": Address("local", "readings"),
    "file:rows.jsonl": Address("file", "rows.jsonl"),
    "file:/data/rows.jsonl": Address("file", "/data/rows.jsonl"),
    "-": Address("-", ""),
    "-?format=csv": Address("-", "", options={"format": "csv"}),
    "kafka://host:9092/topic?option=value": Address(
        "kafka", "topic", (("host", 9092),), options={"option": "value"}
    ),
    "kafka://h1:9092,h2:9092/readings": Address("kafka", "readings", (("h1", 9092), ("h2", 9092))),
    "nats://host/plant.readings": Address("nats", "plant.readings", (("host", 0),)),
    "redis://host/readings": Address("redis", "readings", (("host", 0),)),
    "amqp://host/readings": Address("amqp", "readings", (("host", 0),)),
    "mqtt://host/plant/+/readings": Address("mqtt", "plant/+/readings", (("host", 0),)),
    "mqtt://host/plant/#": Address("mqtt", "plant/#", (("host", 0),)),
    "kafkas://host/t": Address("kafka", "t", (("host", 0),), tls=True),
    "mqtts://host/t": Address("mqtt", "t", (("host", 0),), tls=True),
    "rediss://host/t": Address("redis", "t", (("host", 0),), tls=True),
    "amqps://host/t": Address("amqp", "t", (("host", 0),), tls=True),
    "natss://host/t": Address("nats", "t", (("host", 0),), tls=True),
    "redis://ada@[::1]:6379/t?password=env:PW": Address(
        "redis", "t", (("::1", 6379),), "ada", options={"password": "env:PW"}
    ),
}

words = st.text("abcdefgXYZ0189._-", min_size=1, max_size=12).filter(lambda w: w[0] not in ".-")
topics = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
hosts = st.tuples(words | st.just("::1"), st.integers(0, 65535))
plain = {
    name: st.text(st.characters(exclude_categories=["Cs"]), max_size=15)
    for name in ("a", "group name", "ü&=")
}
options = st.fixed_dictionaries(
    {}, optional={**plain, "password": st.sampled_from(["env:PW", "file:/run/pw"])}
)

remote = st.builds(
    Address,
    st.sampled_from(["kafka", "mqtt", "nats", "redis", "amqp", "of-others"]),
    topics,
    st.lists(hosts, min_size=1, max_size=3).map(tuple),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.booleans(),
    options,
)
on_this_machine = st.builds(
    Address,
    st.sampled_from(["local", "file"]),
    topics.filter(lambda t: not t.startswith("//")),
    options=options,
)


@given(remote | on_this_machine | st.builds(Address, st.just("-"), st.just(""), options=options))
def test_an_address_is_written_so_that_it_is_read_the_same(address: Address):
    assert parse(str(address)) == address


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: b.decode(errors="replace")))
@example("kafka://h:99999/t")
@example("kafka://:9092/t")
@example("kafka://[::1/t")
@example("local:%FF%00")
@example("-?")
@example("kafka://h/t?=&&=;a=%")
def test_any_text_is_an_address_or_refused(text: str):
    try:
        address = parse(text)
    except BadDescription:
        return
    assert isinstance(address, Address)


@given(
    st.sampled_from(sorted(BUILT_IN)),
    st.sampled_from([":", "://", "s://", ":///"]),
    st.text(":/@?[],&=%#+*ab1.-_ü", max_size=40),
)
def test_what_looks_like_an_address_is_one_or_refused(scheme: str, middle: str, rest: str):
    try:
        parse(scheme + middle + rest, BUILT_IN)
    except BadDescription:
        return


@pytest.mark.parametrize("text", DOCUMENTED)
def test_every_documented_example_means_what_it_says(text: str):
    assert parse(text, BUILT_IN) == DOCUMENTED[text]
    assert str(parse(text)) == text


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_an_address_is_refused_and_not_repeated(name: str):
    with pytest.raises(BadDescription) as refused:
        parse(f"kafka://host/t?{name}=hunter2")
    assert "hunter2" not in str(refused.value)
    assert "env:NAME" in str(refused.value)


def test_a_password_before_the_host_is_refused_and_not_repeated():
    with pytest.raises(BadDescription) as refused:
        parse("redis://ada:hunter2@host/t")
    assert "hunter2" not in str(refused.value)


def test_a_secret_is_read_when_it_is_used_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "pw").write_text("from a file\n")
    monkeypatch.setenv("SOME_PW", "from the environment")
    by_name = parse("kafka://h/t?password=env:SOME_PW")
    by_file = parse(f"kafka://h/t?password=file:{tmp_path}/pw")
    assert (by_name.secret("password"), by_file.secret("password")) == ("from the environment", "from a file")
    assert by_name.secret("token") is None
    assert "from" not in f"{by_name} {by_name!r} {by_file.options}"


@pytest.mark.parametrize("reference", ["env:NOT_SET_ANYWHERE", "file:/nowhere/at/all", "hunter2", "", "env"])
def test_a_secret_that_can_not_be_read_is_refused_and_not_repeated(reference: str):
    with pytest.raises(BadDescription) as refused:
        reveal(reference, "kafka://h/t: password")
    assert "hunter2" not in str(refused.value)


def test_an_option_nobody_knows_is_named_with_those_there_are():
    with pytest.raises(BadDescription, match="retries.*There are acks, linger"):
        parse("kafka://h/t?retries=3").only("linger", "acks")
    parse("kafkas://h/t?ca=a.pem").only()
    with pytest.raises(BadDescription, match="'ca'"):
        parse("kafka://h/t?ca=a.pem").only()


@pytest.mark.parametrize("text", ["-1", "1.5", "two", "", " 1"])
def test_a_number_is_a_whole_one_from_0(text: str):
    assert parse("kafka://h/t").number("retries", 7) == 7
    assert parse("kafka://h/t?retries=12").number("retries", 7) == 12
    with pytest.raises(BadDescription, match="whole number"):
        Address("kafka", "t", options={"retries": text}).number("retries", 7)


def test_a_flag_is_on_or_off():
    for text, wanted in {"on": True, "TRUE": True, "1": True, "off": False, "no": False, "0": False}.items():
        assert parse(f"kafka://h/t?create={text}").flag("create", not wanted) is wanted
    assert parse("kafka://h/t").flag("create", True) is True
    with pytest.raises(BadDescription, match="on or off"):
        parse("kafka://h/t?create=maybe").flag("create")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "readings",
        ":",
        "local:",
        "kafka:host/t",
        "kafka://h:0/t",
        "kafka://h:x/t",
        "kafka://a,,b/t",
        "kafka://h:70000/t",
    ],
)
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(BadDescription):
        parse(text)


def test_a_scheme_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(BadDescription, match=r"carrier://.*kafka"):
        parse("carrier://h/t", BUILT_IN)


def test_tls_that_can_not_be_set_up_is_said_before_anything_is_sent(tmp_path: Path):
    assert parse("kafka://h/t").context() is None
    with pytest.raises(BadDescription, match="TLS"):
        parse(f"kafkas://h/t?ca={tmp_path}/none.pem").context()


@pytest.mark.parametrize(
    ("text", "carries"),
    [("file:a.jsonl", False), ("-", False), ("mqtt://h/a?version=3", False), ("mqtt://h/a", True)],
)
def test_whether_messages_carry_headers_is_known_before_the_broker_is_there(text: str, carries: bool) -> None:
    address = parse(text)
    assert get(address.scheme).has_headers(address) is carries
