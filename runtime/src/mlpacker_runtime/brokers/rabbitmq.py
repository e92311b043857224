"""RabbitMQ queues, over AMQP 0-9-1: `amqp://user@host/queue?password=env:NAME`; the only module that knows pika.

A queue has no offsets and forgets a message once it is acknowledged, so the caller puts each into its journal first
(`journalled`) and `commit` is the acknowledgement. An offset is a number of this session, and a session an incarnation.
Order is kept by one reader at a time: readers of ours hold a lock in the broker (an exclusive queue beside the one that is
read), and the consumer itself is exclusive where the queue's type knows that; unacknowledged messages come again in their
place, before newer ones. On any close, cancel or refusal everything is torn down: `Away`.

Options: vhost, password, create; a sink's: exchange, routing_key, max_bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.exceptions import (
    AuthenticationError,
    ChannelClosedByBroker,
    ChannelClosedByClient,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from ..errors import BadDescription, MlpackerError
from . import Away, Guarantee, Lag, Listener, Message, Outgoing, Reading, Setting, Unusable
from .address import Address

journalled = True

QUEUE: Mapping[str, Any] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    "x-delivery-limit": 2**31 - 1,
}
"""How a queue is made. Quorum: flushed to disk before it is confirmed. The delivery limit is as good as none: what the broker drops
or dead-letters it does at most once, and every crash counts against innocent rows. (-1 means none from RabbitMQ 4 on only.)"""
MANY = 1_000_000
"""A delivery limit from which on it is none."""
PARTITION = "0"
KEY = "mlpacker-key"
"""The header that carries a key; AMQP has none."""
PATIENCE = 30.0
"""Seconds without any confirmation, while some are awaited, after which the broker is Away."""
ANSWERS = 15.0
"""Seconds for an answer to a declaration."""
AGAIN = 0.25
"""Seconds between two tries of a reader that stands by."""
HEARTBEAT = 10
"""A sink's, in seconds. A source's is half its session, as a broker takes two for the end."""
CHUNK, CHUNK_BYTES = 200, 200_000
"""Messages written in one go, and about their bytes; heartbeats and confirmations come between."""
FRAME = 100_000
"""Bytes of headers that fit into the one frame they must fit into (131,072 by default)."""

logging.getLogger("pika").setLevel(
    logging.CRITICAL + 1
)  # each failure it logs is raised here, as one of ours


def source(address: Address, reading: Reading, listener: Listener) -> _Source:
    """All readers of a queue share it, whatever their group. The queue is read as it is; `create=on` makes one that is missing."""
    address.only("vhost", "password", "create")
    if reading.start != "earliest":
        raise BadDescription(
            f"{address}: a queue is read from its first message on, not from {reading.start!r}.",
            "Leave the start out (earliest); what was acknowledged before is gone from the queue.",
        )
    return _Source(address, reading)


def sink(address: Address, name: str) -> _Sink:
    address.only("vhost", "password", "create", "exchange", "routing_key", "max_bytes")
    return _Sink(address, name)


@dataclass
class _Session:
    """How to reach a broker. Reads the address's secrets; raises BadDescription."""

    address: Address
    name: str
    heartbeat: int

    def parameters(self) -> list[pika.ConnectionParameters]:
        address, context = self.address, self.address.context()
        return [
            pika.ConnectionParameters(
                host,
                port or (5671 if address.tls else 5672),
                address.option("vhost", "/"),
                self._credentials(),
                heartbeat=self.heartbeat,
                connection_attempts=1,
                socket_timeout=5,
                stack_timeout=10,
                ssl_options=None if context is None else pika.SSLOptions(context, host),
                client_properties={"connection_name": self.name},
            )
            for host, port in address.hosts
        ]

    def _credentials(self) -> Any:
        password = self.address.secret("password")
        user = self.address.user or "guest"
        return pika.PlainCredentials(user, password or ("guest" if user == "guest" else ""))


class _Connection(SelectConnection):  # type: ignore[misc]  # pika brings no types
    """pika writes each of a message's three frames by itself, which costs more than all the rest; here they gather."""

    _held: list[bytes] | None = None

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._held is None:
            super()._adapter_emit_data(data)
        else:
            self._held.append(data)

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """What is written within goes out in one piece at the end."""
        self._held = []
        try:
            yield
        finally:
            data, self._held = b"".join(self._held), None
            if data:
                super()._adapter_emit_data(data)


class _Link:
    """A connection in a thread of its own, so that heartbeats go on whatever the caller does. Only that thread touches pika.

    lost: why it is no more; set once, then `gone` and `stir` are set. stir: set when there is something new for the caller.
    blocked: why the broker takes nothing at the moment (an alarm), else empty.
    """

    def __init__(self, session: _Session) -> None:
        """Connects. Raises Away, Unusable."""
        self.address = session.address
        self.lost: MlpackerError | None = None
        self.gone, self.stir = threading.Event(), threading.Event()
        self.blocked = ""
        self.version = ""
        self._connection: Any = None
        self._loop = IOLoop()
        opened: Future[Any] = Future()
        self._waiting: dict[Future[Any], Any] = {opened: None}
        parameters = session.parameters()
        self._thread = threading.Thread(
            target=self._run, args=(parameters, opened), name=session.name, daemon=True
        )
        self._thread.start()
        try:
            opened.result(10 * len(parameters) + 5)
        except NoAnswer as cause:
            self.close()
            raise Away(f"{_place(self.address)} does not answer.") from cause
        except MlpackerError:
            self.close()
            raise

    def check(self) -> None:
        """Raises what the connection was lost by."""
        if self.lost is not None:
            raise type(self.lost)(self.lost.sentence, self.lost.next_step) from self.lost.__cause__

    def soon(self, do: Callable[[], object]) -> None:
        """Done in the connection's thread, in the order of the calls. What fails there ends the connection."""
        self._loop.add_callback_threadsafe(partial(self._guard, do))

    def channel(self, on_close: Callable[[Any], None] | None = None) -> Any:
        """A new channel. on_close: told the reason in the connection's thread, where the broker or the network ended it."""

        def opened(done: Callable[[Any], None], channel: Any) -> None:
            channel.add_on_close_callback(partial(self._channel_closed, on_close))
            done(channel)

        return self._ask(None, lambda done: self._connection.channel(on_open_callback=partial(opened, done)))

    def ask(self, channel: Any, method: str, **arguments: Any) -> Any:
        """The broker's answer to a method of the channel. Raises ChannelClosedByBroker where it refuses, else Away."""
        return self._ask(channel, lambda done: getattr(channel, method)(callback=done, **arguments)).method

    def close(self) -> None:
        """What was written before is sent first. Never raises."""
        self._loop.add_callback_threadsafe(self._leave)
        self._thread.join(2)
        if self._thread.is_alive():  # the broker does not answer
            self._loop.stop()
            self._thread.join(3)

    def end(self, sentence: str, cause: BaseException | None = None) -> None:
        """In the connection's thread: it is lost."""
        self._lose(translated(cause, self.address, sentence))

    def _ask(self, channel: Any, do: Callable[[Callable[[Any], None]], object]) -> Any:
        future: Future[Any] = Future()
        self._waiting[future] = channel
        self.check()

        def begin() -> None:
            try:
                do(partial(self._answer, future))
            except Exception as cause:  # noqa: BLE001  whatever it is, who waits for the answer is told
                self._fail(future, cause)

        self.soon(begin)
        try:
            return future.result(ANSWERS)
        except NoAnswer as cause:
            raise Away(f"{_place(self.address)} does not answer.") from cause

    def _answer(self, future: Future[Any], answer: Any) -> None:
        self._waiting.pop(future, None)
        if not future.done():
            future.set_result(answer)

    def _fail(self, future: Future[Any], cause: BaseException) -> None:
        self._waiting.pop(future, None)
        if not future.done():
            passes = isinstance(cause, ChannelClosedByBroker | MlpackerError)
            future.set_exception(cause if passes else translated(cause, self.address))

    def _run(self, parameters: list[Any], opened: Future[Any]) -> None:
        try:
            _Connection.create_connection(
                parameters, on_done=partial(self._opened, opened), custom_ioloop=self._loop
            )
            self._loop.start()
        except Exception as cause:  # noqa: BLE001  whatever pika stumbles over, the connection is not usable any more
            self._lose(translated(cause, self.address))
        self._lose(Away(f"{_place(self.address)}: the connection is closed."))
        self._cut()

    def _cut(self) -> None:
        """Ends the line itself: as long as it is there, the broker keeps the lock and the messages for it."""
        transport = getattr(self._connection, "_transport", None)
        for step in (getattr(transport, "abort", None), *[self._loop.process_timeouts] * 3, self._loop.close):
            with contextlib.suppress(Exception):  # it may be half open, or closed already
                if step is not None:
                    step()

    def _opened(self, opened: Future[Any], result: Any) -> None:
        if isinstance(result, BaseException):
            self._lose(translated(result, self.address))
            return
        self._connection = result
        result.add_on_close_callback(lambda _, reason: self._lose(translated(reason, self.address)))
        result.add_on_connection_blocked_callback(partial(self._alarm, True))
        result.add_on_connection_unblocked_callback(partial(self._alarm, False))
        self.version = str(result.server_properties.get("version", ""))
        self._answer(opened, result)

    def _alarm(self, on: bool, _: Any, frame: Any) -> None:
        self.blocked = (str(frame.method.reason) or "an alarm") if on else ""

    def _channel_closed(self, on_close: Callable[[Any], None] | None, channel: Any, reason: Any) -> None:
        for future, asked in list(self._waiting.items()):
            if asked is channel:
                self._fail(future, reason)
        if on_close is not None and not isinstance(reason, ChannelClosedByClient):
            on_close(reason)

    def _guard(self, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as cause:  # noqa: BLE001  it must not end in silence: the caller waits for what was to be done
            self._lose(translated(cause, self.address))

    def _lose(self, error: MlpackerError) -> None:
        if self.lost is None:
            self.lost = error
            for future in list(self._waiting):
                self._fail(future, error)
            self._loop.stop()
            self.gone.set()
            self.stir.set()

    def _leave(self) -> None:
        connection = self._connection
        if self.lost is not None or connection is None or not connection.is_open:
            self._loop.stop()
        else:
            connection.close()  # its closing loses the link, which stops the loop


def translated(cause: BaseException | None, address: Address, sentence: str = "") -> MlpackerError:
    """What pika says, as ours: Unusable where trying again will not mend it, else Away. sentence: instead of pika's own."""
    cause = _innermost(cause)
    place = _place(address)
    error: MlpackerError
    if isinstance(cause, ProbableAuthenticationError | AuthenticationError):
        error = Unusable(
            f"{place} refuses user {address.user or 'guest'}.",
            "See the user's name and the option password; guest may log in from the broker's own machine only.",
        )
    elif isinstance(cause, ProbableAccessDeniedError) or _code(cause) == 530:
        vhost = address.option("vhost", "/")
        error = Unusable(
            f"{place} does not let user {address.user or 'guest'} into the virtual host {vhost}.",
            "See the option vhost, and the user's permissions there.",
        )
    elif isinstance(cause, ssl.SSLCertVerificationError):
        error = Unusable(
            f"{place} shows a certificate that is not trusted here: {cause}.", "See the option ca."
        )
    else:
        error = Away(sentence or f"{place} can't be reached or ended the connection: {_text(cause)}.")
    error.__cause__ = cause
    return error


def _refused(cause: ChannelClosedByBroker, address: Address, what: str) -> MlpackerError:
    """What the broker closed a channel with while it was set up. what: as `queue readings`."""
    text = _text(cause)
    error: MlpackerError = Away(f"{address}: {text}.")
    if _code(cause) == 404 and "inaccessible" not in text:  # else its node is down
        error = Unusable(
            f"There is no {what} in the virtual host {address.option('vhost', '/')} of {address.hosts[0][0]}.",
            "Declare it, or let it be made: create=on." if what.startswith("queue") else "Declare it first.",
        )
    elif _code(cause) == 403:
        error = Unusable(
            f"User {address.user or 'guest'} may not use {what}: {text}.", "Give the user permissions on it."
        )
    elif _code(cause) == 406:
        error = Unusable(f"The {what} is not what is awaited: {text}.", "Delete it, or leave create=on out.")
    error.__cause__ = cause
    return error


def _innermost(cause: BaseException | None) -> BaseException | None:
    """Out of pika's wrappings: its connection workflow's, and one for each phase."""
    while True:
        inner = getattr(cause, "exceptions", None) or [getattr(cause, "exception", None)]
        if not isinstance(inner[-1], BaseException):
            return cause
        cause = inner[-1]


def _place(address: Address) -> str:
    return "RabbitMQ at " + ", ".join(host for host, _ in address.hosts)


def _code(cause: BaseException | None) -> int:
    closed = isinstance(cause, ChannelClosedByBroker | ConnectionClosedByBroker)
    return cause.reply_code if closed else 0  # type: ignore[union-attr]


def _text(cause: BaseException | None) -> str:
    text = str(getattr(cause, "reply_text", "") or cause or "it is closed")
    return text.strip().rstrip(".")


def _declare(link: _Link, address: Address) -> None:
    """Makes sure that the queue is there. Raises Unusable, Away."""
    try:
        return _passive(link, address)
    except ChannelClosedByBroker as cause:
        error = _refused(cause, address, f"queue {address.path!r}")
        if _code(cause) != 404 or not isinstance(error, Unusable) or not address.flag("create"):
            raise error from cause
    try:
        link.ask(link.channel(), "queue_declare", queue=address.path, durable=True, arguments=dict(QUEUE))
    except ChannelClosedByBroker as cause:  # made by another at this moment, in another way; or not permitted
        raise _refused(cause, address, f"queue {address.path!r}") from cause


def _passive(link: _Link, address: Address) -> None:
    channel = link.channel()
    link.ask(channel, "queue_declare", queue=address.path, passive=True)
    link.soon(channel.close)


class _Source:
    """incarnation: of this session; its offsets are the session's delivery tags. One partition, "0"."""

    def __init__(self, address: Address, reading: Reading) -> None:
        self.incarnation = uuid.uuid4().hex
        self._address, self._ordered = address, reading.ordered
        self._window = max(1, min(reading.window, 65_535))
        self._tag = f"mlpacker-{reading.group}-{reading.member}-{self.incarnation[:8]}"[:200]
        self._inbox: deque[tuple[int, Any, bytes]] = deque()
        self._channel: Any = None
        self._locked = not reading.ordered
        self._delivered = self._acknowledged = 0
        self._next_try = 0.0
        self._lag = Lag()
        heartbeat = max(1, int(reading.session / 2))
        self._link = _Link(_Session(address, f"mlpacker {reading.group}/{reading.member}", heartbeat))
        try:
            _declare(self._link, address)
            self._side = self._link.channel()
            self._enter()
        except MlpackerError:
            self._link.close()
            raise

    def poll(self, limit: int, seconds: float) -> list[Message]:
        until = time.monotonic() + seconds
        self._link.check()
        if limit <= 0:  # what was delivered ahead waits; the broker sends no more than the window
            self._link.gone.wait(seconds)
        elif self._channel is None and not self._stand_by(until):
            return []
        elif not self._inbox:
            self._link.stir.clear()
            if not self._inbox and self._link.lost is None:
                self._link.stir.wait(max(0.0, until - time.monotonic()))
        self._link.check()
        inbox = self._inbox
        return [self._message(*inbox.popleft()) for _ in range(min(limit, len(inbox)))]

    def commit(self, finished: Mapping[str, int]) -> None:
        """AMQP confirms no acknowledgement: one that is lost on its way means a message twice, never one too few."""
        offset = min(finished.get(PARTITION, 0), self._delivered)
        self._link.check()
        if offset > self._acknowledged:
            self._link.soon(partial(self._channel.basic_ack, offset, multiple=True))
            self._acknowledged = offset

    def lag(self) -> Lag | None:
        """What is ready in the queue and what was delivered ahead; not what other readers have."""
        try:
            told = self._link.ask(self._side, "queue_declare", queue=self._address.path, passive=True)
        except ChannelClosedByBroker as cause:
            raise Away(f"{self._address}: {_text(cause)}.") from cause
        return Lag({PARTITION: told.message_count + len(self._inbox)})

    def close(self) -> None:
        self._link.close()

    def _stand_by(self, until: float) -> bool:
        """Tries to become the reader, until then. Raises Away, Unusable."""
        while True:
            self._link.gone.wait(max(0.0, min(self._next_try, until) - time.monotonic()))
            self._link.check()
            if time.monotonic() >= self._next_try and self._enter():
                self._link.stir.wait(max(0.0, until - time.monotonic()))
                return True
            if time.monotonic() >= until:
                return False

    def _enter(self) -> bool:
        """Begins to read, unless another does. Raises Away, Unusable."""
        self._next_try = time.monotonic() + AGAIN
        if not self._locked and not self._lock():
            return False
        if not self._ordered:
            return self._consume(exclusive=False)
        if self._link.ask(self._side, "queue_declare", queue=self._address.path, passive=True).consumer_count:
            return False  # somebody's who holds no lock of ours, or of one that just died
        return self._consume(exclusive=True) or self._consume(exclusive=False)

    def _lock(self) -> bool:
        """One connection at a time holds it; the broker frees it when that one dies."""
        name = lock_of(self._address.path)
        try:
            self._link.ask(self._link.channel(), "queue_declare", queue=name, exclusive=True)
        except ChannelClosedByBroker as cause:
            if _code(cause) == 405:
                return False
            if _code(cause) != 403:
                raise _refused(cause, self._address, f"queue {name!r}") from cause
            # The user may not declare: order rests on the queue's own single active consumer.
        self._locked = True
        return True

    def _consume(self, exclusive: bool) -> bool:
        """False where another has the queue. A classic queue with a single active consumer takes no exclusive one at all."""
        channel: Any = None

        def closed(reason: Any) -> None:
            if channel is not None and channel is self._channel:
                self._link.end(f"{self._address}: the broker ended the reading: {_text(reason)}.", reason)

        channel = self._link.channel(closed)
        self._link.soon(
            lambda: channel.add_on_cancel_callback(
                lambda _: self._link.end(f"{self._address}: the queue is deleted or has moved.")
            )
        )
        try:
            self._link.ask(channel, "basic_qos", prefetch_count=self._window)
            self._link.ask(
                channel, "basic_consume", queue=self._address.path, on_message_callback=self._take,
                exclusive=exclusive, consumer_tag=self._tag,
            )  # fmt: skip
        except ChannelClosedByBroker as cause:
            if _code(cause) == 403 and "exclusive" in _text(cause):
                return False
            raise _refused(cause, self._address, f"queue {self._address.path!r}") from cause
        self._channel = channel
        if not channel.is_open:  # between the answer and this line
            raise Away(f"{self._address}: the broker ended the reading.")
        return True

    def _take(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        self._inbox.append((method.delivery_tag, properties, body))
        self._link.stir.set()

    def _message(self, tag: int, properties: Any, body: bytes) -> Message:
        self._delivered = tag
        key, seconds, headers = None, float(properties.timestamp or 0), []
        for name, value in (properties.headers or {}).items():
            if name == KEY:
                key = _bytes(value)
            elif name == "timestamp_in_ms" and isinstance(value, int):  # the broker's own clock
                seconds = value / 1000
            else:
                headers.append((name.lower(), _bytes(value)))
        if properties.message_id is not None:
            headers.append(("message-id", _bytes(properties.message_id)))
        return Message(PARTITION, tag, body, key, tuple(headers), seconds)


def lock_of(queue: str) -> str:
    """The name of the exclusive queue that the reader of this one holds."""
    return f"mlpacker.reader.{hashlib.sha256(queue.encode()).hexdigest()[:32]}"


def _bytes(value: Any) -> bytes:
    """Of a header's value, whatever its type in AMQP."""
    return value if isinstance(value, bytes) else str(value).encode()


@dataclass
class _Batch:
    """Messages on their way. waiting: delivery tag → place; the oldest first. ended: why the channel closed meanwhile."""

    waiting: dict[int, int]
    done: threading.Event = field(default_factory=threading.Event)
    nacked: bool = False
    unroutable: str = ""
    ended: Any = None

    def confirm(self, tag: int, multiple: bool) -> None:
        if not multiple:
            self.waiting.pop(tag, None)
        else:
            for confirmed in list(takewhile(lambda t: t <= tag, self.waiting)):
                del self.waiting[confirmed]
        if not self.waiting:
            self.done.set()


class _Sink:
    """max_bytes: the option's, or learned when the broker refuses a message as too large; AMQP does not tell it before."""

    headers = True

    def __init__(self, address: Address, name: str) -> None:
        self.max_bytes = address.number("max_bytes", 0)
        self._address = address
        self._exchange = address.option("exchange")
        self._route = address.option("routing_key", address.path)
        self._what = (
            f"queue bound to exchange {self._exchange!r} for {self._route!r}"
            if self._exchange
            else f"queue {self._route!r}"
        )
        self._batch: _Batch | None = None
        self._published = 0
        self._link = _Link(_Session(address, f"mlpacker {name}", HEARTBEAT))
        try:
            self._make_sure()
            self._channel = self._open()
        except MlpackerError:
            self._link.close()
            raise

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        refused = {n: reason for n, m in enumerate(messages) if (reason := self._too_large(m))}
        places = [n for n in range(len(messages)) if n not in refused]
        while places:
            batch = self._send(places, messages)
            if not self._learn(batch, messages):
                break
            places = sorted(batch.waiting.values())
            refused |= {n: reason for n in places if (reason := self._too_large(messages[n]))}
            places = [n for n in places if n not in refused]
        return refused

    def close(self) -> None:
        self._link.close()

    def _make_sure(self) -> None:
        if not self._exchange:
            if "routing_key" in self._address.options:
                raise BadDescription(
                    f"{self._address}: routing_key goes with exchange; without one a queue is its path."
                )
            _declare(self._link, self._address)
            return
        try:
            self._link.ask(self._link.channel(), "exchange_declare", exchange=self._exchange, passive=True)
        except ChannelClosedByBroker as cause:
            raise _refused(cause, self._address, f"exchange {self._exchange!r}") from cause

    def _open(self) -> Any:
        channel = self._link.channel(self._ended)
        self._link.soon(lambda: channel.add_on_return_callback(self._returned))
        self._link.ask(channel, "confirm_delivery", ack_nack_callback=self._confirmed)
        self._published = 0  # tags are counted by channel
        return channel

    def _send(self, places: Sequence[int], messages: Sequence[Outgoing]) -> _Batch:
        """Returns when all is confirmed or the channel is closed. Raises Away, Unusable."""
        self._link.check()
        first = self._published + 1
        self._published += len(places)
        batch = _Batch(dict(enumerate(places, first)))
        self._link.soon(partial(self._write, batch, self._channel, [messages[n] for n in places], 0))
        self._await(batch)
        if batch.unroutable:
            raise Unusable(
                f"RabbitMQ has no {self._what}: {batch.unroutable}.",
                "Declare it, or bind one to the exchange.",
            )
        if batch.nacked:
            raise Away(
                f"RabbitMQ did not take all messages for {self._what}: it may be full or without its majority."
            )
        return batch

    def _await(self, batch: _Batch) -> None:
        left, until = len(batch.waiting), time.monotonic() + PATIENCE
        while not batch.done.wait(0.5):
            self._link.check()
            if len(batch.waiting) != left:
                left, until = len(batch.waiting), time.monotonic() + PATIENCE
            if time.monotonic() > until:
                why = f" It says: {self._link.blocked}." if self._link.blocked else ""
                raise Away(f"RabbitMQ confirms nothing for {PATIENCE:.0f} s.{why}")
        self._link.check()

    def _learn(self, batch: _Batch, messages: Sequence[Outgoing]) -> bool:
        """Whether to go on without those that are too large: the broker closes the channel at the first of them, and what came
        behind it was not taken. It names its bound; where it can't be read, at least the largest one is beyond it."""
        if batch.ended is None:
            return False
        if _code(batch.ended) != 406:
            raise _refused(batch.ended, self._address, self._what)
        sizes = [len(messages[n].value) for n in batch.waiting.values()]
        named = [int(n) for n in re.findall(r"\d+", _text(batch.ended))[-1:]]
        self.max_bytes = min([*named, max(sizes) - 1])
        self._channel = self._open()
        return True

    def _too_large(self, message: Outgoing) -> str:
        if self.max_bytes and len(message.value) > self.max_bytes:
            return f"{len(message.value)} bytes; RabbitMQ takes up to {self.max_bytes} here"
        if sum(len(n) + len(v) + 6 for n, v in message.headers) + len(message.key or b"") > FRAME:
            return f"its headers take more than the {FRAME} bytes that AMQP has for them"
        return ""

    # In the connection's thread:

    def _write(self, batch: _Batch, channel: Any, messages: list[Outgoing], start: int) -> None:
        self._batch = batch
        if batch.ended is not None:
            return
        if not channel.is_open:
            self._ended(None)
            return
        now, size, end = int(time.time()), 0, start
        with channel.connection.gathering():
            while end < len(messages) and end - start < CHUNK and size < CHUNK_BYTES:
                message = messages[end]
                channel.basic_publish(
                    self._exchange, self._route, message.value, _properties(message, now), mandatory=True
                )
                size, end = size + len(message.value), end + 1
        if end < len(messages):
            self._link.soon(partial(self._write, batch, channel, messages, end))

    def _confirmed(self, frame: Any) -> None:
        batch, method = self._batch, frame.method
        if batch is not None:
            batch.nacked |= isinstance(method, pika.spec.Basic.Nack)
            batch.confirm(method.delivery_tag, method.multiple)

    def _returned(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        if self._batch is not None:
            self._batch.unroutable = str(method.reply_text)

    def _ended(self, reason: Any) -> None:
        batch = self._batch
        if not isinstance(reason, ChannelClosedByBroker) or batch is None or batch.done.is_set():
            self._link.end(f"{self._address}: the channel is closed.", reason)
        if batch is not None:
            batch.ended = reason
            batch.done.set()


def _properties(message: Outgoing, now: int) -> pika.BasicProperties:
    headers: dict[str, Any] = dict(message.headers)
    if message.key is not None:
        headers[KEY] = message.key
    return pika.BasicProperties(
        headers=headers, delivery_mode=2, timestamp=now,
        message_id=message.id if len(message.id.encode()) < 256 else None,
    )  # fmt: skip


def explain(address: Address, role: str) -> Guarantee:
    """A queue's arguments are read by declaring it again with others: the broker refuses, and names what it has."""
    holds = READS if role == "source" else WRITES
    try:
        link = _Link(_Session(address, "mlpacker explain", HEARTBEAT))
    except (Away, Unusable) as cause:
        return Guarantee((*holds, f"RabbitMQ could not be asked: {cause.sentence}"), UNKNOWN)
    try:
        if role == "sink" and address.option("exchange"):
            return Guarantee(
                (*holds, "Which queues are bound to the exchange can't be read over AMQP."), UNKNOWN
            )
        queue = link.ask(link.channel(), "queue_declare", queue=address.path, passive=True)
        now = f"Now {queue.message_count} messages are ready and {queue.consumer_count} consumers read."
        return Guarantee((*holds, now), _settings(link, address))
    except ChannelClosedByBroker as cause:
        error = _refused(cause, address, f"queue {address.path!r}")
        return Guarantee((*holds, error.sentence), UNKNOWN)
    except Away as cause:
        return Guarantee((*holds, f"RabbitMQ could not be asked: {cause.sentence}"), UNKNOWN)
    finally:
        link.close()


READS = (
    "A message is acknowledged once it is in the journal on this machine; what was not comes again, in its place.",
    "One reader at a time, in the queue's order; others stand by and take over when it ends.",
    "Whoever reads the queue shares it, whatever the group: to read all of it twice, bind two queues to an exchange.",
)
WRITES = (
    "A row is done with once the broker has confirmed its message, which is marked to be kept on disk.",
    "Messages keep their order, save where a length limit that rejects (reject-publish) is reached.",
)
FATE = {
    "durable": "A queue that is not durable is gone, with its messages, when the broker restarts.",
    "x-queue-type": "A quorum queue is on disk before it confirms; a classic one is on one machine, which may be lost.",
    "x-single-active-consumer": "Without it order rests on our readers' lock alone: another program's consumer takes turns with us.",
    "x-delivery-limit": "Messages that were delivered more often are dropped or dead-lettered at most once (default from 4.0 on: 20).",
    "x-max-length": "Messages beyond it are dropped from the front, or refused with x-overflow reject-publish.",
    "x-max-length-bytes": "Messages beyond it are dropped from the front, or refused with x-overflow reject-publish.",
    "x-message-ttl": "Messages that wait longer are dropped without a word.",
    "x-expires": "The queue is deleted when nobody has used it for so long.",
}
POLICIES = Setting("policies", None, None, "A policy can set limits too (max-length, message-ttl, delivery-limit); AMQP does not show them.")  # fmt: skip
UNKNOWN = (*(Setting(name, None, None, fate) for name, fate in FATE.items()), POLICIES)


def _settings(link: _Link, address: Address) -> tuple[Setting, ...]:
    found = _arguments(link, address)
    if found is None:
        return UNKNOWN
    good = {
        "durable": found["durable"] is True,
        "x-queue-type": found.get("x-queue-type") == "quorum",
        "x-single-active-consumer": found.get("x-single-active-consumer") is True,
        "x-delivery-limit": int(found.get("x-delivery-limit", 20 if _major(link.version) >= 4 else MANY))
        >= MANY,
    }
    shown = {name: str(found.get(name, "not set")) for name in FATE}
    return (
        Setting("version", link.version, None, "What was measured is told of 3.10; from 4.0 on there is a delivery limit by default."),
        *(Setting(name, shown[name], good.get(name, name not in found), fate) for name, fate in FATE.items()),
        POLICIES,
    )  # fmt: skip


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else 0


INEQUIVALENT = re.compile(
    r"inequivalent arg '([^']+)' for .*: received .* but current is "
    r"(?:none|the value '(.*)' of type '\w+'|'(.*)')$",
    re.DOTALL,
)


def _arguments(link: _Link, address: Address) -> dict[str, Any] | None:
    """How a queue that is there was declared; None where that can't be told: not permitted, or said in words we do not know.
    Each try is refused and names one argument, until one is equal; a declaration that is equal changes nothing."""
    flags, arguments = {"durable": True, "auto_delete": False}, dict[str, Any]()
    for _ in range(20):
        try:
            link.ask(link.channel(), "queue_declare", queue=address.path, arguments=dict(arguments), **flags)
            return {**arguments, **flags}
        except ChannelClosedByBroker as cause:
            said = INEQUIVALENT.search(_text(cause))
        if said is None:
            return None
        name, value = said[1], said[2] if said[2] is not None else said[3]
        if name in flags:
            flags[name] = value == "true"
        elif value is None:
            arguments.pop(name, None)
        else:
            arguments[name] = {"true": True, "false": False}.get(
                value, int(value) if value.isdecimal() else value
            )
    return None
