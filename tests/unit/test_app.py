"""The SDK, as far as it goes without an environment: flags beside a descriptor, and where home is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlpacker import Mlpacker, app
from mlpacker.errors import BadDescription, BadInput, StoreFailed
from mlpacker.events import Silent


@pytest.fixture
def descriptor(tmp_path: Path) -> Path:
    (tmp_path / "add.py").write_text("def one(a: float) -> float:\n    return a + 1\n")
    place = tmp_path / "pipeline.yaml"
    place.write_text("name: add\nstages:\n  - {name: one, function: 'add.py:one'}\n")
    return place


def test_a_requirements_file_is_read_and_never_taken_for_a_distribution(
    descriptor: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadDescription, match=r"no requirements file nosuch\.txt"):
        Mlpacker(tmp_path / "home").pack(descriptor=descriptor, requirements=["nosuch.txt"])


def test_the_lines_of_a_requirements_file_are_what_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements.txt").write_text("pandas>=2  # rows\nnumpy\n")
    monkeypatch.chdir(tmp_path)
    assert app._requirement_lines(["requirements.txt", "scipy"]) == ("pandas>=2", "numpy", "scipy")


def test_code_given_beside_a_descriptor_is_packed_with_every_stage(descriptor: Path, tmp_path: Path) -> None:
    with pytest.raises(BadDescription, match="no code at"):
        Mlpacker(tmp_path / "home").pack(descriptor=descriptor, code=[tmp_path / "nosuch.py"])


def test_an_expectation_that_nobody_can_read_is_said_before_the_long_work(
    descriptor: Path, tmp_path: Path
) -> None:
    (tmp_path / "answers.bin").write_bytes(b"1")
    (tmp_path / "rows.csv").write_text("a\n1\n")
    with pytest.raises(BadInput, match=r"answers\.bin has no ending"):
        Mlpacker(tmp_path / "home").pack(
            descriptor=descriptor,
            sample=tmp_path / "rows.csv",
            expect=tmp_path / "answers.bin",
            python=tmp_path / "no-python",  # what the work after it would begin with
        )


class Steps(Silent):
    """Remembers which steps began."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def step(self, title: str) -> None:
        self.begun.append(title)


def test_a_sample_that_does_not_fit_is_said_before_an_environment_is_locked_and_built(
    descriptor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    (tmp_path / "add.py").write_text("def one(a: float, b: float) -> float:\n    return a + b\n")
    (tmp_path / "rows.csv").write_text("b,c\n1,2\n")
    steps = Steps()
    with pytest.raises(BadInput, match="lacks the column 'a'"):
        Mlpacker(tmp_path / "home", steps).pack(descriptor=descriptor, sample=tmp_path / "rows.csv")
    assert steps.begun == ["Reading and auditing", "Asking the training interpreter"]


def test_a_relative_home_is_one_place_wherever_we_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Mlpacker("here").home == tmp_path / "here"
    monkeypatch.setenv("MLPACKER_HOME", "there")
    assert Mlpacker().home == tmp_path / "there"


def test_a_home_that_can_not_be_made_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="can't be made"):
        Mlpacker(tmp_path / "file" / "home")
