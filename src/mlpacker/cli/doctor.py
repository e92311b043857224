"""`mlpacker doctor`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .options import as_json, home

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


@click.command()
@home
@as_json
def doctor(home: Path | None, as_json: bool) -> None:
    """Check this machine: what is here, what is missing, how to mend it. Exits 1 where something can't work."""
    from .. import app
    from .. import doctor as checks
    from .packages import print_json

    machine = checks.Machine(home or app.default_home(), os.environ)
    findings = list(checks.examine(machine))
    if as_json:
        print_json({"findings": [f.to_json() for f in findings]})
    for finding in () if as_json else findings:
        mark, colour = MARKS[finding.state]
        click.echo(f"{click.style(mark, fg=colour)} {finding.check:<10} {finding.said}")
        if finding.mend:
            click.echo(f"  {'':<10} {click.style(finding.mend, fg='cyan')}")
    click.get_current_context().exit(1 if any(f.state == checks.FAILED for f in findings) else 0)
