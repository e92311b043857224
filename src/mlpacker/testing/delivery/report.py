"""The table of verdicts as a page: broker × fault, from the results of real runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .faults import FAULTS

OPENING = """\
# What was lost

Nothing, in these runs: each cell is a real broker, real processes and a real fault, judged by the ledger. Written by
`make delivery-page`; `make delivery` runs it on your machine, `make test` walks all faults over each broker, `make soak` goes on
for as long as you like. What is promised, and what is not: [delivery](../delivery.md).

A ledger sends numbered rows of {keys} keys at a steady rate, some of them twice in equal bytes, while the fault happens; reads
the answers and the dead letters; and holds one against the other. **Rows in = answers + dead letters** must be exact; a row must
be a dead letter only for its own failure; first answers must keep their order within a key; an id must name one row. *Repeats*
are answers that came again under the same id, which at least once allows.

A cell reads: rows in / repeats / dead letters; **lost** rows would stand in bold.
"""


def page(results: Sequence[dict[str, Any]], keys: int = 7) -> str:
    """Markdown. Several results of a broker (cells, seeds) are added up."""
    brokers = list(dict.fromkeys(r["broker"] for r in results))
    lines = [
        OPENING.format(keys=keys),
        "| fault | " + " | ".join(brokers) + " |",
        "|---" * (len(brokers) + 1) + "|",
    ]
    for fault in FAULTS:
        cells = [_cell(_of(results, broker, fault.name)) for broker in brokers]
        lines.append(f"| **{fault.name}**: {fault.says} | " + " | ".join(cells) + " |")
    whole = [_cell(_of(results, broker, "the whole run")) for broker in brokers]
    lines.append("| **the whole run** | " + " | ".join(whole) + " |")
    lines += ["", "| broker | version | seeds | inversions | lost |", "|---|---|---|---|---|"]
    for broker in brokers:
        own = [r for r in results if r["broker"] == broker]
        cells_ = _of(results, broker, "the whole run")
        seeds = ", ".join(sorted({str(r["seed"]) for r in own}, key=int))
        lines.append(
            f"| {broker} | {own[0]['version']} | {seeds} | {sum(c['inversions'] for c in cells_)} | {sum(c['lost'] for c in cells_)} |"
        )
    lines += [
        "",
        "To run one again: `.venv/bin/python -m mlpacker.testing.delivery --broker kafka --seed 1`.",
        "",
    ]
    return "\n".join(lines)


def _of(results: Iterable[dict[str, Any]], broker: str, fault: str) -> list[dict[str, Any]]:
    return [c for r in results if r["broker"] == broker for c in r["cells"] if c["fault"] == fault]


def _cell(cells: list[dict[str, Any]]) -> str:
    tried = [c for c in cells if not c["skipped"]]
    if not tried:
        return f"– ({cells[0]['skipped']})" if cells else "–"
    rows, repeats, dead, lost = (sum(c[k] for c in tried) for k in ("in", "repeats", "dead_letters", "lost"))
    said = f"{rows} / {repeats} / {dead}"
    if lost:
        said += f" / **{lost} lost**"
    return said if all(c["kept"] for c in tried) else f"{said} / **broken**"
