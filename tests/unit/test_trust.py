"""Trust is this machine's: what a package brings decides whether it must be given."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpacker import trust
from mlpacker.errors import Refused

DIGEST = "sha256:" + "a" * 64


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
