"""Brokers: where rows come from and go to.

A broker is one module, the only one that knows its client, found by the scheme of an address. Built in: see BUILT_IN; others
by the entry point group `mlpacker.brokers`. It gives a `Source` and a `Sink`, and says what it guarantees. All calls are
plain and blocking: an adapter whose client is asynchronous keeps its loop to itself. Everything rests on three promises:
a source forgets a message only after `commit`, a sink returns only what its broker has confirmed, and where either can't
tell it raises `Away`, is closed, and is made anew. `mlpacker.testing.brokers.BrokerContract` holds a broker to them.
Standard library only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import Away, BadDescription, Unusable
from .address import Address

BUILT_IN = {
    "local": "local",
    "file": "files",
    "-": "files",
    "kafka": "kafka",
    "mqtt": "mqtt",
    "nats": "nats",
    "redis": "redis",
    "amqp": "rabbitmq",
}
"""Scheme → module here."""
EXTRAS = {"kafka": "kafka", "mqtt": "mqtt", "redis": "redis", "amqp": "rabbitmq"}
"""Scheme → the extra of the runtime that brings its client."""
GROUP = "mlpacker.brokers"

Headers = tuple[tuple[str, bytes], ...]
CELLS: Headers = (("content-type", b"application/vnd.mlpacker.cells+json"),)
"""Headers of a message whose value is a JSON object of texts, as the cells of a table: the signature says what they are."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it was read.

    offset: its place in the partition; larger for later ones, whatever the gaps. key, headers: where the broker has them.
    time: seconds since the epoch when the broker (else its sender) took it; 0 where nobody says.
    """

    partition: str
    offset: int
    value: bytes
    key: bytes | None = None
    headers: Headers = ()
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish. id: of this answer; a broker that drops repeats by an id is given it."""

    value: bytes
    id: str
    key: bytes | None = None
    headers: Headers = ()


@dataclass(frozen=True)
class Reading:
    """How to read.

    group: who reads; its place is kept under this name. member: which replica of the group this is.
    start: where a group begins that has no place yet: `earliest`, `latest`, `offset:N`, or `time:` and seconds since the epoch.
    ordered: one reader a partition at a time, the others stand by; else readers compete for messages.
    window: the most messages that will be out at a time. session: seconds after which a silent reader is taken for dead.
    state: a folder of this deployment on this machine, for what must outlive the process.
    """

    group: str
    member: str = "0"
    start: str = "earliest"
    ordered: bool = True
    window: int = 10_000
    session: float = 30.0
    state: str = ""


class Listener(Protocol):
    """Who is told by a source, from within `poll`, of partitions that it gives up."""

    def giving_up(self, partitions: Collection[str], seconds: float) -> None:
        """These partitions go to another reader (or will be read again from their last commit). What is out may be finished
        and committed for `seconds`; 0: they are gone already. On return what is unfinished in them is forgotten."""


@dataclass(frozen=True)
class Lag:
    """How far behind: messages not yet delivered to us, by partition, as far as the broker says. Paused ones count too."""

    messages: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.messages.values())


class Source(Protocol):
    """Messages, delivered in order within a partition and again until committed. Called from one thread.

    incarnation: names the topic itself, so that one deleted and made again is another; known once made.
    """

    incarnation: str

    def poll(self, limit: int, seconds: float) -> list[Message]:
        """At most `limit` messages, as soon as there are any, else none after `seconds`. Called at least every few seconds,
        whatever the model takes; `limit` 0 keeps the session alive and delivers nothing. Raises Away."""

    def commit(self, finished: Mapping[str, int]) -> None:
        """All that was delivered of these partitions, up to and including the message of this offset, is done with: it will
        not be delivered again. Returns when the broker has it, as far as it says so. Raises Away."""

    def lag(self) -> Lag | None:
        """None where the broker can't say. Cheap enough to be asked every second. Raises Away."""

    def close(self) -> None:
        """Leave at once; what is not committed is delivered to the next reader. Never raises."""


class Sink(Protocol):
    """Where messages go. Called from one thread.

    headers: whether it carries them (else the id travels in the payload). max_bytes: the largest value it takes, 0: not known.
    """

    headers: bool
    max_bytes: int

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        """Publish in this order; return when the broker has confirmed each of them as durable as it is set to keep them.
        Gives the places in `messages` of those it will never take (too large …), with its reason. Raises Away where it is not
        known of every other one that it was taken: all are published again then."""

    def close(self) -> None:
        """Never raises."""


@dataclass(frozen=True)
class Setting:
    """A setting that the guarantee depends on. value: None where the broker does not tell. good: whether it is safe; None: unknown.
    consequence: what happens where it is not."""

    name: str
    value: str | None
    good: bool | None
    consequence: str


@dataclass(frozen=True)
class Guarantee:
    """What holds at this end of the edge: sentences, and the settings they rest on."""

    holds: tuple[str, ...]
    settings: tuple[Setting, ...] = ()


class Broker(Protocol):
    """What a broker's module offers.

    journalled: has no offsets of its own, so its messages go through the journal on this machine before they are acknowledged.
    A module whose messages carry no headers, or not always, also has `has_headers(address)`: a sink says it too, and may be
    away when it has to be known.
    """

    journalled: bool

    def source(self, address: Address, reading: Reading, listener: Listener) -> Source:
        """Connect, and make sure the topic is there. Raises Away, Unusable, BadDescription."""

    def sink(self, address: Address, name: str) -> Sink:
        """Connect. name: of this deployment, for the broker's own lists. Raises Away, Unusable, BadDescription."""

    def explain(self, address: Address, role: str) -> Guarantee:
        """What is guaranteed here. role: `source` or `sink`. Asks the broker where it can be reached; never raises Away."""


def get(scheme: str) -> Any:
    """The broker of a scheme. Raises BadDescription for one nobody knows or whose client is not installed."""
    module = BUILT_IN.get(scheme)
    try:
        if module is not None:
            return importlib.import_module(f".{module}", __name__)
        for entry in importlib.metadata.entry_points(group=GROUP):
            if entry.name == scheme:
                return entry.load()
    except ImportError as cause:
        extra = EXTRAS.get(scheme)
        if extra is None:
            raise
        raise BadDescription(
            f"{scheme}:// needs {cause.name or 'a client'}, which is not in this environment.",
            f"Install the runtime's extra: mlpacker-runtime[{extra}].",
        ) from cause
    raise BadDescription(f"There is no broker for {scheme}://.", f"Known are {', '.join(sorted(BUILT_IN))}.")


__all__ = [
    "Address",
    "Away",
    "Broker",
    "Guarantee",
    "Lag",
    "Listener",
    "Message",
    "Outgoing",
    "Reading",
    "Setting",
    "Sink",
    "Source",
    "Unusable",
    "get",
]
