"""The packed sample: columns of plain JSON values, `{"columns": {name: [value, …]}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..batch import Batch
from ..errors import MlpackerError
from ..formats import Files
from ..manifest import Manifest
from .bodies import check_object, loads
from .rows import Reader


def read(files: Files, manifest: Manifest) -> dict[str, list] | None:
    """The sample's columns; None where the package has none, or one that can't be read: it is an example, no more."""
    if manifest.sample is None:
        return None
    try:
        columns = check_object(
            check_object(loads(files.read(manifest.sample)), "A sample").get("columns"), "A sample's columns"
        )
    except (MlpackerError, OSError):
        return None
    lengths = {len(c) for c in columns.values() if isinstance(c, list)}
    return columns if len(lengths) == 1 and all(isinstance(c, list) for c in columns.values()) else None


def rows(sample: Mapping[str, list] | None, count: int) -> list[dict[str, Any]]:
    """The first rows, as /predict takes them."""
    if not sample:
        return []
    return [
        dict(zip(sample, row, strict=True)) for row in zip(*(c[:count] for c in sample.values()), strict=True)
    ]


def batch(sample: Mapping[str, list] | None, reader: Reader) -> Batch | None:
    """The sample as the engine takes it; None where there is none that fits."""
    if not sample:
        return None
    try:
        read = reader.columns(sample)
    except MlpackerError:
        return None
    return None if read.errors or not len(read.batch) else read.batch
