"""The embedded log and the topics made of it: what is confirmed stays, and two never read one partition."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlpacker.testing.brokers import Given
from mlpacker_runtime.brokers import Away, Message, Outgoing, Reading, Unusable, local
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.brokers.log import Log, filesystem
from mlpacker_runtime.errors import BadDescription

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "a.log.db", partitions=2)
    yield made
    made.close()


def some(*numbers: int, key: bytes | None = b"k") -> list[Outgoing]:
    return [Outgoing(b"%d" % n, f"id-{n}", key) for n in numbers]


def values(messages: list[Message]) -> list[int]:
    return [int(m.value) for m in messages]


def until(met: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not met():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


# The log


def test_offsets_begin_at_1_and_have_no_gaps_in_each_partition(log: Log):
    assert (log.last(0), log.first(0), log.count(0)) == (0, 1, 0)
    assert log.append(some(1, 2, 3)) == 3
    assert log.append(some(10), partition=1) == 1
    assert log.append([]) == 3
    assert [m.offset for m in log.read(0, 0, 10)] == [1, 2, 3]
    assert values(log.read(0, 1, 1)) == [2]
    assert values(log.read(1, 0, 10)) == [10]
    assert log.read(0, 3, 10) == []


def test_a_message_comes_back_with_its_parts(log: Log):
    headers = (("mlpacker-id", b"\x00\xff"), ("traceparent", b"00-a"))
    log.append([Outgoing(b"v", "id-1", b"k", headers), Message("9", 77, b"w", time=12.5)])
    ours, theirs = log.read(0, 0, 2)
    assert (ours.value, ours.key, ours.headers) == (b"v", b"k", headers)
    assert abs(ours.time - time.time()) < 60
    assert theirs == Message("0", 2, b"w", time=12.5)
    assert log.read_outgoing(0, 0, 1) == [(1, Outgoing(b"v", "id-1", b"k", headers))]


def test_a_list_is_kept_whole_or_not_at_all(log: Log):
    with pytest.raises(Away):
        log.append_to({0: some(1, 2), 1: [*some(3), Outgoing(object(), "id-4")]})  # type: ignore[arg-type]
    assert (log.count(0), log.count(1)) == (0, 0)
    log.append(some(5))
    assert values(log.read(0, 0, 10)) == [5]


def test_trimmed_messages_are_gone_and_their_offsets_are_not_given_again(tmp_path: Path, log: Log):
    log.append(some(*range(12_000)))
    full = log.size_bytes()
    assert log.trim(0, 11_999) == 11_999
    assert (log.first(0), log.count(0), log.last(0)) == (12_000, 1, 12_000)
    assert log.trim(0, 12_000) == 1
    assert log.trim(0, 12_000) == 0
    assert log.size_bytes() < full / 2
    log.close()
    again = Log(tmp_path / "a.log.db")
    assert (again.first(), again.append(some(1))) == (12_001, 12_001)
    again.close()


def test_a_time_finds_its_place(log: Log):
    log.append([Message("0", 0, b"%d" % n, time=100.0 + n) for n in range(50)])
    assert [log.before(0, t) for t in (0.0, 100.0, 100.5, 149.0, 200.0)] == [0, 0, 1, 49, 50]
    log.trim(0, 10)
    assert [log.before(0, t) for t in (0.0, 105.0, 120.0)] == [10, 10, 20]


def test_writers_at_the_same_time_lose_nothing_and_keep_each_lists_order(tmp_path: Path, log: Log):
    def write(writer: int) -> None:
        mine = Log(log.path)
        for n in range(10):
            mine.append(some(*(writer * 1000 + n * 10 + k for k in range(10))))
        mine.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    got = values(log.read(0, 0, 1000))
    assert [m.offset for m in log.read(0, 0, 1000)] == list(range(1, 401))
    for writer in range(4):
        assert [n for n in got if n // 1000 == writer] == list(range(writer * 1000, writer * 1000 + 100))


def test_many_may_make_the_same_log_at_once_and_it_is_one(tmp_path: Path):
    def make(_: int) -> str:
        made = Log(tmp_path / "new" / "one.log.db")
        made.close()
        return made.uuid

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1


def test_a_log_for_one_process_is_refused_to_a_second_and_free_again_after(tmp_path: Path):
    first = Log(tmp_path / "j.db", alone=True)
    with pytest.raises(Unusable, match=r"j\.db is in use by another process"):
        Log(tmp_path / "j.db", alone=True)
    first.close()
    first.close()
    Log(tmp_path / "j.db", alone=True).close()


def test_a_file_of_a_newer_release_is_refused_with_a_sentence(log: Log):
    log.close()
    with sqlite3.connect(log.path) as connection:
        connection.execute("UPDATE about SET value = '2' WHERE name = 'schema'")
    connection.close()
    with pytest.raises(Unusable, match="newer release"):
        Log(log.path)


def test_what_is_no_log_is_refused_and_left_as_it_is(tmp_path: Path):
    (tmp_path / "text").write_text("no database at all, but quite some text\n" * 100)
    with pytest.raises(Unusable, match="damaged, or no log"):
        Log(tmp_path / "text")
    connection = sqlite3.connect(tmp_path / "other")
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    with pytest.raises(Unusable, match="something else"):
        Log(tmp_path / "other")
    with pytest.raises(Unusable, match="can't be made"):
        Log(tmp_path / "text" / "below")


def test_the_number_of_partitions_stays(tmp_path: Path, log: Log):
    assert Log(log.path).partitions == 2
    with pytest.raises(Unusable, match="has 2 partitions, not 3"):
        Log(log.path, partitions=3)


def test_a_log_that_was_removed_under_us_takes_nothing_into_the_void(log: Log):
    log.append(some(1))
    log.path.unlink()
    with pytest.raises(Away, match="removed or replaced"):
        log.append(some(2))


def test_a_closed_log_says_so(log: Log):
    log.close()
    with pytest.raises(Away):
        log.append(some(1))


def test_a_network_filesystem_is_known_by_the_nearest_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    share = tmp_path / "a share" / "deeper"
    share.mkdir(parents=True)
    mounts = tmp_path / "mounts"
    point = str(tmp_path / "a share").replace(" ", "\\040")
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {point} nfs4 rw 0 0\n")
    assert filesystem(share, str(mounts)) == "nfs4"
    assert filesystem(tmp_path, str(mounts)) == "ext4"
    assert filesystem(tmp_path, str(tmp_path / "none")) == ""
    monkeypatch.setattr("mlpacker_runtime.brokers.log.filesystem", lambda folder: "nfs4")
    with pytest.raises(Unusable, match="network filesystem"):
        Log(share / "a.log.db")


# Kills

WRITER = """
    import sys
    from mlpacker_runtime.brokers import Outgoing
    from mlpacker_runtime.brokers.log import Log
    log, n = Log(sys.argv[1]), 0
    while True:
        last = log.append([Outgoing(b"%d" % (n + k), "id", b"k") for k in range(50)])
        n += 50
        print(last, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_writer_killed_in_the_middle_loses_nothing_it_was_told_is_kept(tmp_path: Path, after: int):
    writer = run(WRITER, tmp_path / "a.log.db")
    confirmed = 0
    for _ in range(after):
        confirmed = int(writer.stdout.readline())
    writer.kill()
    rest = [line for line in writer.stdout.read().split("\n") if line]
    writer.wait()
    writer.stdout.close()
    confirmed = int(rest[-1]) if rest else confirmed
    log = Log(tmp_path / "a.log.db")
    kept = values(log.read(0, 0, 1_000_000))
    assert kept == list(range(len(kept)))
    assert confirmed <= len(kept)
    assert len(kept) % 50 == 0
    assert log.append(some(0)) == len(kept) + 1
    log.close()


READER = """
    import sys
    from mlpacker_runtime.brokers import Reading, local
    from mlpacker_runtime.brokers.address import parse
    class Listener:
        def giving_up(self, partitions, seconds):
            print("gave up", *sorted(partitions), seconds, flush=True)
    source = local.source(parse(sys.argv[1]), Reading("g", session=1.0), Listener())
    while True:
        for message in source.poll(100, 0.2):
            print("got", message.value.decode(), flush=True)
            last = message.offset
        for line in sys.stdin if sys.argv[2] == "commit" else ():
            source.commit({"0": last})
            break
"""


def run(program: str, *given: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", textwrap.dedent(program), *map(str, given)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()


def reader(address: str, session: float = 1.0, member: str = "1", group: str = "g") -> local.LocalSource:
    return local.source(parse(address), Reading(group, member, session=session), Given())


@pytest.fixture
def topic(tmp_path: Path) -> str:
    return f"local:t?path={tmp_path}"


def publish(topic: str, messages: list[Outgoing]) -> None:
    sink = local.sink(parse(topic), "test")
    assert sink.publish(messages) == {}
    sink.close()


def test_a_reader_that_is_killed_is_replaced_at_once_whatever_its_session(topic: str):
    publish(topic, some(1, 2, 3))
    first = run(READER.replace("session=1.0", "session=600.0"), topic, "no")
    assert [first.stdout.readline() for _ in range(3)] == ["got 1\n", "got 2\n", "got 3\n"]
    second = reader(topic, session=600.0)
    assert second.poll(10, 0.3) == []
    end(first)
    assert values(second.poll(10, 20)) == [1, 2, 3]
    second.close()


def test_a_reader_that_was_stopped_loses_its_partition_and_its_later_commit_counts_for_nothing(topic: str):
    publish(topic, some(1, 2, 3))
    first = run(READER, topic, "commit")
    assert [first.stdout.readline() for _ in range(3)] == ["got 1\n", "got 2\n", "got 3\n"]
    os.kill(first.pid, signal.SIGSTOP)
    second = reader(topic)
    assert values(second.poll(10, 20)) == [1, 2, 3]
    second.commit({"0": 1})
    os.kill(first.pid, signal.SIGCONT)
    first.stdin.write("commit 3\n")
    first.stdin.flush()
    keeping = time.monotonic() + 0.3
    while time.monotonic() < keeping:
        second.poll(0, 0.05)
    first.stdin.write("go on\n")
    first.stdin.flush()
    assert first.stdout.readline() == "gave up 0 0\n"
    end(first)
    second.close()
    third = reader(topic)
    assert values(third.poll(10, 20)) == [2, 3]
    third.close()


def test_a_writer_stuck_in_its_transaction_makes_others_away_and_not_hang_and_readers_go_on(
    topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publish(topic, some(1))
    source = reader(topic)
    monkeypatch.setattr("mlpacker_runtime.brokers.log.WAIT", 0.2)
    stuck = sqlite3.connect(tmp_path / "t.log.db", isolation_level=None)
    sink = local.sink(parse(topic), "test")
    stuck.execute("BEGIN IMMEDIATE")
    with pytest.raises(Away, match="locked"):
        sink.publish(some(2))
    assert values(source.poll(10, 5)) == [1]
    stuck.execute("ROLLBACK")
    stuck.close()
    assert sink.publish(some(2)) == {}
    sink.close()
    assert values(source.poll(10, 5)) == [2]
    source.close()


# Members


def test_partitions_are_spread_over_the_members_and_handed_over_on_request(tmp_path: Path):
    topic = f"local:t?path={tmp_path}&partitions=4"
    told = Given()
    first = local.source(parse(topic), Reading("g", "0", session=2.0), told)
    publish(topic, [Outgoing(b"%d" % n, "id", b"key-%d" % n) for n in range(40)])
    got = first.poll(100, 5)
    assert {m.partition for m in got} == {"0", "1", "2", "3"}
    second = reader(topic, session=2.0)
    theirs: list[Message] = []

    def shared() -> bool:
        first.poll(0, 0.05)
        theirs.extend(second.poll(100, 0.05))
        return len({m.partition for m in theirs}) == 2

    until(shared)
    (gone, seconds), *more = told.given
    assert (gone, more, seconds > 0) == ({m.partition for m in theirs}, [], True)
    assert sorted(values(theirs)) == sorted(int(m.value) for m in got if m.partition in gone)
    first.close()
    more_of_theirs: list[Message] = []
    until(lambda: more_of_theirs.extend(second.poll(100, 0.1)) or len(more_of_theirs) + len(theirs) == 40)
    second.close()


def test_a_key_has_one_partition_and_keeps_its_order_there(tmp_path: Path):
    topic = f"local:t?path={tmp_path}&partitions=3"
    publish(topic, [Outgoing(b"%d" % n, f"id-{n}", b"key-%d" % (n % 7)) for n in range(70)])
    source = reader(topic)
    got = source.poll(100, 5)
    assert len(got) == 70
    for key in {m.key for m in got}:
        mine = [m for m in got if m.key == key]
        assert len({m.partition for m in mine}) == 1
        assert values(mine) == sorted(values(mine))
    source.close()


def test_what_the_slowest_group_has_committed_is_deleted_when_it_is_old(tmp_path: Path):
    topic = f"local:t?path={tmp_path}&keep=0"
    publish(topic, some(*range(10)))
    log = Log(tmp_path / "t.log.db")
    trimmer = local.Trimmer(log, 0)
    trimmer.trim()
    assert log.count() == 10  # nobody has read
    quick, slow = reader(topic, group="quick"), reader(topic, group="slow")
    for source, upto in ((quick, 9), (slow, 4)):
        source.poll(10, 5)
        source.commit({"0": upto})
    trimmer.trim()
    assert log.first() == 5
    local.Trimmer(log, 3600).trim()
    assert log.first() == 5
    slow.commit({"0": 10})
    local.Trimmer(log, 3600).trim()
    assert log.first() == 5  # not old enough
    for source in (quick, slow):
        source.close()
    log.close()


def test_a_topic_removed_while_it_is_read_is_noticed(topic: str, tmp_path: Path):
    source = reader(topic)
    (tmp_path / "t.log.db").unlink()
    with pytest.raises(Away):
        source.poll(10, 20)
    source.close()


def test_too_large_a_value_is_refused_by_its_place_and_the_others_are_kept(
    topic: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(local, "LARGEST", 3)
    sink = local.sink(parse(topic), "test")
    assert list(sink.publish(some(1, 12345, 3))) == [1]
    sink.close()
    source = reader(topic)
    assert values(source.poll(10, 5)) == [1, 3]
    source.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("local:t", "path=FOLDER"),
        ("local:../t?path=x", "no name of a topic"),
        ("local:a/b?path=x", "no name of a topic"),
        ("local:t?path=x&partitions=0", "from 1"),
        ("local:t?path=x&partitions=two", "whole number"),
        ("local:t?path=x&keep=long", "whole number"),
    ],
)
def test_an_address_that_names_no_topic_is_refused_and_makes_nothing(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadDescription, match=said):
        local.sink(parse(text), "test")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_members_that_closed(topic: str, tmp_path: Path):
    for _ in range(3):
        source = reader(topic)
        source.poll(1, 0)
        source.close()
    assert [f.name for f in tmp_path.iterdir() if f.name.endswith(".alive")] == []
