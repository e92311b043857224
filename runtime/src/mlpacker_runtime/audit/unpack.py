"""From the bytes of a file to the bytes of a pickle: find the compression by its magic and undo it within bounds."""

from __future__ import annotations

import bz2
import importlib
import importlib.util
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from typing import Protocol

from mlpacker_runtime.audit.limits import LIMITS, Limits
from mlpacker_runtime.errors import BadInput

CHUNK = 1024 * 1024
ZIP = b"PK\x03\x04"

# joblib's own header before 0.10: "ZF", the length in hexadecimal padded to 19 characters, then a zlib stream.
_OLD_JOBLIB = b"ZF"
_OLD_JOBLIB_HEADER = 2 + len(hex(2**64))

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (_OLD_JOBLIB + b"0x", "joblib-zf"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
# The second byte of a zlib stream for the levels in use; the pair must divide by 31 (RFC 1950).
_ZLIB_SECOND = frozenset(b"\x01\x5e\x9c\xda")


_LIBRARIES = {"lz4": "lz4", "zstd": "zstandard"}
"""Compression → the distribution that reads it, which is also the module's name."""


class Decompressor(Protocol):
    """What zlib, bz2 and lzma objects have in common once wrapped."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def compression_of(head: bytes) -> str | None:
    """The name of the compression a file starts with, or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if len(head) > 1 and head[0] == 0x78 and head[1] in _ZLIB_SECOND:
        return "zlib"
    return None


def unpack(data: bytes, limits: Limits = LIMITS) -> tuple[bytes, str | None]:
    """The uncompressed bytes and the name of the compression they came in.

    Raises BadInput for a stream that is cut, damaged, followed by other bytes or larger than `limits`.
    """
    name = compression_of(data[:16])
    if name is None:
        return data, None
    budget = _Budget(len(data), limits)
    if name == "joblib-zf":
        return _old_joblib(data, budget), name
    plain, rest = _streams(_opener(name, limits), data, name, budget)
    if rest.strip(b"\x00"):
        raise BadInput(
            f"{len(rest)} bytes follow the {name} stream in this file.",
            "Send the file again as it was saved.",
        )
    return plain, name


def head_of(data: bytes, limits: Limits = LIMITS, size: int = 512) -> bytes:
    """The first bytes behind a compression, read from the start of a file; empty where they can't be had."""
    name = compression_of(data[:16])
    if name is None:
        return data[:size]
    try:
        if name == "joblib-zf":
            return zlib.decompressobj().decompress(data[_old_joblib_start(data) :], size)
        return _opener(name, limits)().decompress(data, size)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, there is no head to show
        return b""


class _Budget:
    """Counts decompressed bytes and stops at the bound."""

    def __init__(self, compressed: int, limits: Limits) -> None:
        ratio_bound = max(limits.ratio_from, compressed * limits.ratio)
        self.left = min(limits.bytes, ratio_bound)
        self.sentence = (
            f"This file of {compressed} bytes unpacks to more than {self.left} bytes, which no model does."
            if ratio_bound <= limits.bytes
            else f"This file unpacks to more than {limits.bytes} bytes, the most we take."
        )

    def ask(self) -> int:
        return min(CHUNK, self.left + 1)

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise BadInput(self.sentence, "Save the model without compression if it is truly that large.")


def _streams(
    opener: Callable[[], Decompressor], data: bytes, name: str, budget: _Budget
) -> tuple[bytes, bytes]:
    """Decompress one stream and the streams that directly follow it (gzip and xz files may hold several)."""
    out = bytearray()
    rest = data
    while rest and (not out or compression_of(rest[:16]) == name):
        rest = _stream(opener(), rest, name, budget, out)
    return bytes(out), rest


def _stream(stream: Decompressor, data: bytes, name: str, budget: _Budget, out: bytearray) -> bytes:
    feed = data
    try:
        while not stream.eof:
            piece = stream.decompress(feed, budget.ask())
            feed = b""
            if not piece and not stream.eof:
                raise BadInput(
                    f"The {name} stream in this file is cut off: half a file.", "Send the whole file again."
                )
            budget.spend(len(piece))
            out += piece
    except BadInput:
        raise
    except Exception as error:  # each library has errors of its own
        raise BadInput(
            f"The {name} stream in this file is damaged.", "Send the file again as it was saved."
        ) from error
    return bytes(stream.unused_data)


class _Zlib:
    """zlib's object with the shape of the others: what it could not yet put out it keeps itself."""

    def __init__(self, window: int) -> None:
        self._object = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


class _Whole:
    """A library that offers a file object only (lz4, zstandard)."""

    def __init__(self, open_stream: Callable[[io.BytesIO], io.BufferedIOBase]) -> None:
        self._open = open_stream
        self._stream: io.BufferedIOBase | None = None
        self.eof = False
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._stream is None:
            self._stream = self._open(io.BytesIO(data))
        piece = self._stream.read(max_length)
        self.eof = not piece
        return piece


def library_of(compression: str | None) -> str | None:
    """The distribution that reads a compression, where the standard library does not."""
    return _LIBRARIES.get(compression or "")


def can_read(compression: str) -> bool:
    """Whether what reads it is here."""
    return compression not in _LIBRARIES or importlib.util.find_spec(_LIBRARIES[compression]) is not None


def _opener(name: str, limits: Limits) -> Callable[[], Decompressor]:
    if name == "lz4":
        frame = _library("lz4.frame", "lz4", name)
        return lambda: _Whole(lambda source: frame.LZ4FrameFile(source, "rb"))
    if name == "zstd":
        return _zstd_opener(limits)
    openers: dict[str, Callable[[], Decompressor]] = {
        "zlib": lambda: _Zlib(zlib.MAX_WBITS),
        "gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
        "bz2": bz2.BZ2Decompressor,
        "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.dictionary),
        "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=limits.dictionary),
    }
    return openers[name]


def _zstd_opener(limits: Limits) -> Callable[[], Decompressor]:
    library = _library("zstandard", "zstandard", "zstd")
    decompressor = library.ZstdDecompressor(max_window_size=limits.dictionary)
    return lambda: _Whole(decompressor.stream_reader)


def _library(module: str, distribution: str, compression: str):  # type: ignore[no-untyped-def]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            f"This file is compressed with {compression}, which needs the package {distribution} to read.",
            f"Install {distribution} in this environment, or save the model with another compression.",
        ) from error


def _old_joblib_start(data: bytes) -> int:
    start = _OLD_JOBLIB_HEADER
    return start + 1 if data[start : start + 1] == b" " else start


def _old_joblib(data: bytes, budget: _Budget) -> bytes:
    """Undo the container of joblib before 0.10 and hold it to the length it states."""
    try:
        stated = int(data[2:_OLD_JOBLIB_HEADER], 16)
    except ValueError as error:
        raise BadInput(
            "The header of this joblib file is damaged.", "Send the file again as it was saved."
        ) from error
    plain, rest = _streams(lambda: _Zlib(zlib.MAX_WBITS), data[_old_joblib_start(data) :], "zlib", budget)
    if rest or len(plain) != stated:
        raise BadInput(
            f"This joblib file states {stated} bytes and holds {len(plain)}.",
            "Send the file again as it was saved.",
        )
    return plain


def is_skops(data: bytes) -> bool:
    """Whether a zip file (or its first bytes) is a skops file: it holds a `schema.json`."""
    if not data.startswith(ZIP):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return "schema.json" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return b"schema.json" in data
