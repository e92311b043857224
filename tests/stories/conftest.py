"""What the stories share: a person with a home, and environments that are made once for all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from storytelling import TRAINED_WITH, Person


@pytest.fixture(scope="session")
def environments() -> Path:
    """Where environments are kept from run to run: they are named by what they hold, so sharing them is safe."""
    cache = os.environ.get("MLPACKER_TEST_CACHE") or Path(__file__).resolve().parents[2] / ".cache" / "test"
    folder = Path(cache).absolute() / "envs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def new_home(tmp_path: Path, environments: Path) -> Any:
    """Makes homes of their own that share the environments."""

    def make(name: str = "home") -> Path:
        home = tmp_path / name
        home.mkdir(mode=0o700)
        (home / "envs").symlink_to(environments)
        return home

    return make


@pytest.fixture
def person(tmp_path: Path, new_home: Any, interpreter: Any) -> Person:
    """Somebody with a fresh home, an empty folder and a training environment."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Person(new_home(), folder, interpreter("3.11", *TRAINED_WITH))
