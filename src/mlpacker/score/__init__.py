"""Score: every row of a file through a package, into another file.

Memory does not grow with the file: rows go through in chunks. After each chunk what was written is made durable and a
checkpoint says how far everything came, so a killed run goes on where it was without repeating or losing a row. Rows that
can't be read or answered go to a side file with their reasons; rows a stage drops leave no line and are counted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.rest.rows import Reader
from mlpacker_runtime.signature import Field

from ..errors import BadDescription, BadInput
from ..events import Events
from . import sinks, sources
from .sources import Chunk

CHUNK_ROWS = 4096


class Answering(Protocol):
    """Whatever answers a batch: a package that is open."""

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome: ...


@dataclass(frozen=True)
class Job:
    """What is scored into what. digest: of the package, so that a run is not gone on with by another one."""

    digest: str
    inputs: tuple[Field, ...]
    input: Path
    output: Path
    want: frozenset[str] | None = None
    whole: bool = False
    """Rows depend on their neighbours: the file is one request."""
    restart: bool = False
    chunk_rows: int = CHUNK_ROWS

    @property
    def wanted(self) -> list[str] | None:
        return None if self.want is None else sorted(self.want)

    @property
    def rejected(self) -> Path:
        return self.output.with_name(self.output.name + ".rejected.jsonl")

    @property
    def checkpoint(self) -> Path:
        return self.output.with_name(self.output.name + ".checkpoint")


@dataclass(frozen=True)
class Counts:
    """Rows of the input, and what became of them. lines: answers written (an expanding stage gives several a row)."""

    rows: int = 0
    lines: int = 0
    dropped: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Everything up to here is durable: the source's place, and the length of each file written. want: sorted, None for all."""

    digest: str
    source: str
    want: list[str] | None
    place: Any
    written: Any
    rejected_bytes: int
    counts: Counts


def score(job: Job, package: Answering, events: Events) -> Counts:
    """Raises BadInput for a file that can't be read, BadDescription where the output is another run's or in the way."""
    source = sources.open_source(job.input, None if job.whole else job.chunk_rows)
    began = _begin(job, source)
    reader = Reader(job.inputs)
    counts = began.counts
    started, before = time.monotonic(), counts.rows
    with (
        sinks.open_sink(job.output, began.written) as sink,
        sinks.cut_back(job.rejected, began.rejected_bytes) as side,
    ):
        for chunk in source.chunks(began.place):
            counts = _score_chunk(job, chunk, reader, package, sink, side, counts)
            written = sink.flush()
            side.flush()
            os.fsync(side.fileno())
            _save(
                job,
                replace(began, place=chunk.after, written=written, rejected_bytes=side.tell(), counts=counts),
            )
            events.progress(chunk.done, source.size)
            rate = (counts.rows - before) / max(time.monotonic() - started, 1e-6)
            events.note(f"{counts.rows:,} rows, {rate:,.0f} a second")
        sink.finish()
        job.checkpoint.unlink(missing_ok=True)
        sink.clear()
    if counts.rejected == 0:
        job.rejected.unlink(missing_ok=True)
    return counts


def _begin(job: Job, source: sources.Source) -> Checkpoint:
    """Where to begin: at the checkpoint of the same run, else at the start."""
    fresh = Checkpoint(job.digest, source.identity, job.wanted, None, None, 0, Counts())
    if job.restart or not job.checkpoint.exists():
        if job.output.exists() and not job.restart:
            raise BadDescription(
                f"{job.output} is there already.", "Name another output, or write it anew with --restart."
            )
        return fresh
    try:
        value = json.loads(job.checkpoint.read_text())
        found = Checkpoint(**{**value, "counts": Counts(**value["counts"])})
    except (ValueError, TypeError, KeyError) as cause:
        raise BadDescription(f"{job.checkpoint} is no checkpoint.", "Begin anew with --restart.") from cause
    if (found.digest, found.source) != (job.digest, source.identity):
        raise BadDescription(
            f"{job.output} was begun with another package or another input.", "Begin anew with --restart."
        )
    if found.want != job.wanted:
        raise BadDescription(
            f"{job.output} was begun with {', '.join(found.want or ['all outputs'])}.",
            "Ask for the same outputs again, or begin anew with --restart.",
        )
    return found


def _save(job: Job, checkpoint: Checkpoint) -> None:
    draft = job.checkpoint.with_suffix(".checkpoint-new")
    with draft.open("w") as file:
        json.dump(asdict(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(job.checkpoint)


def _score_chunk(
    job: Job, chunk: Chunk, reader: Reader, package: Answering, sink: sinks.Sink, side: Any, counts: Counts
) -> Counts:
    read = chunk.read(reader)
    outcome = package.run(read.batch, job.want)
    failed = {**chunk.malformed, **read.errors, **outcome.errors}
    answer = outcome.batch
    sink.write(Batch(answer.columns, answer.rows + chunk.first))
    for row in sorted(failed):
        line = {"row": chunk.first + row, "reason": failed[row], "data": chunk.original(row)}
        side.write(json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")
    answered = len(np.unique(answer.rows))
    return Counts(
        rows=counts.rows + chunk.count,
        lines=counts.lines + len(answer),
        dropped=counts.dropped + chunk.count - answered - len(failed),
        rejected=counts.rejected + len(failed),
    )


def formats() -> Iterator[str]:
    """The endings of files that can be scored."""
    yield from sources.ENDINGS


__all__ = ["BadInput", "Counts", "Job", "score"]
