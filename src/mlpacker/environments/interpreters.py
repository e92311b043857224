"""Python interpreters on this machine: the one a model was trained with, and those clean environments are made from.

An interpreter is asked by a small script run with it, isolated (`-I`), so that no code of the user runs and none of
its packages is imported. The script works from Python 3.6 on: models outlive their interpreters.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from mlpacker.environments import ask_interpreter
from mlpacker.errors import EnvironmentFailed

OLDEST = (3, 10)  # what mlpacker-runtime runs on
_ASK = Path(ask_interpreter.__file__)
_ASK_SECONDS = 60
_CONDAS = ("miniconda3", "anaconda3", "miniforge3", "mambaforge")


class Interpreter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Python that answered. `python` is "3.11", `full` "3.11.7", `platform` one of lock.PLATFORMS or another name."""

    path: Path
    python: str
    full: str
    implementation: str
    platform: str
    prefix: Path
    base: Path

    @property
    def minor(self) -> tuple[int, int]:
        major, minor = self.python.split(".")
        return int(major), int(minor)


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One installed distribution. `origin` is "index", "editable", "local" or "git"; `source` its address, if not index."""

    name: str
    version: str
    modules: tuple[str, ...] = ()
    origin: str = "index"
    source: str = ""


class Installed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one interpreter has installed, by canonical distribution name (`scikit-learn`)."""

    distributions: dict[str, Distribution]

    @property
    def versions(self) -> dict[str, str]:
        return {name: found.version for name, found in self.distributions.items()}

    @property
    def top_level(self) -> dict[str, str]:
        """Importable top-level name → distribution (`sklearn` → `scikit-learn`)."""
        return {
            module: name for name, found in sorted(self.distributions.items()) for module in found.modules
        }


def inspect(path: Path) -> Interpreter:
    """The interpreter at `path`. Raises EnvironmentFailed when it does not run."""
    facts = _ask(path, "interpreter")
    return Interpreter(
        path=Path(facts["executable"] or path),
        python=facts["python"],
        full=facts["full"],
        implementation=facts["implementation"],
        platform=facts["platform"],
        prefix=Path(facts["prefix"]),
        base=Path(facts["base"]),
    )


def installed(interpreter: Interpreter) -> Installed:
    """What `interpreter` has installed, read from the metadata on its path; nothing is imported."""
    found: dict[str, Distribution] = {}
    for entry in _ask(interpreter.path, "installed")["distributions"]:
        found.setdefault(
            canonical(entry["name"]),
            Distribution(
                name=canonical(entry["name"]),
                version=entry["version"],
                modules=tuple(entry["modules"]),
                origin=entry["origin"],
                source=entry["source"],
            ),
        )
    return Installed(distributions=found)


def training(
    explicit: Path | None, environ: Mapping[str, str], wanted: Iterable[str] = ()
) -> Interpreter | None:
    """The interpreter the model was trained with, as far as can be told.

    `explicit` (--python) is taken as it is. Else the active virtual or conda environment, then `python3` and `python`
    on PATH, then our own; of these the one that has most of `wanted` (distribution names) installed, the first of equals.
    """
    if explicit is not None:
        return inspect(explicit)
    known = _unique(_answering(_likely(environ)))
    names = {canonical(name) for name in wanted}
    if not names:
        return next(known, None)
    return max(known, key=lambda one: len(names & installed(one).distributions.keys()), default=None)


def find(python: str, environ: Mapping[str, str] = os.environ) -> Interpreter | None:
    """An interpreter of minor version `python` ("3.11") to make clean environments from, or None.

    Looked for: our own, `python3.X` on PATH, uv's, pyenv's and conda's, and the usual folders.
    """
    for path in _places(python, environ):
        candidate = next(_answering([path]), None)
        if candidate is not None and candidate.python == python and candidate.implementation == "cpython":
            return candidate
    return None


def available(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Minor versions found here that the runtime runs on, newest first."""
    versions = [f"3.{minor}" for minor in range(20, OLDEST[1] - 1, -1)]
    return tuple(python for python in versions if find(python, environ) is not None)


def this_platform() -> str:
    """The platform this process runs on, as locks name it: "x86_64-linux", "aarch64-linux", "arm64-macos" …"""
    return ask_interpreter.interpreter()["platform"]


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return "-".join(part for part in name.lower().replace("_", "-").replace(".", "-").split("-") if part)


def _likely(environ: Mapping[str, str]) -> Iterator[Path]:
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if environ.get(variable):
            yield Path(environ[variable]) / "bin" / "python"
    for name in ("python3", "python"):
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            yield Path(found)
    yield Path(sys.executable)


def _unique(interpreters: Iterable[Interpreter]) -> Iterator[Interpreter]:
    seen = set()
    for candidate in interpreters:
        if candidate.prefix not in seen:
            seen.add(candidate.prefix)
            yield candidate


def _places(python: str, environ: Mapping[str, str]) -> Iterator[Path]:
    name, home = f"python{python}", Path(environ.get("HOME", "/nonexistent"))
    if sys.version_info[:2] == tuple(int(part) for part in python.split(".")):
        yield Path(sys.executable)
    for on_path in filter(None, environ.get("PATH", "").split(os.pathsep)):
        yield Path(on_path) / name
    managed = Path(environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")
    pyenv = Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    patterns = (
        (managed, f"cpython-{python}.*/bin/{name}"),
        (pyenv, f"{python}.*/bin/{name}"),
        (pyenv, f"{python}/bin/{name}"),
        (Path("/usr/local/bin"), name),
        (Path("/usr/bin"), name),
        (Path("/opt"), f"*/bin/{name}"),
        (Path("/opt/homebrew/bin"), name),
        (Path("/Library/Frameworks/Python.framework/Versions"), f"{python}/bin/{name}"),
        *((home / conda, f"bin/{name}") for conda in _CONDAS),
        *((home / conda, f"envs/*/bin/{name}") for conda in _CONDAS),
    )
    for folder, pattern in patterns:
        if folder.is_dir():
            yield from sorted(folder.glob(pattern), key=_by_patch, reverse=True)


def _by_patch(path: Path) -> list[int]:
    return [int(digits) for digits in "".join(c if c.isdigit() else " " for c in str(path)).split()]


def _answering(paths: Iterable[Path]) -> Iterator[Interpreter]:
    for path in paths:
        if not os.access(path, os.X_OK):
            continue
        try:
            yield inspect(path)
        except EnvironmentFailed:
            continue


def _ask(path: Path, what: str) -> dict:
    """Run the asking script with the interpreter at `path`; its JSON answer."""
    try:
        done = subprocess.run(
            [str(path), "-I", "-B", str(_ASK), what],
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EnvironmentFailed(
            f"{path} does not run as a Python interpreter.", "Name another with --python.", path=str(path)
        ) from error
