"""A replay as a person describes it: from when until when, beside which deployment. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.stream.settings import Settings, check, placed

from .errors import BadDescription

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
WITHOUT_PAST = {
    "mqtt": "MQTT hands a message out once and keeps no past",
    "amqp": "a RabbitMQ queue hands a message out once and keeps no past",
    "-": "standard input can't be read again",
}
WITH_PAST = "Replay from a broker that keeps it: Kafka, NATS, Redis, local: or file:."


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of `2h` (ago; s, m, h, d, w), `now`, or an ISO 8601 time, of this machine's zone where it names
    none. Raises BadDescription."""
    text = text.strip()
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if ago:
        return now - float(ago[1]) * UNITS[ago[2]]
    if text == "now":
        return now
    try:
        return datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text)).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as cause:
        raise BadDescription(
            f"{text!r} is no time.",
            "Write 2h, 3d, or as 2026-05-01T08:00 (with +02:00 or Z, else this machine's zone).",
        ) from cause


def place(text: str, now: float) -> str:
    """`earliest`, `offset:N`, or a time as `moment` has it → a place as brokers take it."""
    if text == "earliest" or re.fullmatch(r"offset:\d+|time:\d+(\.\d+)?", text):
        return text
    return f"time:{moment(text, now):.3f}"


def settings(of: Settings, since: str, until: str, now: float, called: str = "") -> Settings:
    """The replay of a stream with these settings: a deployment of its own, whose answers carry the ids of the original's.

    until: empty: what is there now. called: its name; a killed replay goes on under it. Raises BadDescription for a source
    without a past, and for a sink or a dead letters' address that is the stream's source.
    """
    name = called or f"{of.name}-replay-{datetime.fromtimestamp(now, timezone.utc):%Y%m%d-%H%M%S}"
    if name == of.name:
        raise BadDescription(f"{name} is the stream itself.", "Give the replay another name: --as.")
    source = parse(of.source)
    if source.scheme in WITHOUT_PAST:
        raise BadDescription(f"{of.source} can't be replayed: {WITHOUT_PAST[source.scheme]}.", WITH_PAST)
    if source.scheme == "file" and "time:" in place(since, now):
        raise BadDescription("A file knows no times.", "Begin at earliest, or at offset:N, a line's number.")
    for end in (of.sink, of.letters):
        if placed(end, of) == placed(of.source, of):
            raise BadDescription(
                f"The answers of a replay can't go to its source, {end}.", "Name another: --to."
            )
    return check(
        replace(
            of,
            name=name,
            ids_as=of.name,
            state=str(Path(of.state).with_name(name)),
            group="",
            member="0",
            start=place(since, now),
            until=place(until or "now", now) if until != "latest" else "",
            spool=0,
        )
    )
