"""`mlpacker replay` and `mlpacker compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import PATH, as_json, home, option
from .streaming import described

OF_THE_RUNNING = ("to", "name", "group", "start", "spool", "watchdog")
"""Flags of a stream that a replay does not have, or has otherwise."""


def _described(command: Any) -> Any:
    """The flags of a stream, without those."""
    own = list(command.__click_params__)
    described(command)
    flags = command.__click_params__[len(own) :]
    command.__click_params__ = own + [f for f in flags if f.name not in OF_THE_RUNNING]
    return command


@click.command(context_settings={"show_default": True})
@click.argument("ref")
@_described
@option("--to", required=True, metavar="ADDRESS", help="Where the answers go: an output of its own.")
@option(
    "--name",
    help="The stream whose past this is: a row has the id that it had there [default: the package's name].",
)
@option(
    "--since",
    default="earliest",
    metavar="WHEN",
    help="Where to begin: earliest, offset:N, 2h, 3d, or an ISO 8601 time.",
)
@option("--until", metavar="WHEN", help="Where to end, likewise [default: now].")
@option(
    "--as",
    "called",
    metavar="NAME",
    help="The replay's own name; one that was stopped goes on under it [default: NAME-replay-TIME].",
)
@option("--timeout", type=float, help="Seconds to finish what is out when told to end [default: 30].")
@option("--log", type=click.Choice(["auto", "json", "human"]), help="The form of the log on stderr.")
@option(
    "--trust-code",
    is_flag=True,
    help="Accept the code of a package that was not packed here; once per digest.",
)
@home
@as_json
def replay(
    ref: str, home: Path | None, as_json: bool, timeout: float | None, log: str | None, **given: Any
) -> int:
    """Answer a stream's past once more, into another output; ends by itself.

    \b
      mlpacker replay bolts:2 --from local:rows --since 3d --to local:shadow
      mlpacker compare local:answers local:shadow

    The running deployment is not touched: its place, its answers and its dead letters stay as they are. A row has the id that it
    had in the stream of that --name, so the two outputs can be compared.
    """
    from .. import app
    from .serving import WhenNeeded

    with WhenNeeded() as events:
        mlpacker = app.Mlpacker(home, events=events)
        told = mlpacker.replay(ref, served={"timeout": timeout, "log": log}, **given)
    return _tell_replay(told, given["to"], as_json)


def _tell_replay(told: dict[str, Any], to: str, as_json: bool) -> int:
    from .packages import print_json

    code = 0 if told["ended"] else 130
    if as_json:
        print_json(told)
        return code
    rows = told["rows"]
    said = f"{rows['answered']:,} answers in {to}"
    said += f", {rows['dropped']:,} dropped" if rows["dropped"] else ""
    said += f", {rows['failed']:,} failed (mlpacker dlq ls {told['name']})" if rows["failed"] else ""
    said += f", {told['left_out']:,} later messages left out" if told["left_out"] else ""
    click.echo(f"{said}; {told['seconds']:.1f} s", err=to == "-")
    if not told["ended"]:
        click.echo(f"Stopped before its end; go on with --as {told['name']}.", err=True)
    return code


@click.command(context_settings={"show_default": True})
@click.argument("a")
@click.argument("b")
@option(
    "--key",
    default="id",
    metavar="FIELD",
    help="How rows meet: id, which answers of a stream carry, or a field.",
)
@option("--tolerance", default=1e-9, type=click.FloatRange(0), metavar="N", help="Numbers so near are equal.")
@option("-o", "--output", type=PATH, help="Write all rows that differ to this file, as JSON lines.")
@home
@as_json
def compare(
    a: str, b: str, home: Path | None, as_json: bool, key: str, tolerance: float, output: Path | None
) -> int:
    """Compare two outputs, row by row: addresses, or .jsonl and .csv files. Exits 1 when they differ.

    \b
      mlpacker compare local:answers local:shadow
      mlpacker compare old.csv new.csv --key row --tolerance 1e-6
    """
    from .. import app
    from .serving import WhenNeeded

    with WhenNeeded() as events:
        told = app.Mlpacker(home, events=events).compare(a, b, key=key, tolerance=tolerance, output=output)
    if as_json:
        from .packages import print_json

        print_json({"a": a, "b": b, **told})
    else:
        _tell_compared(told, a, b)
    return 1 if told["different"] or any(told["only"].values()) else 0


def _tell_compared(told: dict[str, Any], a: str, b: str) -> None:
    click.echo(f"{told['equal']:,} equal, {told['different']:,} different")
    for side, text in (("a", a), ("b", b)):
        click.echo(
            f"{told['rows'][side]:,} rows in {text}, {told['only'][side]:,} only there{_more(told, side)}"
        )
    if told["fields"]:
        _print_fields(told)
    if told["first"]:
        _print_first(told)


def _more(told: dict[str, Any], side: str) -> str:
    said = f", {told['repeats'][side]:,} repeats" if told["repeats"][side] else ""
    return said + (f", {told['without_key'][side]:,} without a key" if told["without_key"][side] else "")


def _print_fields(told: dict[str, Any]) -> None:
    from .packages import _console, _table

    table = _table("FIELD", "ROWS", "MAX |A-B|", "MEAN |A-B|")
    for name, spread in told["fields"].items():
        table.add_row(name, f"{spread['rows']:,}", _number(spread.get("max")), _number(spread.get("mean")))
    click.echo()
    _console().print(table, markup=False)


def _print_first(told: dict[str, Any]) -> None:
    from .packages import _console, _table

    table = _table("KEY", "FIELD", "A", "B", "|A-B|")
    for row in told["first"]:
        for name, said in row["fields"].items():
            values = [_value(said, side) for side in ("a", "b")]
            table.add_row(row["key"][:12], name, *values, _number(said.get("apart")))
    click.echo()
    _console().print(table, markup=False)
    more = told["different"] - len(told["first"])
    if more:
        click.echo(f"{more:,} more differ; -o FILE writes them all.", err=True)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def _value(said: dict[str, Any], side: str) -> str:
    if side not in said:
        return "(none)"
    text = str(said[side])
    return text if len(text) <= 40 else f"{text[:39]}…"
