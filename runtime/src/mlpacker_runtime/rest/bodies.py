"""A request's body before any protocol looks at it: unpacked within bounds, and read as JSON."""

from __future__ import annotations

import re
import zlib
from typing import Any, TypeVar

import msgspec

from ..errors import BadInput
from . import Rejected

T = TypeVar("T")
ENCODINGS = "gzip, deflate"
_STEP = 1 << 20
_NOT_FINITE = re.compile(rb"(?<![\w\"])-?(NaN|Infinity|nan|inf)\b")
_anything = msgspec.json.Decoder()


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its gzip or deflate. Raises Rejected: 413 beyond `limit` bytes, 400 for a broken one, 415 for another coding."""
    for name in reversed([e.strip().lower() for e in encoding.split(",") if e.strip()]):
        if name in ("gzip", "x-gzip"):
            body = _inflate(body, 31, limit)
        elif name == "deflate":
            body = _inflate(body, 15 if _is_zlib(body) else -15, limit)
        elif name != "identity":
            raise Rejected(
                415, f"The Content-Encoding {name!r} is not known here.", (("Accept-Encoding", ENCODINGS),)
            )
    return body


def _is_zlib(body: bytes) -> bool:
    """RFC 9110 means zlib's form by `deflate`; some send the bare stream."""
    return len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    out = bytearray()
    try:
        while body:  # a gzip file may be several, one after the other
            stream = zlib.decompressobj(window)
            while not stream.eof:
                piece = stream.decompress(body, _STEP)
                out += piece
                body = stream.unconsumed_tail
                if len(out) > limit:
                    raise Rejected(413, f"The body is longer than {limit} bytes once it is unpacked.")
                if not piece and not body and not stream.eof:
                    raise BadInput("The compressed body ends in the middle.")
            body = stream.unused_data if window == 31 else b""
    except zlib.error as cause:
        raise BadInput(f"The compressed body can't be unpacked: {cause}.") from cause
    return bytes(out)


def pack(body: bytes, coding: str) -> bytes:
    """The body in `gzip` or `deflate`, quickly rather than tightly."""
    stream = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    return stream.compress(body) + stream.flush()


def loads(body: bytes | memoryview, decoder: msgspec.json.Decoder[T] = _anything) -> T:
    """Raises BadInput for what is no JSON, or not of the decoder's shape, with the place where it stops being so."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as cause:
        raise BadInput(f"The body is not as the protocol wants it: {_lower(str(cause))}.") from cause
    except RecursionError as cause:
        raise BadInput("The JSON is nested too deeply.") from cause
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise BadInput(_why_not_json(body, cause)) from cause


def _why_not_json(body: bytes | memoryview, cause: Exception) -> str:
    if not len(body):
        return "The body is empty."
    found = re.search(r"\(byte (\d+)\)", str(cause))
    if found is not None:
        at = int(found[1])
        literal = _NOT_FINITE.search(bytes(body[max(0, at - 9) : at + 9]))
        if literal is not None:
            return f"The JSON holds {literal[0].decode()} (near byte {at}), which JSON does not know. Send null for a missing number."
    return f"The body is not JSON: {_lower(str(cause).removeprefix('JSON is malformed: '))}."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def check_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{what} is a JSON object.")
    return value
