"""`python -m mlpacker.testing.delivery`: ledger runs over real brokers, and their verdicts."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from . import report
from .faults import BY_NAME, FAULTS
from .servers import BROKERS, server
from .walk import Result, walk


@click.command()
@click.option(
    "--broker", "brokers", multiple=True, type=click.Choice(BROKERS), help="Only this one. Repeatable."
)
@click.option(
    "--fault", "faults", multiple=True, type=click.Choice(list(BY_NAME)), help="Only this one. Repeatable."
)
@click.option("--seed", default=1, help="Gives the order of the faults.")
@click.option("--cells", is_flag=True, help="Each fault in a run of its own.")
@click.option("--seconds", type=int, default=0, help="Go on with new seeds for so long.")
@click.option("--rate", type=float, default=0, help="Rows a second; 0: what suits the broker.")
@click.option(
    "--defaults", is_flag=True, help="The brokers as their makers set them, not as durable as they can be."
)
@click.option("--at-once", default=2, help="Brokers that are tried side by side.")
@click.option("--json", "to", type=click.Path(path_type=Path), help="Write the verdicts here.")
@click.option(
    "--page", type=click.Path(path_type=Path), help="Write the table of verdicts here, as Markdown."
)
def main(
    brokers: tuple[str, ...],
    faults: tuple[str, ...],
    seed: int,
    cells: bool,
    seconds: int,
    rate: float,
    defaults: bool,
    at_once: int,
    to: Path | None,
    page: Path | None,
) -> None:
    """Send numbered rows through a stream over real brokers, walk the faults, and say what was lost."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped
    chosen = [BY_NAME[f] for f in faults] or list(FAULTS)
    groups = [[f] for f in chosen] if cells else [chosen]
    end = time.monotonic() + seconds
    here = [b for b in (brokers or BROKERS) if not _missing(b)]

    def one(broker: str) -> list[Result]:
        found, number = [], seed
        while True:
            for group in groups:
                found.append(_run(broker, number, group, rate, defaults))
                click.echo("\n".join(found[-1].lines()))
            number += 1
            if time.monotonic() >= end:
                return found

    with ThreadPoolExecutor(max(at_once, 1)) as pool:
        results = [r for found in pool.map(one, here) for r in found]
    if to is not None:
        to.write_text(json.dumps([r.to_json() for r in results], indent=1) + "\n")
    if page is not None:
        page.write_text(report.page([r.to_json() for r in results]))
    sys.exit(0 if results and all(r.kept for r in results) else 1)


def _missing(broker: str) -> bool:
    reason = server(broker).missing()
    if reason:
        click.echo(f"{broker}: not tried: {reason}", err=True)
    return bool(reason)


def _run(broker: str, seed: int, faults: Any, rate: float, defaults: bool) -> Result:
    with tempfile.TemporaryDirectory(prefix="mlpacker-ledger-") as folder:
        made = server(broker)(Path(folder) / "broker", durable=not defaults)
        return walk(
            made,
            Path(folder),
            seed=seed,
            faults=faults,
            rate=rate,
            said=lambda line: click.echo(line, err=True),
        )


if __name__ == "__main__":
    main()
