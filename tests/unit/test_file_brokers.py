"""Files and standard input and output as brokers."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlpacker.testing.brokers import Given
from mlpacker_runtime.brokers import Away, Outgoing, Reading, Unusable, files
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.errors import BadDescription

pytestmark = pytest.mark.timeout(30)

Open = Callable[..., files.FileSource]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Open]:
    """Opens sources of files in the test's folder, with a state folder."""
    opened: list[files.FileSource] = []

    def source(name: str, group: str = "g", start: str = "earliest", state: bool = True) -> files.FileSource:
        reading = Reading(group, start=start, state=str(tmp_path / "state") if state else "")
        made = files.source(parse(f"file:{tmp_path}/{name}"), reading, Given())
        assert isinstance(made, files.FileSource)
        opened.append(made)
        return made

    yield source
    for made in opened:
        made.close()


def all_of(source: files.FileSource | files.InputSource, limit: int = 1000) -> list[tuple[int, bytes]]:
    got = []
    while not source.ended:
        got += [(m.offset, m.value) for m in source.poll(limit, 1)]
    return got


def out(*values: bytes) -> list[Outgoing]:
    return [Outgoing(v, f"id-{n}") for n, v in enumerate(values)]


# Reading


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_each_line_is_a_message_its_number_the_offset_and_then_the_source_has_ended(
    tmp_path: Path, read: Open, limit: int
):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\n  \n{"n": 2}\nno JSON \xff\n{"n": 3}')
    source = read("a.jsonl")
    assert not source.ended
    wanted = [(1, b'{"n": 1}'), (4, b'{"n": 2}'), (5, b"no JSON \xff"), (6, b'{"n": 3}')]
    assert all_of(source, limit) == wanted
    assert source.poll(10, 30) == []


def test_an_empty_file_ends_at_once(tmp_path: Path, read: Open):
    (tmp_path / "a.jsonl").touch()
    assert all_of(read("a.jsonl")) == []


@pytest.mark.parametrize("limit", [1, 1000])
def test_a_record_of_a_table_becomes_an_object_of_its_headers_names_and_the_cells_text(
    tmp_path: Path, read: Open, limit: int
):
    table = 'id,"a, b"\n1,x\n\n2,"two\nlines, ""quoted"""\n3\n4,ü\n5,"open'
    (tmp_path / "a.csv").write_text(table)
    got = all_of(read("a.csv"), limit)
    assert [offset for offset, _ in got] == [2, 4, 6, 7, 8]
    assert [json.loads(got[n][1]) for n in (0, 1, 3)] == [
        {"id": "1", "a, b": "x"},
        {"id": "2", "a, b": 'two\nlines, "quoted"'},
        {"id": "4", "a, b": "ü"},
    ]
    assert [got[n][1] for n in (2, 4)] == [b"3", b'5,"open']  # to fail as the rows they are


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_reading_goes_on_behind_the_last_commit_wherever_that_was(tmp_path: Path, read: Open, name: str):
    lines = (
        [b'{"x": "%d"}' % n for n in range(20)]
        if name == "a.jsonl"
        else [b"x", *(b"%d" % n for n in range(20))]
    )
    (tmp_path / name).write_bytes(b"\n".join(lines))
    seen = []
    for upto in range(20):
        source = read(name)
        (message,) = source.poll(1, 1)
        seen.append(json.loads(message.value)["x"])
        assert len(source.poll(3, 1)) == min(3, 19 - upto)  # delivered, not committed
        source.commit({"0": message.offset})
        source.close()
    assert seen == [str(n) for n in range(20)]
    assert all_of(read(name)) == []


def test_a_line_longer_than_a_read_comes_whole(tmp_path: Path, read: Open):
    long = b'"' + b"x" * (3 << 20) + b'"'
    (tmp_path / "a.jsonl").write_bytes(long + b"\n1\n")
    assert all_of(read("a.jsonl")) == [(1, long), (2, b"1")]


def test_a_line_that_never_ends_stops_us(tmp_path: Path, read: Open, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "LONGEST", 1000)
    (tmp_path / "a.jsonl").write_bytes(bytes(2000))
    source = read("a.jsonl")
    with pytest.raises(Unusable, match="Line 1 is longer"):
        source.poll(1, 1)


def test_a_followed_file_gives_a_line_when_its_end_has_come(tmp_path: Path, read: Open):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"1\n2")
    source = read("a.jsonl?follow=on")
    assert [m.value for m in source.poll(10, 0.1)] == [b"1"]
    assert source.poll(10, 0.1) == []
    with file.open("ab") as more:
        more.write(b"2\n3\n")
    assert [m.value for m in source.poll(10, 5)] == [b"22", b"3"]
    assert not source.ended


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(tmp_path: Path, read: Open):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"1\n2\n")
    source = read("a.jsonl?follow=on")
    assert len(source.poll(1, 1)) == 1
    file.rename(tmp_path / "a.jsonl.1")
    file.write_bytes(b"3\n")
    assert [m.value for m in source.poll(10, 1)] == [b"2"]
    assert source.poll(10, 0.1) == []  # what is out may still fail
    source.commit({"0": 2})
    with pytest.raises(Away, match="replaced"):
        source.poll(10, 1)
    source.close()
    again = read("a.jsonl?follow=on")
    assert [m.value for m in again.poll(10, 1)] == [b"3"]
    assert again.incarnation != source.incarnation


@pytest.mark.parametrize("data", [b"x\n3\n4\n5\n", b"x\n1\n", b"x\n9\n2\n"])
def test_a_file_that_was_rewritten_is_another_topic(tmp_path: Path, read: Open, data: bytes):
    file = tmp_path / "a.csv"
    file.write_bytes(b"x\n1\n2\n")
    source = read("a.csv")
    source.poll(10, 1)
    source.commit({"0": 3})
    source.close()
    with file.open("r+b") as same:
        same.truncate()
        same.write(data)
        same.truncate()
    again = read("a.csv")
    assert len(all_of(again)) == data.count(b"\n") - 1
    assert again.incarnation != source.incarnation


def test_without_a_state_folder_each_start_is_from_the_beginning(tmp_path: Path, read: Open):
    (tmp_path / "a.jsonl").write_bytes(b"1\n2\n")
    for _ in range(2):
        source = read("a.jsonl", state=False)
        assert len(source.poll(10, 1)) == 2
        source.commit({"0": 2})
        source.close()


def test_a_checkpoint_that_can_not_be_read_is_named(tmp_path: Path, read: Open):
    (tmp_path / "a.jsonl").write_bytes(b"1\n")
    read("a.jsonl").close()
    (note,) = (tmp_path / "state").glob("*.json")
    note.write_text("{")
    with pytest.raises(Unusable, match="Remove it"):
        read("a.jsonl")


def test_what_is_no_file_is_refused(tmp_path: Path, read: Open):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(Unusable, match=r"none\.jsonl"):
        read("none.jsonl")
    with pytest.raises(Unusable, match="no plain file"):
        read("folder")
    with pytest.raises(Unusable, match="no plain file"):
        read("pipe")
    with pytest.raises(BadDescription, match="format"):
        read("a.jsonl?format=parquet")
    with pytest.raises(BadDescription, match="followed by a name"):
        files.source(parse("file://host/a.jsonl"), Reading("g"), Given())


# Writing


def test_a_line_that_a_crash_left_torn_is_cut_off(tmp_path: Path):
    file = tmp_path / "out.jsonl"
    for torn, kept in ((b"1\n2\n" + b"x" * 9000, b"1\n2\n"), (b"half", b""), (b"", b""), (b"1\n", b"1\n")):
        file.write_bytes(torn)
        sink = files.sink(parse(f"file:{file}"), "test")
        assert file.read_bytes() == kept
        sink.publish(out(b"9"))
        assert file.read_bytes() == kept + b"9\n"
        sink.close()


def test_what_is_no_line_is_refused_by_its_place_and_the_others_are_written(tmp_path: Path):
    sink = files.sink(parse(f"file:{tmp_path}/out.jsonl"), "test")
    refused = sink.publish(out(b"1", b"2\n3", b"", b"4"))
    assert sorted(refused) == [1, 2]
    assert (tmp_path / "out.jsonl").read_bytes() == b"1\n4\n"
    sink.close()
    with pytest.raises(Away):
        sink.publish(out(b"5"))


def test_a_list_that_does_not_fit_the_disk_leaves_nothing_of_itself(tmp_path: Path):
    program = """
        import resource, signal, sys
        from mlpacker_runtime.brokers import Away, Outgoing, Unusable, files
        from mlpacker_runtime.brokers.address import parse
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sink = files.sink(parse(sys.argv[1]), "test")
        sink.publish([Outgoing(b"1", "id")])
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            sink.publish([Outgoing(b"x" * 100, "id")] * 100)
        except (Away, Unusable) as error:
            print(error)
    """
    assert resource.RLIMIT_FSIZE is not None
    argv = [sys.executable, "-c", textwrap.dedent(program), f"file:{tmp_path}/out.jsonl"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "can't be used" in done.stdout
    assert (tmp_path / "out.jsonl").read_bytes() == b"1\n"


def test_a_file_moved_away_is_noticed_and_a_new_one_begun(tmp_path: Path):
    file = tmp_path / "out.jsonl"
    sink = files.sink(parse(f"file:{file}"), "test")
    sink.publish(out(b"1"))
    file.rename(tmp_path / "out.1")
    with pytest.raises(Away, match="moved away"):
        sink.publish(out(b"2"))
    sink.close()
    sink = files.sink(parse(f"file:{file}"), "test")
    sink.publish(out(b"2"))
    assert file.read_bytes() == b"2\n"
    sink.close()


def test_two_that_write_to_one_file_do_not_tear_each_others_lines(tmp_path: Path):
    program = """
        import sys
        from mlpacker_runtime.brokers import Outgoing, files
        from mlpacker_runtime.brokers.address import parse
        sink = files.sink(parse(sys.argv[1]), "test")
        for n in range(20):
            sink.publish([Outgoing(sys.argv[2].encode() * 3000, "id")] * 3)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), f"file:{tmp_path}/out.jsonl"]
    both = [subprocess.Popen([*argv, name]) for name in ("a", "b")]
    assert [p.wait() for p in both] == [0, 0]
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert sorted(lines) == [b"a" * 3000] * 60 + [b"b" * 3000] * 60


def test_answers_are_not_written_as_a_table_nor_where_there_is_no_folder(tmp_path: Path):
    with pytest.raises(BadDescription, match="JSON lines"):
        files.sink(parse(f"file:{tmp_path}/out.csv"), "test")
    with pytest.raises(Unusable, match="can't be used"):
        files.sink(parse(f"file:{tmp_path}/none/out.jsonl"), "test")


# Standard input and output


def test_lines_flow_from_standard_input_to_standard_output_as_they_come():
    program = """
        from mlpacker_runtime.brokers import Outgoing, Reading, files
        from mlpacker_runtime.brokers.address import parse
        source, sink = files.source(parse("-"), Reading("g"), None), files.sink(parse("-"), "test")
        while not source.ended:
            got = source.poll(10, 5)
            sink.publish([Outgoing(m.value + b"!", "id") for m in got])
            source.commit({"0": got[-1].offset} if got else {})
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"1!\n"
        process.stdin.write(b"2\n3")
        process.stdin.close()
        assert process.stdout.read() == b"2!\n3!\n"
        assert process.wait() == 0


def test_a_table_may_come_by_standard_input():
    there, here = os.pipe()
    os.write(here, b"a,b\n1,2\n")
    os.close(here)
    source = files.InputSource(there, table=True)
    assert all_of(source) == [(2, b'{"a": "1", "b": "2"}')]
    os.close(there)


def test_standard_output_that_nobody_reads_is_said():
    there, here = os.pipe()
    os.close(there)
    with pytest.raises(Unusable, match="Nobody reads"):
        files.OutputSink(here).publish(out(b"1"))
    os.close(here)


def test_explain_says_that_standard_input_can_not_be_read_again():
    assert "can't be read again" in " ".join(files.explain(parse("-"), "source").holds)
    assert files.explain(parse("-"), "sink").holds != files.explain(parse("-"), "source").holds
