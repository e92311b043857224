"""Killed at any moment, the store is sound: what was named is whole, and what was left behind is collected."""

from __future__ import annotations

import linecache
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType

import pytest

from mlpacker.stores.layout import LayoutStore
from mlpacker.stores.materialise import materialise
from mlpacker.stores.packages import PackageFile, collect, list_packages, remove, verify, write_package
from mlpacker.stores.referrers import attach, referrers
from mlpacker_runtime.package import Package, folder_name

KILLS = 15
CHANGES = re.compile(r"write|replace\(|rename\(|unlink|mkdir|sync|chmod|mkstemp|mkdtemp|rmtree|open\(")
"""What changes something on disk, as the store's code writes it."""
WRITER = """
import sys
from pathlib import Path
from mlpacker.stores.layout import LayoutStore
from mlpacker.stores.materialise import materialise
from mlpacker.stores.packages import PackageFile, collect, remove, write_package
from mlpacker.stores.referrers import attach, referrers
import time

store, out, first = LayoutStore(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for number in range(first, first + 10_000):
    files = {"shared": PackageFile(b"s" * 200_000), f"own-{number}": PackageFile(str(number).encode() * 50_000)}
    digest = write_package(store, "iris", str(number), files)
    attach(store, digest, "application/x", str(number).encode())
    materialise(store, digest, out)
    print(number, digest, flush=True)
    if number % 3 == 2 and number > first:
        remove(store, f"iris:{number - 1}")
        collect(store, time.time(), grace=0)
"""


FILES = {"mlpacker.json": PackageFile(b"{}"), "models/f/model.joblib": PackageFile(b"trees")}


def work(root: Path) -> None:
    """Everything that writes, once."""
    store = LayoutStore(root / "store")
    old = write_package(store, "iris", "1.0", {"old": PackageFile(b"old")}, move=True)
    digest = write_package(store, "iris", "1.0", FILES, move=True)
    attach(store, digest, "application/x", b"x")
    materialise(store, digest, root / "packages")
    remove(store, old)
    collect(store, time.time() + 1, grace=0)


@cache
def is_change(file: str, line: int) -> bool:
    return CHANGES.search(linecache.getline(file, line)) is not None


def work_until(step: int, root: Path) -> int:
    """Do the work in a process of its own that kills itself before its `step`th change on disk.

    Returns the number of changes, where it came to the end.
    """
    changes = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal changes
        file = frame.f_code.co_filename
        if "/mlpacker/stores/" not in file:
            return None
        if event == "line" and is_change(file, frame.f_lineno):
            changes += 1
            if changes == step:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sys.settrace(trace)  # type: ignore[arg-type]
            work(root)
            sys.settrace(None)
            os.write(write, str(changes).encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with open(read, "rb") as said:
        told = int(said.read() or b"0")
    assert os.WIFSIGNALED(status) == (told == 0)
    return told


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: a kill loses nothing the system was given, and syncing takes no time."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.timeout(600)
def test_killed_before_any_change_on_disk_the_store_is_sound_and_the_work_can_be_done_again(
    memory: Path,
) -> None:
    changes = work_until(0, memory / "whole")
    assert changes > 100
    for number in range(1, changes + 1):
        root = memory / str(number)
        assert work_until(number, root) == 0, "it was killed"
        store = LayoutStore(root / "store")
        check(store, root / "packages")
        work(root)
        check(store, root / "packages")
        (left,) = list_packages(store)
        assert left.refs == ("iris:1.0",)
        assert len(referrers(store, left.digest)) == 1
        assert list((store.root / ".mlpacker" / "incoming").iterdir()) == []
        assert len(list((store.root / "blobs" / "sha256").iterdir())) == 6


def check(store: LayoutStore, out: Path) -> None:
    """What has a name is whole, and so is every folder."""
    for package in list_packages(store):
        verify(store, package.digest)
    for folder in out.glob("sha256-*"):
        Package.open(folder, folder.name.replace("-", ":", 1)).verify()


def killed_writer(store: Path, out: Path, first: int, seconds: float) -> list[tuple[int, str]]:
    """Run a writer, kill it after so many seconds of work, and return what it said it had finished."""
    command = [sys.executable, "-c", WRITER, str(store), str(out), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines = [line.split() for line in process.stdout.read().splitlines()]
    assert process.returncode == -signal.SIGKILL
    return [(int(line[0]), line[1]) for line in lines if len(line) == 2 and len(line[1]) == 71]


@pytest.mark.timeout(600)
def test_a_store_whose_writer_was_killed_at_any_moment_is_sound(tmp_path: Path) -> None:
    store, out = LayoutStore(tmp_path / "store"), tmp_path / "packages"
    chance = random.Random(7)
    first = 0
    for _ in range(KILLS):
        finished = killed_writer(store.root, out, first, chance.uniform(0, 0.25))
        kept = {p.digest for p in list_packages(store)}
        for package in list_packages(store):
            verify(store, package.digest)
        for number, digest in finished[-1:]:
            assert digest in kept, "what was said to be finished is there"
            first = number + 1
        first += 2  # the one under way when it was killed is left to itself
        for digest in kept:
            if (out / folder_name(digest)).exists():
                Package.open(out / folder_name(digest), digest).verify()
    digest = write_package(store, "after", "1", {"x": PackageFile(b"x")})
    attach(store, digest, "application/x", b"x")
    materialise(store, digest, out)
    collect(store, time.time(), grace=0)
    named = {p.digest for p in list_packages(store)}
    for digest in named:
        verify(store, digest)
    assert list((store.root / ".mlpacker" / "incoming").iterdir()) == []
    assert collect(store, time.time() + 1, grace=0) == ()


def test_writers_and_collectors_at_the_same_time_do_not_harm_each_other(tmp_path: Path) -> None:
    root = tmp_path / "store"
    code = """
import sys, time
from pathlib import Path
from mlpacker.stores.layout import LayoutStore
from mlpacker.stores.materialise import materialise
from mlpacker.stores.packages import PackageFile, collect, verify, write_package

store, who, out = LayoutStore(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
for n in range(12):
    digest = write_package(store, who, str(n), {"same": PackageFile(b"same" * 10_000), "n": PackageFile(str(n).encode())})
    materialise(store, write_package(store, "common", None, {"same": PackageFile(b"same")}), out)
    collect(store, time.time(), grace=60)
    verify(store, digest)
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(root), f"writer-{n}", str(tmp_path / "out")])
        for n in range(4)
    ]
    assert [w.wait(120) for w in workers] == [0] * 4
    store = LayoutStore(root)
    assert len(list_packages(store)) == 4 * 12 + 1
    for package in list_packages(store):
        verify(store, package.digest)
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []
