"""What an environment holds, as values: the requirements asked for, and the lock that answers them.

A lock names exact versions and the hashes of the wheels that may serve them, per platform. It holds nothing of the
machine or the day it was made on (no addresses, paths or dates of now), so the same requirements give the same bytes.
"""

from __future__ import annotations

from datetime import date

import msgspec
from packaging.requirements import InvalidRequirement, Requirement

from mlpacker.environments.interpreters import canonical
from mlpacker.errors import BadDescription, EnvironmentFailed

SCHEMA = 1
PLATFORMS = ("x86_64-linux", "aarch64-linux", "arm64-macos")


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an environment shall hold: Python "3.11", PEP 508 requirements, and the date they are resolved as of.

    Without `as_of` the date is derived from the pins (see resolve.py).
    """

    python: str
    requirements: tuple[str, ...] = ()
    as_of: date | None = None


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One distribution. `hashes` are those of its wheels for the platform ("sha256:…").

    `extras` are the runtime's extras that need it; empty: always installed. `wheel` is the file name of a wheel that
    the package carries itself, for what no index has.
    """

    name: str
    version: str
    hashes: tuple[str, ...]
    extras: tuple[str, ...] = ()
    wheel: str | None = None


class PlatformLock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pins of one platform; `status` is "locked" or "unavailable", the latter with its `reason`.

    `apart` are the runtime's extras that can't live beside the pins on this platform.
    """

    status: str
    reason: str = ""
    pins: tuple[Pin, ...] = ()
    apart: tuple[str, ...] = ()


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An environment, locked. `extras` says of each runtime extra "together" or "apart: reason".

    `libraries` are shared libraries that the wheels need and none ships ("libgomp.so.1").
    """

    schema: int
    python: str
    as_of: date | None
    platforms: dict[str, PlatformLock]
    extras: dict[str, str] = {}
    libraries: tuple[str, ...] = ()


def encode(lock: Lock) -> bytes:
    """The canonical bytes of a lock: sorted keys, no spaces; equal locks give equal bytes."""
    return msgspec.json.encode(lock, order="sorted")


def decode(data: bytes) -> Lock:
    """Read a lock. Raises BadDescription when it is not one, or one of a later kind."""
    try:
        lock = msgspec.json.decode(data, type=Lock)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadDescription(f"The lock can't be read: {error}.") from error
    if lock.schema != SCHEMA:
        raise BadDescription(
            f"The lock is of kind {lock.schema}, this mlpacker reads {SCHEMA}.", "Update mlpacker."
        )
    return lock


def pins_for(lock: Lock, platform: str, extras: tuple[str, ...] = ()) -> tuple[Pin, ...]:
    """The pins to install on `platform` with these runtime extras.

    Raises EnvironmentFailed when the platform is not locked or an extra can't live in this environment.
    """
    locked = lock.platforms.get(platform)
    if locked is None or locked.status != "locked":
        why = f" ({locked.reason})" if locked is not None and locked.reason else ""
        raise EnvironmentFailed(
            f"The package is not locked for {platform}{why}.",
            f"Pack it again on {platform}.",
            platform=platform,
        )
    for extra in extras:
        if extra in locked.apart or lock.extras.get(extra, "").startswith("apart"):
            raise EnvironmentFailed(
                f"The runtime's extra {extra} can't live beside the pins: {lock.extras.get(extra, 'apart')}.",
                extra=extra,
            )
    return tuple(pin for pin in locked.pins if not pin.extras or set(pin.extras) & set(extras))


def with_libraries(lock: Lock, libraries: tuple[str, ...]) -> Lock:
    """The lock with the shared libraries its installed wheels were seen to need."""
    return msgspec.structs.replace(lock, libraries=tuple(sorted(libraries)))


def requirement(text: str) -> Requirement:
    """A PEP 508 requirement. Raises BadDescription naming the text."""
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise BadDescription(
            f"{text!r} is not a requirement: {str(error).splitlines()[0]}.", 'Write it like "pandas==2.2.3".'
        ) from error


def pinned(text: str) -> tuple[str, str] | None:
    """(canonical name, version) of a requirement that allows exactly one version, else None."""
    wanted = requirement(text)
    exact = [clause for clause in wanted.specifier if clause.operator in ("==", "===")]
    if len(exact) == 1 and not exact[0].version.endswith(".*"):
        return canonical(wanted.name), exact[0].version
    return None
