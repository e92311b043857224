"""What `make` says and does on machines that lack something."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that setting up reads, where nothing is set up."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """A folder of programs in which every Debian package is missing and apt-get writes down what it is asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text('#!/bin/sh\necho "$@" >> "$APT_LOG"\n')
    (programs / "dpkg-query").write_text("#!/bin/sh\nexit 1\n")
    (programs / "id").write_text("#!/bin/sh\necho 0\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    return programs


def parts(apt: Path, log: Path, **environ: str) -> str:
    done = run(
        str(ROOT / "tools/system-parts"),
        PATH=f"{apt}:/usr/bin:/bin",
        APT_LOG=str(log),
        MLPACKER_PARTS="docker-registry libgomp1",
        **{"MLPACKER_NO_SYSTEM_PARTS": "", **environ},
    )
    assert done.returncode == 0, done.stderr
    return log.read_text() if log.exists() else ""


def test_make_alone_says_what_there_is() -> None:
    said = run("make").stdout
    targets = set(re.findall(r"^  make (\w+)", said, re.MULTILINE))
    assert {"help", "demo", "test", "lint", "bench", "fuzz", "docs"} <= targets
    assert "\033" not in said


def test_a_machine_without_a_new_enough_python_is_told_so(clone: Path) -> None:
    done = run("tools/setup", "run", cwd=clone, PYTHON="python-of-old")
    assert done.returncode == 1
    assert "no Python 3.10 or newer" in done.stderr


def test_a_python_without_pip_is_told_what_to_install(clone: Path) -> None:
    bare = clone / "python"
    bare.write_text('#!/bin/sh\ncase "$*" in *pip*) exit 1 ;; *executable*) echo "$0" ;; esac\n')
    bare.chmod(0o755)
    done = run("tools/setup", "run", cwd=clone, PYTHON=str(bare))
    assert done.returncode == 1
    assert "has no pip" in done.stderr
    assert not (clone / ".tools").exists()


@pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="not a Debian")
def test_missing_system_parts_are_installed_as_root_on_debian(apt: Path, tmp_path: Path) -> None:
    asked = parts(apt, tmp_path / "log")
    assert asked == "install -y --no-install-recommends docker-registry libgomp1\n"


def test_system_parts_can_be_left_out(apt: Path, tmp_path: Path) -> None:
    assert parts(apt, tmp_path / "log", MLPACKER_NO_SYSTEM_PARTS="1") == ""


def test_system_parts_are_left_alone_where_we_are_not_root(apt: Path, tmp_path: Path) -> None:
    (apt / "id").write_text("#!/bin/sh\necho 1000\n")
    assert parts(apt, tmp_path / "log") == ""
