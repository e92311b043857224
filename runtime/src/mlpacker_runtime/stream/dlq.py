"""Dead letters, looked at, sent again and dropped: `program.main`'s orders in, what became of them out.

The embedded log gives up any letter (a row of its file is deleted; offsets keep a gap). Elsewhere a letter goes by a commit of the
group `mlpacker-dlq-NAME`, so only the oldest can go, and stay in their topic for other readers. Nothing is dropped that was to be
sent and is not confirmed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .. import brokers
from ..brokers import Message, Outgoing, Reading, Sink
from ..brokers.address import Address
from ..brokers.log import BITS, Log
from ..errors import BadDescription
from . import past, program
from .letters import original

BRIEF = (
    "id",
    "reason",
    "stage",
    "attempts",
    "package",
    "source",
    "partition",
    "offset",
    "row",
    "failed_at",
    "key",
    "bytes",
)
TOGETHER = 200
READ = 500
WINDOW = 100_000
"""Letters of a broker without random access that are looked at at a time."""
NO_LETTER = "This message is no letter of ours."
CUT = "Its message was too large to be carried whole, so it can't be sent again from here."
BEHIND = "It lies behind a letter that stays, and this broker lets only the oldest go."


@dataclass(frozen=True)
class Found:
    """A letter and where it lies: partition and offset in the dead letters' own topic."""

    partition: str
    offset: int
    letter: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.letter["id"])


class Box(Protocol):
    """Dead letters in one place. any_goes: whether any letter can go, or only the oldest of a partition."""

    any_goes: bool

    def read(self) -> Iterator[Found]:
        """All that are there, the oldest of a partition first."""

    def remove(self, found: Sequence[Found]) -> None:
        """On return they are gone. In the order of `read`."""


class LogBox:
    """In an embedded log."""

    any_goes = True

    def __init__(self, log: Log) -> None:
        self.log = log

    def read(self) -> Iterator[Found]:
        for partition in range(self.log.partitions):
            after = 0
            while messages := self.log.read(partition, after, READ):
                after = messages[-1].offset
                yield from map(_found, messages)

    def remove(self, found: Sequence[Found]) -> None:
        with self.log.change() as run:
            for one in found:
                run("DELETE FROM message WHERE at = ?", ((int(one.partition) << BITS) + one.offset,))


class SourceBox:
    """In a topic of any broker."""

    any_goes = False

    def __init__(self, source: past.Past) -> None:
        self.source = source

    def read(self) -> Iterator[Found]:
        return map(_found, past.everything(self.source))

    def remove(self, found: Sequence[Found]) -> None:
        self.source.commit({one.partition: one.offset for one in found})


def _found(message: Message) -> Found:
    try:
        letter = json.loads(message.value)
    except ValueError:
        letter = None
    if not isinstance(letter, dict) or not {"id", "reason", "source"} <= letter.keys():
        letter = {"id": f"{message.partition}-{message.offset}", "reason": NO_LETTER}
    return Found(message.partition, message.offset, letter)


# --- what is asked --------------------------------------------------------------------------------------------------------


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """order: `do` (list, show, replay, drop), `at`, `name`, `logs`, `state`; `ids` of letters; `to`, an address."""
    address = past.place(order["at"], order["logs"])
    if address.scheme == "local" and not os.path.exists(past.log_file(address)):
        return {"letters": [], "done": [], "stay": []}
    with _box(address, order) as box:
        if order["do"] == "list":
            return {"letters": [{n: f.letter[n] for n in BRIEF if n in f.letter} for f in box.read()]}
        wanted = frozenset(order["ids"])
        if order["do"] == "show":
            return {"letters": [f.letter for f in box.read() if f.id in wanted]}
        with _sinks(order) as send:
            return clear(box, wanted, send if order["do"] == "replay" else None)


@contextmanager
def _box(address: Address, order: Mapping[str, Any]) -> Iterator[Box]:
    if address.scheme == "local":
        log = Log(past.log_file(address))
        try:
            yield LogBox(log)
        finally:
            log.close()
        return
    if address.scheme in ("mqtt", "-"):
        raise BadDescription(
            f"{address} keeps no letters for who comes later.",
            "Send dead letters to a broker that does, or leave --dead-letters out: they are kept on this machine then.",
        )
    reading = Reading(f"mlpacker-dlq-{order['name']}", window=WINDOW, state=order["state"])
    with past.reader(address, reading) as source:
        yield SourceBox(source)


Send = Callable[[Sequence[Found]], Mapping[int, str]]
"""Publishes the originals of letters, all of one source; which of them were refused, and why."""


@contextmanager
def _sinks(order: Mapping[str, Any]) -> Iterator[Send]:
    """To the sources that the letters name, or to `to`. Each is connected to once."""
    sinks: dict[str, Sink] = {}

    def send(found: Sequence[Found]) -> Mapping[int, str]:
        text = _to(order, found[0])
        if text not in sinks:
            address = past.place(text, order["logs"])
            if address.scheme == "-":
                raise BadDescription(
                    "These rows came from standard input, which takes none.", "Name an address: --to."
                )
            sinks[text] = brokers.get(address.scheme).sink(address, order["name"])
        return sinks[text].publish([_again(f.letter) for f in found])

    try:
        yield send
    finally:
        for sink in sinks.values():
            sink.close()


def _to(order: Mapping[str, Any], found: Found) -> str:
    return str(order.get("to") or found.letter["source"])


def _again(letter: dict[str, Any]) -> Outgoing:
    """A broker that drops repeats by an id drops a second sending of the same letter."""
    sent = original(letter)
    assert sent is not None
    value, key, headers = sent
    return Outgoing(value, f"again-{letter['id']}", key, headers)


def clear(box: Box, wanted: Collection[str], send: Send | None) -> dict[str, Any]:
    """Drop these letters; send: first publish what they are of. `done` are ids, `stay` are ids with why; `repeated` counts letters
    that went along with another, of the same message."""
    stay: dict[str, str] = {}
    done: list[str] = []
    messages: set[tuple[object, ...]] = set()
    repeated = 0
    for together in _together(_going(box, wanted, stay, sending=send is not None)):
        fresh = [f for f in together if send is not None and _is_first(f, messages)]
        repeated += len(together) - len(fresh) if send is not None else 0
        refused = send(fresh) if send is not None and fresh else {}
        stay.update({fresh[at].id: f"Its topic does not take it: {why}" for at, why in refused.items()})
        went = _up_to_a_gap(together, stay) if not box.any_goes else [f for f in together if f.id not in stay]
        box.remove(went)
        done += [f.id for f in went]
        if refused and not box.any_goes:
            break
    return {"done": done, "stay": [{"id": i, "reason": why} for i, why in stay.items()], "repeated": repeated}


def _going(box: Box, wanted: Collection[str], stay: dict[str, str], *, sending: bool) -> Iterator[Found]:
    """Those that can go. Into `stay`: those that were wanted and can't."""
    blocked: set[str] = set()
    for found in box.read():
        going = found.id in wanted
        reason = ""
        if going and sending and (found.letter["reason"] == NO_LETTER or original(found.letter) is None):
            reason = NO_LETTER if found.letter["reason"] == NO_LETTER else CUT
        elif going and found.partition in blocked:
            reason = BEHIND
        if reason:
            stay[found.id] = reason
        if going and not reason:
            yield found
        elif not box.any_goes:
            blocked.add(found.partition)


def _together(found: Iterator[Found]) -> Iterator[list[Found]]:
    """Neighbours of one source."""
    batch: list[Found] = []
    for one in found:
        if batch and (len(batch) >= TOGETHER or one.letter.get("source") != batch[0].letter.get("source")):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _is_first(found: Found, messages: set[tuple[object, ...]]) -> bool:
    """Rows of one message whose record is not in their letters share it: it is sent once."""
    letter = found.letter
    if "record" in letter:
        return True
    message = (letter["source"], letter.get("partition"), letter.get("offset"))
    new = message not in messages or letter.get("row") is None
    messages.add(message)
    return new


def _up_to_a_gap(found: Sequence[Found], stay: Mapping[str, str]) -> list[Found]:
    """The part of each partition that lies before the first that stays."""
    blocked: set[str] = set()
    went = []
    for one in found:
        if one.id in stay:
            blocked.add(one.partition)
        elif one.partition not in blocked:
            went.append(one)
    return went


if __name__ == "__main__":
    sys.exit(program.main(answer))
