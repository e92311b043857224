"""What a connection promises, over real sockets: whatever a client sends, an answer in HTTP or an end, and the server lives on."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mlpacker_runtime.rest import Request, Response
from mlpacker_runtime.rest.connection import Bounds, Connections
from mlpacker_runtime.rest.v2 import refuse

LIMIT = 1 << 20
BOUNDS = Bounds(
    max_body=LIMIT,
    head_seconds=1.0,
    body_seconds=1.0,
    bytes_a_second=10_000_000,
    idle_seconds=1.2,
    unread_seconds=1.2,
)


class Echo:
    """Answers with what it was asked; `/slow` later, `/never` when told to, `/big` with 32 MB."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.kept: list[Callable[[], None]] = []
        self.cancelled = 0

    def handle(self, request: Request, respond: Callable[[Response], None]) -> Any:
        self.seen.append(request)
        said = {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "length": len(request.body),
            "body": request.body.decode("latin-1")[:200],
        }
        response = Response(200, json.dumps(said).encode())
        if request.path == "/big":
            respond(Response(200, b"x" * (32 << 20)))
        elif request.path == "/slow":
            asyncio.get_running_loop().call_later(0.05, respond, response)
        elif request.path == "/never":
            self.kept.append(lambda: respond(response))
        else:
            respond(response)
        return self

    def cancel(self) -> None:
        self.cancelled += 1


class Server:
    def __init__(self, port: int, echo: Echo, connections: Connections) -> None:
        self.port = port
        self.echo = echo
        self.connections = connections

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send the pieces and read until the server closes."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def lives(self) -> None:
        assert status(await self.send(b"GET /ping HTTP/1.1\r\nConnection: close\r\n\r\n")) == 200


async def until(true: Callable[[], object]) -> None:
    """Wait until it is so; on a busy machine that takes its time."""
    end = asyncio.get_running_loop().time() + 10
    while not true():
        assert asyncio.get_running_loop().time() < end, "it did not come about within 10 seconds"
        await asyncio.sleep(0.01)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    echo = Echo()
    connections = Connections(echo, BOUNDS, refuse)
    listener = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    watch = asyncio.create_task(connections.watch(0.05))
    yield Server(listener.sockets[0].getsockname()[1], echo, connections)
    watch.cancel()
    for connection in tuple(connections.open):
        connection.abort()
    listener.close()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def post(body: bytes, *headers: str, path: str = "/p", length: int | None = None) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CLOSE = "Connection: close"


async def test_a_request_without_content_type_and_in_single_bytes_is_answered(server: Server) -> None:
    whole = post(b"hello", CLOSE, path="/a%20b?x=1")
    answer = await server.send(*[whole[i : i + 1] for i in range(len(whole))])
    said = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert said == {"method": "POST", "path": "/a%20b", "query": "x=1", "length": 5, "body": "hello"}


async def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    answer = await server.send(post(b"1", path="/slow") + post(b"2") + post(b"3", CLOSE))
    assert [part[:1] for part in answer.split(b'"body": "')[1:]] == [b"1", b"2", b"3"]


async def test_many_pipelined_requests_are_all_answered(server: Server) -> None:
    answer = await server.send(post(b"1", path="/slow") * 200 + post(b"", CLOSE))
    assert answer.count(b"HTTP/1.1 200") == 201


async def test_a_connection_is_kept_alive_and_http_1_0_is_closed(server: Server) -> None:
    reader, writer = await server.connect()
    for _ in range(3):
        writer.write(post(b"x"))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    writer.close()
    assert b"Connection: close" in await server.send(b"GET / HTTP/1.0\r\n\r\n")


async def test_a_chunked_body_is_read(server: Server) -> None:
    head = b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    answer = await server.send(head, b"5\r\nhello\r\n", b"1;x=y\r\n!\r\n", b"0\r\n\r\n", pause=0.01)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["body"] == "hello!"


async def test_a_client_that_asks_whether_to_go_on_is_told_so(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(post(b"", "Expect: 100-continue", CLOSE, length=5))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hello")
    assert status(await reader.read()) == 200
    writer.close()
    answer = await server.send(post(b"", "Expect: 100-continue", length=LIMIT + 1))
    assert status(answer) == 413  # before the body is sent


async def test_head_answers_without_a_body(server: Server) -> None:
    answer = await server.send(b"HEAD /p HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in answer


async def test_an_offer_to_upgrade_is_declined_and_the_request_answered(server: Server) -> None:
    """Java's client offers HTTP/2 with every first request."""
    offer = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk",
    )
    answer = await server.send(post(b"hello", *offer), post(b"again", CLOSE), pause=0.02)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b'"body": "hello"' in answer


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (post(b"x", length=-5), 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5x\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nBroken header\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 80_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(20_000)), 431),
        (post(b"x", "Expect: a-miracle"), 417),
        (post(b"x", length=LIMIT + 1), 413),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 20,
            413,
        ),
        (post(b"x" * 10, "Content-Encoding: br", CLOSE), 415),
        (post(b"x" * 10, "Content-Encoding: gzip", CLOSE), 400),
        (post(gzip.compress(b"x" * 100)[:-12], "Content-Encoding: gzip", CLOSE), 400),
    ],
)
async def test_what_is_no_request_is_refused_in_http_and_the_server_lives_on(
    server: Server, sent: bytes, expected: int
) -> None:
    answer = await server.send(sent)
    assert status(answer) == expected
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    await server.lives()


async def test_a_client_that_goes_on_sending_too_much_still_reads_why_not(server: Server) -> None:
    answer = await server.send(post(b"", length=LIMIT * 4), *[b"x" * 65536] * 16)
    assert status(answer) == 413


async def test_an_honest_body_of_the_limit_is_taken(server: Server) -> None:
    answer = await server.send(post(b"x" * LIMIT, CLOSE))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["length"] == LIMIT


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(b"hello")),
        ("deflate", zlib.compress(b"hello")),
        ("deflate", zlib.compress(b"hello")[2:-4]),
        ("gzip", gzip.compress(b"hel") + gzip.compress(b"lo")),
        ("identity", b"hello"),
        ("deflate, gzip", gzip.compress(zlib.compress(b"hello"))),
    ],
)
async def test_packed_bodies_are_unpacked(server: Server, coding: str, packed: bytes) -> None:
    answer = await server.send(post(packed, f"Content-Encoding: {coding}", CLOSE))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["body"] == "hello"


async def test_a_bomb_is_refused_before_it_unfolds(server: Server) -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    assert len(bomb) < LIMIT
    assert status(await server.send(post(bomb, "Content-Encoding: gzip", CLOSE))) == 413
    await server.lives()


async def test_an_answer_is_packed_for_a_client_that_asks_for_one_coding(server: Server) -> None:
    sent = b"GET /p?" + b"x" * 600 + b" HTTP/1.1\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    head, _, body = (await server.send(sent)).partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert json.loads(gzip.decompress(body))["method"] == "GET"
    head, _, body = (await server.send(sent.replace(b"gzip", b"gzip, deflate, br"))).partition(b"\r\n\r\n")
    assert b"Content-Encoding" not in head


async def test_a_client_that_is_slow_with_its_head_is_told_so_and_closed(server: Server) -> None:
    assert status(await server.send(b"GET / HTTP/1.1\r\nX: ")) == 408
    await server.lives()


async def test_a_client_that_drips_its_head_does_not_gain_time(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(b"GET / HTTP/1.1\r\n")
    answer = asyncio.create_task(reader.read())
    for _ in range(200):
        writer.write(b"X: y\r\n")
        await asyncio.sleep(0.05)
        if answer.done():
            break
    assert answer.done(), "ten times as long as a head may take"
    assert status(await answer) == 408
    writer.close()


async def test_a_body_that_does_not_come_is_a_408(server: Server) -> None:
    assert status(await server.send(post(b"only this", length=500))) == 408


async def test_connections_that_say_nothing_are_closed(server: Server) -> None:
    reader, writer = await server.connect()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_a_kept_connection_that_idles_is_closed_in_silence(server: Server) -> None:
    answer = await server.send(post(b"x"))
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_client_that_does_not_read_its_answer_is_ended(server: Server) -> None:
    _reader, writer = await server.connect()
    writer.write(b"GET /big HTTP/1.1\r\n\r\n")
    await until(lambda: server.echo.seen)
    await until(lambda: not server.connections.open)
    writer.close()


async def test_a_big_answer_arrives_whole(server: Server) -> None:
    answer = await server.send(b"GET /big HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert len(answer.partition(b"\r\n\r\n")[2]) == 32 << 20


async def test_a_client_that_goes_away_cancels_what_it_asked(server: Server) -> None:
    _reader, writer = await server.connect()
    writer.write(post(b"x", path="/never"))
    await until(lambda: server.echo.kept)
    linger = struct.pack("ii", 1, 0)  # a reset: to stop sending alone is no sign that nobody reads
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    await until(lambda: server.echo.cancelled)
    assert server.echo.cancelled == 1
    server.echo.kept[0]()  # the answer that comes too late hurts nobody
    await server.lives()


async def test_a_client_that_stopped_sending_still_gets_its_answer(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(post(b"x", path="/slow"))
    writer.write_eof()
    assert status(await asyncio.wait_for(reader.read(), 10)) == 200
    writer.close()


async def test_draining_lets_what_was_asked_be_answered_and_closes_the_rest(server: Server) -> None:
    idle, idle_writer = await server.connect()
    busy, busy_writer = await server.connect()
    busy_writer.write(post(b"x", path="/never"))
    await until(lambda: server.echo.kept and len(server.connections.open) == 2)
    draining = asyncio.create_task(server.connections.drain(10))
    await asyncio.sleep(0)  # it begins
    server.echo.kept[0]()
    assert await draining
    assert b"Connection: close" in await busy.read()
    assert await idle.read() == b""
    idle_writer.close()
    busy_writer.close()


async def test_draining_ends_what_does_not_end(server: Server) -> None:
    _, writer = await server.connect()
    writer.write(post(b"x", path="/never"))
    await until(lambda: server.echo.kept)
    assert not await server.connections.drain(0.1)
    writer.close()
