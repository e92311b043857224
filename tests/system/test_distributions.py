"""The two distributions, built and installed for real."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mlpacker.environments import interpreters
from mlpacker.environments.resolve import runtime_requirements
from mlpacker.environments.runtime_wheel import build, read, runtime_wheel
from mlpacker.errors import EnvironmentFailed
from mlpacker_runtime.brokers import EXTRAS
from mlpacker_runtime.manifest import Manifest, Stage, encode
from mlpacker_runtime.signature import Field

ROOT = Path(__file__).resolve().parents[2]
UV = str(Path(sys.executable).with_name("uv"))
COPIED = ("src", "runtime", "pyproject.toml", "hatch_build.py", "LICENSE", "README.md")
BOTH_ENDS = [
    ("3.10", "lowest-direct"),
    ("3.10", "highest"),
    ("3.11", "highest"),
    ("3.12", "highest"),
    ("3.13", "highest"),
]
IMPORT_ALL = """
import importlib, pkgutil, sys
for found in pkgutil.walk_packages(importlib.import_module(sys.argv[1]).__path__, sys.argv[1] + "."):
    if not found.name.endswith("__main__") and ".testing" not in found.name:
        importlib.import_module(found.name)
        print(found.name)
"""


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in argv], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources without what working on them leaves behind, and without git."""
    folder = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Path:
    """mlpacker's wheel, built from the clone."""
    return build_with_uv(clone, clone / "dist", "--wheel")


def build_with_uv(project: Path, out: Path, kind: str) -> Path:
    run(
        UV,
        "build",
        "--quiet",
        kind,
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        out,
        project,
        cwd=out.parent,
    )
    return next(path for path in out.iterdir() if path.suffix in (".whl", ".gz"))


def carried(wheel: Path, out: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        inner = [name for name in archive.namelist() if name.startswith("mlpacker/_runtime/")]
        assert len(inner) == 1
        return Path(archive.extract(inner[0], out))


def environment(folder: Path, python: Path, *installed: str | Path) -> Path:
    run(UV, "venv", "--quiet", "--no-project", "--python", python, folder, cwd=folder.parent)
    run(UV, "pip", "install", "--quiet", "--python", folder / "bin/python", *installed, cwd=folder.parent)
    return folder / "bin" / "python"


def test_the_runtime_is_built_from_a_clone_once_for_the_same_sources(clone: Path, tmp_path: Path) -> None:
    sources = tmp_path / "runtime"
    shutil.copytree(clone / "runtime", sources)
    first = runtime_wheel(tmp_path / "cache", tmp_path / "none", sources)
    built = first.path.stat().st_mtime_ns
    again = runtime_wheel(tmp_path / "cache", tmp_path / "none", sources)
    assert again == first
    assert again.path.stat().st_mtime_ns == built
    (sources / "src/mlpacker_runtime/errors.py").write_text("changed = True\n")
    assert runtime_wheel(tmp_path / "cache", tmp_path / "none", sources).sha256 != first.sha256


def test_the_same_sources_give_the_same_wheel_whatever_their_times_and_modes(
    clone: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "runtime"
    shutil.copytree(clone / "runtime", other)
    for path in other.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1, 1))
    before = os.umask(0o077)
    try:
        theirs = build(other, tmp_path / "theirs", {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})
    finally:
        os.umask(before)
    assert theirs.read_bytes() == build(clone / "runtime", tmp_path / "ours", os.environ).read_bytes()


def test_sources_that_do_not_build_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mlpacker-runtime'\n")
    with pytest.raises(EnvironmentFailed, match="can't be built"):
        build(tmp_path, tmp_path / "out", os.environ)


def test_a_clone_and_an_sdist_carry_the_same_runtime(clone: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build_with_uv(clone, tmp_path / "sdist", "--sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked")  # our own
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    second = build_with_uv(unpacked, tmp_path / "wheel", "--wheel")
    assert carried(second, tmp_path / "b").read_bytes() == carried(wheel, tmp_path / "a").read_bytes()
    assert (
        carried(wheel, tmp_path / "a").read_bytes()
        == build(clone / "runtime", tmp_path / "c", os.environ).read_bytes()
    )


def test_an_installed_mlpacker_brings_its_runtime_along(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", Path(sys.executable), wheel)
    assert run(python.with_name("mlpacker"), "--version", cwd=tmp_path).startswith("mlpacker 0.")
    said = run(
        python, "-I", "-c",
        "import sys, mlpacker_runtime; from pathlib import Path; from mlpacker.environments.runtime_wheel import runtime_wheel\n"
        "wheel = runtime_wheel(Path(sys.argv[1])); print(wheel.path); print(wheel.sha256); print(mlpacker_runtime.__file__)",
        tmp_path / "cache", cwd=tmp_path,
    ).splitlines()  # fmt: skip
    assert Path(said[0]).is_relative_to(tmp_path / "venv")
    assert said[1] == read(carried(wheel, tmp_path / "out")).sha256
    assert Path(said[2]).is_relative_to(tmp_path / "venv")
    assert not (tmp_path / "cache").exists()


def test_an_editable_mlpacker_gets_what_builds_its_runtime(clone: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", Path(sys.executable), "--no-deps", "-e", clone)
    info = next((tmp_path / "venv").glob("lib/python*/site-packages/mlpacker-*.dist-info/METADATA"))
    needs = email.message_from_string(info.read_text()).get_all("Requires-Dist")
    assert any(line.startswith("hatchling") for line in needs or [])
    file = run(
        python, "-c", "import mlpacker_runtime; print(mlpacker_runtime.__file__)", cwd=tmp_path
    ).strip()
    assert Path(file).is_relative_to(clone / "runtime")


@pytest.mark.parametrize(("python", "resolution"), BOTH_ENDS)
@pytest.mark.parametrize("package", ["mlpacker_runtime", "mlpacker"])
def test_everything_imports_at_both_ends_of_the_ranges(
    wheel: Path, tmp_path: Path, package: str, python: str, resolution: str
) -> None:
    base = interpreters.find(python)
    if base is None:
        pytest.skip(f"no Python {python} on this machine")
    runtime = carried(wheel, tmp_path)
    extras = ",".join(runtime_requirements(runtime).extras)
    chosen = wheel if package == "mlpacker" else f"mlpacker-runtime[{extras}] @ {runtime.as_uri()}"
    options = ("--resolution", resolution, "--only-binary", ":all:")
    made = environment(tmp_path / "venv", base.path, *options, chosen)
    assert f"{package}.errors" in run(made, "-I", "-c", IMPORT_ALL, package, cwd=tmp_path)


def test_without_an_extra_its_broker_says_which_is_missing(wheel: Path, tmp_path: Path) -> None:
    made = environment(tmp_path / "venv", Path(sys.executable), carried(wheel, tmp_path))
    for scheme, extra in EXTRAS.items():
        code = f"from mlpacker_runtime import brokers, errors\ntry: brokers.get({scheme!r})\nexcept errors.BadDescription as e: print(e)"
        assert f"mlpacker-runtime[{extra}]" in run(made, "-I", "-c", code, cwd=tmp_path)


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """A pipeline of one function, in a folder that a server takes."""
    folder = tmp_path / "draft"
    folder.mkdir()
    (folder / "double.py").write_text("def double(x: float) -> float:\n    return 2 * x\n")
    x, answer = Field("x", "float64"), Field("answer", "float64")
    stage = Stage(
        "double", "function", "double.py", entry="double", inputs=(x,), outputs=(answer,), holds_code=True
    )
    (folder / "mlpacker.json").write_bytes(encode(Manifest("double", (stage,), (x,), (answer,))))
    return folder


@contextmanager
def served(python: Path, folder: Path) -> Iterator[str]:
    """The address of a server of `folder`, started by `python`; it must end in peace."""
    argv = [python, "-I", "-m", "mlpacker_runtime", "serve", "--package", folder, "--accepted", "--port", "0"]
    server = subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        word, address, *_ = [*server.stdout.readline().split(), "", ""]
        assert word == "ready"
        yield address
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(("python", "resolution"), [BOTH_ENDS[0], BOTH_ENDS[-1]])
def test_the_runtime_serves_at_both_ends_of_its_ranges(
    wheel: Path, draft: Path, tmp_path: Path, python: str, resolution: str
) -> None:
    base = interpreters.find(python)
    if base is None:
        pytest.skip(f"no Python {python} on this machine")
    options = ("--resolution", resolution, "--only-binary", ":all:")
    made = environment(tmp_path / "venv", base.path, *options, carried(wheel, tmp_path))
    with served(made, draft) as address:
        assert httpx.post(f"{address}/predict", json=[{"x": 1}, {"x": 2.5}]).json() == [
            {"answer": 2.0},
            {"answer": 5.0},
        ]
        tensor = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1, 2.5]}
        answer = httpx.post(f"{address}/v2/models/double/infer", json={"inputs": [tensor]}).json()
        assert answer["outputs"][0]["data"] == [2.0, 5.0]
