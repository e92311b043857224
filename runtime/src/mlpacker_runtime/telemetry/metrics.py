"""What a REST worker counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .numbers import CONTENT_TYPE, SECONDS, SIZES, Numbers, Timed, resident_bytes

STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 431, 500, 503)
OTHER = 0
"""Stands for a status that is not listed."""
OUTCOMES = ("answered", "dropped", "failed")
SCORING = ("infer", "predict", "invocations")


class Metrics(Numbers):
    """One worker's requests, rows and stages."""

    def __init__(
        self, folder: Path, slot: int, stages: Sequence[str], routes: Sequence[str], info: Mapping[str, str]
    ) -> None:
        super().__init__(folder, stages, info)
        by_route = [(("route", r),) for r in routes]
        self.requests = self._add(
            "mlpacker_requests_total",
            "counter",
            "Requests answered.",
            [
                (("route", r), ("status", str(s) if s else "other"))
                for r in routes
                for s in (*STATUSES, OTHER)
            ],
        )
        self.seconds = self._add(
            "mlpacker_request_seconds", "histogram", "From a request read to its answer.", by_route, SECONDS
        )
        self.outcomes = self._add(
            "mlpacker_rows_total", "counter", "What became of rows.", [(("outcome", o),) for o in OUTCOMES]
        )
        self.batch_rows = self._add(
            "mlpacker_batch_rows", "histogram", "Rows that went through the pipeline together.", [()], SIZES
        )
        self.batch_requests = self._add(
            "mlpacker_batch_requests",
            "histogram",
            "Requests that went through the pipeline together.",
            [()],
            SIZES,
        )
        self.connections = self._add("mlpacker_connections", "gauge", "Open connections.", [()])
        self.waiting = self._add("mlpacker_waiting_rows", "gauge", "Rows that wait for the pipeline.", [()])
        self._routes = {r: i for i, r in enumerate(routes)}
        self._statuses = {s: i for i, s in enumerate((*STATUSES, OTHER))}
        self._open(slot)

    def request(self, route: str, status: int, seconds: float) -> None:
        at = self._routes[route]
        kinds = len(self._statuses)
        self.values[self.requests.start + at * kinds + self._statuses.get(status, kinds - 1)] += 1
        self._observe(self.seconds, at, seconds)

    def rows(self, answered: int, dropped: int, failed: int) -> None:
        start = self.outcomes.start
        self.values[start] += answered
        self.values[start + 1] += dropped
        self.values[start + 2] += failed

    def batch(self, requests: int, rows: int) -> None:
        self._observe(self.batch_requests, 0, requests)
        self._observe(self.batch_rows, 0, rows)

    def gauge(self, connections: int, waiting: int) -> None:
        self.values[self.connections.start] = connections
        self.values[self.waiting.start] = waiting
        self.values[self.memory.start] = resident_bytes()

    def statistics(self) -> dict[str, Any]:
        """In the shape Triton gives them. Times in nanoseconds."""
        totals = self.totals()
        good = bad = seconds = 0.0
        kinds = len(self._statuses)
        for at in (i for r, i in self._routes.items() if r in SCORING):
            own = totals[self.requests.start + at * kinds : self.requests.start + (at + 1) * kinds]
            good += own[0]
            bad += sum(own[1:])
            seconds += totals[self.seconds.start + (at + 1) * self.seconds.size - 1]
        rows = sum(totals[self.outcomes.start : self.outcomes.start + len(OUTCOMES)])
        batches = sum(totals[self.batch_rows.start : self.batch_rows.start + self.batch_rows.size - 1])
        compute = sum(
            totals[self.stage_seconds.start + (i + 1) * self.stage_seconds.size - 1]
            for i in self._stages.values()
        )
        nothing = {"count": 0, "ns": 0}
        return {
            "last_inference": 0,
            "inference_count": int(rows),
            "execution_count": int(batches),
            "inference_stats": {
                "success": {"count": int(good), "ns": int(seconds * 1e9)},
                "fail": {"count": int(bad), "ns": 0},
                "queue": nothing,
                "compute_input": nothing,
                "compute_infer": {"count": int(batches), "ns": int(compute * 1e9)},
                "compute_output": nothing,
            },
            "batch_stats": [],
        }


__all__ = ["CONTENT_TYPE", "Metrics", "Timed", "resident_bytes"]
