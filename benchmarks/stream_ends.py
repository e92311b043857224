"""The brokers of the stream benchmark: topics filled without any header, counted, and read back with the broker's own times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlpacker.testing.delivery.servers import server as server_class
from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Message, Reading
from mlpacker_runtime.brokers.address import parse

CHUNK = 500
FIELD = b"value"


class Ends:
    """A broker that runs, in its usual configuration. scheme: of addresses. Rows go in as they are, one a message."""

    settings: dict[str, str] = {}
    """Of topics, where they are not made with the defaults."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def make(self, topic: str) -> None:
        self.server.make(topic, **self.settings)

    def fill(self, topic: str, bodies: Sequence[bytes], field: bytes) -> None:
        """field: under which a Redis entry carries the row."""
        send = self.sender(topic, field)
        for at in range(0, len(bodies), CHUNK):
            send(bodies[at : at + CHUNK])
        self.await_count(topic, len(bodies), 30.0)

    def sender(self, topic: str, field: bytes) -> Callable[[Sequence[bytes]], object]:
        raise NotImplementedError

    def count(self, topic: str) -> int:
        raise NotImplementedError

    def await_count(self, topic: str, count: int, seconds: float) -> int:
        """How many there are when there are so many, or when the time is over."""
        end = time.monotonic() + seconds
        while (there := self.count(topic)) < count and time.monotonic() < end:
            time.sleep(0.05)
        return there

    def read(self, topic: str, count: int) -> list[Message]:
        """From the first on."""
        address = parse(self.server.address(topic))
        source = brokers.get(address.scheme).source(
            address, Reading("bench-collector", window=count + 1, session=10.0), self
        )
        found: list[Message] = []
        end = time.monotonic() + 30.0
        try:
            while len(found) < count and time.monotonic() < end:
                found += source.poll(1000, 0.2)
        finally:
            source.close()
        return found

    def giving_up(self, partitions: object, seconds: float) -> None:
        """Nothing is committed here."""


class NatsEnds(Ends):
    def sender(self, topic: str, field: bytes) -> Callable[[Sequence[bytes]], object]:
        from mlpacker_runtime.brokers.nats_wire import Line

        line, word = Line(parse(self.server.address(topic)), "bench"), topic.encode()
        return lambda bodies: line.send(b"".join(b"PUB %b %d\r\n%b\r\n" % (word, len(b), b) for b in bodies))

    def count(self, topic: str) -> int:
        return int(self.server.ask(f"STREAM.INFO.{topic}", None)["state"]["messages"])


class RedisEnds(Ends):
    def sender(self, topic: str, field: bytes) -> Callable[[Sequence[bytes]], object]:
        client = self.server.connect()

        def send(bodies: Sequence[bytes]) -> None:
            with client.pipeline(transaction=False) as pipe:
                for body in bodies:
                    pipe.xadd(topic, {field: body})
                pipe.execute()

        return send

    def count(self, topic: str) -> int:
        return int(self.server.connect().xlen(topic))


class KafkaEnds(Ends):
    settings = {"message_timestamp_type": "LogAppendTime"}

    def _client(self) -> dict[str, Any]:
        return {"bootstrap.servers": f"127.0.0.1:{self.server.port}", "log_level": 0}

    def sender(self, topic: str, field: bytes) -> Callable[[Sequence[bytes]], object]:
        from confluent_kafka import Producer

        producer = Producer(self._client())

        def send(bodies: Sequence[bytes]) -> None:
            for body in bodies:
                producer.produce(topic, body)
            producer.flush()

        return send

    def count(self, topic: str) -> int:
        from confluent_kafka import Consumer, TopicPartition

        if not hasattr(self, "_counter"):
            self._counter = Consumer({**self._client(), "group.id": "bench-counter"})
        return int(self._counter.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)[1])


ENDS: dict[str, type[Ends]] = {"nats": NatsEnds, "redis": RedisEnds, "kafka": KafkaEnds}


def missing(broker: str) -> str | None:
    return server_class(broker).missing()  # type: ignore[no-any-return]


def started(broker: str, folder: Any) -> Iterator[Ends]:
    """The broker in its default settings (`durable=False`); ended when the iterator is."""
    server = server_class(broker)(folder, durable=False)
    server.start()
    try:
        yield ENDS[broker](server)
    finally:
        server.stop()
