"""What all rings share: a home of its own for each test, interpreters to train with, rings as markers, time for fuzzing."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import hypothesis.errors
import pytest

from mlpacker.environments import interpreters

ROOT = Path(__file__).resolve().parents[1]
RINGS = ("unit", "contract", "fuzz", "system", "stories")
FUZZ_SECONDS = "MLPACKER_FUZZ_SECONDS"
FUZZ_EXAMPLES = 100
"""How many examples a property gets at a time; it gets that many again until its share of the time is over."""
INSTALL_SECONDS = 540

hypothesis.settings.register_profile("test", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=FUZZ_EXAMPLES, print_blob=True)
hypothesis.settings.load_profile("test")


# --- Rings -----------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test's folder is its ring, and its ring a marker. Rings run from the quickest to the slowest."""
    for item in items:
        item.add_marker(ring_of(item))
    items.sort(key=lambda item: RINGS.index(ring_of(item)))  # stable: within a ring nothing moves
    fuzzers = [
        item for item in items if item.get_closest_marker("fuzz") and hasattr(_function(item), "hypothesis")
    ]
    share = float(os.environ.get(FUZZ_SECONDS, "30")) / max(len(fuzzers), 1)
    for item in fuzzers:
        item.stash[_FUZZ_SHARE] = share
        item.add_marker(pytest.mark.timeout(share + 300), append=False)


def _function(item: pytest.Item) -> object:
    return getattr(item, "obj", None)


def ring_of(item: pytest.Item) -> str:
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    return folder if folder in RINGS else "unit"


# --- Side by side ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)  # asked by pytest-xdist, which may be left out
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Processes take group after group, in the order in which the tests stand."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def group_of(test: str) -> str:
    """The tests that one process runs, one after another.

    They are those of a file, which share what is made for it. Stories take longer than what they share: each is a group,
    except that those of one parameter (the first, as in `[iris-csv]`) share a server.
    """
    file, _, rest = test.partition("::")
    if f"/{RINGS[-1]}/" not in f"/{file}":
        return file
    parameters = rest.partition("[")[2]
    return f"{file}[{parameters.rstrip(']').partition('-')[0]}" if parameters else test


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A test must have one name in all processes that run tests side by side; gzip's bytes hold the time, for one."""
    binary = isinstance(val, bytes) and not (val.isascii() and val.decode("ascii").isprintable())
    return argname if binary else None


# --- Time for properties ---------------------------------------------------------------------------------------------

_FUZZ_SHARE = pytest.StashKey[float]()


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A property marked `fuzz` is tried with new examples until its share of MLPACKER_FUZZ_SECONDS is over."""
    share = pyfuncitem.stash.get(_FUZZ_SHARE, None)
    if share is not None:
        pyfuncitem.obj = _until(time.monotonic() + share, pyfuncitem.obj)
    yield


def _until(end: float, prop: Any) -> Any:
    tried = prop.hypothesis.inner_test
    failed = False
    own = prop._hypothesis_internal_use_settings  # a second @settings would be refused
    prop._hypothesis_internal_use_settings = hypothesis.settings(
        hypothesis.settings.get_profile("fuzz"), suppress_health_check=own.suppress_health_check
    )

    @wraps(tried)
    def example(*args: object, **named: object) -> None:
        nonlocal failed
        if failed or time.monotonic() < end:  # a failure is shrunk and shown whatever the time
            try:
                tried(*args, **named)
            except hypothesis.errors.HypothesisException:  # an example that does not count
                raise
            except Exception:
                failed = True
                raise

    @wraps(prop)
    def repeated(**fixtures: object) -> None:
        prop.hypothesis.inner_test = example
        try:
            while time.monotonic() < end:
                prop(**fixtures)
        finally:
            prop.hypothesis.inner_test = tried  # the function is shared by all its parameters

    return repeated


# --- What tests ask for ----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh MLPACKER_HOME, readable by its owner alone, for this process and those it starts."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("MLPACKER_HOME", str(folder))
    return folder


class MakesInterpreters(Protocol):
    def __call__(self, python: str = "3.11", *requirements: str, before: str | None = None) -> Path: ...


@pytest.fixture(scope="session")
def interpreter() -> MakesInterpreters:
    """`interpreter("3.11", "scikit-learn==1.2.2", before="2023-07-01")` → the python of an environment with these in it.

    `before` resolves what the requirements leave open as of that day. Environments are kept from run to run, under
    MLPACKER_TEST_CACHE (default: .cache/test in the clone). Skips the test where that Python is not on this machine.
    """
    cache = Path(os.environ.get("MLPACKER_TEST_CACHE") or ROOT / ".cache" / "test")

    def make(python: str = "3.11", *requirements: str, before: str | None = None) -> Path:
        base = interpreters.find(python)
        if base is None:
            pytest.skip(f"no Python {python} on this machine")
        said = repr((base.full, str(base.base), sorted(requirements), before))
        folder = cache / "interpreters" / hashlib.sha256(said.encode()).hexdigest()[:24]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "a", encoding="ascii") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not (folder / "complete").exists():
                _make_environment(folder, base.path, requirements, before)
        return folder / "bin" / "python"

    return make


def _make_environment(folder: Path, python: Path, requirements: tuple[str, ...], before: str | None) -> None:
    _uv("venv", "--quiet", "--clear", "--no-project", "--python", str(python), str(folder))
    if requirements:
        dated = ("--exclude-newer", before) if before else ()
        target = ("--python", str(folder / "bin" / "python"))
        _uv(
            "pip",
            "install",
            "--quiet",
            *target,
            "--compile-bytecode",
            "--only-binary",
            ":all:",
            *dated,
            *requirements,
        )
    (folder / "complete").touch()


def _uv(*args: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("uv")), *args],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    assert done.returncode == 0, f"uv {' '.join(args)}\n{done.stderr}"
