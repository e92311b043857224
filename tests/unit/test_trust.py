"""Trust is this machine's: what a package brings decides whether it must be given."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mlpacker import trust
from mlpacker.errors import Refused

DIGEST = "sha256:" + "a" * 64

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def test_a_model_of_ordinary_libraries_needs_no_trust(tmp_path: Path) -> None:
    why = trust.reasons(False, False, ["numpy", "scikit-learn"])
    assert why == ()
    assert trust.require(tmp_path, DIGEST, why, False, "iris") is False


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((True, False, []), "code"),
        ((False, True, ["numpy"]), "wheels of its own"),
        ((False, False, ["numpy", "numpyy"]), "numpyy"),
    ],
)
def test_code_wheels_and_unusual_distributions_are_refused_until_accepted(
    tmp_path: Path, given: tuple[bool, bool, list[str]], said: str
) -> None:
    why = trust.reasons(*given)
    with pytest.raises(Refused, match=said):
        trust.require(tmp_path, DIGEST, why, False, "iris")
    assert trust.require(tmp_path, DIGEST, why, True, "iris") is True
    assert trust.require(tmp_path, DIGEST, why, False, "iris") is True, "accepted once is enough"
    with pytest.raises(Refused):
        trust.require(tmp_path, DIGEST.replace("a", "b"), why, False, "iris")


def test_the_runtimes_own_extras_are_ordinary() -> None:
    """They stand in every lock, so that a package from elsewhere would be asked about otherwise."""
    project = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {
        re.split(r"[\[>=<;]", text)[0]
        for texts in project["optional-dependencies"].values()
        for text in texts
    }
    assert trust.reasons(False, False, (*wanted, "hiredis", "async-timeout")) == ()
