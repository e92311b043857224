from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mlpacker.environments.runtime_wheel import RuntimeWheel, hash_of, runtime_wheel
from mlpacker.errors import EnvironmentFailed

NAME = "mlpacker_runtime-0.1.0-py3-none-any.whl"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The bare bones of the runtime's sources."""
    folder = tmp_path / "runtime"
    package = folder / "src" / "mlpacker_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "batch.py").write_text("rows = 1\n")
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "README.md").write_text("What it is.\n")
    return folder


def test_the_carried_wheel_is_taken_before_any_sources(tmp_path: Path, project: Path) -> None:
    carried = tmp_path / "_runtime"
    carried.mkdir()
    (carried / NAME).write_bytes(b"a wheel")
    expected = RuntimeWheel(carried / NAME, hashlib.sha256(b"a wheel").hexdigest(), "0.1.0")
    assert runtime_wheel(tmp_path / "cache", carried, project) == expected


@pytest.mark.parametrize("names", [(), (NAME, NAME.replace("0.1.0", "0.2.0"))])
def test_an_installation_with_no_wheel_or_two_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"a wheel")
    with pytest.raises(EnvironmentFailed, match=f"carries {len(names)} runtime wheels .* Install it again"):
        runtime_wheel(tmp_path / "cache", tmp_path, tmp_path / "no-clone")


def test_a_wheel_built_before_is_found_again(tmp_path: Path, project: Path) -> None:
    kept = tmp_path / "cache" / "runtime-wheel" / hash_of(project)
    kept.mkdir(parents=True)
    (kept / NAME).write_bytes(b"a wheel")
    assert runtime_wheel(tmp_path / "cache", tmp_path / "_runtime", project).path == kept / NAME


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/mlpacker_runtime/batch.py", "rows = 2\n"),
        ("src/mlpacker_runtime/audit.txt", ""),
        ("pyproject.toml", "[project]\nname = 'x'\n"),
    ],
)
def test_any_change_of_the_sources_changes_their_hash(project: Path, path: str, text: str) -> None:
    before = hash_of(project)
    (project / path).write_text(text)
    assert hash_of(project) != before


def test_bytes_that_move_from_one_file_to_the_next_change_the_hash(project: Path) -> None:
    package = project / "src" / "mlpacker_runtime"
    (package / "a.py").write_text("1")
    (package / "b.py").write_text("23")
    before = hash_of(project)
    (package / "a.py").write_text("12")
    (package / "b.py").write_text("3")
    assert hash_of(project) != before


def test_compiled_files_do_not_change_the_hash(project: Path) -> None:
    before = hash_of(project)
    compiled = project / "src" / "mlpacker_runtime" / "__pycache__"
    compiled.mkdir()
    (compiled / "batch.cpython-311.pyc").write_bytes(b"\0")
    assert hash_of(project) == before
