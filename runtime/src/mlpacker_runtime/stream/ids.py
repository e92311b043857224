"""Who a row is, whenever it is seen: the hash of where it came from, and never of what it says (two equal readings are two rows).

A message is (deployment, the source's incarnation, partition, offset), or what a header of its own says. An answer is that
message's row, by a stage, by its place among the row's answers. The package's digest is not part of it: it changes at a swap,
which is just when repeats happen. Ids of messages are 16 bytes, ids of answers the same as 32 hex digits.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

SIZE = 16
ID = "mlpacker-id"
PACKAGE = "mlpacker-package"
STAGE = "mlpacker-stage"
TRACE = "traceparent"


class Ids:
    """The ids of one deployment's messages from one source."""

    def __init__(self, deployment: str, incarnation: str) -> None:
        self._source = blake2b(f"{deployment}\0{incarnation}\0".encode(), digest_size=SIZE)
        self._named = blake2b(f"{deployment}\0named\0".encode(), digest_size=SIZE)

    def message(self, partition: str, offset: int) -> bytes:
        own = self._source.copy()
        own.update(f"{partition}\0{offset}".encode())
        return own.digest()

    def named(self, name: bytes) -> bytes:
        """Of a message that carries its identity in a header."""
        own = self._named.copy()
        own.update(name)
        return own.digest()


def answer(message: bytes, row: int, stage: str, index: int) -> str:
    """The id of a row's `index`-th answer."""
    return blake2b(message + _place(row, stage, index), digest_size=SIZE).hexdigest()


@lru_cache(4096)
def _place(row: int, stage: str, index: int) -> bytes:
    """Mostly the same one: a message of one row, with one answer."""
    return f"{row}\0{stage}\0{index}".encode()


def trace(came: bytes | None, own: str) -> bytes:
    """A W3C traceparent for an answer: the trace it came in, else one of its own; deterministic, so a repeat is the same span."""
    if came is not None and len(came) == 55 and came[:3] == b"00-":
        return came[:36] + own[:16].encode() + came[52:]
    return f"00-{own}-{own[:16]}-01".encode()
