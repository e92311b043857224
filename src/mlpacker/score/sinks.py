"""Where answers go: a file that appears whole at the end, and can be cut back to a checkpoint until then."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet

from mlpacker_runtime.batch import Batch, is_sparse

from .. import tables
from ..errors import BadDescription, BadInput

ENDINGS = (".csv", ".jsonl", ".ndjson", ".parquet", ".npz")


class Sink(Protocol):
    """Answers in order, each line beginning with its row's number. A context manager."""

    def write(self, batch: Batch) -> None:
        """Append answers; not durable yet."""

    def flush(self) -> Any:
        """Make what was written durable; the mark to open the sink with, to go on from here."""

    def finish(self) -> None:
        """Give the file its name. What was marked is kept: a run killed right after goes on, and ends the same."""

    def clear(self) -> None:
        """Remove what finishing left; called when no run can go on from a mark any more."""

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def open_sink(path: Path, mark: Any) -> Sink:
    """A sink for this file, cut back to `mark` (None: empty). Raises BadInput for an ending nobody writes."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise BadInput(f"{path.name} has no ending that can be written.", f"Known are {', '.join(ENDINGS)}.")
    if not path.parent.is_dir():
        raise BadInput(f"There is no folder {path.parent}.")
    if ending in (".parquet", ".npz"):
        return Parts(path, mark)
    return Text(path, mark)


def cut_back(path: Path, length: int) -> BinaryIO:
    """The file, cut to `length`, to append to. Raises BadDescription where it has lost bytes that a run had written."""
    file = path.open("r+b" if path.exists() else "w+b")
    there = file.seek(0, os.SEEK_END)
    if there < length:
        file.close()
        raise BadDescription(
            f"{path} is not what the killed run left: it has {there} of {length} bytes.",
            "Begin anew with --restart.",
        )
    file.truncate(length)
    file.seek(length)
    return file


def flat(batch: Batch) -> dict[str, list[Any]]:
    """Columns of plain values, `row` first; wide ones as `name_0`, `name_1` …"""
    out: dict[str, list[Any]] = {"row": batch.rows.tolist()}
    for name, column in batch.columns.items():
        if is_sparse(column):
            column = column.toarray()
        if len(column.shape) == 1:
            out[name] = tables.to_json(Batch({name: column}))[name]
            continue
        wide = _wide(column)
        for i in range(wide.shape[1]):
            out[f"{name}_{i}"] = tables.to_json(Batch({name: wide[:, i]}))[name]
    return out


def _wide(column: np.ndarray) -> np.ndarray:
    """[rows, values], of no rows too."""
    return column.reshape(len(column), math.prod(column.shape[1:]))


class Text:
    """CSV or JSON lines, appended to `<name>.part`."""

    def __init__(self, path: Path, mark: int | None) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.lines = _csv_lines if path.suffix.lower() == ".csv" else _json_lines
        if mark and not self.part.exists() and path.exists() and path.stat().st_size == mark:
            path.replace(self.part)  # killed between its name and the end of the run: all of it is there
        self.file = cut_back(self.part, mark or 0)

    def write(self, batch: Batch) -> None:
        self.file.write(self.lines(batch, self.file.tell() == 0))

    def flush(self) -> int:
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def finish(self) -> None:
        self.flush()
        self.part.replace(self.path)

    def clear(self) -> None: ...

    def __enter__(self) -> Text:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.file.close()


def _csv_lines(batch: Batch, first: bool) -> bytes:
    columns = flat(batch)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if first:
        writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode("utf-8", "surrogateescape")


def _json_lines(batch: Batch, first: bool) -> bytes:
    columns = {"row": batch.rows.tolist(), **tables.to_json(batch)}
    rows = zip(*columns.values(), strict=True)
    return b"".join(
        json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False).encode() + b"\n" for row in rows
    )


class Parts:
    """Parquet or NumPy: neither can be appended to, so each chunk is a Parquet file until the end."""

    def __init__(self, path: Path, mark: int | None) -> None:
        self.path = path
        self.folder = path.with_name(path.name + ".parts")
        self.count = mark or 0
        self.folder.mkdir(exist_ok=True)
        for file in self._files():
            if int(file.stem) >= self.count:
                file.unlink()
        if len(self._files()) < self.count:
            raise BadDescription(
                f"{self.folder} is not what the killed run left: parts are missing.",
                "Begin anew with --restart.",
            )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def write(self, batch: Batch) -> None:
        columns: dict[str, Any] = {"row": pyarrow.array(batch.rows)}
        columns |= {n: _arrow(c) for n, c in batch.columns.items()}
        file = self.folder / f"{self.count:09}.parquet"
        with file.open("wb") as opened:
            pyarrow.parquet.write_table(pyarrow.table(columns), opened)
            opened.flush()
            os.fsync(opened.fileno())
        self.count += 1

    def flush(self) -> int:
        return self.count

    def finish(self) -> None:
        draft = self.path.with_name(self.path.name + ".part")
        (_join_parquet if self.path.suffix.lower() == ".parquet" else _join_arrays)(self._files(), draft)
        draft.replace(self.path)

    def clear(self) -> None:
        shutil.rmtree(self.folder)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None: ...


def _arrow(column: Any) -> Any:
    if is_sparse(column):
        column = column.toarray()
    if isinstance(column, np.ma.MaskedArray):
        return pyarrow.array(column.filled(0), mask=np.ma.getmaskarray(column))
    if len(column.shape) == 1:
        return pyarrow.array(column)
    wide = _wide(column)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(wide.ravel()), wide.shape[1])


def _join_parquet(files: list[Path], target: Path) -> None:
    writer: pyarrow.parquet.ParquetWriter | None = None
    try:
        for file in files:
            table = pyarrow.parquet.read_table(file)
            writer = writer or pyarrow.parquet.ParquetWriter(target, table.schema)
            writer.write_table(table.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        pyarrow.parquet.write_table(pyarrow.table({"row": pyarrow.array([], pyarrow.int64())}), target)


def _join_arrays(files: list[Path], target: Path) -> None:
    """NumPy's archive holds each output as one array; text columns as fixed-width text, never as pickled objects."""
    table = (
        pyarrow.concat_tables([pyarrow.parquet.read_table(f) for f in files])
        if files
        else pyarrow.table({"row": []})
    )
    arrays = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pyarrow.types.is_fixed_size_list(column.type):
            arrays[name] = (
                column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
            )
        else:
            values = column.to_numpy(zero_copy_only=False)
            arrays[name] = values.astype(str) if values.dtype == object else values
    with target.open("wb") as file:
        np.savez(file, **arrays)
