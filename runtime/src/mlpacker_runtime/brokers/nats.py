"""NATS JetStream: `nats://host:4222/subject?stream=NAME`, over a thin client of our own (`nats_wire`, `nats_stream`).

The stream is found by the subject where it is not named. An offset is the stream's sequence; the partition is `0`: all the address's
subjects together. The key travels in the header `mlpacker-key`; a header's value that is no plain text goes as base64 under
`mlpacker-b64-<name>`.

JetStream delivers newer messages before it delivers unacknowledged ones again. So in ordered mode every reader makes a consumer of
its own, `<group>-<hash>-<epoch>`, which begins behind what its predecessor acknowledged, and deletes that one. Who reads holds a
lease, a message in the stream KV_mlpacker that it writes anew every third of a session; who can't is no reader any more. Whoever
stands by takes the lease when it has not moved for a session by his own clock. Unordered, all readers share one consumer.

One connection, and its first failure is its last.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from ..errors import BadDescription, MlpackerError
from . import Address, Away, Guarantee, Headers, Lag, Listener, Message, Outgoing, Reading, Setting, Unusable
from .nats_stream import (
    FOR_GOOD,
    TOO_LARGE,
    ApiError,
    Held,
    Lease,
    Stream,
    closed,
    gone,
    judge,
    new_holder,
    subject_of,
)
from .nats_wire import Frame, fields, hpub, pub, status

journalled = False

OPTIONS = ("password", "token", "stream", "inbox", "create", "replicas")
PARTITION = "0"
KEY = "mlpacker-key"
ENCODED = "mlpacker-b64-"

AHEAD = 5000
"""Messages asked for before they are wanted."""
PULL_BYTES = 16 << 20
"""Bytes of one request's messages."""
EXPIRES = 30.0
HEARTBEAT = 5.0
"""Seconds between a waiting request's signs of life; three missed ones and the consumer counts as gone."""
FOREVER = 3650 * 86400
"""Seconds an ordered consumer waits for acknowledgements: what is delivered again is delivered by a new one."""
STANDS_BY = 0.25
LAGS = 1.0
CLOSES = 2.0
CHUNK, CHUNK_BYTES = 1000, 4 << 20
"""Messages under way without an answer; JetStream drops some where they are ten thousand."""
SLOW = 30.0
"""Seconds without any answer while publishing."""


def source(address: Address, reading: Reading, listener: Listener) -> Ordered | Competing:
    address.only(*OPTIONS)
    return (Ordered if reading.ordered else Competing)(address, reading, listener)


def sink(address: Address, name: str) -> StreamSink:
    address.only(*OPTIONS)
    return StreamSink(address, name)


# --- Sources ---------------------------------------------------------------------------------------------------------


class Pulled:
    """What both ways of reading share: a consumer, requests for its messages, and those that came."""

    def __init__(self, address: Address, reading: Reading, listener: Listener) -> None:
        self._reading = reading
        self._listener = listener
        _start(reading.start, 0)
        self._stream = Stream(address, f"{reading.group}-{reading.member}")
        self._line = self._stream.line
        self.incarnation = self._stream.incarnation
        self._base = _base(reading.group, self._stream)
        self._pull_bytes = max(PULL_BYTES, 2 * int(self._line.info.get("max_payload", 0)))
        self._consumer = ""
        self._sid = 1
        self._pulls = 0
        self._asked = 0
        self._stirred = time.monotonic()
        self._buffer: deque[Frame] = deque()
        self._lag = (0.0, Lag())
        self._queue = self._stream.config.get("retention") == "workqueue"
        if self._queue and reading.start != "earliest":
            self._line.close()
            raise Unusable(
                f"{address}: {self._stream.name} is a work queue, which gives out all that it has.",
                "It can be read from `earliest` only.",
            )

    def lag(self) -> Lag | None:
        now = time.monotonic()
        if self._consumer and now - self._lag[0] >= LAGS:
            told = self._stream.consumer(self._consumer)
            if told is None:
                raise self._lost()
            pending = int(told.get("num_pending", 0)) + len(self._buffer) + self._under_way()
            self._lag = (now, Lag({PARTITION: pending}))
        return self._lag[1]

    def _under_way(self) -> int:
        """Takes in what came with the last answer."""
        before = len(self._buffer)
        while frames := self._line.read(0):
            self._take_in(frames)
        return len(self._buffer) - before

    def _filter(self) -> dict[str, Any]:
        return {"filter_subject": self._stream.subject, "max_deliver": -1, "max_ack_pending": -1}

    def _behind(self, floors: Sequence[int]) -> Mapping[str, Any]:
        """Where to begin, as a consumer's settings. floors: offsets up to which all is done with; without one, at the start."""
        last = int(self._stream.look()["state"]["last_seq"])
        floor = max(floors, default=-1)
        if floor < 0:
            return _start(self._reading.start, last)
        return _from(min(floor, last) + 1)  # a broker that lost its end goes on from there

    def _delete(self, consumers: Collection[str]) -> None:
        for name in consumers:
            self._stream.delete(name)

    def _listen(self, consumer: str) -> None:
        self._forget()
        self._consumer = consumer
        self._line.send(b"SUB %b.p%d.* %d\r\n" % (self._line.inbox, self._sid, self._sid))

    def _forget(self) -> None:
        """What comes from now on for the consumer until now is nobody's."""
        if self._consumer:
            self._line.send(b"UNSUB %d\r\n" % self._sid)
        self._sid += 1
        self._consumer, self._asked, self._lag = "", 0, (0.0, Lag())
        self._buffer.clear()
        self._stirred = time.monotonic()

    def _pull(self, wanted: int) -> None:
        """Keeps `wanted` messages asked for. A second request goes out before the first is served."""
        wanted -= len(self._buffer) + self._asked
        if wanted <= 0 or self._asked > wanted:
            return
        self._pulls += 1
        self._stirred = self._stirred if self._asked else time.monotonic()
        self._asked += wanted
        body = {
            "batch": wanted, "max_bytes": self._pull_bytes,
            "expires": int(EXPIRES * 1e9), "idle_heartbeat": int(HEARTBEAT * 1e9),
        }  # fmt: skip
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{self._consumer}".encode()
        reply = b"%b.p%d.%d" % (self._line.inbox, self._sid, self._pulls)
        self._line.send(pub(subject, reply, json.dumps(body).encode()))

    def _receive(self, seconds: float) -> None:
        self._take_in(self._line.read(seconds))
        if self._asked and time.monotonic() - self._stirred > 3 * HEARTBEAT:
            raise Away(f"{self._stream.address}: the consumer {self._consumer} gives no sign of life.")

    def _take_in(self, frames: Sequence[Frame]) -> None:
        sid = self._sid
        for frame in frames:
            if frame.sid != sid:
                continue
            if frame.reply.startswith(b"$JS.ACK."):
                self._buffer.append(frame)
                self._asked -= 1
            else:
                self._told(frame)
        if frames:
            self._stirred = time.monotonic()

    def _told(self, frame: Frame) -> None:
        code = status(frame.header)
        if code == 100:
            return
        left = dict(fields(frame.header)).get("Nats-Pending-Messages", b"")
        if code not in (408, 409) or not left.isdigit() or b"Shutdown" in frame.header:
            raise self._lost()
        self._asked = max(0, self._asked - int(left))

    def _lost(self) -> Away:
        return Away(f"{self._stream.address}: the consumer {self._consumer} is gone, or has moved.")

    def _confirm(self, replies: Sequence[bytes]) -> None:
        """Acknowledges these; returns when JetStream has the last of them, which it took after the others."""
        if len(replies) > 1:
            self._line.send(b"".join([b"PUB %b 4\r\n+ACK\r\n" % reply for reply in replies[:-1]]))
        if status(self._line.request(replies[-1], b"+ACK").header):
            raise self._lost()


class Ordered(Pulled):
    """One reader at a time."""

    def __init__(self, address: Address, reading: Reading, listener: Listener) -> None:
        super().__init__(address, reading, listener)
        self._holder = new_holder()
        self._lease = Lease(self._stream, self._base)
        self._epoch = 0
        self._position = -1
        self._reads = False
        self._renewed = 0.0
        self._watched = (-1, 0.0)
        self._looks = 0.0
        self._out: deque[tuple[int, bytes]] = deque()
        try:
            self._stand_by()
        except MlpackerError:
            self.close()
            raise

    def poll(self, limit: int, seconds: float) -> list[Message]:
        until = time.monotonic() + seconds
        fresh = False
        while True:
            now = time.monotonic()
            if not (self._renew(now) if self._reads else self._stand_by()):
                self._line.read(max(0.0, min(until, self._looks) - now))
            elif limit:
                self._pull(min(self._reading.window - len(self._out), AHEAD))
                if self._buffer and (fresh or len(self._buffer) >= limit):
                    return self._hand_out(limit)
                self._receive(0.0 if self._buffer else self._patience(until))
                fresh = True
            else:
                self._receive(self._patience(until))
            if time.monotonic() >= until and not (limit and self._buffer):
                return []

    def commit(self, finished: Mapping[str, int]) -> None:
        offset = finished.get(PARTITION, 0)
        replies: list[bytes] = []
        while self._out and self._out[0][0] <= offset:
            last, reply = self._out.popleft()
            self._position = last
            replies.append(reply)
        if replies:
            self._confirm(replies if self._queue else replies[-1:])

    def close(self) -> None:
        try:
            if self._reads and self._holder not in closed:
                self._lease.write(self._value(""), CLOSES)
        except Exception:  # noqa: BLE001, S110  it is being left; who stands by waits for the session's end
            pass
        closed.add(self._holder)
        self._line.close()

    # The lease

    def _stand_by(self) -> bool:
        """Takes the lease where it is free. True: it is ours, and the consumer is there."""
        now = time.monotonic()
        if now < self._looks:
            return False
        self._looks = now + STANDS_BY
        seen = self._lease.look()
        if seen is not None and seen.holder and not gone(seen.holder):
            if seen.sequence != self._watched[0]:
                self._watched = (seen.sequence, now)
            if now - self._watched[1] < seen.session:
                return False
        if seen is not None and seen.incarnation == self.incarnation:
            self._position = seen.position
        self._epoch = (seen.epoch if seen else 0) + 1
        if not self._write(now):
            return False
        consumer = self._begin()
        if not self._write(now):  # the place is written down before anything is delivered
            return False
        self._listen(consumer)
        self._reads = True
        return True

    def _renew(self, now: float) -> bool:
        if now - self._renewed < self._reading.session / 3 or self._write(now):
            return True
        self._reads = False
        self._forget()
        self._out.clear()
        self._listener.giving_up({PARTITION}, 0)
        return False

    def _write(self, now: float) -> bool:
        """The session counts from before it is written: nobody else counts it from earlier."""
        if not self._lease.write(self._value(self._holder)):
            return False
        self._renewed = now
        return True

    def _value(self, holder: str) -> Held:
        return Held(0, holder, self._reading.session, self._epoch, self._position, self.incarnation)

    def _patience(self, until: float) -> float:
        return min(until, self._renewed + self._reading.session / 3) - time.monotonic()

    # The consumer

    def _begin(self) -> str:
        """A consumer of our own behind all that was ever acknowledged; then the others go."""
        found = {name: self._stream.consumer(name) for name in self._stream.consumers(self._base)}
        epochs = [int(n) for name in found if (n := name.rpartition("-")[2]).isdecimal()]
        self._epoch = max([self._epoch, *(n + 1 for n in epochs)])
        begin = self._behind([self._position, *(_floor(told) for told in found.values() if told)])
        name = f"{self._base}-{self._epoch}"
        if self._queue:  # what is acknowledged is gone from it, and a second consumer is not allowed
            self._delete(found)
            made = self._stream.create(name, {**self._filter(), **EXPLICIT, "deliver_policy": "all"})
        else:
            made = self._stream.create(name, {**self._filter(), **ALL, **begin})
            self._delete(found)
        self._position = int(made["delivered"]["stream_seq"])
        self._out.clear()
        return name

    def _hand_out(self, limit: int) -> list[Message]:
        messages = []
        for _ in range(min(limit, len(self._buffer))):
            frame = self._buffer.popleft()
            message = _message(frame)
            messages.append(message)
            self._out.append((message.offset, frame.reply))
        return messages


ALL = {"ack_policy": "all", "ack_wait": FOREVER * 10**9}
EXPLICIT = {"ack_policy": "explicit", "ack_wait": FOREVER * 10**9}


class Competing(Pulled):
    """Readers share one consumer. What one leaves unacknowledged who was silent for `session` goes to the others.

    Offsets would fall where such a message comes late: then what is out is finished or taken back, and all begins again in order.
    """

    def __init__(self, address: Address, reading: Reading, listener: Listener) -> None:
        super().__init__(address, reading, listener)
        self._out: dict[int, Frame] = {}
        self._highest = 0
        self._said = time.monotonic()
        try:
            self._listen(self._shared())
        except MlpackerError:
            self._line.close()
            raise

    def poll(self, limit: int, seconds: float) -> list[Message]:
        until = time.monotonic() + seconds
        while True:
            self._keep()
            self._pull(min(limit, self._reading.window - len(self._out)))
            self._receive(0.0 if self._buffer else min(self._due(), until) - time.monotonic())
            if self._buffer and limit:
                return self._hand_out(limit)
            if time.monotonic() >= until:
                return []
            if self._buffer:
                self._receive(0.0)
                time.sleep(min(0.05, max(0.0, until - time.monotonic())))

    def commit(self, finished: Mapping[str, int]) -> None:
        offset = finished.get(PARTITION, 0)
        done = [at for at in self._out if at <= offset]
        if done:
            self._confirm([self._out.pop(at).reply for at in done])

    def close(self) -> None:
        """What is left goes to the others at once."""
        try:
            left = [*self._out.values(), *self._buffer]
            if left:
                self._line.send(b"".join([b"PUB %b 4\r\n-NAK\r\n" % frame.reply for frame in left]))
        except Exception:  # noqa: BLE001, S110  it is being left; the others get it when the session is over
            pass
        self._out.clear()
        self._buffer.clear()
        self._line.close()

    def _shared(self) -> str:
        name = f"{self._base}-shared"
        wait = int(self._reading.session * 1e9)
        there = self._stream.consumer(name)
        if there is not None:
            if there["config"].get("ack_wait") != wait:
                self._stream.create(name, {**there["config"], "ack_wait": wait})
            return name
        others = self._stream.consumers(self._base)
        told = [one for one in map(self._stream.consumer, others) if one]
        begin = self._behind([_floor(one) for one in told])
        if self._queue:
            begin = {"deliver_policy": "all"}
            self._delete(others)
        made = {**self._filter(), **begin, "ack_policy": "explicit", "ack_wait": wait}
        self._stream.create(name, made)
        self._delete(others)
        return name

    def _due(self) -> float:
        return self._said + self._reading.session / 3

    def _keep(self) -> None:
        """Says of all that is here that it is being worked on."""
        if time.monotonic() < self._due():
            return
        self._said = time.monotonic()
        here = [*self._out.values(), *self._buffer]
        if here:
            self._line.send(b"".join([b"PUB %b 4\r\n+WPI\r\n" % frame.reply for frame in here]))

    def _hand_out(self, limit: int) -> list[Message]:
        if _offset(self._buffer[0]) <= self._highest:
            self._again()
        messages: list[Message] = []
        while self._buffer and len(messages) < limit:
            offset = _offset(self._buffer[0])
            if offset <= self._highest:
                break
            frame = self._buffer.popleft()
            self._out[offset] = frame
            self._highest = offset
            messages.append(_message(frame))
        return messages

    def _again(self) -> None:
        self._listener.giving_up({PARTITION}, self._reading.session / 3)
        kept = {_offset(frame): frame for frame in [*self._out.values(), *self._buffer]}
        self._out.clear()
        self._buffer = deque(kept[at] for at in sorted(kept))
        self._highest = 0


def _base(group: str, stream: Stream) -> str:
    """What names of the group's consumers of these subjects begin with."""
    digest = hashlib.sha256(f"{group}\n{stream.name}\n{stream.subject}".encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', group)[:40]}-{digest}"


def _from(sequence: int) -> Mapping[str, Any]:
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, sequence)}


def _floor(told: Mapping[str, Any]) -> int:
    """The offset up to which all is done with for a consumer; -1: it does not say. Its ack floor is 0 until the first one."""
    if told["ack_floor"]["consumer_seq"]:
        return int(told["ack_floor"]["stream_seq"])
    if "opt_start_seq" in told["config"]:
        return int(told["config"]["opt_start_seq"]) - 1
    return int(told["delivered"]["stream_seq"]) if not told["delivered"]["consumer_seq"] else -1


def _start(text: str, last: int) -> Mapping[str, Any]:
    """Where a new group begins, as a consumer's settings. last: the stream's last sequence. Raises BadDescription."""
    kind, _, at = text.partition(":")
    if text in ("earliest", "latest"):
        return _from(1 if text == "earliest" else last + 1)
    try:
        if kind == "offset" and at.isdecimal():
            return _from(int(at))
        if kind == "time":
            moment = datetime.fromtimestamp(float(at), timezone.utc)
            return {"deliver_policy": "by_start_time", "opt_start_time": moment.isoformat()}
    except (ValueError, OverflowError, OSError):
        pass
    raise BadDescription(
        f"{text!r} is no start.",
        "There are earliest, latest, offset:N and time: with seconds since the epoch.",
    )


# --- Messages --------------------------------------------------------------------------------------------------------


def _offset(frame: Frame) -> int:
    return _place(frame.reply)[0]


def _place(reply: bytes) -> tuple[int, float]:
    """`$JS.ACK.[domain.account.]stream.consumer.delivered.SEQUENCE.sequence.NANOSECONDS.pending…` → sequence, time."""
    tokens = reply.split(b".")
    more = 0 if len(tokens) == 9 else 2
    return int(tokens[5 + more]), int(tokens[7 + more]) / 1e9


def _message(frame: Frame) -> Message:
    offset, when = _place(frame.reply)
    if not frame.header:
        return Message(PARTITION, offset, frame.payload, None, (), when)
    key, headers = _headers(frame.header)
    return Message(PARTITION, offset, frame.payload, key, headers, when)


def _headers(block: bytes) -> tuple[bytes | None, Headers]:
    key, kept = None, []
    for name, value in fields(block):
        if name.startswith("Nats-"):
            continue
        if name.startswith(ENCODED):
            try:
                name, value = name[len(ENCODED) :], base64.b64decode(value, validate=True)
            except binascii.Error:
                pass  # another's header, whatever it means
        if name == KEY:
            key = value
        else:
            kept.append((name, value))
    return key, tuple(kept)


def _field(name: bytes, value: bytes) -> bytes:
    if _plain(value):
        return b"%b: %b\r\n" % (name, value)
    return b"%b%b: %b\r\n" % (ENCODED.encode(), name, base64.b64encode(value))


def _plain(value: bytes) -> bool:
    """Whether every client reads it back as it is."""
    return value.isascii() and value.decode("ascii").isprintable() and value == value.strip()


@lru_cache(1000)
def _name(name: str) -> bytes | None:
    """None: it can't be a header's name."""
    return name.encode() if re.fullmatch(r"[!-9;-~]+", name) and not name.startswith("Nats-") else None


# --- The sink --------------------------------------------------------------------------------------------------------


class StreamSink:
    """Published in order; JetStream drops what carries an id it has seen within its duplicate window."""

    headers = True

    def __init__(self, address: Address, name: str) -> None:
        self._address, self._name = address, name
        if {"*", ">"} & set(subject_of(address).split(".")):
            raise BadDescription(f"{address}: a pattern can't be published to.", "Name one subject.")
        self._open()

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        if messages and self._line.ended():  # nothing is under way: a new connection is as good
            self._line.close()
            self._open()
        refused: dict[int, str] = {}
        waiting: dict[bytes, int] = {}
        lines: list[bytes] = []
        size = 0
        for place, message in enumerate(messages):
            header, why = self._block(message)
            if why:
                refused[place] = why
                continue
            self._number += 1
            token = b"%b.%d" % (self._line.inbox, self._number)
            waiting[token] = place
            lines.append(hpub(self._subject, token, header, message.value))
            size += len(lines[-1])
            if len(lines) >= CHUNK or size >= CHUNK_BYTES:
                self._send(lines, waiting, refused, CHUNK)
                lines, size = [], 0
        self._send(lines, waiting, refused, 0)
        return refused

    def close(self) -> None:
        self._line.close()

    def _open(self) -> None:
        stream = Stream(self._address, self._name)
        self._line = stream.line
        try:
            if stream.config.get("no_ack"):
                raise Unusable(f"{self._address}: {stream.name} confirms nothing (no_ack).", "Turn it off.")
            if stream.name not in stream.keepers():
                raise Unusable(f"{self._address}: {stream.name} does not keep {stream.subject}.")
        except MlpackerError:
            self._line.close()
            raise
        self._subject = stream.subject.encode()
        self._confirms = b'"stream":"%b"' % stream.name.encode()
        self._number = 0
        bound = int(self._line.info.get("max_payload") or 1 << 20)
        own = int(stream.config.get("max_msg_size", -1))
        self._largest = min(bound, own) if own > 0 else bound
        self.max_bytes = self._largest - min(4096, self._largest // 4)

    def _block(self, message: Outgoing) -> tuple[bytes, str]:
        """The header, and why the message will never be taken; empty: nothing speaks against it."""
        parts = [b"NATS/1.0\r\n", _field(b"Nats-Msg-Id", message.id.encode())]
        if message.key is not None:
            parts.append(_field(KEY.encode(), message.key))
        for name, value in message.headers:
            known = _name(name)
            if known is None:
                return b"", f"NATS takes no header of the name {name!r}"
            parts.append(_field(known, value))
        parts.append(b"\r\n")
        header = b"".join(parts)
        if len(header) + len(message.value) > self._largest:
            return b"", f"larger than the {self._largest} bytes that NATS takes (max_payload, max_msg_size)"
        return header, ""

    def _send(
        self, lines: Sequence[bytes], waiting: dict[bytes, int], refused: dict[int, str], most: int
    ) -> None:
        """Sends these, and returns when no more than `most` of all wait for their answer."""
        if lines:
            self._line.send(b"".join(lines))
        until = time.monotonic() + SLOW
        while len(waiting) > most:
            answers = self._line.read(until - time.monotonic())
            for answer in answers:
                place = waiting.pop(answer.subject, None)
                if place is not None and not (
                    self._confirms in answer.payload and b'"error"' not in answer.payload
                ):
                    refused[place] = self._why(answer)
            if answers:
                until = time.monotonic() + SLOW
            elif time.monotonic() >= until:
                raise Away(f"{self._address} is away: it confirms nothing for {SLOW:.0f} s.")

    def _why(self, answer: Frame) -> str:
        """Why this message will never be taken. Raises Away for all else: it is the broker's trouble, not the message's."""
        if status(answer.header) == 503:
            raise Away(f"{self._address}: no stream takes what is published now.")
        try:
            told = judge(answer.payload, self._address)
        except ApiError as cause:
            if cause.code == TOO_LARGE:
                return f"larger than the stream takes ({cause})"
            if cause.code in FOR_GOOD:
                raise Unusable(f"{self._address}: JetStream refuses: {cause}.") from cause
            raise Away(f"{self._address}: JetStream does not take it now: {cause}.") from cause
        raise Away(f"{self._address}: {str(told)[:200]} is no confirmation of the stream's.")


# --- What it rests on ------------------------------------------------------------------------------------------------

SOURCE_HOLDS = (
    "A message is acknowledged after its answer is confirmed; until then it is delivered again.",
    "Order is that of the stream: one process of the group reads, the others stand by. With `--unordered` there is none.",
    "Whoever reads next begins behind what was acknowledged last, with a consumer of his own; a message is never delivered "
    "before one that is older.",
)
SINK_HOLDS = (
    "Messages are published in order, and count once JetStream has answered for each.",
    "JetStream drops a message whose id it has seen within the stream's duplicate window.",
    "Where a stream is full or its leader changes, publishing waits and the batch is sent again.",
)
SYNC = (
    "Not told by the server. By default it writes to disk every two minutes: a NATS that is killed loses nothing that it confirmed, a "
    "machine that loses its power may lose two minutes of it. `jetstream { sync_interval: always }` writes before it confirms."
)


def explain(address: Address, role: str) -> Guarantee:
    holds = SINK_HOLDS if role == "sink" else SOURCE_HOLDS
    config: Mapping[str, Any] | None = None
    try:
        stream = Stream(address, "explain")
        config = stream.config
        stream.line.close()
    except (Away, Unusable):
        pass  # the settings stay unknown, and are said to be
    return Guarantee(holds, tuple(_settings(config)))


def _settings(config: Mapping[str, Any] | None) -> Iterator[Setting]:
    yield Setting("sync_interval", None, None, SYNC)
    for name, value, good, consequence in SETTINGS:
        if config is None:
            yield Setting(name, None, None, consequence)
        else:
            yield Setting(name, value(config), good(config), consequence)


def _bounded(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda config: int(config.get(name, -1)) <= 0 or config.get("discard") == "new"


def _text(name: str, default: object) -> Callable[[Mapping[str, Any]], str]:
    return lambda config: str(config.get(name, default))


def _seconds(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda config: f"{config.get(name, 0) / 1e9:g} s"


REMOVES = "A stream that is full removes its oldest rows, read or not, unless `discard` is `new`: then publishing waits."
SETTINGS: tuple[tuple[str, Callable[..., str], Callable[..., bool | None], str], ...] = (
    ("storage", _text("storage", "file"), lambda c: c.get("storage", "file") == "file",
     "A stream in memory is empty after a restart of NATS."),
    ("num_replicas", _text("num_replicas", 1), lambda c: True if c.get("num_replicas", 1) >= 3 else None,
     "With one copy, what is on that disk goes with it, and nothing is taken while that server is away."),
    ("retention", _text("retention", "limits"), lambda c: c.get("retention", "limits") == "limits",
     "`interest` keeps nothing for a group that has not read yet; `workqueue` gives each row to one group only, and forgets it then."),
    ("max_age", _seconds("max_age"), lambda c: not c.get("max_age"),
     "Rows older than this are removed, read or not; 0: never."),
    ("max_msgs", _text("max_msgs", -1), _bounded("max_msgs"), REMOVES),
    ("max_bytes", _text("max_bytes", -1), _bounded("max_bytes"), REMOVES),
    ("max_msgs_per_subject", _text("max_msgs_per_subject", -1), _bounded("max_msgs_per_subject"), REMOVES),
    ("discard", _text("discard", "old"), lambda c: None, "What a full stream does: `old` removes, `new` refuses."),
    ("duplicate_window", _seconds("duplicate_window"), lambda c: int(c.get("duplicate_window", 0)) > 0,
     "A repeat that comes later than this is kept; whoever reads drops it by its id, or reads it twice."),
)  # fmt: skip
