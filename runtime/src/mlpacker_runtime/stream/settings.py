"""What a stream is told: where from, where to, and how. One frozen value, written as JSON between processes."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any
from urllib.parse import quote

from .. import brokers
from ..brokers.address import Address, parse
from ..errors import BadDescription

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Settings:
    """name: of the deployment; ids, the group and the state folder carry it. source, sink, dead_letters: addresses; without
    the last, dead letters are kept in the state folder. state: what must outlive this process and the package's digest.

    key: the field whose rows keep their order (else the message's key). keep: input fields echoed in the answer. outputs: the
    only ones computed. payload, answer: forms of messages in and out, and their options.
    batch: the most rows scored together. wait: milliseconds to wait for a fuller batch. lanes: rows scored side by side.
    ordered: per key; else readers compete. retries: of a row whose stage raised. id_from: a header that identifies a message.
    window: messages out at a time; window_bytes: their size. max_message: bytes; a larger one is a dead letter.
    session: seconds after which a silent reader is taken for dead. watchdog: seconds without progress before we start again.
    spool: bytes to keep on disk while the sink is away, 0 for none. spool_full: `pause` or `drop_oldest`.
    journal: bytes to keep of a broker without offsets. patient: wait for a broker that is not there at the start. logs: folder of
    this machine's embedded logs.
    ids_as: the deployment whose ids the answers carry, where this is a replay of it. until: where a replay ends, `time:SECONDS`
    or `offset:N`.
    """

    name: str
    source: str
    sink: str
    state: str
    dead_letters: str = ""
    group: str = ""
    member: str = "0"
    start: str = "earliest"
    ordered: bool = True
    key: str | None = None
    keep: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    payload: str = "auto"
    payload_options: dict[str, str] = field(default_factory=dict)
    answer: str = "json"
    answer_options: dict[str, str] = field(default_factory=dict)
    batch: int = 1024
    wait: float = 0.0
    lanes: int = 1
    retries: int = 0
    id_from: str | None = None
    window: int = 8192
    window_bytes: int = 64 * MEGABYTE
    max_message: int = 16 * MEGABYTE
    session: float = 30.0
    watchdog: float = 120.0
    spool: int = 0
    spool_full: str = "pause"
    journal: int = 1 << 30
    patient: bool = True
    logs: str = ""
    ids_as: str = ""
    until: str = ""

    @property
    def reads_as(self) -> str:
        return self.group or f"mlpacker-{self.name}"

    @property
    def letters(self) -> str:
        """Where dead letters go."""
        return self.dead_letters or f"local:dead-letters?path={quote(self.state, safe='/')}"


def to_json(settings: Settings) -> str:
    return json.dumps(asdict(settings))


def from_json(text: str) -> Settings:
    """Raises BadDescription, naming the key, for what is no settings."""
    try:
        value = json.loads(text)
    except ValueError as cause:
        raise BadDescription(f"The settings of a stream are not JSON: {cause}.") from cause
    return from_value(value)


def from_value(value: Any) -> Settings:
    """Raises BadDescription, naming the key, for what is no settings."""
    if not isinstance(value, dict):
        raise BadDescription("The settings of a stream are an object.")
    known = {f.name: f for f in fields(Settings)}
    for name in value:
        if name not in known:
            raise BadDescription(f"{name}: unknown key.", f"Known are {', '.join(sorted(known))}.")
    missing = [n for n in ("name", "source", "sink", "state") if not value.get(n)]
    if missing:
        raise BadDescription(f"{missing[0]}: missing.")
    given = {n: _fit(n, v, str(known[n].type)) for n, v in value.items()}
    return check(Settings(**given))


def _fit(name: str, value: Any, kind: str) -> Any:
    """A JSON value as the field's type."""
    if kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise BadDescription(f"{name}: a list of names.")
        return tuple(value)
    kinds: tuple[type, ...] = {
        "str": (str,),
        "str | None": (str, type(None)),
        "bool": (bool,),
        "int": (int,),
        "float": (int, float),
        "dict[str, str]": (dict,),
    }[kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise BadDescription(f"{name}: {value!r} where {kind} belongs.")
    if isinstance(value, dict) and not all(isinstance(v, str) for v in value.values()):
        raise BadDescription(f"{name}: an object whose values are texts.")
    return float(value) if isinstance(value, int) and kind == "float" else value


def check(settings: Settings) -> Settings:
    """The same settings. Raises BadDescription for what can't be."""
    for name in ("batch", "lanes", "window", "window_bytes", "max_message"):
        if getattr(settings, name) < 1:
            raise BadDescription(f"{name}: a whole number from 1.")
    for name in ("wait", "retries", "spool", "session", "watchdog"):
        if not 0 <= getattr(settings, name) < float("inf"):
            raise BadDescription(f"{name}: not below 0.")
    if not re.fullmatch(r"earliest|latest|offset:\d+|time:\d+(\.\d+)?", settings.start):
        raise BadDescription(
            f"start: {settings.start!r} is none of earliest, latest, offset:N, time:SECONDS."
        )
    if not re.fullmatch(r"|offset:\d+|time:\d+(\.\d+)?", settings.until):
        raise BadDescription(f"until: {settings.until!r} is neither offset:N nor time:SECONDS.")
    if settings.spool_full not in ("pause", "drop_oldest"):
        raise BadDescription("spool_full: pause or drop_oldest.")
    for name, text in addresses(settings).items():
        try:
            parse(text)
        except BadDescription as error:
            raise BadDescription(f"{name}: {error.sentence}", error.next_step) from error
    return settings


def addresses(settings: Settings) -> dict[str, str]:
    return {"source": settings.source, "sink": settings.sink, "dead_letters": settings.letters}


def placed(text: str, settings: Settings) -> Address:
    """An address; an embedded log that names no folder lies in this machine's folder of logs."""
    address = parse(text)
    if address.scheme == "local" and "path" not in address.options and settings.logs:
        return replace(address, options={**address.options, "path": settings.logs})
    return address


def reading(settings: Settings) -> brokers.Reading:
    return brokers.Reading(
        group=settings.reads_as,
        member=settings.member,
        start=settings.start,
        ordered=settings.ordered,
        window=settings.window,
        session=settings.session,
        state=settings.state,
    )
