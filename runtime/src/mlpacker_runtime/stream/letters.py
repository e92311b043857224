"""Dead letters: rows that failed by themselves, with all that is needed to see why and to send them again."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import Any

from ..brokers import Message, Outgoing
from .ids import ID, PACKAGE

SHOWN_BYTES = 64 << 10
"""How much of a message a letter carries that is too big for its topic, or for us."""
TOO_LARGE = "too_large"


@dataclass(frozen=True)
class Letter:
    """row: its number in the message, None where the whole message failed. id: of the row, as its answer would have had it."""

    message: Message
    reason: str
    id: str
    row: int | None = None
    stage: str = ""
    attempts: int = 1
    record: Any = None
    """The row itself, where the message held several."""


def outgoing(letter: Letter, about: dict[str, str], *, most: int | None = None) -> Outgoing:
    """The letter as a message: JSON, the original's bytes as text where they are UTF-8, else base64.

    about: deployment, package and source. most: bytes of the original to carry.
    """
    message = letter.message
    data = message.value if most is None else message.value[:most]
    value: dict[str, Any] = {
        "id": letter.id,
        "reason": letter.reason,
        "stage": letter.stage or None,
        "attempts": letter.attempts,
        **about,
        "partition": message.partition,
        "offset": message.offset,
        "row": letter.row,
        "time": message.time or None,
        "failed_at": round(time.time(), 3),
        "trace": next((v.decode("latin-1") for n, v in message.headers if n == "traceparent"), None),
        "headers": {n: v.decode("latin-1") for n, v in message.headers},
        **_bytes("key", message.key),
        **_bytes("value", data),
        "bytes": len(message.value),
    }
    if letter.record is not None and most is None:
        value["record"] = letter.record
    body = json.dumps({k: v for k, v in value.items() if v is not None}, ensure_ascii=False, default=str)
    headers = ((ID, letter.id.encode()), (PACKAGE, about.get("package", "").encode()))
    return Outgoing(body.encode("utf-8", "surrogatepass"), letter.id, message.key, headers)


def _bytes(name: str, data: bytes | None) -> dict[str, str]:
    if data is None:
        return {}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def original(letter: dict[str, Any]) -> tuple[bytes, bytes | None, tuple[tuple[str, bytes], ...]] | None:
    """Value, key and headers of the message that a letter was written of, to send it again; None where it was cut.

    A row of a message of several goes again alone.
    """
    value = _read_bytes(letter, "value")
    if "record" in letter:
        value = json.dumps(letter["record"]).encode()
    elif value is None or len(value) < int(letter.get("bytes", 0)):
        return None
    headers = letter.get("headers", {})
    kept = tuple((str(n), str(v).encode("latin-1", "replace")) for n, v in headers.items() if n != ID)
    return value or b"", _read_bytes(letter, "key"), kept


def _read_bytes(letter: dict[str, Any], name: str) -> bytes | None:
    if name in letter:
        return str(letter[name]).encode("utf-8", "surrogatepass")
    if f"{name}_base64" in letter:
        return base64.b64decode(letter[f"{name}_base64"])
    return None
