"""The runtime's wheel: what pipeline environments get of ours, by path and hash, never by name from an index.

An installed mlpacker carries it as a data file (`mlpacker/_runtime`, put there by `hatch_build.py`). In an editable
clone it is built from `runtime/` whenever those sources changed; no network is used for that.
Standard library only: the build hook loads this file by its path.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlpacker_runtime.errors import EnvironmentFailed

CARRIED = Path(__file__).resolve().parents[1] / "_runtime"
CLONE = Path(__file__).resolve().parents[3] / "runtime"
PATTERN = "mlpacker_runtime-*.whl"
_BUILD_SECONDS = 120


@dataclass(frozen=True)
class RuntimeWheel:
    """A wheel on disk; sha256 in hexadecimal digits."""

    path: Path
    sha256: str
    version: str


def runtime_wheel(cache: Path, carried: Path = CARRIED, clone: Path = CLONE) -> RuntimeWheel:
    """The wheel this mlpacker came with, or one built from the clone's sources and kept under `cache`.

    Raises EnvironmentFailed when neither is there, or the build fails.
    """
    wheels = sorted(carried.glob(PATTERN))
    if len(wheels) == 1:
        return read(wheels[0])
    if (clone / "pyproject.toml").is_file():
        return _kept(cache / "runtime-wheel" / hash_of(clone), clone)
    raise EnvironmentFailed(
        f"This mlpacker carries {len(wheels)} runtime wheels in place of one.", "Install it again."
    )


def read(path: Path) -> RuntimeWheel:
    """The value of a wheel on disk; its version is read from its name (PEP 427)."""
    return RuntimeWheel(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.name.split("-")[1])


def _kept(folder: Path, clone: Path) -> RuntimeWheel:
    """The one wheel in `folder`, built unless it is there. Builders at the same time don't disturb each other."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
            wheel = build(clone, Path(scratch) / "out", os.environ)
            try:
                wheel.parent.rename(folder)
            except OSError:
                if not folder.is_dir():  # else: somebody was faster, and theirs is as good
                    raise
    return read(next(folder.glob(PATTERN)))


def build(project: Path, out: Path, environ: Mapping[str, str]) -> Path:
    """Build the wheel of `project` into `out` with the hatchling beside this interpreter. The same sources give the same bytes.

    Raises EnvironmentFailed.
    """
    argv = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(out.resolve()),
    ]
    told = {
        name: value for name, value in environ.items() if name != "SOURCE_DATE_EPOCH"
    }  # hatchling's own is fixed
    done = subprocess.run(
        argv,
        cwd=project,
        env=told,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=_BUILD_SECONDS,
    )
    wheels = sorted(out.glob(PATTERN))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or done.stdout.strip() or "no wheel came out").splitlines()[-1]
        raise EnvironmentFailed(
            f"The runtime's wheel can't be built: {reason}.", "In a clone, run make setup."
        )
    return wheels[0]


def hash_of(project: Path) -> str:
    """A hash over the names and bytes of all that goes into the wheel. 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in _sources(project):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(project).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def _sources(project: Path) -> Iterator[Path]:
    yield project / "pyproject.toml"
    yield project / "README.md"
    for path in sorted((project / "src").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path
