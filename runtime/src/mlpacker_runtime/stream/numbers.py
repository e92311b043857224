"""What a stream counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..telemetry.numbers import SECONDS, SIZES, Numbers, resident_bytes

AGES = (*SECONDS, 60.0, 300.0, 3600.0, 86400.0)
OUTCOMES = ("answered", "dropped", "failed")


class StreamNumbers(Numbers):
    """One stream worker's messages, rows and stages. Ages are of the wall clock: from the broker's time to the confirmation."""

    def __init__(self, folder: Path, stages: Sequence[str], info: Mapping[str, str]) -> None:
        super().__init__(folder, stages, info)
        add = self._add
        one: Sequence[tuple[tuple[str, str], ...]] = [()]
        self.read_messages = add("mlpacker_stream_messages_total", "counter", "Messages read.", one)
        self.outcomes = add(
            "mlpacker_stream_rows_total",
            "counter",
            "What became of rows.",
            [(("outcome", o),) for o in OUTCOMES],
        )
        self.repeated = add(
            "mlpacker_stream_repeats_total",
            "counter",
            "Messages dropped because they were answered before.",
            one,
        )
        self.age = add(
            "mlpacker_stream_age_seconds",
            "histogram",
            "From the broker's time of a message to its confirmed answer.",
            one,
            AGES,
        )
        self.batch_rows = add("mlpacker_stream_batch_rows", "histogram", "Rows scored together.", one, SIZES)
        self.retried = add("mlpacker_stream_retries_total", "counter", "Rows asked again.", one)
        self.given_up = add(
            "mlpacker_stream_partitions_given_up_total",
            "counter",
            "Partitions that went to another reader.",
            one,
        )
        self.giving_seconds = add(
            "mlpacker_stream_giving_up_seconds_total",
            "counter",
            "Time spent finishing partitions before they went.",
            one,
        )
        self.reopened = add(
            "mlpacker_stream_source_opened_total", "counter", "How often the source was connected to.", one
        )
        self.lost = add(
            "mlpacker_stream_lost_total",
            "counter",
            "Messages that the broker no longer had when they were due again.",
            one,
        )
        self.in_flight = add("mlpacker_stream_in_flight", "gauge", "Messages that are out.", one)
        self.lag = add(
            "mlpacker_stream_lag",
            "gauge",
            "Messages not yet read, as far as the broker says; -1: it does not.",
            one,
        )
        self.lag_seconds = add(
            "mlpacker_stream_lag_seconds", "gauge", "Age of the message finished last.", one
        )
        self.spooled = add(
            "mlpacker_stream_spooled", "gauge", "Messages that wait on disk for the sink.", one
        )
        self.up = add(
            "mlpacker_stream_up",
            "gauge",
            "Whether the broker at that end can be reached.",
            [(("end", e),) for e in ("source", "sink", "dead_letters")],
        )
        self.buried = add("mlpacker_stream_dead_letters_total", "counter", "Dead letters written.", one)
        self._open(0)
        self.total_finished = 0

    def count(self, family: Any, by: float = 1, at: int = 0) -> None:
        self.values[family.start + at] += by

    def set(self, family: Any, value: float, at: int = 0) -> None:
        self.values[family.start + at] = value

    def get(self, family: Any, at: int = 0) -> float:
        return float(self.values[family.start + at])

    def finished(self, age: float) -> None:
        self.total_finished += 1
        self._observe(self.age, 0, max(age, 0.0))
        self.values[self.lag_seconds.start] = max(age, 0.0)

    def rows(self, answered: int, dropped: int, failed: int) -> None:
        start = self.outcomes.start
        self.values[start] += answered
        self.values[start + 1] += dropped
        self.values[start + 2] += failed
        self.values[self.buried.start] += failed

    def batch(self, rows: int) -> None:
        self._observe(self.batch_rows, 0, rows)

    def gauges(self) -> None:
        self.values[self.memory.start] = resident_bytes()
