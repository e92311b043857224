"""Kafka, through confluent-kafka: `kafka://host:9092,host:9092/topic?option=value`, `kafkas://` with TLS.

Options of both ends: `mechanism` (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512) with a user and `password`; `token` (OAUTHBEARER; read again
whenever the client wants a new one); `create=on` with `partitions` and `replicas`. Of the sink: `compression`, and `timeout`, the
seconds without any confirmation after which it is Away.

Reading. Offsets are committed by us alone, synchronously, and only for partitions that are ours. The member is static
(`group.instance.id` is group and member): after a crash its successor gets the same partitions back at once; a second process with
the same member takes the place of the first, which is told so as Unusable. Unlike other static members it leaves when closed.
Partitions move cooperatively: those that stay are read on. In a group a partition has one reader, whether ordered or not.
Where a group has no place yet its start is settled once and committed, so that a `latest` can't skip what came in between.

Writing. acks=all, idempotent, never given up by the client itself but by `publish`, all at once: so nothing overtakes what failed.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from ..errors import BadDescription, MlpackerError
from . import Away, Guarantee, Lag, Listener, Message, Outgoing, Reading, Setting, Unusable
from .address import Address

journalled = False

log = logging.getLogger(__name__)

PORT = 9092
CONNECT_SECONDS = 10.0
DOWN_SECONDS = 2.0
"""For which all brokers must have been down before a first connection is given up: `localhost` is tried by both its addresses."""
ANSWER_SECONDS = 10.0
COMMIT_SECONDS = 5.0
"""How long a commit is tried again while the group's members settle anew."""
PUBLISH_SECONDS = 25
FULL_SECONDS = 1.0
"""How long we are full before partitions are paused: pausing throws away what was fetched ahead."""
CLOSE_SECONDS = 6.0
ENDS_SECONDS = 5.0
"""How old the known ends of paused partitions may be: only fetching renews them by itself."""
TAKE = 10_000
OVERHEAD = 100
"""Bytes that Kafka's format adds to one message, at the most."""
SASL = ("mechanism", "password", "token")
TOPIC = ("create", "partitions", "replicas")
SINK = ("compression", "timeout")

_E = KafkaError
REFUSED = (
    _E._AUTHENTICATION,
    _E.SASL_AUTHENTICATION_FAILED,
    _E.TOPIC_AUTHORIZATION_FAILED,
    _E.GROUP_AUTHORIZATION_FAILED,
    _E.CLUSTER_AUTHORIZATION_FAILED,
)
FENCED = (_E.FENCED_INSTANCE_ID, _E._FENCED)
SETTLING = (_E.REBALANCE_IN_PROGRESS, _E.ILLEGAL_GENERATION)
OWN = (_E.MSG_SIZE_TOO_LARGE, _E.INVALID_RECORD)
"""What may be a message's own fault. Kafka may say it of a whole batch, so it counts only of a message sent alone."""
WITH_OTHERS = (*OWN, _E._INVALID_DIFFERENT_RECORD)


def source(address: Address, reading: Reading, listener: Listener) -> _Source:
    """Raises Away, Unusable (no topic, credentials refused), BadDescription."""
    address.only(*SASL, *TOPIC, *SINK)
    start = _start(reading.start)
    found = _topic(address)
    return _Source(address, reading, listener, start, found.id)


def sink(address: Address, name: str) -> _Sink:
    """Raises Away, Unusable (no topic, credentials refused), BadDescription."""
    address.only(*SASL, *TOPIC, *SINK)
    return _Sink(address, name, _topic(address))


# --- Connecting ------------------------------------------------------------------------------------------------------


class _Trouble:
    """What a client says of its connections, between our calls."""

    def __init__(self, address: Address, group: str = "", member: str = "") -> None:
        self._who = (address, group, member)
        self.down = False
        self.last = "no answer"
        self._fatal: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        code = error.code()
        if code == _E._ALL_BROKERS_DOWN:
            self.down = True
        else:
            self.last = error.str()
        if code in REFUSED + FENCED or (code == _E._SSL and "verify failed" in error.str()):
            self._fatal = error

    def check(self) -> None:
        """Raises Unusable where going on will not help."""
        if self._fatal is not None:
            raise _translate(self._fatal, *self._who)

    def away(self) -> Away:
        return Away(f"Kafka at {_hosts(self._who[0])} can't be reached: {self.last}.")


def _hosts(address: Address) -> str:
    return ",".join((f"[{h}]" if ":" in h else h) + f":{p or PORT}" for h, p in address.hosts)


def _client(address: Address, trouble: _Trouble) -> dict[str, Any]:
    """The settings that every client of ours has. Raises BadDescription."""
    return {
        "bootstrap.servers": _hosts(address),
        "client.id": "mlpacker",
        "error_cb": trouble.note,
        "logger": log,
        "log_level": 2,  # what it logs of lost connections comes as errors, too
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.timeout.ms": 10_000,
        "socket.keepalive.enable": True,
        "allow.auto.create.topics": False,
        **_tls(address),
        **_sasl(address),
        "security.protocol": _protocol(address),
    }


def _protocol(address: Address) -> str:
    asks = address.user is not None or "token" in address.options
    return ("SASL_" if asks else "") + ("SSL" if address.tls else "PLAINTEXT")


def _tls(address: Address) -> dict[str, Any]:
    if not address.tls:
        return {}
    address.context()  # says what is wrong with the files better than the client
    files = {"ca": "ssl.ca.location", "cert": "ssl.certificate.location", "key": "ssl.key.location"}
    settings: dict[str, Any] = {
        theirs: address.options[our] for our, theirs in files.items() if our in address.options
    }
    if (secret := address.secret("key_password")) is not None:
        settings["ssl.key.password"] = secret
    if not address.flag("verify", True):
        settings |= {
            "enable.ssl.certificate.verification": False,
            "ssl.endpoint.identification.algorithm": "none",
        }
    return settings


def _sasl(address: Address) -> dict[str, Any]:
    if "token" in address.options:
        address.secret("token")  # refused now, not in the callback
        return {
            "sasl.mechanism": "OAUTHBEARER",
            "oauth_cb": lambda _: (address.secret("token"), time.time() + 300),
        }
    if address.user is None:
        return {}
    mechanism = address.option("mechanism", "PLAIN").upper()
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise BadDescription(
            f"{address}: mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, not {mechanism}."
        )
    password = address.secret("password")
    if password is None:
        raise BadDescription(
            f"{address}: the user {address.user} has no password.", "Refer to it: ?password=env:NAME."
        )
    return {"sasl.mechanism": mechanism, "sasl.username": address.user, "sasl.password": password}


def _translate(error: KafkaError, address: Address, group: str = "", member: str = "") -> MlpackerError:
    """Kafka's word in ours."""
    code, said = error.code(), error.str()
    if code in REFUSED:
        who = f"the user {address.user}" if address.user else "us"
        return Unusable(
            f"Kafka at {_hosts(address)} refuses {who}: {said}.",
            "Check the user, its password and its rights.",
        )
    if code == _E._SSL and "verify failed" in said:
        return Unusable(
            f"The certificate of {_hosts(address)} can't be trusted: {said}.", "Name its authority: ?ca=FILE."
        )
    if code == _E.UNKNOWN_TOPIC_OR_PART:
        return Unusable(
            f"Kafka at {_hosts(address)} has no topic {address.path}.",
            "Make it, or add create=on to the address.",
        )
    if code in FENCED or (
        code == _E._FATAL and "fenced" in said
    ):  # a fatal error tells its kind in words only
        return Unusable(
            f"Another process reads as member {member} of the group {group}, and has taken its place.",
            "Give each process of a group a member of its own.",
        )
    if code == _E.INVALID_SESSION_TIMEOUT:
        return Unusable(
            "The session is shorter or longer than Kafka allows.",
            "See group.min.session.timeout.ms and group.max.session.timeout.ms of the brokers.",
        )
    return Away(f"Kafka at {_hosts(address)}: {said}.")


def _raised(cause: BaseException) -> KafkaError:
    """The error in what the client has raised."""
    found = cause.args[0] if cause.args else None
    return found if isinstance(found, KafkaError) else KafkaError(_E._FAIL, str(cause))


# --- The topic -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Topic:
    """id: never another's, not even that of a topic of this name made later. limit: bytes of a batch, 0: not told.
    replicas: of the partition with the fewest."""

    id: str
    partitions: int
    replicas: int
    settings: Mapping[str, str]

    @property
    def limit(self) -> int:
        return int(self.settings.get("max.message.bytes", "0"))

    @property
    def keyed(self) -> bool:
        return "compact" in self.settings.get("cleanup.policy", "")


class _Asking:
    """A short conversation about a cluster. `seconds` in all."""

    def __init__(self, address: Address, seconds: float = CONNECT_SECONDS) -> None:
        self._address, self._began, self._seconds = address, time.monotonic(), seconds
        self._trouble = _Trouble(address)
        self.admin = AdminClient(_client(address, self._trouble))

    def answer(self, futures: Mapping[Any, Any]) -> Any:
        """The one answer awaited. Raises Away, Unusable."""
        (future,) = futures.values()
        while not future.done():
            self.admin.poll(0.02)
            self._trouble.check()
            passed = time.monotonic() - self._began
            if passed > self._seconds or (self._trouble.down and passed > DOWN_SECONDS):
                raise self._trouble.away()
        try:
            return future.result()
        except KafkaException as cause:
            raise _translate(_raised(cause), self._address) from cause

    def settings(self, kind: Any, name: str) -> dict[str, str]:
        """Empty where they may not be seen."""
        try:
            found = self.answer(
                self.admin.describe_configs([ConfigResource(kind, name)], request_timeout=self._seconds)
            )
        except (Unusable, Away):
            return {}
        return {name: entry.value for name, entry in found.items() if entry.value is not None}

    def topic(self) -> _Topic:
        name = self._address.path
        found = self.answer(
            self.admin.describe_topics(TopicCollection([name]), request_timeout=self._seconds)
        )
        replicas = min((len(p.replicas) for p in found.partitions), default=0)
        settings = self.settings(ConfigResource.Type.TOPIC, name)
        return _Topic(str(found.topic_id), len(found.partitions), replicas, settings)

    def make(self) -> None:
        """The topic, with three replicas where there are brokers for them, of which two must have each message."""
        address = self._address
        nodes = self.answer({"": self.admin.describe_cluster(request_timeout=self._seconds)}).nodes
        replicas = address.number("replicas", min(3, len(nodes)))
        config = {"min.insync.replicas": "2"} if replicas > 2 else {}
        wanted = NewTopic(address.path, address.number("partitions", 1), replicas, config=config)
        try:
            self.answer(self.admin.create_topics([wanted], operation_timeout=self._seconds))
        except Away as cause:
            if _raised(cause.__cause__ or cause).code() != _E.TOPIC_ALREADY_EXISTS:  # two may make it at once
                raise Unusable(f"The topic {address.path} can't be made: {cause.sentence}") from cause


def _topic(address: Address) -> _Topic:
    """The topic, made first where that was asked for."""
    _check_name(address)
    asking = _Asking(address)
    try:
        return asking.topic()
    except Unusable as cause:
        missing = _raised(cause.__cause__ or cause).code() == _E.UNKNOWN_TOPIC_OR_PART
        if not missing or not address.flag("create"):
            raise
    asking.make()
    while True:
        try:
            return asking.topic()
        except Unusable:  # made, but this broker has not heard of it yet
            time.sleep(0.05)
            if time.monotonic() - asking._began > CONNECT_SECONDS:
                raise


def _check_name(address: Address) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", address.path):
        raise BadDescription(
            f"{address}: {address.path!r} is no name of a topic.", "Letters, digits and . _ - make one."
        )


# --- Reading ---------------------------------------------------------------------------------------------------------


def _start(text: str) -> tuple[str, float]:
    """`("earliest" | "latest" | "offset" | "time", number)`. Raises BadDescription."""
    kind, _, number = text.partition(":")
    with suppress(ValueError):
        if text in ("earliest", "latest"):
            return text, 0.0
        if kind == "offset" and number.isdecimal():
            return kind, int(number)
        if kind == "time" and 0 <= float(number) < 1e11:
            return kind, float(number)
    raise BadDescription(
        f"A group can't start at {text!r}.", "Known are earliest, latest, offset:N and time:SECONDS."
    )


class _Aside:
    """Makes calls one after another in a thread of its own: the client has calls that a hanging broker holds up without end."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="kafka-aside", daemon=True).start()

    def call(self, wanted: Callable[[], Any], seconds: float) -> Any:
        """Its answer, or what it raises. Raises TookTooLong; it goes on then."""
        future: Future[Any] = Future()
        self._calls.put((wanted, future))
        return future.result(seconds)

    def end(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (next_call := self._calls.get()) is not None:
            wanted, future = next_call
            try:
                future.set_result(wanted())
            except BaseException as cause:  # noqa: BLE001  handed to who waits
                future.set_exception(cause)


class _Source:
    def __init__(
        self,
        address: Address,
        reading: Reading,
        listener: Listener,
        start: tuple[str, float],
        incarnation: str,
    ) -> None:
        self.incarnation = incarnation
        self._address, self._reading, self._listener, self._start = address, reading, listener, start
        self._trouble = _Trouble(address, reading.group, reading.member)
        self._next: dict[int, int] = {}
        """Partitions that are ours → the offset to be delivered next, at the least."""
        self._ends: dict[int, int] = {}
        self._asked_ends = 0.0
        self._gone: set[int] = set()
        """Given up since the last poll began."""
        self._unsettled: dict[int, int] = {}
        """Where partitions begin that the group had no place in; committed before anything of them is delivered."""
        self._inside = False
        self._hangs = False
        """A call is held up still; the client would hold up any other with it."""
        self._held: list[Any] = []
        """Came while nobody wanted any."""
        self._full_since: float | None = None
        self._paused: set[int] = set()
        self._closed = False
        self._aside = _Aside()
        with self._translated():
            self._consumer = Consumer(self._settings())
            self._consumer.subscribe(
                [address.path], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )

    def _settings(self) -> dict[str, Any]:
        reading = self._reading
        session = int(reading.session * 1000)
        return {
            **_client(self._address, self._trouble),
            "group.id": reading.group,
            "group.instance.id": re.sub(r"[^A-Za-z0-9._-]", "-", f"{reading.group}-{reading.member}")[-249:],
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session,
            "heartbeat.interval.ms": max(100, min(3000, session // 6)),
            "max.poll.interval.ms": 2 * session + 30_000,  # longer than giving up may take
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "queued.min.messages": max(1000, reading.window),
            "queued.max.messages.kbytes": 32_768,
            "fetch.queue.backoff.ms": 20,
        }

    def poll(self, limit: int, seconds: float) -> list[Message]:
        with self._translated():
            self._check()
            got = self._take(limit, seconds) if limit > 0 else self._wait(seconds)
            self._settle()
            self._trouble.check()
            return got

    def commit(self, finished: Mapping[str, int]) -> None:
        """A partition that is no longer ours is passed over: its new reader commits."""
        ours = [(int(p), offset) for p, offset in finished.items() if int(p) in self._next]
        if not ours:
            return
        with self._translated():
            self._check()
            self._commit([self._at(p, offset + 1) for p, offset in ours])

    def lag(self) -> Lag | None:
        with self._translated():
            self._check()
            return Lag({str(p): max(0, self._end(p) - offset) for p, offset in self._next.items()})

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._next, self._held = {}, []
        patience = 0.1 if self._hangs else CLOSE_SECONDS  # the broker hangs: the session ends by itself
        with suppress(TookTooLong):
            self._aside.call(self._leave, patience)
        self._aside.end()

    def _leave(self) -> None:
        """A static member leaves only by unsubscribing; `close` alone would keep its partitions for it.

        Every rebalance that is under way is let through first: one that reaches the client while it closes stops the whole
        process (it waits for an answer, holding the interpreter's lock). What does not settle is dropped without a farewell.
        """
        with suppress(KafkaException, RuntimeError, KafkaError):
            self._consumer.unsubscribe()
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                if self._consumer.poll(0.02) is None and not self._consumer.assignment():
                    self._consumer.close()
                    return

    # Messages

    def _take(self, limit: int, seconds: float) -> list[Message]:
        self._full_since = None
        self._unpause()
        self._gone.clear()
        raw, self._held = self._held[:limit], self._held[limit:]
        if not raw:
            first = self._consumer.poll(seconds)
            raw = [] if first is None else [first]
        if raw and len(raw) < limit:  # whatever else is here already
            raw += self._consumer.consume(min(limit - len(raw), TAKE), 0)
        return self._messages(raw)

    def _wait(self, seconds: float) -> list[Message]:
        """Let `seconds` pass, alive."""
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        if self._full_since + FULL_SECONDS > now and self._next:
            time.sleep(
                min(seconds, self._full_since + FULL_SECONDS - now)
            )  # heartbeats are sent by the client's own thread
            return []
        self._gone.clear()
        self._pause()
        end = now + seconds
        while True:
            message = self._consumer.poll(max(0.0, end - time.monotonic()))
            if message is None:
                return []
            self._held.append(message)
            self._pause()  # of a partition that has just come

    def _messages(self, raw: Sequence[Any]) -> list[Message]:
        """Ours; those of partitions that were given up meanwhile are the next reader's."""
        got = []
        ours, gone = self._next, self._gone
        for message in raw:
            error = message.error()
            if error is not None:
                raise KafkaException(error)
            number, offset = message.partition(), message.offset()
            if number in gone:
                if number in ours:
                    raise Away(
                        f"Partition {number} of {self._address.path} went and came back; it is read anew."
                    )
                continue
            if offset < ours.get(number, offset + 1):
                continue
            ours[number] = offset + 1
            got.append(_message(message, number, offset))
        return got

    def _pause(self) -> None:
        fresh = self._next.keys() - self._paused
        if fresh:
            self._consumer.pause([self._at(p) for p in fresh])
            self._paused |= fresh

    def _unpause(self) -> None:
        paused = self._paused & self._next.keys()
        self._paused.clear()
        if paused:
            self._consumer.resume([self._at(p) for p in paused])

    def _at(self, partition: int, offset: int = OFFSET_INVALID) -> TopicPartition:
        return TopicPartition(self._address.path, partition, offset)

    # Partitions come and go: called by the client, from within poll

    def _on_assign(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        if self._closed:
            consumer.incremental_assign(partitions)
            return
        begins = self._begins([p.partition for p in partitions])
        consumer.incremental_assign([self._at(p, offset) for p, offset in begins.items()])
        self._next.update(begins)

    def _on_revoke(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        try:
            self._give_up(partitions, self._reading.session)
        finally:
            consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Any, partitions: Sequence[TopicPartition]) -> None:
        try:
            self._give_up(partitions, 0.0)
        finally:
            consumer.incremental_unassign(partitions)

    def _give_up(self, partitions: Sequence[TopicPartition], seconds: float) -> None:
        """They are gone on return, also where the listener raises."""
        going = {p.partition for p in partitions} & self._next.keys()
        self._gone |= going
        self._held = [m for m in self._held if m.partition() not in going]
        self._inside = True
        try:
            if going and not self._closed:
                self._listener.giving_up({str(p) for p in going}, seconds)
        finally:
            self._inside = False
            for partition in going:
                for kept in (self._next, self._ends, self._unsettled):
                    kept.pop(partition, None)
            self._paused -= going

    # Places

    def _begins(self, partitions: Sequence[int]) -> dict[int, int]:
        begins: dict[int, int] = {}
        if not partitions:
            return begins
        for place in self._consumer.committed([self._at(p) for p in partitions], timeout=ANSWER_SECONDS):
            if place.error is not None:
                raise KafkaException(place.error)
            low, high = self._ask_ends(place.partition)
            self._ends[place.partition] = high
            if place.offset >= 0:
                begins[place.partition] = self._still_there(place.partition, place.offset, low, high)
            else:
                begins[place.partition] = self._first(place.partition, low, high)
                self._unsettled[place.partition] = begins[place.partition]
        return begins

    def _settle(self) -> None:
        if self._unsettled:
            self._commit([self._at(p, offset) for p, offset in self._unsettled.items()])
            self._unsettled.clear()

    def _still_there(self, partition: int, offset: int, low: int, high: int) -> int:
        """Kafka deletes what is too old, read or not, and a cluster that lost its disks begins anew: said loudly, then gone on."""
        if low <= offset <= high:
            return offset
        where = f"partition {partition} of {self._address.path}, group {self._reading.group}"
        if offset < low:
            log.error(
                "%s: Kafka has deleted %d offsets that were not read yet (from %d)",
                where,
                low - offset,
                offset,
            )
        else:
            log.error(
                "%s: Kafka has lost what was read already (offset %d, now it ends at %d)", where, offset, high
            )
        return low

    def _first(self, partition: int, low: int, high: int) -> int:
        kind, number = self._start
        if kind == "earliest":
            return low
        if kind == "latest":
            return high
        if kind == "offset":
            return min(max(int(number), low), high)
        wanted = [self._at(partition, int(number * 1000))]
        found = self._consumer.offsets_for_times(wanted, timeout=ANSWER_SECONDS)[0]
        if found.error is not None:
            raise KafkaException(found.error)
        return (
            int(found.offset) if found.offset not in (OFFSET_END, OFFSET_BEGINNING, OFFSET_INVALID) else high
        )

    def _ask_ends(self, partition: int, seconds: float = ANSWER_SECONDS) -> tuple[int, int]:
        found = self._consumer.get_watermark_offsets(self._at(partition), timeout=seconds)
        if found is None:
            raise self._trouble.away()
        return int(found[0]), int(found[1])

    def _end(self, partition: int) -> int:
        """What the last fetch told; asked for, now and then, where nothing is fetched."""
        if partition not in self._paused:
            found = self._consumer.get_watermark_offsets(self._at(partition), cached=True)
            if found is not None and found[1] >= 0:
                self._ends[partition] = max(found[1], self._ends.get(partition, 0))
        elif time.monotonic() > self._asked_ends + ENDS_SECONDS:
            self._asked_ends = time.monotonic()
            for paused in self._paused & self._next.keys():
                self._ends[paused] = self._ask_ends(paused, 2.0)[1]
        return self._ends.get(partition, 0)

    def _commit(self, places: list[TopicPartition]) -> None:
        """Tried again while the group settles. Raises Away where Kafka is silent; any other doubt is Kafka's own error."""
        end = time.monotonic() + COMMIT_SECONDS
        while True:
            try:
                self._commit_once(places)
            except KafkaException as cause:
                if _raised(cause).code() not in SETTLING or time.monotonic() > end:
                    raise
                time.sleep(0.02)
            else:
                return

    def _commit_once(self, places: list[TopicPartition]) -> None:
        def wanted() -> Any:
            return self._consumer.commit(offsets=places, asynchronous=False)

        try:  # from within a callback the client takes calls of the same thread only
            told = wanted() if self._inside else self._aside.call(wanted, ANSWER_SECONDS)
        except TookTooLong as cause:
            self._hangs = True
            raise Away(
                f"Kafka at {_hosts(self._address)} has not confirmed a commit in {ANSWER_SECONDS:g} s."
            ) from cause
        for place in told:
            if place.error is not None:
                raise KafkaException(place.error)

    # Errors

    def _check(self) -> None:
        """Raises Away where every broker has gone and none has come back."""
        if self._closed or self._hangs:
            raise Away("This source is closed, or has failed, and must be made anew.")
        self._trouble.check()
        if self._trouble.down:
            self._trouble.down = False
            self._consumer.list_topics(self._address.path, timeout=1.0)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (KafkaException, KafkaError, RuntimeError) as cause:  # RuntimeError: used after its end
            error = _raised(cause)
            self._trouble.check()
            if error.code() == _E.UNKNOWN_TOPIC_OR_PART:  # a leader on the move? made anew we shall know
                raise Away(f"Kafka does not know the topic {self._address.path} any more.") from cause
            raise _translate(error, self._address, self._reading.group, self._reading.member) from cause


def _message(message: Any, partition: int, offset: int) -> Message:
    """A null (of a compacted topic) is read as no bytes."""
    headers = message.headers()
    kind, milliseconds = message.timestamp()
    return Message(
        str(partition),
        offset,
        message.value() or b"",
        message.key(),
        tuple((name, value or b"") for name, value in headers) if headers else (),
        0.0 if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds / 1000,
    )


# --- Writing ---------------------------------------------------------------------------------------------------------


class _Tally:
    """What became of the messages of one publish, by their places."""

    def __init__(self) -> None:
        self.sent = 0
        self.confirmed = 0
        self.failed: dict[int, KafkaError] = {}

    def report(self, place: int, error: KafkaError | None, _: object) -> None:
        if error is None:
            self.confirmed += 1
        else:
            self.failed[place] = error

    @property
    def open(self) -> int:
        return self.sent - self.confirmed - len(self.failed)

    def doubt(self) -> KafkaError | None:
        """Why it is not known of a message that Kafka took it."""
        return next((e for e in self.failed.values() if e.code() not in WITH_OTHERS), None)


class _Sink:
    headers = True

    def __init__(self, address: Address, name: str, topic: _Topic) -> None:
        self._address, self._topic = address, topic
        self._trouble = _Trouble(address)
        self._patience = address.number("timeout", PUBLISH_SECONDS)
        self.max_bytes = max(topic.limit - 2048, topic.limit // 2)
        self._limit = topic.limit
        self._broken: str | None = None
        try:
            self._producer = Producer(self._settings(name))
        except (KafkaException, ValueError) as cause:
            raise BadDescription(f"{address}: {_raised(cause).str()}.") from cause

    def _settings(self, name: str) -> dict[str, Any]:
        limit = {"message.max.bytes": max(1000, self._topic.limit)} if self._topic.limit else {}
        return {
            **_client(self._address, self._trouble),
            "client.id": f"mlpacker-{name}",
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": 0,  # one that timed out could be overtaken; publish gives up all of them, or none
            "partitioner": "murmur2_random",
            "linger.ms": 2,
            "queue.buffering.max.messages": 500_000,
            "compression.type": self._address.option("compression", "none"),
            **limit,
        }

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        """Away comes after `timeout` seconds (25) without any confirmation; what is still here is thrown away then."""
        if self._broken is not None:
            raise Away(self._broken)
        refused = {n: reason for n, m in enumerate(messages) if (reason := self._never(m))}
        tally = self._send([(n, m) for n, m in enumerate(messages) if n not in refused])
        for place in sorted(tally.failed):
            again = self._send([(place, messages[place])])
            if again.failed:
                refused[place] = f"Kafka refuses it: {again.failed[place].str()}"
        return refused

    def close(self) -> None:
        if self._broken is None:
            self._give_up("This sink is closed.")

    def _never(self, message: Outgoing) -> str | None:
        """Why Kafka will never take it, as far as we know."""
        if self._topic.keyed and message.key is None:
            return f"The topic {self._address.path} is compacted, and the message has no key"
        size = len(message.value) + len(message.key or b"")
        for name, value in message.headers:
            size += len(name) + len(value)
        if self._limit and size + OVERHEAD > self._limit:
            return f"{size} bytes; the topic {self._address.path} takes {self._limit} (max.message.bytes)"
        return None

    def _send(self, messages: Sequence[tuple[int, Outgoing]]) -> _Tally:
        """Returns when Kafka has taken or refused each; those refused may have been so for their neighbours' sake."""
        tally = _Tally()
        with self._translated():
            for place, message in messages:
                self._produce(message, partial(tally.report, place), tally)
            self._await(tally, 0, self._producer.flush)
            doubt = tally.doubt()
            if doubt is not None:
                raise KafkaException(doubt)
        return tally

    def _produce(self, message: Outgoing, report: Callable[..., None], tally: _Tally) -> None:
        while True:
            try:
                self._producer.produce(
                    self._address.path,
                    message.value,
                    message.key,
                    on_delivery=report,
                    headers=list(message.headers),
                )
            except BufferError:  # our own queue is full
                self._await(tally, tally.open - 1, self._producer.poll)
            else:
                tally.sent += 1
                return

    def _await(self, tally: _Tally, few: int, turn: Callable[[float], object]) -> None:
        """Until no more than `few` are open, or one is in doubt. Raises Away when nothing is confirmed for too long."""
        known, end = tally.open, time.monotonic() + self._patience
        while tally.open > few and tally.doubt() is None:
            turn(0.1)
            self._trouble.check()
            if tally.open < known:
                known, end = tally.open, time.monotonic() + self._patience
            elif time.monotonic() > end:
                raise Away(
                    f"Kafka at {_hosts(self._address)} has confirmed nothing for {self._patience} s: {self._trouble.last}."
                )

    def _give_up(self, reason: str) -> None:
        self._broken = reason
        with suppress(KafkaException, RuntimeError):
            self._producer.purge(in_queue=True, in_flight=True)
            self._producer.flush(0)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (KafkaException, RuntimeError) as cause:
            self._give_up("This sink has failed and must be made anew.")
            error = _raised(cause)
            if error.code() == _E.UNKNOWN_TOPIC_OR_PART:
                raise Away(f"Kafka does not know the topic {self._address.path} any more.") from cause
            raise _translate(error, self._address) from cause
        except MlpackerError:
            self._give_up("This sink has failed and must be made anew.")
            raise


# --- What is guaranteed ----------------------------------------------------------------------------------------------

READ = (
    "Messages of a partition arrive in the order of their offsets, and again until they are committed.",
    "A partition has one reader in a group; other processes of the group stand by, ordered or not.",
    "Of transactions only what was committed is read.",
)
WRITTEN = (
    "A message counts as sent when all replicas that are in sync have it (acks=all); repeats by the client's own retries are dropped (idempotence).",
    "Messages with the same key go to the same partition, in the order they were published.",
    "After a broker that went away in doubt, messages are published again, with the same id.",
)
Good = Callable[[str, Mapping[str, str]], bool]
TOPIC_SETTINGS: tuple[tuple[str, Good, str], ...] = (
    (
        "replication.factor",
        lambda v, all_: int(v) > 1 or all_.get("flush.messages") == "1",
        "With one replica a message is as safe as one machine's page cache: a power cut loses seconds; flush.messages=1 would not.",
    ),
    (
        "min.insync.replicas",
        lambda v, all_: int(v) > 1 or all_.get("replication.factor") == "1",
        "At 1 a message may be confirmed by the leader alone, and is lost with it.",
    ),
    (
        "unclean.leader.election.enable",
        lambda v, _: v == "false",
        "A replica that lags may become leader, and confirmed messages are lost.",
    ),
)
RETENTION: tuple[tuple[str, Good, str], ...] = (
    (
        "retention.ms",
        lambda v, _: int(v) < 0 or int(v) >= 86_400_000,
        "Older messages are deleted, read or not.",
    ),
    (
        "retention.bytes",
        lambda v, _: int(v) < 0,
        "The oldest messages are deleted when a partition is larger, read or not.",
    ),
    (
        "cleanup.policy",
        lambda v, _: "compact" not in v,
        "Compaction drops all but the newest message of a key, read or not.",
    ),
)
GROUP: tuple[tuple[str, Good, str], ...] = (
    (
        "offsets.retention.minutes",
        lambda v, _: int(v) >= 1440,
        "A group that is away for longer loses its place and starts anew.",
    ),
    (
        "offsets.topic.replication.factor",
        lambda v, _: int(v) > 1,
        "With one replica a group's place is lost with one disk; it starts anew.",
    ),
)


def explain(address: Address, role: str) -> Guarantee:
    """Asks for five seconds at the most. Raises Unusable and BadDescription as opening would."""
    address.only(*SASL, *TOPIC, *SINK)
    asking = _Asking(address, 5.0)
    known: dict[str, str] = {}
    with suppress(Away):
        topic = asking.topic()
        known = {**_broker(asking), **topic.settings, "replication.factor": str(topic.replicas)}
    wanted = TOPIC_SETTINGS + (RETENTION + GROUP if role == "source" else ())
    settings = tuple(_setting(name, good, consequence, known) for name, good, consequence in wanted)
    return Guarantee(READ if role == "source" else WRITTEN, settings)


def _broker(asking: _Asking) -> dict[str, str]:
    nodes = asking.answer({"": asking.admin.describe_cluster(request_timeout=5.0)}).nodes
    return asking.settings(ConfigResource.Type.BROKER, str(nodes[0].id)) if nodes else {}


def _setting(name: str, good: Good, consequence: str, known: Mapping[str, str]) -> Setting:
    value = known.get(name)
    return Setting(name, value, None if value is None else good(value, known), consequence)
