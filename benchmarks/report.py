"""From rounds to a page: medians and their spread, ratios first."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

OURS, WRITTEN, SERVER, CEILING = "ours", "hand-written", "model server", "ceiling"
USUAL, AT_ONCE, BATCHED, HAND = (
    "usual client, no model",
    "one at a time",
    "a tool's batches",
    "batches by hand",
)


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


@dataclass(frozen=True)
class Stream:
    """One stream contestant, once. rate: rows a second. core: microseconds of its core a row, which other load hardly changes."""

    kind: str
    rate: float
    core: float


@dataclass(frozen=True)
class Age:
    """From a row's arrival in the broker to its answer's, in milliseconds."""

    p50: float
    p99: float


Rounds = Mapping[tuple[str, str], Sequence[Round]]

MEASURES = (
    ("requests/s, 64 connections", "rate", True),
    ("p99 there", "p99", False),
    ("p50, one connection", "alone_p50", False),
    ("cold start", "cold", False),
    ("memory", "memory", False),
)
"""Title, field of a round, and whether more is better."""
HEADLINES = ("rate", "alone_p50", "cold", "memory")


def median(rounds: Iterable[Round], measure: str) -> float | None:
    """None where nothing was answered in the time given, so that nothing was measured."""
    values = [v for r in rounds if (v := getattr(r, measure)) > 0]
    return statistics.median(values) if values else None


def best(
    entered: Mapping[str, Sequence[Round]], names: Iterable[str], measure: str, more: bool
) -> float | None:
    found = [m for n in names if (m := median(entered[n], measure)) is not None]
    return (max if more else min)(found) if found else None


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
    glance = _glance(rounds, kinds, workloads)
    if glance:
        parts.append(glance)
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


def _glance(rounds: Rounds, kinds: Mapping[str, str], workloads: Sequence[Workload]) -> str:
    """The first table: ours over the best of the model servers, a workload a line."""
    chosen = [m for m in MEASURES if m[1] in HEADLINES]
    lines = []
    for workload in workloads:
        entered = {c: rs for (w, c), rs in rounds.items() if w == workload.name}
        servers = [n for n in entered if kinds[n] == SERVER]
        lines += [
            _line([f"{workload.name}, {own}", *_against(entered, own, servers, chosen)])
            for own in entered
            if kinds[own] == OURS and servers
        ]
    if not lines:
        return ""
    head = [
        _line(["÷ the best model server", *(t for t, _, _ in chosen)]),
        _line(["---", *("---:" for _ in chosen)]),
    ]
    return "## At a glance\n\nOf requests/s more is better, of all else less.\n\n" + "\n".join(
        [*head, *lines]
    )


def _against(
    entered: Mapping[str, Sequence[Round]],
    own: str,
    others: Sequence[str],
    measures: Sequence[tuple[str, str, bool]],
) -> list[str]:
    """Our medians over the best of these others', measure by measure."""
    return [_ratio(median(entered[own], m), best(entered, others, m, more)) for _, m, more in measures]


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
    """Ours over the best of the model servers, the hand-written service and the ceiling, a pair a line."""
    against: dict[str, list[str]] = {}
    servers = [n for n in entered if kinds[n] == SERVER]
    if servers:
        against["the best model server"] = servers
    against |= {n: [n] for n in entered if kinds[n] in (WRITTEN, CEILING)}
    lines = [
        _line([f"{own} ÷ {title}", *_against(entered, own, others, MEASURES)])
        for own in entered
        if kinds[own] == OURS
        for title, others in against.items()
    ]
    head = [_line(["", *(t for t, _, _ in MEASURES)]), _line(["---", *("---:" for _ in MEASURES)])]
    return "\n".join([*head, *lines]) if lines else ""


def _ratio(value: float | None, other: float | None) -> str:
    if value is None or other is None:
        return "–"
    ratio = value / other
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


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


def _spread(rounds: Sequence[Round | Stream | Age], measure: str) -> str:
    values = [v for r in rounds if (v := getattr(r, measure)) > 0]
    if not values:
        return "–"
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


# --- Streams ---------------------------------------------------------------------------------------------------------

STREAMS = "## Streams"
Streams = Mapping[tuple[str, str], Sequence[Stream]]
Ages = Mapping[tuple[str, str], Sequence[Age]]


def with_section(page: str, section: str) -> str:
    """The page with this section of streams as its last; as it is where there is none."""
    if not section:
        return page
    return page.partition(f"\n{STREAMS}\n")[0].rstrip() + "\n\n" + section.rstrip() + "\n"


def section_of(page: str) -> str:
    """The section of streams that the page has; empty where it has none."""
    _, found, rest = page.partition(f"\n{STREAMS}\n")
    return f"{STREAMS}\n{rest}" if found else ""


def plain_streams(rates: Streams, ages: Ages) -> dict[str, object]:
    """Everything measured of streams, as JSON values."""
    return {
        "rates": [
            {"broker": b, "contestant": c, "rounds": [asdict(r) for r in rs]} for (b, c), rs in rates.items()
        ],
        "ages": [
            {"broker": b, "contestant": c, "rounds": [asdict(a) for a in found]}
            for (b, c), found in ages.items()
        ],
    }


def streams(rates: Streams, ages: Ages, skipped: Mapping[str, str], versions: Mapping[str, str]) -> str:
    parts = [_streams_introduction(versions)]
    brokers = list(dict.fromkeys(broker for broker, _ in rates))
    parts.append(_stream_ratios(rates, brokers))
    parts.append(_stream_rates(rates, brokers))
    if ages:
        parts.append(_stream_ages(ages))
    if skipped:
        parts.append(
            "Not measured: " + "; ".join(f"{name} ({reason})" for name, reason in skipped.items()) + "."
        )
    return "\n\n".join(p for p in parts if p) + "\n"


def _streams_introduction(versions: Mapping[str, str]) -> str:
    load = os.getloadavg()[1]
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"""{STREAMS}

`mlpacker stream`, as a user starts it, beside consumers written by hand and other stream tools. Rows are JSON lists of 30 floats, the model
is a scaler and a logistic regression, answers are JSON. One core for a contestant (all of its processes), the other for the broker, which runs in its **default
settings** (nothing is flushed to disk before it is confirmed), once for all. A contestant answers {WARM_ROWS} rows, is stopped while its topic is filled, and goes on:
timed from then until the last answer is in the broker. Rounds are interleaved; numbers are medians, in brackets the lowest and the highest round. Every run ends with the check that all answers are there, are scikit-learn's, and are in the order of the rows.
All acknowledge only after their answer is published, but for Bytewax, which without its recovery store acknowledges nothing.

Measured {datetime.datetime.now(datetime.timezone.utc).date().isoformat()} with {known}. Load average of the machine meanwhile: {load:.1f}."""


WARM_ROWS = 300


def _rate(rounds: Sequence[Stream]) -> float:
    return statistics.median(r.rate for r in rounds)


def _of_kind(rates: Streams, broker: str, kind: str) -> float | None:
    """The best median among a broker's contestants of this kind."""
    found = [_rate(rs) for (b, _), rs in rates.items() if b == broker and rs[0].kind == kind]
    return max(found, default=None)


def _stream_ratios(rates: Streams, brokers: Sequence[str]) -> str:
    titles = {
        USUAL: "the usual client in batches, no model",
        AT_ONCE: "the best one at a time",
        BATCHED: "the best tool in batches",
        HAND: "the client in batches, by hand",
    }
    lines = [_line(["mlpacker ÷", *titles.values()]), _line(["---", *("---:" for _ in titles)])]
    for broker in brokers:
        own = _of_kind(rates, broker, OURS)
        lines.append(_line([broker, *(_ratio(own, _of_kind(rates, broker, kind)) for kind in titles)]))
    return "\n".join(lines)


def _stream_rates(rates: Streams, brokers: Sequence[str]) -> str:
    lines = [
        _line(["", "contestant", "rows/s", "µs of its core a row"]),
        _line(["---", "---", "---:", "---:"]),
    ]
    for broker in brokers:
        for (b, name), rounds in rates.items():
            if b == broker:
                lines.append(_line([broker, name, _spread(rounds, "rate"), _spread(rounds, "core")]))
    return "\n".join(lines)


def _stream_ages(ages: Ages) -> str:
    lines = [
        "From a row's arrival in the broker to its answer's, at 1,000 rows/s (Redis tells whole milliseconds; the client without a model "
        "takes one row at a time here over NATS, where a batch would wait to be full):",
        _line(["", "contestant", "p50, ms", "p99, ms"]) + "\n" + _line(["---", "---", "---:", "---:"]),
    ]
    for (broker, name), found in ages.items():
        lines[-1] += "\n" + _line([broker, name, _ages_of(found, "p50"), _ages_of(found, "p99")])
    return "\n\n".join(lines)


def _ages_of(found: Sequence[Age], measure: str) -> str:
    values = sorted(getattr(age, measure) for age in found)
    low, middle, high = (
        _number(v) if v else "<1" for v in (values[0], statistics.median(values), values[-1])
    )
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"
