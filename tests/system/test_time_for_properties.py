"""How tests are run: properties use the time they are given, and what belongs together runs in one process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
PROPERTIES = """
import pytest
from hypothesis import assume, given, strategies as st

tried = [0]

@given(st.integers())
def test_holds(number):
    assume(number != 7)
    tried[0] += 1

@given(st.integers())
def test_holds_for_small_numbers_only(number):
    assert number < 5000

@pytest.mark.parametrize("limit", [1, 2])
@given(st.integers())
def test_each_parameter_has_its_turn(limit, number):
    assert limit == 1, "the second parameter"

def test_a_hundred_examples_are_not_the_end():
    assert tried[0] > 100
"""


SIDE_BY_SIDE = """
import os, time
import pytest

@pytest.mark.parametrize("n", range(12))
def test_somewhere(n):
    time.sleep(0.1)

@pytest.mark.parametrize("ending", ["csv", "json", "npy"])
@pytest.mark.parametrize("name", ["iris", "wine"])
def test_with_a_server(name, ending):
    with open(os.path.join(os.environ["RAN"], f"{FILE}-{name}"), "a") as ran:
        ran.write(f"{os.getpid()} ")
"""


def started(folder: Path, files: dict[str, str], *flags: str, **variables: str) -> str:
    """What pytest says of these test files beside our conftest.py."""
    shutil.copy(CONFTEST, folder / "tests")
    for name, text in files.items():
        (folder / "tests" / name).parent.mkdir(exist_ok=True)
        (folder / "tests" / name).write_text(text)
    config = "[pytest]\nmarkers =\n" + "".join(f" {ring}\n" for ring in ("unit", "fuzz", "stories"))
    (folder / "pytest.ini").write_text(config)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:schemathesis", *flags]
    done = subprocess.run(
        [*argv, str(folder / "tests")],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_tests_of_a_file_and_stories_of_a_parameter_run_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "ran").mkdir()
    files = {
        f"{ring}/test_{ring}.py": SIDE_BY_SIDE.replace("FILE", repr(ring)) for ring in ("unit", "stories")
    }
    said = started(tmp_path, files, "-n", "2", RAN=str(tmp_path / "ran"))
    assert "36 passed" in said, said
    ran = {f.name: set(f.read_text().split()) for f in (tmp_path / "ran").iterdir()}
    assert [len(processes) for processes in ran.values()] == [1] * 4
    assert ran["unit-iris"] == ran["unit-wine"]


def test_properties_use_their_time_and_show_the_smallest_failure(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    begun = time.monotonic()
    said = started(tmp_path, {"fuzz/test_properties.py": PROPERTIES}, MLPACKER_FUZZ_SECONDS="12")
    assert "2 failed, 3 passed" in said, said
    assert "the second parameter" in said
    assert "assert 5000 < 5000" in said
    assert 6 < time.monotonic() - begun < 120
