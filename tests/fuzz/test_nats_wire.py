"""Whatever bytes come from a NATS server: they are parsed or refused, and how they were cut makes no difference."""

from __future__ import annotations

import itertools
import socket
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlpacker_runtime.brokers import nats, nats_wire
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.brokers.nats_wire import Frame, Line, Parser, ProtocolError, Said
from mlpacker_runtime.errors import Away, Unusable

TOKENS = st.text("abcXYZ019._$>-", min_size=1, max_size=20).map(str.encode)
BLOCKS = st.one_of(
    st.just(b""), st.binary(min_size=1, max_size=60), st.binary(max_size=40).map(lambda b: b"NATS/1.0\r\n" + b + b"\r\n\r\n")
)  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> Frame | Said:
    if draw(st.integers(0, 4)) == 0:
        return draw(
            st.sampled_from(
                [Said(b"PING", b""), Said(b"+OK", b""), Said(b"-ERR", b"'no'"), Said(b"INFO", b"{}")]
            )
        )
    reply = draw(st.one_of(st.just(b""), TOKENS))
    return Frame(draw(st.integers(0, 99999)), draw(TOKENS), reply, draw(BLOCKS), draw(st.binary(max_size=200)))  # fmt: skip


def written(one: Frame | Said) -> bytes:
    if isinstance(one, Said):
        return one.word + (b" " + one.rest if one.rest else b"") + b"\r\n"
    reply = one.reply + b" " if one.reply else b""
    sizes = b"%d" % len(one.payload)
    if one.header:
        sizes = b"%d %d" % (len(one.header), len(one.header) + len(one.payload))
    word = b"HMSG" if one.header else b"MSG"
    return b"%b %b %d %b%b\r\n%b%b\r\n" % (word, one.subject, one.sid, reply, sizes, one.header, one.payload)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


def fed(parts: list[bytes]) -> list[Frame | Said] | str:
    """All frames, or that the bytes were refused."""
    parser, found = Parser(), []
    try:
        for part in parts:
            found += parser.feed(part)
    except ProtocolError:
        return "refused"
    return found


CUTS = st.lists(st.integers(0, 1 << 16), max_size=12)


@given(st.lists(frames(), max_size=12), CUTS)
def test_what_was_written_is_read_however_it_was_cut(wanted: list[Frame | Said], cuts: list[int]) -> None:
    assert fed(pieces(b"".join(map(written, wanted)), cuts)) == wanted


MIXED = st.lists(
    st.one_of(
        st.binary(max_size=30), frames().map(written),
        st.sampled_from([b"MSG ", b"HMSG a 1 ", b"\r\n", b"MSG a 1 5\r\n", b"HMSG a 1 9 3\r\n", b"MSG a 1 99999999999\r\n", b"PING\r\n"]),
    ), max_size=8,
).map(b"".join)  # fmt: skip


@given(MIXED, CUTS)
@example(b"MSG a 1 3\r\nabcdePING\r\n", [])
@example(b"MSG a 1 -1\r\n\r\n", [3])
def test_any_bytes_are_parsed_or_refused_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert fed(pieces(data, cuts)) == fed([data])


@given(MIXED)
def test_frames_written_again_are_the_bytes_that_were_read(data: bytes) -> None:
    parser = Parser()
    try:
        found = parser.feed(data)
    except ProtocolError:
        return
    again = b"".join(map(written, found))
    assert fed([again]) == found
    assert sum(len(one.payload) + len(one.header) for one in found if isinstance(one, Frame)) <= len(data)
    assert parser.held <= len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"MSG a 1 3\r\nabcde\r\n", b"MSG a 1 x\r\n", b"MSG a 1\r\n", b"MSG a b c d 1\r\n", b"HMSG a 1 5\r\n", b"HMSG a 1 9 3\r\n",
        b"MSG a 1 67108865\r\n", b"HELLO\r\n", b"MSG a \xb2 1\r\n", b"HTTP/1.1 200 OK\r\n", b"x" * (nats_wire.LINE + 2),
    ],
)  # fmt: skip
def test_what_is_not_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Parser().feed(data)


@given(st.binary(max_size=200))
def test_any_header_block_of_a_publishers_is_read(block: bytes) -> None:
    assert nats_wire.status(block) in range(1000)
    key, headers = nats._headers(block)
    assert key is None or isinstance(key, bytes)
    assert all(isinstance(name, str) and isinstance(value, bytes) for name, value in headers)


@given(st.lists(st.tuples(st.text("abc-x9", min_size=1, max_size=9), st.binary(max_size=40)), max_size=5))
def test_any_value_of_a_header_comes_back(headers: list[tuple[str, bytes]]) -> None:
    block = b"NATS/1.0\r\n" + b"".join(nats._field(n.encode(), v) for n, v in headers) + b"\r\n"
    assert nats._headers(block) == (None, tuple(headers))


HELLO = b'INFO {"headers":true,"max_payload":1048576}\r\n'


@given(MIXED)
@example(b"")
@example(b"PONG\r\n")
@example(b"-ERR 'Authorization Violation'\r\n")
def test_a_server_that_says_anything_is_away_or_unusable_or_talks(data: bytes) -> None:
    """Never a hang, never another error."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        talk = threading.Thread(target=_talk, args=(server, data))
        talk.start()
        try:
            line = Line(parse(f"nats://127.0.0.1:{server.getsockname()[1]}/a"), "test")
            try:
                line.request(b"a", seconds=1.0)
            finally:
                line.close()
        except (Away, Unusable):
            pass
        finally:
            talk.join()


def _talk(server: socket.socket, data: bytes) -> None:
    there, _ = server.accept()
    with there:
        try:
            there.sendall(HELLO + data)
            there.shutdown(socket.SHUT_WR)
            while there.recv(1 << 16):
                pass
        except OSError:
            pass
