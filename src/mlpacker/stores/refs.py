"""Names, versions, and what a REF means.

A REF is `name` (the latest packed), `name:version`, `name@sha256:…`, `sha256:…`, or a unique beginning of a digest.
A name wins over a digest that begins alike.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ..errors import BadDescription, NotFound
from . import Entry, Index, is_digest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
"""What the OCI distribution specification allows as a tag, so that every version can be pushed under its own name."""
LATEST = "latest"
"""The version a package without one is filed under. It moves on with each packing."""
PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})", re.ASCII)


@dataclass(frozen=True)
class Ref:
    """A REF taken apart. digest: a whole digest, or the beginning of one, without `sha256:`."""

    name: str | None = None
    version: str | None = None
    digest: str | None = None

    @property
    def tag(self) -> str:
        """The name an entry has in the index."""
        return f"{self.name}:{self.version or LATEST}"


def check_name(name: str) -> str:
    """Raises BadDescription where it can't be a package's name."""
    if not NAME.fullmatch(name):
        raise BadDescription(
            f"{name!r} can't be a package's name.",
            "Use letters, digits, dots, dashes and underscores, at most 128, a letter or digit first.",
        )
    return name


def check_version(version: str) -> str:
    """Raises BadDescription where it can't be a version."""
    if not VERSION.fullmatch(version):
        raise BadDescription(
            f"{version!r} can't be a version.",
            "Use letters, digits, dots, dashes and underscores, at most 128, no dot or dash first.",
        )
    return version


def parse_ref(text: str) -> Ref:
    """Take a REF apart. `name` alone has neither version nor digest. Raises BadDescription."""
    named, at, digest = text.partition("@")
    if at:
        return Ref(name=check_name(named), digest=_prefix(digest, text))
    if text.startswith("sha256:"):
        return Ref(digest=_prefix(text, text))
    name, colon, version = text.partition(":")
    return Ref(check_name(name), check_version(version) if colon else None)


def _prefix(digest: str, text: str) -> str:
    match = PREFIX.fullmatch(digest)
    if match is None:
        raise BadDescription(
            f"{text!r} names no package.", "A digest is sha256: and 6 to 64 hexadecimal digits."
        )
    return match[1]


def find(index: Index, text: str) -> Entry:
    """The entry a REF means. Raises NotFound with near names, BadDescription where it is none or means several."""
    ref = parse_ref(text)
    if ref.digest is None:
        found = _by_name(index, ref)
        if found is None and ref.version is None and PREFIX.fullmatch(text):
            found = _by_digest(index, Ref(digest=text))
    else:
        found = _by_digest(index, ref)
    if found is None:
        raise _not_found(index, text)
    return found


def _by_name(index: Index, ref: Ref) -> Entry | None:
    if ref.version is not None:
        return next((e for e in index if e.ref == ref.tag), None)
    mine = [e for e in index if name_of(e) == ref.name]
    return next((e for e in reversed(mine) if e.ref), mine[-1] if mine else None)


def _by_digest(index: Index, ref: Ref) -> Entry | None:
    found = {e.digest: e for e in packages(index) if e.digest.startswith(f"sha256:{ref.digest}")}
    if ref.name is not None:
        named = {e.digest for e in index if name_of(e) == ref.name}
        found = {d: e for d, e in found.items() if d in named}
    if len(found) > 1:
        several = ", ".join(f"{e.ref or 'unnamed'} ({d[:19]})" for d, e in found.items())
        raise BadDescription(f"{ref.digest} begins several digests: {several}.", "Give more of it.")
    return next(iter(found.values()), None)


def packages(index: Index) -> Index:
    """The entries that stand for themselves: not what hangs on a package."""
    return tuple(e for e in index if e.subject is None)


def name_of(entry: Entry) -> str | None:
    """The name part of an entry's `name:version`; where that was taken from it, the name it was packed under."""
    return entry.ref.partition(":")[0] if entry.ref else entry.annotations.get(PACKED_AS)


PACKED_AS = "vnd.mlpacker.name"
"""On an entry without `name:version`: the name it once had, so that `name@sha256:…` still finds it."""


def _not_found(index: Index, text: str) -> NotFound:
    known = {e.ref for e in packages(index) if e.ref} | {n for e in packages(index) if (n := name_of(e))}
    near = difflib.get_close_matches(text, sorted(known), n=3, cutoff=0.5)
    hint = f"Near it: {', '.join(near)}." if near else "mlpacker ls lists what is here."
    return NotFound(f"There is no package {text!r} here.", hint, near=near)


def short(digest: str) -> str:
    """Enough of a digest to show a person."""
    return digest[: len("sha256:") + 12]


__all__ = [
    "LATEST", "PACKED_AS", "Ref", "check_name", "check_version", "find", "is_digest", "name_of", "packages", "parse_ref",
    "short",
]  # fmt: skip
