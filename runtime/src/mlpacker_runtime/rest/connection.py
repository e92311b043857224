"""HTTP/1.1 on one connection: bytes in, Requests out, Responses back in order. The only module that knows httptools.

Our own and not an ASGI server's, because the layer between costs two thirds of what a core can answer, and because the
limits belong where the bytes arrive: length of the head and of the body (before and after unpacking), time for both, how
many requests may be pipelined, how long an answer may lie unread. Whatever a client sends, it gets an answer in HTTP or
its connection is closed; nothing it does reaches another connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import httptools

from ..errors import MlpackerError
from . import Rejected, Request, Response
from .bodies import pack, unpack

MAX_PIPELINED = 32
MAX_URL = 16 << 10
LINGER_SECONDS = 2.0
WORTH_PACKING = 512
_REASONS = {s.value: s.phrase for s in HTTPStatus}


@dataclass(frozen=True)
class Bounds:
    """max_body: bytes, as sent and once unpacked. head_seconds, body_seconds: to send them; a body may take longer while
    it comes at `bytes_a_second`. idle_seconds: between requests. unread_seconds: for a client to read what was answered.
    """

    max_body: int = 64 << 20
    max_head: int = 64 << 10
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    bytes_a_second: int = 50_000
    idle_seconds: float = 75.0
    unread_seconds: float = 60.0


class Answers(Protocol):
    """What answers requests: the service."""

    def handle(self, request: Request, respond: Callable[[Response], None]) -> Any: ...


class Exchange:
    """A request and the place its response will stand in, in the order of the connection."""

    __slots__ = ("answered", "head_only", "keep_alive", "packing", "response", "ticket")

    def __init__(self) -> None:
        self.response: bytes | None = None
        self.answered = False
        self.keep_alive = True
        self.head_only = False
        self.packing = ""
        self.ticket: Any = None


class Connections:
    """All open connections of a worker, and the clock that ends the slow ones."""

    def __init__(
        self,
        service: Answers,
        bounds: Bounds,
        refuse: Callable[[str], bytes],
        refused: Callable[[int], None] = lambda status: None,
    ) -> None:
        """refuse: the words of an error, as a body. refused: told the status of what no route saw."""
        self.service = service
        self.bounds = bounds
        self.refuse = refuse
        self.refused = refused
        self.open: set[Connection] = set()
        self.draining = False

    def __call__(self) -> Connection:
        return Connection(self)

    async def watch(self, every: float = 1.0, each: Callable[[], None] = lambda: None) -> None:
        """Close what is late, for as long as the worker lives. One look a second at all of them costs less than timers."""
        while True:
            await asyncio.sleep(every)
            now = time.monotonic()
            for connection in tuple(self.open):
                connection.check(now)
            each()

    async def drain(self, seconds: float) -> bool:
        """Close idle connections, let the others finish. Returns whether all did."""
        self.draining = True
        end = time.monotonic() + seconds
        while self.open and time.monotonic() < end:
            for connection in tuple(self.open):
                connection.close_if_idle()
            await asyncio.sleep(0.02)
        done = not self.open
        for connection in tuple(self.open):
            connection.abort()
        return done


class Connection(asyncio.Protocol):
    def __init__(self, all_of_them: Connections) -> None:
        self.all = all_of_them
        self.bounds = all_of_them.bounds
        self.transport: Any = None
        self.parser: Any = httptools.HttpRequestParser(self)
        self.exchanges: deque[Exchange] = deque()
        self.held: list[bytes] = []
        self.paused = False
        self.unread_since: float | None = None
        self.closing = False
        self.discarding = False
        self.deadline = time.monotonic() + self.bounds.head_seconds
        self.in_message = False
        self.head_bytes = 0
        self._clear()

    def _clear(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.length = 0
        self.head_length = 0
        self.in_body = False
        self.offered: bytes | None = None

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.all.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.open.discard(self)
        self.closing = True
        for exchange in self.exchanges:
            if exchange.ticket is not None:
                exchange.ticket.cancel()
        self.exchanges.clear()
        self.parser = None

    def eof_received(self) -> bool:
        """A client that sends no more may still wait for its answers."""
        if not self.exchanges or self.discarding:
            return False
        self.exchanges[-1].keep_alive = False
        return True

    def pause_writing(self) -> None:
        self.unread_since = time.monotonic()
        self._pause()

    def resume_writing(self) -> None:
        self.unread_since = None
        self._resume()

    def data_received(self, data: bytes) -> None:
        if self.closing or self.discarding:
            return
        if self.paused:
            self.held.append(data)
            return
        if not self.in_body:
            self.head_bytes += len(data)
            if not self.in_message:
                self.deadline = time.monotonic() + self.bounds.head_seconds
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            self._refuse_and_close(
                error.__context__
                if isinstance(error.__context__, Rejected)
                else Rejected(400, "Not an HTTP request.")
            )
        except httptools.HttpParserError as error:
            self._refuse_and_close(Rejected(400, f"Not an HTTP request: {error}."))
        else:
            if not self.in_body and self.in_message and self.head_bytes > self.bounds.max_head:
                self._refuse_and_close(self._long_head())

    def _decline_upgrade(self, rest: bytes) -> None:
        """Stay with HTTP/1.1. The parser takes what follows an offer for the other protocol: let one read it that saw no offer."""
        head = b""
        if self.offered is not None:
            kept = (
                (n, v) for n, v in self.headers.items() if n not in (b"upgrade", b"connection", b"expect")
            )
            head = b"".join(
                (self.offered, b" ", self.url, b" HTTP/1.1\r\n", *(b"%s: %s\r\n" % h for h in kept), b"\r\n")
            )
        self.parser = httptools.HttpRequestParser(self)
        if (head or rest) and not self.closing:
            self._feed(head + rest)

    def _long_head(self) -> Rejected:
        return Rejected(431, f"The request's head is longer than {self.bounds.max_head} bytes.")

    # --- httptools --------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._clear()
        self.in_message = True

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_URL:
            raise Rejected(414, f"The address is longer than {MAX_URL} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.head_length += len(name) + len(value) + 4
        if self.head_length > self.bounds.max_head:
            raise self._long_head()
        if name in self.headers:
            if name in (b"content-length", b"host", b"content-encoding", b"inference-header-content-length"):
                raise Rejected(400, f"The header {name.decode('latin-1')} comes twice.")
            value = self.headers[name] + b", " + value
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self.in_body = True
        self.head_bytes = 0
        length = int(self.headers.get(b"content-length", b"0") or b"0")
        if length > self.bounds.max_body:
            raise Rejected(413, f"The body is {length} bytes long; this server takes {self.bounds.max_body}.")
        now = time.monotonic()
        self.deadline = now + self.bounds.body_seconds + length / self.bounds.bytes_a_second
        expected = self.headers.get(b"expect")
        if expected is not None:
            if expected.lower() != b"100-continue":
                raise Rejected(417, "Of expectations only 100-continue is known here.")
            if not self.exchanges:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self.length += len(body)
        if self.length > self.bounds.max_body:
            raise Rejected(
                413, f"The body is longer than the {self.bounds.max_body} bytes this server takes."
            )
        self.parts.append(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and (
            b"content-length" in self.headers or b"transfer-encoding" in self.headers
        ):
            self.offered = self.parser.get_method()  # its body is still to come
            return
        self.in_message = self.in_body = False
        self.deadline = time.monotonic() + self.bounds.idle_seconds
        exchange = Exchange()
        exchange.keep_alive = self.parser.should_keep_alive() and not self.all.draining
        self.exchanges.append(exchange)
        if len(self.exchanges) >= MAX_PIPELINED:
            self._pause()
        try:
            request = self._request(exchange)
        except MlpackerError as error:
            status = error.status if isinstance(error, Rejected) else 400
            self._refuse(exchange, status, str(error))
            return
        exchange.ticket = self.all.service.handle(
            request, lambda response: self._answered(exchange, response)
        )

    def _request(self, exchange: Exchange) -> Request:
        headers = self.headers
        body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts = []
        method = self.parser.get_method().decode("latin-1")
        exchange.head_only = method == "HEAD"
        coding = headers.get(b"content-encoding")
        if coding is not None:
            body = unpack(body, coding.decode("latin-1"), self.bounds.max_body)
        accepted = headers.get(b"accept-encoding")
        if accepted is not None:
            exchange.packing = _packing(accepted)
        path, _, query = self.url.partition(b"?")
        return Request(method, path.decode("latin-1"), query.decode("latin-1"), headers, body)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _refuse(self, exchange: Exchange, status: int, sentence: str) -> None:
        self.all.refused(status)
        self._answered(exchange, Response(status, self.all.refuse(sentence)))

    def _answered(self, exchange: Exchange, response: Response) -> None:
        exchange.response = _on_the_wire(exchange, response)
        exchange.ticket = None
        if not self.closing:
            self._flush()

    def _flush(self) -> None:
        """Write what is answered, as far as the order of requests allows."""
        exchanges = self.exchanges
        ready: list[bytes] = []
        last = True
        while exchanges and exchanges[0].response is not None:
            exchange = exchanges.popleft()
            ready.append(exchange.response or b"")
            last = exchange.keep_alive
            if not last:
                break
        if ready:
            self.transport.write(ready[0] if len(ready) == 1 else b"".join(ready))
            self.deadline = (
                max(self.deadline, time.monotonic() + self.bounds.idle_seconds)
                if not self.in_message
                else self.deadline
            )
        if not last:
            self._end()
        elif self.paused and self.unread_since is None and len(exchanges) < MAX_PIPELINED:
            self._resume()

    def _refuse_and_close(self, why: Rejected) -> None:
        """What follows on this connection can't be understood: the last answer says so.

        What the client still sends is read and dropped for a while: to close at once would take the answer from it.
        """
        self.discarding = True
        self.in_message = False
        self.parts = []
        self.deadline = time.monotonic() + LINGER_SECONDS
        exchange = Exchange()
        exchange.keep_alive = False
        self.exchanges.append(exchange)
        self._refuse(exchange, why.status, why.sentence)

    # --- pace -------------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        if not self.paused and not self.closing:
            self.paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self.paused and not self.closing:
            self.paused = False
            self.transport.resume_reading()
            held, self.held = self.held, []
            for data in held:
                self.data_received(data)

    def check(self, now: float) -> None:
        """End it if it is late."""
        if self.unread_since is not None:
            if now > self.unread_since + self.bounds.unread_seconds:
                self.abort()
        elif self.exchanges:
            return  # we are the ones who are late
        elif now > self.deadline:
            if self.in_message and not self.discarding:
                self._refuse_and_close(Rejected(408, "The request did not come in time."))
            else:
                self._close()

    def close_if_idle(self) -> None:
        if not self.exchanges and not self.in_message:
            self._close()
        elif self.exchanges:
            self.exchanges[-1].keep_alive = False

    def _end(self) -> None:
        if not self.discarding:
            self._close()
        elif self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        if not self.closing:
            self.closing = True
            self.transport.close()

    def abort(self) -> None:
        self.closing = True
        self.transport.abort()


def _packing(accepted: bytes) -> str:
    """gzip or deflate where that is the one thing a client asks for; a library's standing list is no request to pack."""
    wanted = accepted.strip().lower().decode("latin-1")
    return wanted if wanted in ("gzip", "deflate") else ""


def _on_the_wire(exchange: Exchange, response: Response) -> bytes:
    body = response.body
    more = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    if exchange.packing and len(body) >= WORTH_PACKING:
        body = pack(body, exchange.packing)
        more += f"Content-Encoding: {exchange.packing}\r\n"
    if not exchange.keep_alive:
        more += "Connection: close\r\n"
    head = (
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}\r\n"
        f"Content-Type: {response.content_type}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return (
        head.encode("latin-1", "replace") if exchange.head_only else head.encode("latin-1", "replace") + body
    )
