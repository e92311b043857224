"""Real brokers of a test's own: on loopback, on free ports, with their data in a folder of the test's.

Each is one file and one class: `name`, `missing()`, `start`, `kill`, `stop`, `make(topic)`, `address(topic)`, `version()`, `port`.
`durable=False` gives the broker's default settings.
"""

from __future__ import annotations

import importlib
from typing import Any

PLACES = {
    "local": ("embedded", "Embedded"),
    "redis": ("redis", "Redis"),
    "nats": ("nats", "Nats"),
    "kafka": ("kafka", "Kafka"),
    "mqtt": ("mosquitto", "Mosquitto"),
    "rabbitmq": ("rabbitmq", "RabbitMQ"),
}
BROKERS = tuple(PLACES)


def server(broker: str) -> Any:
    """The class that starts this broker."""
    module, name = PLACES[broker]
    return getattr(importlib.import_module(f".{module}", __name__), name)
