from __future__ import annotations

import zipfile
from datetime import date, datetime, timezone
from pathlib import Path

from mlpacker.environments.asof import _day_after
from mlpacker.environments.index import Found, Wheel
from mlpacker.environments.resolve import (
    _for_cpu,
    _timely,
    plainly,
    runtime_requirements,
)
from mlpacker.environments.uv import Indexes, reason_of


def wheel(day: int, month: int = 3, name: str = "a.whl") -> Wheel:
    return Wheel(name, "00", datetime(2023, month, day, 12, tzinfo=timezone.utc))


def found(name: str, version: str = "1.0") -> Found:
    return Found(name, version, (), ())


def test_the_day_after_leaves_a_release_two_days_to_be_complete():
    assert _day_after((wheel(11), wheel(9))) == date(2023, 3, 12)


def test_an_index_without_upload_times_gives_no_day():
    assert _day_after((Wheel("a.whl", "00", None),)) is None


def test_wheels_uploaded_after_the_date_change_nothing():
    assert _timely((wheel(9), wheel(1, month=5)), date(2023, 3, 12)) == (wheel(9),)


def test_a_pin_newer_than_the_date_keeps_the_wheels_of_its_first_days():
    assert _timely((wheel(1, month=5), wheel(2, month=5), wheel(1, month=7)), date(2023, 3, 12)) == (
        wheel(1, month=5),
        wheel(2, month=5),
    )


def test_nccl_goes_with_xgboost_and_stays_with_torch():
    class Nobody:
        """_for_cpu asks no index on a platform without CPU variants."""

    both = [found("xgboost"), found("nvidia-nccl-cu12")]
    assert _for_cpu(Nobody(), both, "arm64-macos") == [found("xgboost")]  # type: ignore[arg-type]
    with_torch = [*both, found("torch")]
    assert _for_cpu(Nobody(), with_torch, "arm64-macos") == with_torch  # type: ignore[arg-type]


def test_uvs_reasons_become_words_of_ours():
    assert (
        plainly("Because scikit-learn==1.0.2 has no usable wheels and you require …")
        == "no wheel of scikit-learn==1.0.2"
    )
    assert plainly("Because there is no version of pandas==9.9 and …") == "no version of pandas==9.9"
    assert plainly("something new") == "the requirements can't be met"


def test_the_runtimes_requirements_are_read_from_its_wheel(tmp_path: Path):
    metadata = """Metadata-Version: 2.4
Name: mlpacker-runtime
Version: 1
Requires-Dist: numpy>=1.21
Requires-Dist: uvloop>=0.17; sys_platform != 'win32'
Provides-Extra: parquet
Requires-Dist: pyarrow>=10; extra == 'parquet'
Provides-Extra: grpc
Requires-Dist: grpcio>=1.50; (python_version < '4') and extra == 'grpc'
"""
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as made:
        made.writestr("mlpacker_runtime-1.dist-info/METADATA", metadata)
    told = runtime_requirements(tmp_path / "a.whl")
    assert told.requirements == ("numpy>=1.21", 'uvloop>=0.17; sys_platform != "win32"')
    assert told.extras == {"parquet": ("pyarrow>=10",), "grpc": ('grpcio>=1.50; python_version < "4"',)}


def test_uvs_tree_of_causes_becomes_one_sentence():
    said = """warning: the index is slow
error: No solution found when resolving dependencies
  cause: Because there is no version of six==9 and you require six==9, we can conclude that your requirements are unsatisfiable.

hint: try another
"""
    assert reason_of(said).startswith("Because there is no version of six==9")
    assert "hint" not in reason_of(said)


def test_no_password_of_an_index_is_told():
    assert "secret" not in reason_of("error: Failed to fetch: https://me:secret@index.example/simple/")


def test_addresses_are_no_arguments_and_folders_are(tmp_path: Path):
    indexes = Indexes(
        ("https://me:secret@index.example/",), (str(tmp_path), "https://pages.example/"), only_links=True
    )
    assert indexes.arguments() == ["--find-links", str(tmp_path), "--no-index"]
    assert indexes.pages() == ("https://pages.example/",)
