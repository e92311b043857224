"""`mlpacker score`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import EXISTING, PATH, as_json, home, option


@click.command(context_settings={"show_default": True})
@click.argument("ref")
@click.argument("input", type=EXISTING)
@option(
    "-o", "--output", type=PATH, required=True, help="Where the answers go (.csv, .jsonl, .parquet, .npz)."
)
@option("--outputs", help="Only these outputs, comma-separated [default: all].")
@option("--restart", is_flag=True, help="Write the output anew, even where a run was begun or ended.")
@option(
    "--trust-code",
    is_flag=True,
    help="Accept the code of a package that was not packed here; once per digest.",
)
@home
@as_json
def score(
    ref: str, input: Path, output: Path, outputs: str | None, home: Path | None, as_json: bool, **given: Any
) -> None:
    """Answer every row of a file (CSV, JSON lines, Parquet, NumPy).

    A run that was killed goes on where it was when it is given again. Rows that can't be answered go to
    OUTPUT.rejected.jsonl with their reasons.
    """
    from .. import app
    from .drawing import Drawn

    want = frozenset(o.strip() for o in outputs.split(",")) if outputs else None
    with Drawn(quiet=as_json) as events:
        counts = app.Mlpacker(home, events=events).score(ref, input, output, want=want, **given)
    if as_json:
        from .packages import print_json

        print_json({"output": str(output), **counts.__dict__})
        return
    said = f"{counts.lines:,} answers for {counts.rows:,} rows in {output}"
    said += f", {counts.dropped:,} dropped" if counts.dropped else ""
    click.echo(
        said + (f", {counts.rejected:,} rejected (see {output}.rejected.jsonl)" if counts.rejected else "")
    )
