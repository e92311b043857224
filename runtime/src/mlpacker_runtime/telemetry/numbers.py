"""Counting, as Prometheus reads it (text exposition format 0.0.4).

Each process counts in a small file of its own that all of them map, so whichever is asked adds them up; a process that is
started again goes on in its predecessor's file, and so no counter ever goes back. What there is to count is known at the
start: every series has a fixed place in the file, as a float64.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..batch import Batch, Outcome

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 65536.0, 1048576.0)
FEW = 8
"""Series of a larger family are told only once they counted something."""

Labels = tuple[tuple[str, str], ...]


class Family:
    """Series of one name. size: places a series takes; a histogram's are its buckets, one beyond, and the sum."""

    def __init__(
        self, name: str, kind: str, about: str, series: Sequence[Labels], bounds: Sequence[float] = ()
    ) -> None:
        self.name = name
        self.kind = kind
        self.about = about
        self.series = tuple(series)
        self.bounds = tuple(bounds)
        self.size = len(self.bounds) + 2 if kind == "histogram" else 1
        self.start = 0

    def places(self) -> int:
        return self.size * len(self.series)

    def text(self, values: Sequence[float]) -> Iterable[str]:
        yield f"# HELP {self.name} {self.about}\n# TYPE {self.name} {self.kind}\n"
        for i, labels in enumerate(self.series):
            own = values[self.start + i * self.size : self.start + (i + 1) * self.size]
            if self.kind == "histogram":
                if len(self.series) > FEW and not any(own):
                    continue
                yield from self._histogram(labels, own)
            elif own[0] or self.kind == "gauge" or len(self.series) <= FEW:
                yield f"{self.name}{_labels(labels)} {_number(own[0])}\n"

    def _histogram(self, labels: Labels, own: Sequence[float]) -> Iterable[str]:
        total = 0.0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), own[:-1], strict=True):
            total += count
            yield f"{self.name}_bucket{_labels((*labels, ('le', bound)))} {_number(total)}\n"
        yield f"{self.name}_sum{_labels(labels)} {_number(own[-1])}\n{self.name}_count{_labels(labels)} {_number(total)}\n"


class Numbers:
    """One process's numbers, and the sum of all. Each series is written by one thread at a time."""

    def __init__(self, folder: Path, stages: Sequence[str], info: Mapping[str, str]) -> None:
        self.folder = folder
        self.info = info
        self.families: dict[str, Family] = {}
        by_stage = [(("stage", s),) for s in stages]
        self.stage_seconds = self._add(
            "mlpacker_stage_seconds", "histogram", "A stage's time for a batch.", by_stage, SECONDS
        )
        self.stage_rows = self._add(
            "mlpacker_stage_rows", "histogram", "Rows a stage was asked at once.", by_stage, SIZES
        )
        self.stage_errors = self._add(
            "mlpacker_stage_errors_total", "counter", "Batches a stage raised on.", by_stage
        )
        self.starts = self._add(
            "mlpacker_worker_starts_total",
            "counter",
            "Workers started, those that replace a dead one included.",
            [()],
        )
        self.memory = self._add("mlpacker_memory_bytes", "gauge", "Resident memory of the workers.", [()])
        self._stages = {s: i for i, s in enumerate(stages)}

    def _add(
        self, name: str, kind: str, about: str, series: Sequence[Labels], bounds: Sequence[float] = ()
    ) -> Family:
        family = Family(name, kind, about, series, bounds)
        family.start = sum(f.places() for f in self.families.values())
        self.families[name] = family
        return family

    def _open(self, slot: int) -> None:
        """All families are known: map the file they are counted in."""
        self.places = sum(f.places() for f in self.families.values())
        self.values: Any = _map(self.folder / f"metrics-{slot}", self.places)
        self.values[self.starts.start] += 1

    # --- counting ---------------------------------------------------------------------------------------------------

    def stage(self, stage: str, rows: int, seconds: float) -> None:
        at = self._stages[stage]
        self._observe(self.stage_seconds, at, seconds)
        self._observe(self.stage_rows, at, rows)

    def stage_raised(self, stage: str) -> None:
        self.values[self.stage_errors.start + self._stages[stage]] += 1

    def _observe(self, family: Family, at: int, value: float) -> None:
        start = family.start + at * family.size
        self.values[start + bisect_left(family.bounds, value)] += 1
        self.values[start + family.size - 1] += value

    # --- reading ----------------------------------------------------------------------------------------------------

    def totals(self) -> list[float]:
        """The sum over all workers' files."""
        totals = [0.0] * self.places
        for file in sorted(self.folder.glob("metrics-*")):
            data = file.read_bytes()
            if len(data) == self.places * 8:
                for i, value in enumerate(memoryview(data).cast("d")):
                    totals[i] += value
        return totals

    def text(self) -> str:
        totals = self.totals()
        info = (
            "# HELP mlpacker_info What is served.\n# TYPE mlpacker_info gauge\n",
            f"mlpacker_info{_labels(tuple(self.info.items()))} 1\n",
        )
        return "".join((*info, *(part for f in self.families.values() for part in f.text(totals))))


class Timed:
    """A stage's runner that is timed."""

    def __init__(self, runner: Any, stage: str, metrics: Numbers, clock: Any) -> None:
        self.runner = runner
        self.stage = stage
        self.metrics = metrics
        self.clock = clock

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        began = self.clock()
        try:
            outcome: Outcome = self.runner.predict(batch, want)
        except Exception:
            self.metrics.stage_raised(self.stage)
            raise
        self.metrics.stage(self.stage, len(batch), self.clock() - began)
        return outcome


def _map(path: Path, places: int) -> Any:
    """The file as float64s, made where it is not there or of another shape."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size != places * 8:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, places * 8)
        return memoryview(mmap.mmap(descriptor, places * 8)).cast("d")
    finally:
        os.close(descriptor)


def resident_bytes() -> float:
    """Linux tells it in /proc; elsewhere the peak is what there is."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if os.uname().sysname == "Darwin" else peak * 1024)
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{k}="{_escaped(v)}"' for k, v in labels) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
