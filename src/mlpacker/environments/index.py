"""What an index answers, asked through `uv pip compile`: versions, their wheels, and when these were uploaded.

uv writes its answers as pylock.toml (PEP 751), which has the upload times that indexes tell (PEP 700).
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path

import msgspec

from mlpacker.environments.interpreters import canonical
from mlpacker.environments.uv import Indexes, uv

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# uv's names of the platforms: manylinux_2_28 is what Debian 10, Ubuntu 18.10, RHEL 8 and later run.
TARGETS = {
    "x86_64-linux": "x86_64-manylinux_2_28",
    "aarch64-linux": "aarch64-manylinux_2_28",
    "arm64-macos": "aarch64-apple-darwin",
}


def glibc() -> tuple[int, int]:
    """The version of this system's C library; (0, 0) where it is another one."""
    name, _, version = (
        (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ") if sys.platform == "linux" else ("", "", "")
    )
    major, _, minor = version.partition(".")
    return (int(major), int(minor)) if name == "glibc" and minor.isdigit() else (0, 0)


# Where nothing older will do, the packing platform is what this very system runs; uv knows versions from 31 to 40.
_NEWER_TARGETS = {
    f"{machine}-linux": f"{machine}-manylinux_2_{min(glibc()[1], 40)}"
    for machine in ("x86_64", "aarch64")
    if glibc() >= (2, 31)
}
Progress = Callable[[str], None]


def silent(text: str) -> None:
    """Progress that is told to nobody."""


class Wheel(msgspec.Struct, frozen=True):
    """A file of an index. `uploaded` is None where the index does not say."""

    filename: str
    sha256: str
    uploaded: datetime | None


class Found(msgspec.Struct, frozen=True):
    """One distribution of a resolution: its wheels for the platform, and all its `files` (sdist too)."""

    name: str
    version: str
    wheels: tuple[Wheel, ...]
    files: tuple[Wheel, ...]


class Question(msgspec.Struct, frozen=True):
    """What all calls of one resolution share."""

    python: str
    indexes: Indexes
    folder: Path
    targets: dict[str, str]
    carried: dict[str, str]  # file name by sha256, of wheels that the package brings itself
    local: frozenset[str]  # names that folders of wheels have; a folder tells no upload times
    progress: Progress = silent


def for_this_system(question: Question, platform: str) -> Question | None:
    """The same question with `platform` meaning just this system, where that takes more wheels; else None."""
    newer = _NEWER_TARGETS.get(platform)
    return msgspec.structs.replace(question, targets=TARGETS | {platform: newer}) if newer else None


@contextmanager
def asking(python: str, indexes: Indexes, carried: Path | None, progress: Progress) -> Iterator[Question]:
    """A question with a folder for its scratch files."""
    files = sorted(carried.glob("*.whl")) if carried is not None else []
    if carried is not None and files:
        links = (str(carried.resolve()), *indexes.find_links)
        indexes = msgspec.structs.replace(indexes, find_links=links)
    hashes = {hashlib.sha256(file.read_bytes()).hexdigest(): file.name for file in files}
    with tempfile.TemporaryDirectory(prefix="mlpacker-resolve-") as folder:
        yield Question(python, indexes, Path(folder), TARGETS, hashes, _names_in(indexes), progress)


def _names_in(indexes: Indexes) -> frozenset[str]:
    folders = [Path(link) for link in indexes.find_links if "://" not in link]
    return frozenset(
        canonical(file.name.partition("-")[0]) for folder in folders for file in folder.glob("*.whl")
    )


def ask(
    question: Question,
    requirements: tuple[str, ...],
    platform: str | None,
    as_of: date | None,
    *,
    free: Iterable[str] = (),
    held: dict[str, str] | None = None,
    no_deps: bool = False,
) -> list[Found]:
    """What `requirements` resolve to on `platform` (None: on any) with what was uploaded before `as_of`.

    `free` names are not bound to that date, `held` ones are held at their versions. Raises Unmet where nothing fits.
    """
    text = ask_text(question, requirements, platform, as_of, free=free, held=held, no_deps=no_deps)
    return [_found(package) for package in tomllib.loads(text).get("packages", [])]


def ask_text(
    question: Question,
    requirements: tuple[str, ...],
    platform: str | None,
    as_of: date | None,
    *,
    form: str = "pylock.toml",
    free: Iterable[str] = (),
    held: dict[str, str] | None = None,
    no_deps: bool = False,
) -> str:
    """The same, as the text that uv writes in the given form."""
    scratch = Path(tempfile.mkdtemp(dir=question.folder))
    asked, holds = scratch / "requirements.in", scratch / "constraints.txt"
    asked.write_text("\n".join(requirements) + "\n")
    holds.write_text("".join(f"{name}=={version}\n" for name, version in sorted((held or {}).items())))
    argv = [
        *("pip", "compile", "--quiet", str(asked), "--constraints", str(holds)),
        *("--format", form, "--no-header", "--python", sys.executable, "--python-version", question.python),
        *(("--python-platform", question.targets.get(platform, platform)) if platform else ("--universal",)),
        *(("--only-binary", ":all:") if platform else ()),
        *(("--no-deps",) if no_deps else ()),
        *(("--exclude-newer", f"{as_of.isoformat()}T00:00:00Z") if as_of else ()),
    ]
    for name in sorted({*free, *question.local} if as_of else ()):
        argv += ["--exclude-newer-package", f"{name}=false"]
    return uv(
        argv,
        cwd=scratch,
        indexes=question.indexes,
        failing=f"The requirements can't be locked for Python {question.python} on {platform or 'any platform'}",
    )


def _found(package: dict) -> Found:
    wheels = [package["archive"]] if "archive" in package else package.get("wheels", [])
    sources = [package["sdist"]] if "sdist" in package else []
    return Found(
        name=canonical(package["name"]),
        version=package.get("version", "0"),
        wheels=tuple(_wheel(file) for file in wheels),
        files=tuple(_wheel(file) for file in (*wheels, *sources)),
    )


def _wheel(file: dict) -> Wheel:
    address = file.get("url") or file.get("path") or file.get("name", "")
    return Wheel(
        filename=file.get("name") or address.rpartition("/")[2].partition("#")[0],
        sha256=file.get("hashes", {}).get("sha256", ""),
        uploaded=file.get("upload-time"),
    )
