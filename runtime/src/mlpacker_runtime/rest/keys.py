"""API keys: a file of keys, one a line; blank lines and lines that start with # are none."""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import sha256
from pathlib import Path

from ..errors import BadDescription, NotFound
from . import Request


class Keys:
    """Which requests bring a key we know. Compared by digest and in constant time, so that nothing is learned of a key by timing."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [sha256(k.encode()).digest() for k in keys]

    def allow(self, request: Request) -> bool:
        given = sha256(_given(request)).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, given)
        return found


def _given(request: Request) -> bytes:
    """The key of `X-API-Key`, of `Authorization: Bearer`, or the password of `Basic` (a browser asks for that)."""
    if b"x-api-key" in request.headers:
        return request.headers[b"x-api-key"].strip()
    scheme, _, value = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def read(path: Path) -> Keys:
    """Raises NotFound or BadDescription."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as cause:
        raise NotFound(f"There is no file of keys {path}.") from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise BadDescription(f"The file of keys {path} can't be read: {cause}.") from cause
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise BadDescription(f"The file of keys {path} holds none.", "Write one a line.")
    return Keys(keys)
