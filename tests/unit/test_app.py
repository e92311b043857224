"""The SDK, as far as it goes without an environment: flags beside a descriptor, and where home is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpacker import Mlpacker, app
from mlpacker.errors import BadDescription


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


def test_a_relative_home_is_one_place_wherever_we_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Mlpacker("here").home == tmp_path / "here"
    monkeypatch.setenv("MLPACKER_HOME", "there")
    assert Mlpacker().home == tmp_path / "there"
