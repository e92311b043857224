"""Commands about packages in the local store: ls, inspect, diff, tag, rm, gc, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import as_json, home, option

if TYPE_CHECKING:
    from rich.table import Table

    from ..app import Info


def print_json(value: Any) -> None:
    """One JSON object (or list) on stdout, and nothing else."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


@click.command()
@home
@as_json
def ls(home: Path | None, as_json: bool) -> None:
    """List the packages in the local store."""
    from .. import app
    from .drawing import Drawn, size

    with Drawn(quiet=as_json) as events:
        listed = app.Mlpacker(home, events=events).list()
    if as_json:
        print_json({"packages": [entry.to_json() for entry in listed]})
        return
    if not listed:
        click.echo("No packages yet. Make one: mlpacker pack model.joblib", err=True)
        return
    table = _table("NAME", "DIGEST", "STAGES", "SIZE")
    for entry in listed:
        stages = " → ".join(s.name for s in entry.info.manifest.stages)
        table.add_row(entry.name, entry.info.digest[:19], stages, size(entry.info.size))
    _console().print(table)


@click.command()
@click.argument("ref")
@home
@as_json
def inspect(ref: str, home: Path | None, as_json: bool) -> None:
    """Show what a package holds and what was proven of it."""
    from .. import app

    info = app.Mlpacker(home).inspect(ref)
    if as_json:
        print_json(info.to_json())
    else:
        print_info(info)


def print_info(info: Info) -> None:
    """The summary a person wants to read."""
    from .drawing import size

    m, console = info.manifest, _console()
    title = f"{m.name}:{m.version}" if m.version else m.name
    console.print(f"\n[bold]{title}[/]  {info.digest}")
    table = _table("STAGE", "FORMAT", "AFTER", "ANSWERS", "BATCHES")
    for stage in m.stages:
        answers = _shortened([f.name for f in stage.outputs], 3)
        table.add_row(stage.name, stage.format, ", ".join(stage.after), answers, _batching(stage))
    console.print(table)
    console.print(f"[dim]in [/]  {_fields(m.inputs)}")
    console.print(f"[dim]out[/]  {_fields(m.outputs)}")
    sizes = info.proof.get("environment_bytes", {})
    environments = ", ".join(
        f"{n}: Python {e.python}" + (f", {size(sizes[n])}" if n in sizes else "")
        for n, e in m.environments.items()
    )
    console.print(f"[dim]env[/]  {environments}   [dim]package[/] {size(info.size)}")
    if info.proof:
        colour = "green" if info.proof["verdict"] == "proven" else "yellow"
        console.print(f"[dim]proof[/] [{colour}]{info.proof['verdict']}[/] {_proof(info.proof)}")


def _batching(stage: Any) -> str:
    return "shared" if stage.batch == "rows" else "whole requests"


def _proof(proof: Any) -> str:
    rows = f"{proof['rows']} {'made-up ' if proof['made_up_sample'] else ''}rows"
    return f"({rows}; {proof['reference']})"


def _fields(fields: Any) -> str:
    return _shortened([f"{f.name} {_type(f)}" for f in fields], 6)


def _type(field: Any) -> str:
    shape = f"{list(field.shape[1:])}" if len(field.shape) > 1 else ""
    return f"{field.dtype}{shape}{' or null' if field.nullable else ''}"


def _shortened(words: list[str], most: int) -> str:
    return ", ".join(words[:most]) + (f", … {len(words) - most} more" if len(words) > most else "")


@click.command()
@click.argument("a")
@click.argument("b")
@home
@as_json
def diff(a: str, b: str, home: Path | None, as_json: bool) -> None:
    """Show what changed between two packages: models, code, pins, signature. Exits 1 when anything did."""
    from .. import app

    changes = app.Mlpacker(home).diff(a, b)
    if as_json:
        print_json({"a": a, "b": b, "changes": [c.to_json() for c in changes]})
    else:
        for change in changes:
            click.echo(str(change))
        if not changes:
            click.echo("No difference.", err=True)
    click.get_current_context().exit(1 if changes else 0)


@click.command()
@click.argument("ref")
@click.argument("name")
@option("--move", is_flag=True, help="Take the name from the package that has it.")
@home
def tag(ref: str, name: str, move: bool, home: Path | None) -> None:
    """Give a package another name or version, as NAME or NAME:VERSION."""
    from .. import app

    digest = app.Mlpacker(home).tag(ref, name, move=move)
    click.echo(f"{name} is {digest}", err=True)


@click.command()
@click.argument("names", nargs=-1, required=True)
@home
def rm(names: tuple[str, ...], home: Path | None) -> None:
    """Remove names; the bytes go with the next gc."""
    from .. import app

    packer = app.Mlpacker(home)
    for name in names:
        packer.remove(name)
        click.echo(f"{name} is removed.", err=True)


@click.command()
@option("--unnamed", is_flag=True, help="Forget packages without a name too.")
@option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@home
@as_json
def gc(dry_run: bool, unnamed: bool, home: Path | None, as_json: bool) -> None:
    """Delete bytes and environments that no package needs."""
    from .. import app
    from .drawing import size

    freed = app.Mlpacker(home).gc(dry_run=dry_run, unnamed=unnamed)
    if as_json:
        print_json(freed)
        return
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {size(freed['bytes'])}: {freed['blobs']} blobs, {freed['environments']} environments")


@click.command()
@click.argument("ref")
@home
@as_json
def verify(ref: str, home: Path | None, as_json: bool) -> None:
    """Check every byte of a package against its digest."""
    from .. import app
    from .drawing import Drawn, size

    with Drawn(quiet=as_json) as events:
        mlpacker = app.Mlpacker(home, events=events)
        checked = mlpacker.verify(ref)
    if as_json:
        print_json({**mlpacker.inspect(checked["digest"]).to_json(), **checked})
    else:
        click.echo(
            f"{checked['digest']}: every byte is right ({checked['files']} files, {size(checked['bytes'])})"
        )
