"""From rounds to a page: medians and their spread, ratios first."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

OURS, WRITTEN, SERVER, CEILING = "ours", "hand-written", "model server", "ceiling"


@dataclass(frozen=True)
class Round:
    """One start of one server. rate: requests a second at 64 connections; p50, p99 there; alone: the same at one connection.

    Times in milliseconds, cold in seconds, memory in megabytes. failed: requests that got no right status.
    """

    rate: float
    p50: float
    p99: float
    alone_p50: float
    alone_p99: float
    cold: float
    memory: float
    failed: int


@dataclass(frozen=True)
class Pack:
    seconds: list[float]
    megabytes: float


class Workload(Protocol):
    name: str
    title: str


class Contestant(Protocol):
    name: str
    kind: str


Rounds = Mapping[tuple[str, str], Sequence[Round]]

MEASURES = (
    ("requests/s, 64 connections", "rate", True),
    ("p99 there", "p99", False),
    ("p50, one connection", "alone_p50", False),
    ("cold start", "cold", False),
    ("memory", "memory", False),
)
"""Title, field of a round, and whether more is better."""


def median(rounds: Iterable[Round], measure: str) -> float:
    return statistics.median(getattr(r, measure) for r in rounds)


def plain(rounds: Rounds, packs: Mapping[str, Pack]) -> dict[str, object]:
    """Everything measured, as JSON values."""
    return {
        "rounds": [
            {"workload": w, "contestant": c, "rounds": [asdict(r) for r in rs]}
            for (w, c), rs in rounds.items()
        ],
        "packs": {name: asdict(p) for name, p in packs.items()},
    }


def write(
    rounds: Rounds,
    packs: Mapping[str, Pack],
    skipped: Mapping[str, str],
    versions: Mapping[str, str],
    workloads: Sequence[Workload],
    contestants: Sequence[Contestant],
) -> str:
    kinds = {c.name: c.kind for c in contestants}
    parts = [_introduction(versions)]
    for workload in workloads:
        entered = {c: rs for (w, c), rs in rounds.items() if w == workload.name}
        if entered:
            order = [n for n in dict.fromkeys(c.name for c in contestants) if n in entered]
            parts.append(_section(workload, {n: entered[n] for n in order}, kinds))
    if packs:
        parts.append(_packing(packs))
    if skipped:
        lines = [f"- {name}: {reason}" for name, reason in skipped.items()]
        parts.append("## Not measured\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _introduction(versions: Mapping[str, str]) -> str:
    load = os.getloadavg()[1]
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"""# Benchmarks

<!-- Written by `make bench`. Edit benchmarks/, not this page. -->

`mlpacker run` beside a service written by hand and four model servers, and beside the ceiling: the HTTP server answering a constant.
**Only the ratios carry over to another machine.** They come from one run, measured like this:

- {len(os.sched_getaffinity(0))} cores: the server on one, the load (wrk) on the other, over the loopback; one worker each; one virtual environment each, bytecode compiled.
- Rounds are interleaved; each round starts every server anew. Numbers are medians, in brackets the lowest and the highest round.
- No server is timed before 64 different requests, 16 at a time, got scikit-learn's own labels (W3: 4 requests of 1,000 rows).
- Every server is asked for labels only. 64 different rows take turns. Access logs are off where there is a switch.
- Memory is the proportional set size of all of a server's processes after the warm-up. A cold start is from the command to the first right answer, environment there, bytecode there.

Measured {datetime.datetime.now(datetime.timezone.utc).date().isoformat()} with {known}. Load average of the machine meanwhile: {load:.1f}."""


def _section(workload: Workload, entered: Mapping[str, Sequence[Round]], kinds: Mapping[str, str]) -> str:
    parts = [f"## {workload.name}: {workload.title}"]
    ratios = _ratios(entered, kinds)
    if ratios:
        parts.append(ratios)
    parts.append(_table(entered))
    failed = [
        f"{name} failed {sum(r.failed for r in rs)} requests"
        for name, rs in entered.items()
        if any(r.failed for r in rs)
    ]
    if failed:
        parts.append("Failed: " + "; ".join(failed) + ".")
    return "\n\n".join(parts)


def _ratios(entered: Mapping[str, Sequence[Round]], kinds: Mapping[str, str]) -> str:
    """Ours against the best of the model servers, the hand-written service and the ceiling, measure by measure."""
    mine = [n for n in entered if kinds[n] == OURS]
    servers = [n for n in entered if kinds[n] == SERVER]
    others = [n for n in entered if kinds[n] in (WRITTEN, CEILING)]
    if not mine or not (servers or others):
        return ""
    against = [*(["the best model server"] if servers else []), *others]
    lines = [_line(["", *(f"÷ {name}" for name in against)]), _line(["---", *("---:" for _ in against)])]
    for own in mine:
        for title, measure, more in MEASURES:
            value = median(entered[own], measure)
            best = (max if more else min)([median(entered[n], measure) for n in servers], default=None)
            compared = [*([best] if servers else []), *(median(entered[n], measure) for n in others)]
            lines.append(_line([f"{own}: {title}", *(_ratio(value, c) for c in compared)]))
    return "\n".join(lines)


def _ratio(value: float, other: float | None) -> str:
    return "–" if not other else f"{value / other:.2f}×" if value / other < 10 else f"{value / other:.0f}×"


def _table(entered: Mapping[str, Sequence[Round]]) -> str:
    head = [
        "server",
        "requests/s c64",
        "p50 c64, ms",
        "p99 c64, ms",
        "p50 c1, ms",
        "p99 c1, ms",
        "cold start, s",
        "memory, MB",
    ]
    lines = [_line(head), _line(["---", *("---:" for _ in head[1:])])]
    for name, rounds in entered.items():
        cells = [
            _spread(rounds, m) for m in ("rate", "p50", "p99", "alone_p50", "alone_p99", "cold", "memory")
        ]
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def _spread(rounds: Sequence[Round], measure: str) -> str:
    values = [getattr(r, measure) for r in rounds]
    middle = _number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _packing(packs: Mapping[str, Pack]) -> str:
    lines = [
        "## Packing W1's model, caches warm",
        "The whole command, from model file to package. mlpacker's time includes locking the environment and proving the answers in it; "
        "MLflow's is saving with a signature and an example; BentoML's is `bentoml build`.",
        _line(["", "seconds", "megabytes"]) + "\n" + _line(["---", "---:", "---:"]),
    ]
    for name, pack in packs.items():
        seconds = f"{statistics.median(pack.seconds):.1f} ({min(pack.seconds):.1f}–{max(pack.seconds):.1f})"
        lines[-1] += "\n" + _line([name, seconds, f"{pack.megabytes:.2f}"])
    return "\n\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
