from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from mlpacker.environments.install import key_of, prune, requirements_text, size
from mlpacker.environments.libraries import needed_by
from mlpacker.environments.lock import Pin
from mlpacker.environments.runtime_wheel import RuntimeWheel

NUMPY = Pin("numpy", "1.24.2", ("sha256:aa", "sha256:bb"))


def test_all_that_is_in_an_environment_is_in_its_key():
    given = ((NUMPY,), "3.11", "x86_64-linux", "ff")
    other = Pin("numpy", "1.24.2", ("sha256:aa",))
    keys = {
        key_of(*given),
        key_of((other,), *given[1:]),
        key_of((NUMPY,), "3.12", "x86_64-linux", "ff"),
        key_of((NUMPY,), "3.11", "aarch64-linux", "ff"),
        key_of((NUMPY,), "3.11", "x86_64-linux", "fe"),
    }
    assert len(keys) == 5
    assert key_of(*given) == key_of(*given)


def test_everything_is_installed_by_hash_and_the_runtime_by_path(tmp_path: Path):
    runtime = RuntimeWheel(tmp_path / "with space.whl", "cc", "1")
    assert requirements_text((NUMPY,), runtime).splitlines() == [
        "numpy==1.24.2 --hash=sha256:aa --hash=sha256:bb",
        f"mlpacker-runtime @ {tmp_path.as_uri()}/with%20space.whl --hash=sha256:cc",
    ]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for key in ("kept", "old", "half"):
        (tmp_path / "envs" / key).mkdir(parents=True)
        (tmp_path / "envs" / key / "file").write_bytes(b"12345")
        (tmp_path / "envs" / f"{key}.lock").touch()
    return tmp_path


def test_environments_nobody_keeps_are_removed(home: Path):
    assert prune(home, {"kept"}) == ("half", "old")
    assert [folder.name for folder in (home / "envs").iterdir() if folder.is_dir()] == ["kept"]


def test_an_environment_that_is_being_made_is_left_alone(home: Path):
    with open(home / "envs" / "half.lock", "a", encoding="ascii") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert prune(home, {"kept"}) == ("old",)


def test_size_counts_the_bytes_of_the_files(home: Path):
    assert size(home / "envs" / "kept") == 5


def test_what_is_no_elf_file_needs_no_library(tmp_path: Path):
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 90):
        (tmp_path / "x.so").write_bytes(content)
        assert needed_by(tmp_path / "x.so") == ()
