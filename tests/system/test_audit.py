"""Models of real scikit-learn releases pass the audit without asking, and load equal in the interpreter that made them.

Two releases by default; MLPACKER_AUDIT_MATRIX=full tries each that the allow-lists were made from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "runtime" / "src"

# scikit-learn → its Python, the day its libraries are taken from, and what else is installed beside it.
RELEASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "1.0.2": ("3.10", "2022-04-15", ("xgboost==1.5.2", "lightgbm==3.3.2", "catboost==1.0.5", "setuptools")),
    "1.2.2": ("3.10", "2023-05-15", ("lightgbm==3.3.5",)),
    "1.4.2": ("3.11", "2024-05-15", ("lightgbm==4.3.0",)),
    "1.6.1": ("3.12", "2025-05-15", ("xgboost-cpu==3.0.1", "lightgbm==4.6.0")),
    "1.8.0": ("3.13", "2026-03-01", ("lightgbm==4.6.0",)),
}
BY_DEFAULT = ("1.2.2",)


def chosen() -> list[str]:
    return list(RELEASES if os.environ.get("MLPACKER_AUDIT_MATRIX") == "full" else BY_DEFAULT)


def told(python: Path | str) -> dict[str, dict[str, object]]:
    """Run `train_save_audit_load` in an interpreter: what it says of each model."""
    code = f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(Path(__file__).parent)!r}]\nimport audited_models as m; m.main()"
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def passes(answers: dict[str, dict[str, object]], version: str) -> None:
    troubles = {name: answer for name, answer in answers.items() if answer.get("trouble")}
    assert not troubles
    assert len(answers) > 20
    stated = {version for answer in answers.values() for version in answer["stated"]}  # type: ignore[attr-defined]
    assert stated == {version}


@pytest.mark.parametrize("version", chosen())
def test_models_of_a_release_load_without_asking(version: str, interpreter):
    python, day, beside = RELEASES[version]
    made = interpreter(python, f"scikit-learn=={version}", "cloudpickle", *beside, before=day)
    passes(told(made), version)


def test_models_of_the_release_installed_here_load_without_asking():
    import sklearn

    passes(told(sys.executable), sklearn.__version__)
