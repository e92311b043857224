"""Locks → environments on disk: made once, kept under the key of what they hold, found again at once.

An environment is built in its final place under a file lock, and a marker is written last: what has no marker was
interrupted and is built anew. It is never changed afterwards, so another with the same packages can share its files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import msgspec

from mlpacker.environments import interpreters
from mlpacker.environments.index import Progress, silent
from mlpacker.environments.lock import Lock, Pin, pins_for
from mlpacker.environments.uv import INSTALL_SECONDS, Indexes, uv
from mlpacker.errors import EnvironmentFailed

_MARKER = ".mlpacker-complete"


class RuntimeFile(Protocol):
    """The runtime's wheel, as runtime_wheel.RuntimeWheel gives it."""

    @property
    def path(self) -> Path: ...

    @property
    def sha256(self) -> str: ...


class Environment(msgspec.Struct, frozen=True):
    """An environment on this machine: its interpreter, its key, its folder."""

    python: Path
    key: str
    folder: Path


def key_of(pins: Iterable[Pin], python: str, platform: str, runtime_sha256: str) -> str:
    """The name of an environment: a hash of all that is in it. 32 hexadecimal digits."""
    said = msgspec.json.encode(
        [[(pin.name, pin.version, pin.hashes) for pin in pins], python, platform, runtime_sha256]
    )
    return hashlib.sha256(said).hexdigest()[:32]


def ensure(
    lock: Lock,
    home: Path,
    runtime: RuntimeFile,
    *,
    extras: tuple[str, ...] = (),
    wheels: Path | None = None,
    indexes: Indexes = Indexes(),
    progress: Progress = silent,
) -> Environment:
    """The environment of `lock` with the runtime in it; made under `home`/envs unless it is there.

    `wheels` is a folder holding wheels; no index is asked then unless a wheel is missing from it. Carried wheels (pins
    with `wheel`) are looked for there too. Callers at the same time wait for each other.
    Raises EnvironmentFailed: platform not locked, no interpreter, a wheel that can't be had or has other bytes.
    """
    environment = place(lock, home, runtime, extras)
    if is_there(environment):
        return environment
    pins = pins_for(lock, interpreters.this_platform(), extras)
    with _locked(home / "envs" / f"{environment.key}.lock", progress):
        if not is_there(environment):
            try:
                _build(environment, _interpreter(lock.python), pins, runtime, wheels, indexes, progress)
            except BaseException:
                shutil.rmtree(environment.folder, ignore_errors=True)
                raise
    return environment


def place(lock: Lock, home: Path, runtime: RuntimeFile, extras: tuple[str, ...] = ()) -> Environment:
    """Where the environment of `lock` is or would be. Raises EnvironmentFailed where the platform is not locked."""
    here = interpreters.this_platform()
    key = key_of(pins_for(lock, here, extras), lock.python, here, runtime.sha256)
    return Environment(home / "envs" / key / "bin" / "python", key, home / "envs" / key)


def size(folder: Path) -> int:
    """Bytes on disk of an environment; a file linked from uv's cache counts, its interpreter does not."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def prune(home: Path, keep: Iterable[str]) -> tuple[str, ...]:
    """Remove the environments under `home` whose keys are not in `keep`, half-built ones too; the keys removed.

    One that is being made at the moment is left alone.
    """
    kept, removed = set(keep), []
    for folder in sorted((home / "envs").glob("*")):
        if not folder.is_dir() or folder.name in kept:
            continue
        with open(home / "envs" / f"{folder.name}.lock", "a", encoding="ascii") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            (folder / _MARKER).unlink(missing_ok=True)  # first, so that a half-removed one is never used
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return tuple(removed)


def _interpreter(python: str) -> interpreters.Interpreter:
    found = interpreters.find(python)
    if found is None:
        raise EnvironmentFailed(
            f"The package needs Python {python}, and none was found here.",
            f"Install Python {python} (for instance: uv python install {python}).",
            python=python,
        )
    return found


def is_there(environment: Environment) -> bool:
    """Whether it was made to the end."""
    return (environment.folder / _MARKER).exists() and environment.python.exists()


def _build(
    environment: Environment,
    interpreter: interpreters.Interpreter,
    pins: tuple[Pin, ...],
    runtime: RuntimeFile,
    wheels: Path | None,
    indexes: Indexes,
    progress: Progress,
) -> None:
    shutil.rmtree(environment.folder, ignore_errors=True)
    _check(runtime)
    if wheels is not None:
        indexes = Indexes(
            find_links=(str(wheels.resolve()), *indexes.find_links), only_links=_all_in(wheels, pins)
        )
    kin = key_of(pins, interpreter.full, str(interpreter.base), "")
    twin = _twin(environment.folder.parent, kin)
    if twin is not None and _copied(twin, environment.folder):
        progress("making an environment: the packages are here, the runtime is new")
        _install(environment, (), runtime, indexes)
    else:
        progress(f"making an environment: Python {interpreter.full}, {len(pins)} packages")
        argv = ["venv", "--quiet", "--no-project", "--python", str(interpreter.path), str(environment.folder)]
        uv(argv, cwd=environment.folder.parent, failing="The environment can't be made")
        _install(environment, pins, runtime, indexes)
    (environment.folder / _MARKER).write_text(kin + "\n")


def _install(environment: Environment, pins: tuple[Pin, ...], runtime: RuntimeFile, indexes: Indexes) -> None:
    with tempfile.TemporaryDirectory(prefix="mlpacker-install-") as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(requirements_text(pins, runtime))
        argv = ["pip", "install", "--quiet", "--python", str(environment.python), "--no-deps"]
        argv += ["--require-hashes", "--only-binary", ":all:", "--reinstall-package", "mlpacker-runtime"]
        argv += ["--compile-bytecode", "-r", str(wanted)]
        uv(
            argv,
            cwd=Path(scratch),
            indexes=indexes,
            seconds=INSTALL_SECONDS,
            failing="The environment can't be installed",
        )


def _twin(folder: Path, kin: str) -> Path | None:
    """An environment of the same packages and interpreter with another runtime: after an update there is one."""
    for marker in folder.glob(f"*/{_MARKER}"):
        with suppress(OSError):
            if marker.read_text().strip() == kin and (marker.parent / "bin" / "python").exists():
                return marker.parent
    return None


def _copied(twin: Path, folder: Path) -> bool:
    """Link its files, which nobody changes, bytecode too: minutes of work on a small machine.

    Its scripts stay: their first lines name it.
    """

    def left(place: str, names: list[str]) -> list[str]:
        scripts = [n for n in names if not n.startswith("python")] if Path(place) == twin / "bin" else []
        return [*scripts, _MARKER]

    try:
        shutil.copytree(twin, folder, symlinks=True, copy_function=os.link, ignore=left)
    except (OSError, shutil.Error):  # it was removed meanwhile, or the file system has no links
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def requirements_text(pins: Iterable[Pin], runtime: RuntimeFile) -> str:
    """What is installed, as a requirements file with hashes: the pins, and the runtime by path."""
    lines = [f"{pin.name}=={pin.version} " + " ".join(f"--hash={one}" for one in pin.hashes) for pin in pins]
    return "\n".join(
        [*lines, f"mlpacker-runtime @ {runtime.path.resolve().as_uri()} --hash=sha256:{runtime.sha256}", ""]
    )


def _check(runtime: RuntimeFile) -> None:
    if hashlib.sha256(runtime.path.read_bytes()).hexdigest() != runtime.sha256:
        raise EnvironmentFailed(
            f"{runtime.path.name} is not the runtime that belongs to this mlpacker.",
            "Install mlpacker again.",
        )


def _all_in(wheels: Path, pins: tuple[Pin, ...]) -> bool:
    """Does the folder hold a wheel of every pin? Only then no index needs asking."""
    held = {hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels.glob("*.whl")}
    return all(any(one.removeprefix("sha256:") in held for one in pin.hashes) for pin in pins)


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock file at `path`; the system lets go of it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path, "a", encoding="ascii") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another mlpacker that makes the same environment")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
