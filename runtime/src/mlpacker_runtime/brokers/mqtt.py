"""MQTT 3.1.1 and 5: `mqtt://host:1883/plant/+/readings?version=5`.

A broker of MQTT has no offsets and throws away what it can't hold: so nothing is ever paused here (`journalled`). All it sends
is taken at once; the caller writes each message into its journal and then calls `commit`, which acknowledges (PUBACK) in the
order of arrival. The session is persistent: the broker keeps what comes while we are away, and gives what was not
acknowledged again, first and in order, when we are back.

The client has no thread of its own: `poll`, `commit` and `publish` drive it. Any end of a connection is `Away`; the client's own
reconnecting, which would send again behind the caller's back, is off.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import selectors
import socket
import ssl
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ..errors import BadDescription
from . import Away, Guarantee, Headers, Lag, Listener, Message, Outgoing, Reading, Setting, Unusable
from .address import Address

journalled = True

OPTIONS = ("version", "qos", "client", "password", "retained", "keys", "max_bytes", "create")
PARTITION = "0"
"""A subscription is one partition: the broker keeps the order of a whole session."""
KEY = "mlpacker-key"
"""The user property that carries a message's key."""
BYTES = ";base64"
"""Ends the name of a user property whose value is no text, which is all that MQTT takes."""
ANSWER = 10.0
"""Seconds for the broker to answer a CONNECT or a SUBSCRIBE."""
CONFIRMED = 30.0
"""Seconds without any confirmation after which it is not known what the broker has."""
MOST, MOST_BYTES = 100_000, 256 << 20
"""Undelivered messages in memory, beyond which the socket is not read."""
AT_ONCE = 1000
"""Messages read in one go, so that `poll` comes back."""
RECEIVE_MAXIMUM = 1000
"""Unacknowledged messages that we take (MQTT 5). Many, as few then wait in the broker's queue, where they may be dropped; not all, as
Mosquitto writes its data when one has to wait, and not for those that are on their way."""
SAVED = 3
"""Questions behind which Mosquitto has written its data (autosave_interval 1): two changes, and one more answer after the write."""
SEND_MAXIMUM = 10_000
LARGEST_PACKET = 268_435_455
NEVER = 0xFFFFFFFF

UNSUPPORTED_VERSION, BAD_CLIENT, TAKEN_OVER, TOPIC_INVALID, TOO_LARGE = 0x84, 0x85, 0x8E, 0x90, 0x95
NOT_AUTHORIZED, BAD_PAYLOAD = 0x87, 0x99
CREDENTIALS = (0x86, NOT_AUTHORIZED, 0x8A, 0x8C)
MOVED = (0x9A, 0x9B, 0x9C, 0x9D)
FAILED = 0x80
"""Reason codes of MQTT 5 (2.4): from FAILED on, it is one."""

_log = logging.getLogger(__name__)
CUTS, WITHIN = 5, 300.0
"""So many connections of one session that end without a reason in so many seconds: another process takes them. Mosquitto 2.0 does not say."""
_cuts: dict[str, deque[float]] = {}
_arrivals: dict[str, tuple[str, Iterator[int]]] = {}
"""Session → its incarnation and its counter of arrivals: they go on when a source is made anew in this process."""


def has_headers(address: Address) -> bool:
    return address.option("version", "5") == "5"


def source(address: Address, reading: Reading, listener: Listener) -> MqttSource:
    """Subscribes. Ordered: one client id for the group, so that of two processes the later takes the session from the earlier,
    which ends with Unusable. Else: a shared subscription, with a client id for each member."""
    _check(address)
    if reading.start not in ("earliest", "latest"):
        raise BadDescription(
            f"{address}: MQTT keeps no past, so a group can't begin at {reading.start!r}.",
            "Leave the start out: a session begins with its subscription.",
        )
    return MqttSource(address, reading)


def sink(address: Address, name: str) -> MqttSink:
    """Publishes with QoS 1 to the topic of the address, which needs no making."""
    _check(address)
    if not address.path or any(c in address.path for c in "+#\0"):
        raise BadDescription(
            f"{address}: {address.path!r} is no topic to publish to.", "Name one, without + and #."
        )
    return MqttSink(address, name)


def _check(address: Address) -> None:
    address.only(*OPTIONS)
    for name, allowed in (("version", ("5", "3")), ("keys", ("topic", "none")), ("qos", ("1",))):
        if address.option(name, allowed[0]) not in allowed:
            why = (
                " QoS 0 loses rows; QoS 2 does not make a row's way through a pipeline any surer."
                if name == "qos"
                else ""
            )
            raise BadDescription(f"{address}: {name} is {' or '.join(allowed)}.{why}")
    address.flag("retained", True)
    address.number("max_bytes", 0)


def _filter(address: Address) -> str:
    levels = address.path.split("/")
    wrong = any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]
    if not address.path or wrong or levels[0] == "$share" or "\0" in address.path:
        raise BadDescription(
            f"{address}: {address.path!r} is no topic filter.",
            "Write levels apart by /; + stands for one whole level, # for all that follow, at the end.",
        )
    return address.path


def client_id(address: Address, reading: Reading) -> str:
    """The name of the session at the broker: the same at each start. At most 23 letters and digits, which every broker takes."""
    given = address.option("client")
    if given:
        return given if reading.ordered else f"{given}-{reading.member}"
    parts = [reading.group, address.path] + ([] if reading.ordered else ["member", reading.member])
    return "mlpacker" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:15]


class Line:
    """One connection, driven by whoever calls `turn`. Raises Away once it has ended, or Unusable where that will not mend.

    clean: whether the broker forgets us when it ends. keepalive: seconds, 0 for none. take: is given each message; a session that
    was there already sends some before we are told that we are connected. answered: is given the id and the reason code of each
    confirmation.
    """

    def __init__(
        self,
        address: Address,
        client: str,
        *,
        clean: bool,
        keepalive: int,
        take: Callable[[paho.MQTTMessage], None] = lambda message: None,
        answered: Callable[[int, int], None] = lambda mid, reason: None,
    ) -> None:
        self.address, self.id, self.five = address, client, address.option("version", "5") == "5"
        self._take, self._answered = take, answered
        self.server: Any = None  # the properties of the CONNACK
        self.session_present = False
        self.handled = 0
        self._answer: ReasonCode | None = None
        self._granted: list[ReasonCode] | None = None
        self._turned = False
        self._gone: int | None = None
        self._events = selectors.EVENT_READ
        self._selector = selectors.DefaultSelector()
        self.client = self._made(clean)
        try:
            self._connect(clean, keepalive)
        except BaseException:
            self.close()
            raise

    def _made(self, clean: bool) -> paho.Client:
        how = {} if self.five else {"clean_session": clean}
        made = paho.Client(
            paho.CallbackAPIVersion.VERSION2, self.id, protocol=paho.MQTTv5 if self.five else paho.MQTTv311,
            reconnect_on_failure=False, manual_ack=True, **how,
        )  # fmt: skip
        made.max_inflight_messages_set(0)  # we count them ourselves
        if self.address.user is not None:
            made.username_pw_set(self.address.user, self.address.secret("password"))
        context = self.address.context()
        if context is not None:
            made.tls_set_context(context)
        made.on_connect, made.on_disconnect = self._connected, self._disconnected
        made.on_message, made.on_publish, made.on_subscribe = self._message, self._published, self._subscribed
        made.on_unsubscribe = self._unsubscribed
        return made

    # What the client tells. None of these raises.

    def _connected(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._answer, self.server, self.session_present = reason, properties, bool(flags.session_present)
        self.handled += 1

    def _disconnected(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._gone = reason.value if flags.is_disconnect_packet_from_server else 0

    def _message(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        self.handled += 1
        self._take(message)

    def _published(self, client: Any, data: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self.handled += 1
        self._answered(mid, reason.value)

    def _subscribed(
        self, client: Any, data: Any, mid: int, reasons: list[ReasonCode], properties: Any
    ) -> None:
        self.handled += 1
        self._granted = reasons

    def _unsubscribed(self, client: Any, data: Any, mid: int, reasons: Any, properties: Any) -> None:
        self.handled += 1
        self._turned = True

    # Connecting

    def _connect(self, clean: bool, keepalive: int) -> None:
        self._dial(clean, keepalive)
        opened = self.client.socket()
        assert opened is not None
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # type: ignore[union-attr]
        self._selector.register(opened.fileno(), self._events)
        try:
            self._until(lambda: self._answer is not None, "answer a connection")
        except Away:
            if self._answer is None or self._answer.value < FAILED:
                raise
        assert self._answer is not None
        if self._answer.value >= FAILED:
            raise self._refused(self._answer)

    def _dial(self, clean: bool, keepalive: int) -> None:
        how: dict[str, Any] = {}
        if self.five:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else NEVER
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            how = {"clean_start": clean, "properties": properties}
        cause: Exception | None = None
        for host, port in self.address.hosts:
            try:
                self.client.connect(host, port or (8883 if self.address.tls else 1883), keepalive, **how)
                return
            except ssl.SSLCertVerificationError as failed:
                raise Unusable(
                    f"{self.address}: the certificate of {host} is not trusted: {failed.verify_message}.",
                    "Name the authority that signed it: ?ca=FILE.",
                ) from failed
            except (OSError, ValueError) as failed:
                cause = failed
        raise Away(f"{self.address} can't be reached: {cause}.") from cause

    def _refused(self, answer: ReasonCode) -> Away | Unusable:
        if answer.value in CREDENTIALS:
            return Unusable(
                f"{self.address} refuses these credentials: {answer}.",
                "Check the user in the address and what password=env:NAME or file:PATH refers to.",
            )
        if answer.value == UNSUPPORTED_VERSION:
            return Unusable(f"{self.address} does not speak MQTT 5.", "Use version=3.")
        if answer.value == BAD_CLIENT:
            return Unusable(
                f"{self.address} does not take the client id {self.id}.", "Give one it takes: client=ID."
            )
        if answer.value in MOVED:
            return Unusable(f"{self.address} can't serve us: {answer}.", "Use another address.")
        return Away(f"{self.address} takes no connection: {answer}.")

    def subscribe(self, topic: str, retained: bool) -> None:
        """With QoS 1. An existing subscription is renewed without a gap; MQTT 5 does not send retained messages again then."""
        if self.five:
            handling = (
                SubscribeOptions.RETAIN_SEND_IF_NEW_SUB if retained else SubscribeOptions.RETAIN_DO_NOT_SEND
            )
            self.client.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=handling))
        else:
            self.client.subscribe(topic, 1)
        self._until(lambda: self._granted is not None, "confirm the subscription")
        granted = (self._granted or [ReasonCode(PacketTypes.SUBACK, identifier=FAILED)])[0]
        if granted.value >= FAILED:
            raise Unusable(
                f"{self.address} refuses the subscription to {topic}: {granted}.",
                "Allow this user to read it.",
            )
        if granted.value == 0:
            raise Unusable(
                f"{self.address} grants {topic} with QoS 0 only, which loses rows.",
                "Allow QoS 1 at the broker.",
            )

    def _until(self, done: Callable[[], bool], what: str, seconds: float = ANSWER) -> None:
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                raise Away(f"{self.address} did not {what} in {seconds:.0f} s.")
            self.turn(0.2)

    # Driving

    def turn(self, seconds: float) -> None:
        """Write what waits, read what is there, waiting for it at most `seconds`; ping when it is time."""
        client = self.client
        if self._gone is None and client.want_write():
            client.loop_write()
        if self._gone is None and self._ready(seconds):
            until = self.handled + AT_ONCE
            before = -1
            while before != self.handled < until and self._gone is None:
                before = self.handled
                client.loop_read()
        self.idle()

    def idle(self) -> None:
        """Ping when it is time, and nothing else."""
        if self._gone is None:
            self.client.loop_misc()
        if self._gone is not None or self.client.socket() is None:
            raise self._ended()

    def _ready(self, seconds: float) -> bool:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.client.want_write() else 0)
        opened: Any = self.client.socket()
        if opened is None:
            return False
        if events != self._events:
            self._selector.modify(opened.fileno(), events)
            self._events = events
        held = opened.pending() if self.address.tls else 0  # TLS has read these from the socket already
        return bool(self._selector.select(0 if held else seconds)) or held > 0

    def settle(self) -> None:
        """Returns when the broker has worked through all that was written. An acknowledgement is not answered; but what comes
        behind it is, in its turn: so an UNSUBSCRIBE from what nobody subscribed to. Mosquitto counts that as a change."""
        self._turned = False
        self.client.unsubscribe("mlpacker/nothing")
        self._until(lambda: self._turned, "answer", CONFIRMED)

    def _ended(self) -> Away | Unusable:
        if self._gone == TAKEN_OVER:
            return Unusable(
                f"Another process reads with this client id ({self.id}) at {self.address}, and has taken the session over.",
                "Stop one of the two, or give each deployment a group of its own.",
            )
        reason = f": reason {self._gone:#04x}" if self._gone else ""
        if self._answer is None:
            return Away(f"{self.address} closed the connection before it answered{reason}.")
        return Away(f"{self.address} closed the connection{reason}.")

    def close(self) -> None:
        """Says goodbye where it can. Never raises."""
        try:
            opened = self.client.socket()
            if opened is not None:
                self.client.disconnect()
                opened.close()
        except Exception:  # noqa: BLE001, S110  nothing is lost by a connection that does not close in good order
            pass
        self._selector.close()


class MqttSource:
    """A subscription. offset: how many messages arrived before it in this process, whatever the session. What the broker sends
    again has a new offset. Headers: `mqtt-topic`, `mqtt-retain` and `mqtt-dup` where they are set, and MQTT 5's user properties."""

    def __init__(self, address: Address, reading: Reading) -> None:
        topic = _filter(address)
        self._topics, self._retained = (
            address.option("keys", "topic") == "topic",
            address.flag("retained", True),
        )
        self._arrived: deque[Message] = deque()
        self._bytes = 0
        self._full = False
        self._unacknowledged: deque[tuple[int, int]] = deque()
        name = client_id(address, reading)
        self.incarnation, self._counter = _arrivals.setdefault(
            f"{address.hosts} {name}", (uuid.uuid4().hex, itertools.count())
        )
        _refuse_to_fight(address, name)
        keepalive = max(20, min(int(reading.session), 600))
        self._line = Line(address, name, clean=False, keepalive=keepalive, take=self._take)
        try:
            self._say_if_forgotten(reading.state, name)
            share = "".join("-" if c in "/+#" else c for c in reading.group)
            self._line.subscribe(topic if reading.ordered else f"$share/{share}/{topic}", self._retained)
            self._remember(reading.state, name)
        except BaseException:
            self.close()
            raise

    def _say_if_forgotten(self, state: str, name: str) -> None:
        if state and not self._line.session_present and (Path(state) / f"mqtt-session-{name}").exists():
            _log.warning(
                "%s has forgotten our session %s: what was sent to it while we were away is lost. Is its persistence on?",
                self._line.address, name,
            )  # fmt: skip

    @staticmethod
    def _remember(state: str, name: str) -> None:
        if state:
            Path(state).mkdir(parents=True, exist_ok=True)
            (Path(state) / f"mqtt-session-{name}").touch()

    def _take(self, message: paho.MQTTMessage) -> None:
        offset = next(self._counter)
        if message.qos:
            self._unacknowledged.append((offset, message.mid))
        if message.retain and not self._retained:
            return  # acknowledged in its turn
        topic = message.topic
        key, headers = _told(message) if message.properties is not None else (None, ())
        if key is None and self._topics:
            key = _topic_bytes(topic)
        headers = (("mqtt-topic", _topic_bytes(topic)), *headers)
        if message.retain:
            headers += (("mqtt-retain", b"1"),)
        if message.dup:
            headers += (("mqtt-dup", b"1"),)
        self._bytes += len(message.payload)
        self._arrived.append(Message(PARTITION, offset, bytes(message.payload), key, headers))

    def poll(self, limit: int, seconds: float) -> list[Message]:
        """What a connection has brought before its end is delivered before that is told: the broker may have lost it."""
        until = time.monotonic() + seconds
        self._read(0)
        while not (limit and self._arrived):
            left = until - time.monotonic()
            if left <= 0:
                break
            self._read(min(left, 1.0))
        taken = [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]
        self._bytes -= sum(len(m.value) for m in taken)
        return taken

    def _read(self, seconds: float) -> None:
        full = len(self._arrived) >= MOST or self._bytes >= MOST_BYTES
        if full and not self._full:
            _log.warning(
                "%s: %d messages (%d MB) wait in memory to be taken into the journal; the broker is not read until they are, "
                "and may drop what it can't hold.", self._line.address, len(self._arrived), self._bytes >> 20,
            )  # fmt: skip
        self._full = full
        if full:
            self._line.idle()
            time.sleep(min(seconds, 0.05))
            return
        try:
            self._line.turn(seconds)
        except Away:
            if self._arrived:
                return
            _cuts.setdefault(self._line.id, deque(maxlen=CUTS)).append(time.monotonic())
            raise

    def commit(self, finished: Mapping[str, int]) -> None:
        """Acknowledges, in the order of arrival."""
        last = finished.get(PARTITION, -1)
        waiting = self._unacknowledged
        while waiting and waiting[0][0] <= last:
            for _ in range(AT_ONCE):
                self._line.client.ack(waiting.popleft()[1], 1)
                if not (waiting and waiting[0][0] <= last):
                    break
            self._line.settle()

    def lag(self) -> Lag | None:
        """None: a broker of MQTT does not say what waits in a session."""
        return None

    def close(self) -> None:
        """The session stays at the broker, and goes on collecting."""
        self._line.close()


def _refuse_to_fight(address: Address, name: str) -> None:
    cuts = _cuts.get(name, deque())
    if len(cuts) == CUTS and time.monotonic() - cuts[0] < WITHIN:
        del _cuts[name]
        raise Unusable(
            f"The session {name} at {address} was cut off {CUTS} times in a short while. Another process reads with this client id.",
            "Stop one of the two, or give each deployment a group of its own.",
        )


def _told(message: paho.MQTTMessage) -> tuple[bytes | None, Headers]:
    """The key and the headers that user properties carry."""
    key, headers = None, []
    for name, text in getattr(message.properties, "UserProperty", ()):
        value = text.encode()
        if name.endswith(BYTES):
            try:
                name, value = name[: -len(BYTES)], base64.b64decode(text, validate=True)
            except ValueError:  # not one of ours: it stays as it is
                pass
        if name == KEY:
            key = value
        else:
            headers.append((name, value))
    return key, tuple(headers)


@lru_cache(4096)
def _topic_bytes(topic: str) -> bytes:
    return topic.encode()


class UserProperties(Properties):  # type: ignore[misc]  # the client's module has no types
    """A key and headers as MQTT 5 writes them (2.2.2.2), packed at once: the client's own way takes longer than the whole rest."""

    def __init__(self, key: bytes | None, headers: Headers) -> None:
        pairs = ((KEY, key), *headers) if key is not None else headers
        body = b"".join(b"\x26" + _string(name) + _string(text) for name, text in map(_pair, pairs))
        object.__setattr__(self, "packed", _length(len(body)) + body)

    def __str__(self) -> str:
        return f"{len(self.pack())} bytes"

    def pack(self) -> bytes:
        packed: bytes = object.__getattribute__(self, "packed")
        return packed


def _pair(pair: tuple[str, bytes]) -> tuple[str, bytes]:
    """As name and text; bytes that are no text (or too long for it) are written as base64."""
    name, value = pair
    try:
        value.decode()
    except UnicodeDecodeError:
        return name + BYTES, base64.b64encode(value)
    return (name + BYTES, base64.b64encode(value)) if b"\0" in value else (name, value)


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(2, "big") + raw


def _length(number: int) -> bytes:
    """MQTT's variable byte integer (1.5.5)."""
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


class MqttSink:
    """Publishes with QoS 1, many at a time, in order. An idle connection that has ended is made anew before anything is sent.

    Mosquitto confirms before it writes, and writes nothing for what goes straight to a reader. So each list is followed by changes that
    make it write everything (`autosave_on_changes true`, `autosave_interval 1`), and `publish` returns behind that.

    headers: MQTT 5 only, as user properties.
    """

    def __init__(self, address: Address, name: str) -> None:
        self._address = address
        self._topic = address.path
        letters = "".join(c for c in name if c.isalnum())[:10]
        self._client = f"mlpacker{letters[:7]}{uuid.uuid4().hex[:8]}"
        self._waiting: dict[int, int] = {}
        self._refused: dict[int, int] = {}
        self._open: dict[int, None] = {}  # places that are not confirmed, in order
        self._line = self._connected()
        self.headers = self._line.five

    def _connected(self) -> Line:
        _know_too_large()
        line = Line(self._address, self._client, clean=True, keepalive=0, answered=self._answered)
        if getattr(line.server, "MaximumQoS", 1) == 0:
            line.close()
            raise Unusable(
                f"{self._address} takes QoS 0 only, which loses rows.", "Allow QoS 1 at the broker."
            )
        self._most = min(SEND_MAXIMUM, getattr(line.server, "ReceiveMaximum", SEND_MAXIMUM))
        self._packet = getattr(line.server, "MaximumPacketSize", LARGEST_PACKET)
        room = self._packet - len(self._topic.encode()) - 1024  # for the headers, as good as always
        self.max_bytes = max(1, min(room, self._address.number("max_bytes", 0) or room))
        return line

    def _answered(self, mid: int, reason: int) -> None:
        place = self._waiting.pop(mid, None)
        if place is None:
            return
        self._open.pop(place, None)
        if reason >= FAILED:
            self._refused[place] = reason

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        never, self._refused = {}, {}
        packed = [UserProperties(m.key, m.headers) if self.headers else None for m in messages]
        for place, message in enumerate(messages):
            too_large = self._too_large(message, packed[place])
            if too_large:
                never[place] = too_large
        self._open = dict.fromkeys(place for place in range(len(messages)) if place not in never)
        one_by_one = False
        while (
            self._open
        ):  # Mosquitto hangs up behind a message that it refuses: the rest goes over another connection
            self._waiting, self._refused = {}, {}
            self._mend()
            try:
                self._send(messages, packed, 1 if one_by_one else self._most)
            except Away:
                if one_by_one and not self._refused:
                    raise
                one_by_one = not self._refused  # a refusal may be lost with what was still being sent
                if one_by_one:
                    self._open = dict.fromkeys(place for place in range(len(messages)) if place not in never)
            never |= {place: self._reason(reason) for place, reason in self._refused.items()}
        if len(never) < len(messages):
            self._saved()
        return never

    def _saved(self) -> None:
        """Returns when Mosquitto has written what it confirmed."""
        if self._refused:
            self._mend()
        for _ in range(SAVED):
            self._line.settle()

    def _send(self, messages: Sequence[Outgoing], packed: Sequence[UserProperties | None], most: int) -> None:
        for place in tuple(self._open):
            if len(self._waiting) >= most:
                self._confirmed(most // 2)
            sent = self._line.client.publish(self._topic, messages[place].value, 1, properties=packed[place])
            self._waiting[sent.mid] = place
        self._confirmed(0)

    def _mend(self) -> None:
        try:
            self._line.turn(0)
        except Away:  # nothing is under way: no harm in a new one
            self._line.close()
            self._line = self._connected()

    def _too_large(self, message: Outgoing, properties: UserProperties | None) -> str | None:
        told = len(properties.pack()) if properties is not None else 0
        size = len(message.value) + told + len(self._topic.encode()) + 9
        limit = self._address.number("max_bytes", 0)
        if limit and len(message.value) > limit:
            return f"{len(message.value)} bytes are more than the address allows (max_bytes={limit})"
        if size > self._packet:
            return f"{size} bytes with topic and headers are more than the broker takes in a packet ({self._packet})"
        return None

    def _confirmed(self, most: int) -> None:
        """Returns when no more than `most` are unconfirmed."""
        until = time.monotonic() + CONFIRMED
        while len(self._waiting) > most:
            before = len(self._waiting)
            self._line.turn(0.5)
            if len(self._waiting) < before:
                until = time.monotonic() + CONFIRMED
            elif time.monotonic() > until:
                raise Away(f"{self._address} has confirmed nothing for {CONFIRMED:.0f} s.")

    def _reason(self, reason: int) -> str:
        """Why a message is never taken. Raises where it is not the message's fault."""
        if reason == TOO_LARGE:
            return "it is larger than the broker takes (packet too large)"
        if reason == BAD_PAYLOAD:
            return "the broker calls its payload invalid"
        if reason in (NOT_AUTHORIZED, TOPIC_INVALID):
            raise Unusable(
                f"{self._address} does not let us publish to {self._topic}: reason {reason:#04x}.",
                "Allow this user to write there.",
            )
        raise Away(f"{self._address} did not take a message: reason {reason:#04x}.")

    def close(self) -> None:
        self._line.close()


def _know_too_large() -> None:
    """Mosquitto answers a message beyond `message_size_limit` with `packet too large`, a reason that MQTT 5 does not list for a PUBACK
    and that the client would take for a broken packet."""
    packets = getattr(ReasonCode, "names", {}).get(TOO_LARGE, {}).get("Packet too large")
    if packets is not None and PacketTypes.PUBACK not in packets:
        packets.append(PacketTypes.PUBACK)


def explain(address: Address, role: str) -> Guarantee:
    """Asks with a session of its own, which ends with the question."""
    _check(address)
    try:
        version, server = _ask(address)
        asked: tuple[str, ...] = ()
    except (Away, Unusable) as why:
        version, server, asked = None, None, (f"The broker could not be asked: {why.sentence}",)
    holds = _source_holds(address) if role == "source" else _sink_holds(address)
    return Guarantee((*holds, *asked), (*_told_settings(version, server), *UNTOLD))


def _ask(address: Address) -> tuple[str | None, Any]:
    said: list[str] = []
    line = Line(
        address, f"mlpackerask{uuid.uuid4().hex[:12]}", clean=True, keepalive=20,
        take=lambda message: said.append(message.payload.decode(errors="replace")),
    )  # fmt: skip
    try:
        line.client.subscribe("$SYS/broker/version", 0)
        until = time.monotonic() + 1
        while not said and time.monotonic() < until:
            line.turn(0.2)
    finally:
        line.close()
    return (said[0] if said else None), line.server


def _source_holds(address: Address) -> tuple[str, ...]:
    five = address.option("version", "5") == "5"
    repeats = "After a crash of the broker or of this process, what was not acknowledged comes again, as another row: MQTT has no message ids."
    return (
        "Each message is in the journal on this machine before it is acknowledged; nothing is paused.",
        "The order of the session is kept, and so that of each topic; what was not acknowledged comes again first.",
        repeats,
        "What was sent before the first subscription is not there, whatever the start.",
        "What its sender published with QoS 0 may be lost on the way.",
        "One process reads in ordered mode. Another with the same group takes the session over, and the first stops.",
        "Unordered members share (`$share`); the rows of one that is away wait for it, and go to no other.",
        *(() if five else ("Without MQTT 5 there are no headers, and retained messages come again at each connection.",)),
    )  # fmt: skip


def _sink_holds(address: Address) -> tuple[str, ...]:
    published = "Published with QoS 1 in order, and confirmed by the broker: it has them in memory, and on disk as its settings say."
    nobody = "A message for which there is no session at the broker is confirmed and gone: start the readers first."
    if address.option("version", "5") == "5":
        return (published, nobody, "Key and headers travel as user properties.")
    untold = "Over MQTT 3.1.1 a broker can't refuse: what is too large or not allowed is confirmed and dropped, or the connection is cut."
    return (published, nobody, untold, "There are no headers: the id travels in the payload.")


def _told_settings(version: str | None, server: Any) -> tuple[Setting, ...]:
    packet = getattr(server, "MaximumPacketSize", None)
    expiry = getattr(server, "SessionExpiryInterval", None)
    return (
        Setting("version", version, None, "Nothing depends on it; a broker may keep it to itself."),
        Setting("maximum packet size", None if packet is None else str(packet), None, "Larger messages are refused, each by itself."),
        Setting("session expiry", None if expiry is None else f"{expiry} s", None if expiry is None else expiry == NEVER,
                "A session that is away for longer is thrown away, with all that waits in it."),
    )  # fmt: skip


UNTOLD = (
    Setting("persistence", None, None, "A broker that keeps nothing on disk forgets sessions and messages when it ends."),
    Setting("autosave_on_changes, autosave_interval", None, None,
            "Mosquitto's default writes every 30 minutes: a crash loses what it confirmed since. Set `true` and `1`."),
    Setting("max_queued_messages", None, None,
            "Mosquitto's default is 1000: while we are away, what comes beyond is dropped after it was confirmed. Set 0."),
    Setting("max_inflight_messages", None, None,
            "Mosquitto's default is 20 at a time over MQTT 3.1.1, which is slow; MQTT 5 asks for more by itself."),
    Setting("persistent_client_expiration", None, None, "Where it is set, a session that is away for longer is thrown away."),
)  # fmt: skip

__all__ = ["Line", "MqttSink", "MqttSource", "client_id", "explain", "journalled", "sink", "source"]
