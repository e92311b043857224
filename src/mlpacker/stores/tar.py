"""Plain tar files, read strictly: where each member lies, or why the file is refused.

The standard library's reader believes what headers claim (how long a name is, what a link leads to); this one reads what an
OCI layout needs and refuses the rest: links, devices, sparse files, members out of the folder, compression.
POSIX ustar with pax and GNU long names (IEEE Std 1003.1-2017, pax, "ustar Interchange Format").
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from mlpacker_runtime.package import CHUNK, check_path

from ..errors import BadInput

BLOCK = 512
RECORD = 10_240
MAX_MEMBERS = 100_000
MAX_EXTENSION_BYTES = 64 << 10
FILE_KINDS = (b"0", b"\0")
FOLDER = b"5"
PAX, PAX_GLOBAL, GNU_LONG_NAME = b"x", b"g", b"L"
REFUSED = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


@dataclass(frozen=True)
class Member:
    """A regular file. offset, size: bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Header:
    name: str
    kind: bytes
    size: int


def read_members(file: BinaryIO, length: int) -> dict[str, Member]:
    """The regular files of a tar file of `length` bytes, by name. Raises BadInput where anything is not as it must be."""
    members: dict[str, Member] = {}
    said: dict[str, str] = {}
    at = 0
    for _ in range(MAX_MEMBERS):
        header = _header(file, at, length)
        if header is None:
            return members
        if header.kind in (PAX, PAX_GLOBAL, GNU_LONG_NAME):
            said.update(_extension(file, header, at + BLOCK, length))
            size = header.size
        else:
            size = _pax_size(said) if "size" in said else header.size
            name = _place(said.get("path", header.name))
            _check_inside(name, size, at + BLOCK, length)
            if _is_file(header, said, size):
                if name in members:
                    raise BadInput(f"The tar file holds {name!r} twice.")
                members[name] = Member(at + BLOCK, size)
            said = {}
        at += BLOCK + -(-size // BLOCK) * BLOCK
    raise BadInput(f"The tar file holds more than {MAX_MEMBERS} members.")


def _header(file: BinaryIO, at: int, length: int) -> _Header | None:
    """The header there, or None at the end of the archive."""
    if at + BLOCK > length:
        raise BadInput("The tar file ends before its end mark: it is not whole.")
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) != BLOCK:
        raise BadInput("The tar file ends before its end mark: it is not whole.")
    if not any(block):
        return None
    if sum(block[:148]) + sum(block[156:]) + 8 * ord(" ") != _octal(block[148:156]):
        if at == 0:
            raise BadInput(
                "The file is not a plain tar file.",
                "Where it is compressed, unpack it first (gunzip, unzstd).",
            )
        raise BadInput("The tar file is damaged: a header's checksum is wrong.")
    name, prefix = _text(block[:100]), _text(block[345:500])
    ustar = block[257:263] == b"ustar\0"  # GNU's old header keeps other things where ustar has the prefix
    return _Header(f"{prefix}/{name}" if ustar and prefix else name, block[156:157], _number(block[124:136]))


def _number(raw: bytes) -> int:
    """A header's number: octal digits, or base 256 where the first bit is set (GNU, for 8 GiB and more)."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    number = _octal(raw)
    if number < 0:
        raise BadInput("The tar file is damaged: a header's number is none.")
    return number


def _octal(raw: bytes) -> int:
    """The number octal digits write (0 where there are none), or -1 for anything else."""
    digits = raw.strip(b" \0")
    return int(digits or b"0", 8) if all(48 <= d <= 55 for d in digits) else -1


def _text(raw: bytes) -> str:
    try:
        return raw.partition(b"\0")[0].decode()
    except UnicodeDecodeError as cause:
        raise BadInput("A name in the tar file is not UTF-8.") from cause


def _extension(file: BinaryIO, header: _Header, at: int, length: int) -> dict[str, str]:
    """What an extension header says of the member after it; a global one may say nothing that matters."""
    if header.size > MAX_EXTENSION_BYTES or header.size > length - at:
        raise BadInput(f"An extension header of the tar file claims {header.size} bytes.")
    file.seek(at)
    data = file.read(header.size)
    if header.kind == GNU_LONG_NAME:
        return {"path": _text(data)}
    said = dict(_pax_records(data))
    if header.kind == PAX_GLOBAL:
        if said.keys() & {"path", "size"}:
            raise BadInput("The tar file gives all its members one name or size.")
        return {}
    if any(key.startswith("GNU.sparse") for key in said):
        raise BadInput("The tar file holds a sparse file; an OCI layout holds none.")
    return {k: v for k, v in said.items() if k in ("path", "size")}


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """`LENGTH KEY=VALUE\\n`, LENGTH being that of the whole record."""
    while data:
        digits, space, _ = data.partition(b" ")
        size = int(digits) if digits.isdigit() and len(digits) < 6 else 0
        key, equals, value = data[len(digits) + 1 : size - 1].partition(b"=")
        if not space or not equals or data[size - 1 : size] != b"\n":  # also where it is too short
            raise BadInput("An extension header of the tar file is damaged.")
        if key in (b"path", b"size"):
            yield _text(key), _text(value)
        elif key.startswith(b"GNU.sparse"):
            yield "GNU.sparse", ""
        data = data[size:]


def _pax_size(said: dict[str, str]) -> int:
    text = said["size"]
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadInput("An extension header of the tar file is damaged.")
    return int(text)


def _place(name: str) -> str:
    """The member's name without `./` and a closing `/`, checked; the folder itself is `.`."""
    name = name.removeprefix("./").removesuffix("/")
    return name if name in ("", ".") else check_path(name)


def _check_inside(name: str, size: int, at: int, length: int) -> None:
    if size > length - at:
        raise BadInput(f"The tar file ends in the middle of {name!r}.")


def _is_file(header: _Header, said: dict[str, str], size: int) -> bool:
    """Whether it is a regular file; False for a folder. Raises BadInput for what is neither."""
    folder = header.kind == FOLDER or said.get("path", header.name).endswith("/")
    if header.kind not in (*FILE_KINDS, FOLDER) or (folder and size):
        what = REFUSED.get(header.kind, "neither file nor folder")
        raise BadInput(f"{header.name!r} in the tar file is {what}; an OCI layout holds plain files.")
    return not folder


def chunks(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """The member's bytes, piece by piece."""
    at, left = member.offset, member.size
    while left:
        file.seek(at)  # others read the same file between two pieces
        data = file.read(min(CHUNK, left))
        if not data:
            raise BadInput("The tar file became shorter while it was read.")
        yield data
        at, left = at + len(data), left - len(data)


def pack(members: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """A tar file of regular files (name, size, bytes), the same bytes for the same members: no times, no owners."""
    written = 0
    for name, size, data in members:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        header = info.tobuf(tarfile.PAX_FORMAT)
        yield header
        found = 0
        for chunk in data:
            found += len(chunk)
            yield chunk
        if found != size:
            raise BadInput(f"{name} has {found} bytes, not {size}.")
        yield bytes(-size % BLOCK)
        written += len(header) + size + -size % BLOCK
    yield bytes(2 * BLOCK + -(written + 2 * BLOCK) % RECORD)
