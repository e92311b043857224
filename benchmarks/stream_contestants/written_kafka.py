"""confluent-kafka by hand: `one` message at a time, or batches, `through` or scored (`batch`). Flushed, then committed."""

import sys

from confluent_kafka import Consumer, Producer
from plain import BATCH, GROUP, HOST, PORT, SINK, SOURCE
from scoring import BATCHED, answer

consumer = Consumer(
    {
        "bootstrap.servers": f"{HOST}:{PORT}",
        "group.id": GROUP,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
)
linger = 0 if sys.argv[1] == "one" else 2
producer = Producer({"bootstrap.servers": f"{HOST}:{PORT}", "acks": "all", "linger.ms": linger})


def one() -> None:
    """Flushes each answer, without which it would be no message at a time; the commit waits for nobody."""
    while True:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        producer.produce(SINK, answer(message.value()))
        producer.flush()
        consumer.commit(message, asynchronous=True)


def batched(mode: str) -> None:
    score = BATCHED[mode]
    while True:
        messages = [m for m in consumer.consume(BATCH, 0.01) if not m.error()]
        if not messages:
            continue
        for body in score([m.value() for m in messages]):
            producer.produce(SINK, body)
        producer.flush()
        consumer.commit(asynchronous=False)


consumer.subscribe([SOURCE])
if sys.argv[1] == "one":
    one()
else:
    batched("through" if sys.argv[1] == "paced" else sys.argv[1])
