"""Wheels as files: the very ones a lock names, to travel with a package, and those built from folders and repositories.

uv has no command that saves or builds wheels of a repository, so this file calls pip, with uv's index settings told in
pip's variables. A wheel counts only when its hash is one of the lock's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from mlpacker.environments.index import Progress, silent
from mlpacker.environments.install import RuntimeFile
from mlpacker.environments.interpreters import Interpreter, canonical
from mlpacker.environments.lock import Lock, Pin, pinned, pins_for, requirement
from mlpacker.environments.pythons import has_wheels
from mlpacker.environments.uv import INSTALL_SECONDS, Indexes
from mlpacker.errors import EnvironmentFailed

# pip takes the tags one by one, the best first; the same set that the lock was resolved for (resolve.py).
_GLIBC = range(40, 4, -1)
_TAGS = {
    "x86_64-linux": (
        *(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC),
        "manylinux2014_x86_64",
        "linux_x86_64",
    ),
    "aarch64-linux": (
        *(f"manylinux_2_{minor}_aarch64" for minor in _GLIBC),
        "manylinux2014_aarch64",
        "linux_aarch64",
    ),
    "arm64-macos": ("macosx_14_0_arm64",),
}
_LEFT_BEHIND = {
    ".venv",
    "venv",
    "build",
    "dist",
    "__pycache__",
    "node_modules",
    ".mypy_cache",
    ".pytest_cache",
}
_EPOCH = "315532800"  # 1 January 1980, the oldest a zip file can tell: the same sources give the same wheel
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]+@")


def download_wheels(
    lock: Lock,
    platform: str,
    into: Path,
    runtime: RuntimeFile,
    *,
    extras: tuple[str, ...] = (),
    carried: Path | None = None,
    indexes: Indexes = Indexes(),
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Every wheel of the lock for `platform`, and the runtime's, in folder `into`; their paths, sorted.

    `install.ensure(…, wheels=into)` then needs no index. `carried` is the folder of wheels the package brings itself.
    Raises EnvironmentFailed when a wheel can't be had, or only with other bytes than the lock names.
    """
    into.mkdir(parents=True, exist_ok=True)
    pins = pins_for(lock, platform, extras)
    for pin in pins:
        if pin.wheel is not None and carried is not None:
            shutil.copyfile(carried / pin.wheel, into / pin.wheel)
    wanted = [pin for pin in pins if not _held(pin, into)]
    if wanted:
        progress(f"fetching {len(wanted)} wheels for {platform}")
        _download(wanted, lock.python, platform, into, indexes)
    shutil.copyfile(runtime.path, into / runtime.path.name)
    for pin in pins:
        if not _held(pin, into):
            raise EnvironmentFailed(
                f"No wheel of {pin.name} {pin.version} with a hash of the lock was found."
            )
    return tuple(sorted(into.glob("*.whl")))


def build_local(
    source: str | Path,
    into: Path,
    interpreter: Interpreter,
    indexes: Indexes = Indexes(),
) -> Path:
    """Build a wheel for `interpreter` into `into`, of a folder, an sdist, a repository (`git+https://…@commit`), or of
    a version on the index that has no wheel (`name==1.0`).

    A folder is copied first, so that nothing is left in it. Runs the project's own build code.
    Raises EnvironmentFailed with the build's last words.
    """
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlpacker-build-") as scratch:
        made = Path(scratch) / "wheels"
        folder = _folder(source)
        if folder is not None and folder.is_dir():
            shutil.copytree(folder, Path(scratch) / folder.name, ignore=_ignored, symlinks=True)
            source = Path(scratch) / folder.name
        elif folder is not None:
            source = folder.resolve()
        asked = (
            Path(scratch) / "asked.txt"
        )  # an address may hold a password, and a command line can be read by all
        asked.write_text(f"{source}\n")
        what = ["-r", str(asked)] if folder is None else [str(source)]
        _pip(
            ["--python", str(interpreter.path), "wheel", "--no-deps", "--wheel-dir", str(made), *what],
            Path(scratch),
            indexes,
            failing=f"No wheel could be built of {_shown(str(source))}",
        )
        wheel = next(made.glob("*.whl"))
        return Path(shutil.move(wheel, into / wheel.name))


def carry(
    requirements: Iterable[str],
    into: Path,
    interpreter: Interpreter,
    *,
    sources: Mapping[str, str] = MappingProxyType({}),
    allow_build: bool = False,
    indexes: Indexes = Indexes(),
    progress: Progress = silent,
) -> tuple[str, ...]:
    """The same requirements, with wheels in `into` for what no index has; `resolve(…, carried=into)` finds them there.

    That is a requirement with an address (`mine @ git+https://…`), one whose distribution is in `sources` (name →
    address or folder: what the training interpreter has from elsewhere, captured.strangers), and with `allow_build`
    also a pinned version that has no wheel. Builds run the project's own code. Raises EnvironmentFailed.
    """
    told = []
    for text in requirements:
        wanted = requirement(text)
        pin = pinned(text)
        source = wanted.url or sources.get(canonical(wanted.name))
        if source is None and pin is not None and allow_build:
            have = has_wheels((text,), interpreter.python, interpreter.platform, indexes, None)
            source = None if have else f"{pin[0]}=={pin[1]}"
        if source is None:
            told.append(text)
            continue
        progress(f"building a wheel of {wanted.name}")
        wheel = build_local(source, into, interpreter, indexes)
        extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
        marker = f"; {wanted.marker}" if wanted.marker else ""
        told.append(f"{canonical(wanted.name)}{extras}=={wheel.name.split('-')[1]}{marker}")
    return tuple(told)


def _folder(source: str | Path) -> Path | None:
    """The path that a source means, None for a repository's address."""
    text = str(source)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return Path(text) if "://" not in text and Path(text).exists() else None


def _shown(text: str) -> str:
    return _CREDENTIALS.sub(r"\1", text)


def _ignored(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in _LEFT_BEHIND or name.endswith(".egg-info")}


def _held(pin: Pin, folder: Path) -> bool:
    stem = f"{pin.name.replace('-', '_')}-"
    alike = [path for path in folder.glob("*.whl") if path.name.lower().replace(".", "_").startswith(stem)]
    return any(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" in pin.hashes for path in alike)


def _download(pins: Iterable[Pin], python: str, platform: str, into: Path, indexes: Indexes) -> None:
    with tempfile.TemporaryDirectory(prefix="mlpacker-download-") as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(
            "".join(f"{p.name}=={p.version} {' '.join(f'--hash={one}' for one in p.hashes)}\n" for p in pins)
        )
        abi = f"cp{python.replace('.', '')}"
        argv = ["download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(into)]
        argv += ["--python-version", python, "--implementation", "cp"]
        argv += [word for one in (abi, "abi3", "none") for word in ("--abi", one)]
        argv += [word for tag in _TAGS[platform] for word in ("--platform", tag)]
        _pip(
            [*argv, "-r", str(wanted)],
            Path(scratch),
            indexes,
            failing=f"The wheels for {platform} can't be had",
        )


def _pip(argv: list[str], cwd: Path, indexes: Indexes, *, failing: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        *argv,
        *indexes.arguments(),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=_environ(indexes),
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailed(f"{failing}: no answer within {INSTALL_SECONDS} seconds.") from error
    if done.returncode != 0:
        lines = [
            line.strip() for line in done.stderr.splitlines() if line.strip().upper().startswith("ERROR")
        ]
        reason = (lines or done.stderr.strip().splitlines() or ["pip gave no reason"])[-1].removeprefix(
            "ERROR: "
        )
        raise EnvironmentFailed(f"{failing}: {_shown(reason)}.", reason=reason)


def _environ(indexes: Indexes) -> dict[str, str]:
    """Our environment with uv's index settings in pip's variables, which may hold credentials and so are no arguments."""
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    default = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    if default:
        environ["PIP_INDEX_URL"] = (
            default.rpartition("=")[2] if "://" not in default.split("=")[0] else default
        )
    more = (
        *indexes.index,
        *environ.get("UV_INDEX", "").split(),
        *environ.get("PIP_EXTRA_INDEX_URL", "").split(),
    )
    if more:
        environ["PIP_EXTRA_INDEX_URL"] = " ".join(more)
    links = (
        *indexes.pages(),
        *environ.get("UV_FIND_LINKS", "").split(","),
        *environ.get("PIP_FIND_LINKS", "").split(),
    )
    environ["PIP_FIND_LINKS"] = " ".join(filter(None, links))
    environ["SOURCE_DATE_EPOCH"] = _EPOCH
    return environ
