"""V2 requests with binary tensors, as over REST: a JSON header, then the tensors. Several rows a message.

The header's length is in the message header `inference-header-content-length`; where the broker has no headers, it is the
first four bytes of the message, little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...brokers import Message
from ...errors import BadInput
from ...manifest import Manifest
from ...rest import Request, Served
from ...rest.rows import Read, Reader
from ...rest.v2 import HEADER_LENGTH, ask
from ...signature import Field
from . import Rows

DECODES = ()
CONTENT_TYPE = "application/vnd.mlpacker.v2"
"""Of a message that says the length in its first four bytes."""
LENGTH = HEADER_LENGTH.decode()
PREFIX = 4
DIGITS = 10


class V2Rows:
    def __init__(self, fields: tuple[Field, ...]) -> None:
        self._reader = Reader(fields)
        self._served = Served(Manifest("stream", (), fields, ()))

    def decode(self, message: Message) -> Rows:
        for name, length in message.headers:
            if name.lower() == LENGTH:
                return self.read(message.value, length[:DIGITS])
        value = message.value
        if len(value) < PREFIX:
            raise BadInput(
                f"The message has {len(value)} bytes; it begins with {PREFIX} that say how long its JSON is."
            )
        return self.read(value[PREFIX:], b"%d" % int.from_bytes(value[:PREFIX], "little"))

    def read(self, body: bytes, length: bytes | None = None) -> Rows:
        """length: of the JSON, in digits; None: it is all there is."""
        headers = {} if length is None else {HEADER_LENGTH: length}
        asked = ask(self._served, self._reader, Request("POST", "", "", headers, body))
        if not asked.count:
            raise BadInput("The message's tensors have no rows.")
        return Rows([], Read(asked.batch, asked.count, asked.errors), False)


def decoder(fields: tuple[Field, ...], options: Mapping[str, str]) -> V2Rows:
    return V2Rows(fields)
