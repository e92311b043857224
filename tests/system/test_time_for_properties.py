"""The time given to properties is used, and a failure found in it is shrunk and shown."""

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

def test_many_examples_were_tried():
    assert tried[0] > 300
"""


def test_properties_use_their_time_and_show_the_smallest_failure(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    (tests / "fuzz").mkdir(parents=True)
    shutil.copy(CONFTEST, tests)
    (tests / "fuzz" / "test_properties.py").write_text(PROPERTIES)
    config = "[pytest]\nmarkers =\n" + "".join(f" {ring}\n" for ring in ("unit", "fuzz"))
    (tmp_path / "pytest.ini").write_text(config)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:schemathesis", str(tests)],
        cwd=tmp_path,
        env={**os.environ, "MLPACKER_FUZZ_SECONDS": "4"},
        capture_output=True,
        text=True,
    )
    assert "2 failed, 3 passed" in done.stdout, done.stdout
    assert "the second parameter" in done.stdout
    assert "assert 5000 < 5000" in done.stdout
    assert 2 < time.monotonic() - begun < 15
