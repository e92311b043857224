"""What a worker says of itself: lines of log, and numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.telemetry.log import logger
from mlpacker_runtime.telemetry.metrics import Metrics, Timed


def test_a_log_line_is_json_with_an_action_and_its_facts() -> None:
    stream = io.StringIO()
    logger("json", stream, worker=3)("died", level="error", reason="worker 0 ended")
    line = json.loads(stream.getvalue())
    assert {"time", "level", "action"} <= set(line)
    assert (line["action"], line["level"], line["worker"], line["reason"]) == (
        "died",
        "error",
        3,
        "worker 0 ended",
    )


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    logger("json", stream)("ready")


def test_a_histogram_is_cumulative_and_ends_with_everything(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, ["clean"], ["predict"], {"name": 'a"b\n'})
    for rows in (1, 3, 5_000_000):
        metrics.batch(1, rows)
    text = metrics.text()
    assert 'mlpacker_batch_rows_bucket{le="1"} 1\n' in text
    assert 'mlpacker_batch_rows_bucket{le="4"} 2\n' in text
    assert 'mlpacker_batch_rows_bucket{le="+Inf"} 3\n' in text
    assert "mlpacker_batch_rows_sum 5000004\n" in text
    assert 'mlpacker_info{name="a\\"b\\n"} 1' in text


def test_a_timed_stage_is_counted_and_so_is_what_it_raises(tmp_path: Path) -> None:
    class Toy:
        def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
            if not len(batch):
                raise ValueError("empty")
            return Outcome(batch)

    times = iter((1.0, 1.25, 2.0))
    metrics = Metrics(tmp_path, 0, ["toy"], ["predict"], {})
    timed = Timed(Toy(), "toy", metrics, lambda: next(times))

    timed.predict(Batch({"x": np.zeros(3)}), None)
    try:
        timed.predict(Batch({"x": np.zeros(0)}), None)
    except ValueError:
        pass
    text = metrics.text()
    assert 'mlpacker_stage_seconds_sum{stage="toy"} 0.25\n' in text
    assert 'mlpacker_stage_rows_sum{stage="toy"} 3\n' in text
    assert 'mlpacker_stage_errors_total{stage="toy"} 1\n' in text


def test_a_file_of_another_shape_is_not_added(tmp_path: Path) -> None:
    (tmp_path / "metrics-9").write_bytes(b"\0" * 8)
    metrics = Metrics(tmp_path, 0, ["toy"], ["predict"], {})
    assert metrics.totals()[metrics.starts.start] == 1
