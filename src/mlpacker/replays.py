"""A replay: from when until when, beside which deployment, as a person describes it; and its run, to its end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.serve import EXIT_CODES
from mlpacker_runtime.stream.settings import Settings, check, placed

from .errors import BadDescription, MlpackerError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
WITHOUT_PAST = {
    "mqtt": "MQTT hands a message out once and keeps no past",
    "amqp": "a RabbitMQ queue hands a message out once and keeps no past",
    "-": "standard input can't be read again",
}
NOT_OF_THE_FILE = ("to", "dead_letters", "group", "start", "spool", "spool_full")
"""What a stream.yaml says of the running stream, and a replay must not have from it."""
SUMMARY = "replayed.json"
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
            until=place(until or "now", now),
            spool=0,
        )
    )


def run(argv: Sequence[str], environ: Mapping[str, str], of: Settings) -> dict[str, Any]:
    """Run a replay's command to its end: what became of the rows. On Ctrl-C or SIGTERM, as soon as what is out is finished.

    argv: that of a stream. Raises the error whose exit code it ends with; its log on standard error has said why.
    """
    began, summary = time.monotonic(), Path(of.state) / SUMMARY
    summary.unlink(missing_ok=True)
    out = None if parse(of.sink).scheme == "-" else subprocess.DEVNULL
    process = subprocess.Popen(list(argv), env=dict(environ), stdout=out)
    with _passed_on(process):
        try:
            code = process.wait()
        except KeyboardInterrupt:  # of the terminal's whole group: it drains
            code = process.wait()
    told = json.loads(summary.read_text()) if summary.exists() else {}
    if code or not told:
        kind = next((kind for kind, known in EXIT_CODES if known == code), MlpackerError)
        raise kind(
            f"The replay {of.name} ended with exit code {code}.", "Its log on standard error says why."
        )
    return {"name": of.name, "seconds": round(time.monotonic() - began, 1), **told}


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM goes on to the process, which then drains."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
