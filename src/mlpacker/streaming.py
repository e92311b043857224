"""A stream as a person describes it, in `stream.yaml` or in flags, and the settings that it comes to. Pure: nothing is run here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlpacker_runtime import brokers
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.stream import settings as settings_of
from mlpacker_runtime.stream.settings import Settings

from .errors import BadDescription
from .schema import document, reference
from .schema.kinds import Choice, Flag, Key, Many, Record, Table, Text, Whole

NAME = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
ADDRESS = Text("an address, as kafka://host:9092/topic, local:readings or file:rows.jsonl")
FORMS = Text("json, msgpack, csv, v2, avro or protobuf")
SIZE = Whole(0)

STREAM = Record(
    "a stream: a mapping with from and to",
    {
        "from": Key(ADDRESS, "Where messages come from.", required=True),
        "to": Key(ADDRESS, "Where answers go.", required=True),
        "dead_letters": Key(
            ADDRESS,
            "Where rows go that failed by themselves. Default: a log in the state folder, for `mlpacker dlq`.",
        ),
        "name": Key(
            Text("a name of at most 64 lower-case letters, digits, and . _ - between them", NAME),
            "The deployment: its place in the source, its state and its ids go by this name. Default: the package's name.",
        ),
        "group": Key(Text("a name"), "The consumer group. Default: mlpacker-NAME."),
        "start": Key(
            Text("earliest, latest, offset:N or time:SECONDS"),
            "Where a group begins that has no place yet. Default: earliest.",
        ),
        "key": Key(
            Text("a field"), "Rows of one value of this field keep their order. Default: the message's key."
        ),
        "keep": Key(Many(Text("a field"), or_one=True), "Fields of the row that are echoed in the answer."),
        "outputs": Key(
            Many(Text("an output"), or_one=True), "Only these outputs are computed. Default: all."
        ),
        "payload": Key(FORMS, "The form of messages. Default: what their content type says, else JSON."),
        "payload_options": Key(
            Table(Text(loose=True)), "Options of that form, as docs/howto/payloads.md has them."
        ),
        "answer": Key(FORMS, "The form of answers. Default: json."),
        "answer_options": Key(Table(Text(loose=True)), "Options of that form."),
        "batch": Key(Whole(1), "The most rows scored together. Default: 1024."),
        "wait": Key(Whole(0), "Milliseconds to wait for a fuller batch. Default: 0, none."),
        "workers": Key(
            Whole(1),
            "Lanes, each with a process of its own for the models; a key's rows keep to one. Default: 1.",
        ),
        "unordered": Key(Flag(), "Readers compete for messages, and no order is kept. Default: false."),
        "retries": Key(Whole(0), "How often a row is asked again whose stage raised. Default: 0."),
        "id_from": Key(
            Text("a header"),
            "A header that identifies a message. Default: mlpacker-id, else its place in the source.",
        ),
        "window": Key(Whole(1), "Messages that may be out at a time. Default: 8192."),
        "window_bytes": Key(Whole(1), "Their size. Default: 64 MiB."),
        "max_message": Key(Whole(1), "Bytes; a larger message is a dead letter. Default: 16 MiB."),
        "session": Key(Whole(1), "Seconds after which a silent reader is taken for dead. Default: 30."),
        "watchdog": Key(
            Whole(0),
            "Seconds without progress, with rows waiting, before the worker starts anew; 0: never. Default: 120.",
        ),
        "spool": Key(
            SIZE, "Bytes to keep on disk while the sink is away, published later in order. Default: 0, none."
        ),
        "spool_full": Key(
            Choice(("pause", "drop_oldest")), "What to do when the spool is full. Default: pause."
        ),
        "journal": Key(
            Whole(1), "Bytes to keep on disk of a broker without offsets (MQTT, RabbitMQ). Default: 1 GiB."
        ),
        "no_wait": Key(
            Flag(), "Fail at once where a broker is not there at the start. Default: false, wait for it."
        ),
    },
)

RENAMED = {"from": "source", "to": "sink", "workers": "lanes"}


def read(path: Path) -> dict[str, Any]:
    """What a stream.yaml says. Raises BadDescription with file, line and path."""
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise BadDescription(f"{path} can't be read: {cause.strerror}.") from cause
    node = document.read(data, str(path))
    given = STREAM.read(node)
    for end in ("from", "to", "dead_letters"):
        if end in given:
            try:
                parse(given[end])
            except BadDescription as error:
                raise node.wrong_key(end, error.sentence, error.next_step) from error
    return given


def settings(given: Mapping[str, Any], package: str, outputs: tuple[str, ...], home: Path) -> Settings:
    """The settings of these words. package: its name. outputs: those it has. Raises BadDescription."""
    words = {k: v for k, v in given.items() if v is not None and v != ()}
    missing = [f"--{end}" for end in ("from", "to") if not words.get(end)]
    if missing:
        raise BadDescription(
            f"A stream needs {' and '.join(missing)}.",
            "Name an address, as local:readings, or give -f stream.yaml.",
        )
    name = words.get("name") or package
    value: dict[str, Any] = {
        "name": name,
        "state": str(home / "streams" / name),
        "logs": str(home / "logs"),
        "ordered": not words.pop("unordered", False),
        "patient": not words.pop("no_wait", False),
    }
    value |= {RENAMED.get(k, k): v for k, v in words.items()}
    for wanted in value.get("outputs", ()):
        if wanted not in outputs:
            raise BadDescription(
                f"{package} has no output {wanted!r}.", f"It has {', '.join(sorted(outputs))}."
            )
    return settings_of.from_value(value)


def extras(of: Settings) -> tuple[str, ...]:
    """The runtime's extras that these settings need: a broker's client, a form's library."""
    found = {
        brokers.EXTRAS[a.scheme]
        for t in settings_of.addresses(of).values()
        if (a := parse(t)).scheme in brokers.EXTRAS
    }
    found |= {form for form in (of.payload, of.answer) if form in ("avro", "protobuf")}
    return tuple(sorted(found))


def json_schema() -> str:
    """The published schema of stream.yaml."""
    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MLPacker stream",
        **STREAM.schema(),
    }
    return json.dumps(found, indent=2) + "\n"


def reference_page() -> str:
    opening = (
        "Written from the code. `mlpacker stream REF -f stream.yaml` reads it; each key is also a flag. Unknown keys are errors. "
        "An editor completes it with [stream.schema.json](stream.schema.json)."
    )
    return reference.page("stream.yaml", opening, STREAM)
