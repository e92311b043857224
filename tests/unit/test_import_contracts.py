"""Each import contract passes as it is, and fails once the import it forbids is planted in a copy of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlpacker_runtime import brokers, formats

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "src/mlpacker", ROOT / "runtime/src/mlpacker_runtime")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

# contract → file, and the line that breaks it there
PLANTED = [
    ("layers", "mlpacker/errors.py", "import mlpacker.app"),
    ("layers", "mlpacker/events.py", "from . import stores"),
    ("layers", "mlpacker/stores/layout.py", "from mlpacker.environments import uv"),
    ("layers", "mlpacker/environments/uv.py", "def later() -> None:\n    import mlpacker.package.prove"),
    ("layers", "mlpacker/app.py", "import mlpacker.cli"),
    ("layers", "mlpacker/unplaced.py", "import mlpacker.errors"),
    ("runtime-alone", "mlpacker_runtime/batch.py", "from mlpacker import errors as _errors"),
    ("runtime-layers", "mlpacker_runtime/errors.py", "from . import manifest"),
    ("runtime-layers", "mlpacker_runtime/formats/sklearn.py", "from .. import loading"),
    ("runtime-core", "mlpacker_runtime/engine.py", "from .formats import sklearn"),
    ("formats", "mlpacker_runtime/formats/onnx.py", "from . import sklearn"),
    ("runtime-layers", "mlpacker_runtime/brokers/local.py", "from .. import stream"),
    ("brokers", "mlpacker_runtime/brokers/redis.py", "from . import kafka"),
    ("training", "mlpacker_runtime/signature.py", "import msgspec"),
    ("no-model-here", "mlpacker/package/prove.py", "import sklearn.base"),
]


def lint(sources: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    """Check the packages in `sources`, which PYTHONPATH puts before the installed ones."""
    chosen = [word for name in contracts for word in ("--contract", name)]
    return subprocess.run(
        [str(LINT_IMPORTS), "--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo", *chosen],
        cwd=sources,
        env={**os.environ, "PYTHONPATH": str(sources)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of both packages that a test may spoil."""
    for package in PACKAGES:
        shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_all_contracts_hold(sources: Path) -> None:
    done = lint(sources)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONFIG['contracts'])} kept, 0 broken." in done.stdout


@pytest.mark.parametrize(("contract", "path", "line"), PLANTED, ids=[f"{c}-{p}" for c, p, _ in PLANTED])
def test_a_planted_import_breaks_its_contract(sources: Path, contract: str, path: str, line: str) -> None:
    with open(sources / path, "a", encoding="utf-8") as spoilt:
        spoilt.write(f"\n{line}\n")
    done = lint(sources, contract)
    assert done.returncode == 1, done.stdout
    assert "Contracts: 0 kept, 1 broken." in done.stdout


def test_every_contract_has_been_seen_to_fail() -> None:
    assert {contract for contract, _, _ in PLANTED} == {contract["id"] for contract in CONFIG["contracts"]}


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__.py is not seen by the checks, and so not guarded."""
    folders = {path.parent for package in PACKAGES for path in package.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_format_is_left_out_of_the_contract() -> None:
    files = {path.stem for path in (PACKAGES[1] / "formats").glob("*.py")}
    named = next(c["modules"] for c in CONFIG["contracts"] if c["id"] == "formats")
    assert set(named) == {f"mlpacker_runtime.formats.{name}" for name in files & set(formats.BUILT_IN)}


def test_no_broker_is_left_out_of_the_contract() -> None:
    named = next(c["modules"] for c in CONFIG["contracts"] if c["id"] == "brokers")
    assert set(named) == {f"mlpacker_runtime.brokers.{name}" for name in brokers.BUILT_IN.values()}
