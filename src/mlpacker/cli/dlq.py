"""`mlpacker dlq`."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import as_json, home, option

if TYPE_CHECKING:
    from ..letters import Letters, Wanted

REASON = 60
"""Characters of a reason in the table."""


@click.group()
def dlq() -> None:
    """Look at a stream's dead letters, send them again or drop them.

    \b
      mlpacker dlq ls bolts
      mlpacker dlq show bolts 5f0c
      mlpacker dlq replay bolts --all

    NAME is the deployment: `mlpacker stream --name`, by default the package's name. An ID may be shortened.
    """


def _at(command: Any) -> Any:
    return option(
        "--at",
        metavar="ADDRESS",
        help="Where the dead letters are [default: kept by the stream on this machine].",
    )(command)


def _filters(command: Any) -> Any:
    flags = [
        option("--reason", metavar="TEXT", help="Only those with this in their reason."),
        option("--stage", help="Only those of this stage; `input`: rows that did not fit."),
        option("--since", metavar="TIME", help="Only newer ones: 2h, 3d, or an ISO 8601 time."),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


def _wanted(reason: str | None, stage: str | None, since: str | None) -> Wanted:
    from ..letters import Wanted
    from ..replays import moment

    return Wanted(reason or "", stage or "", moment(since, time.time()) if since else 0.0)


def _letters(home: Path | None, name: str, at: str | None) -> Letters:
    from .. import app

    return app.Mlpacker(home).letters(name, at or "")


@dlq.command()
@click.argument("name")
@_filters
@option("--limit", type=click.IntRange(1), metavar="N", help="Only the newest N.")
@_at
@home
@as_json
def ls(
    name: str, at: str | None, limit: int | None, home: Path | None, as_json: bool, **filters: str | None
) -> None:
    """List dead letters, the newest last."""
    letters = _letters(home, name, at).list(_wanted(**filters))
    shown = letters[-limit:] if limit else letters
    if as_json:
        from .packages import print_json

        print_json({"deployment": name, "count": len(letters), "letters": shown})
        return
    if not letters:
        click.echo("No dead letters.", err=True)
        return
    _print_table(shown)
    if len(shown) < len(letters):
        click.echo(f"{len(letters) - len(shown):,} older ones are not shown.", err=True)


def _print_table(letters: list[dict[str, Any]]) -> None:
    from .packages import _console, _table

    table = _table("ID", "WHEN", "STAGE", "KEY", "PLACE", "TRIES", "REASON")
    for one in letters:
        table.add_row(
            one["id"][:12],
            _when(one.get("failed_at")),
            one.get("stage", ""),
            _short(one.get("key", ""), 20),
            _place(one),
            str(one.get("attempts", "")),
            _short(one["reason"], REASON),
        )
    _console().print(table, markup=False)


def _when(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def _place(letter: dict[str, Any]) -> str:
    """partition/offset, and the row in the message."""
    if "offset" not in letter:
        return ""
    row = f" row {letter['row']}" if "row" in letter else ""
    return f"{letter.get('partition', '')}/{letter['offset']}{row}"


def _short(text: str, most: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


@dlq.command()
@click.argument("name")
@click.argument("id")
@_at
@home
@as_json
def show(name: str, id: str, at: str | None, home: Path | None, as_json: bool) -> None:
    """Show all that is known of a dead letter, with its message."""
    letter = _letters(home, name, at).show(id)
    if as_json:
        from .packages import print_json

        print_json(letter)
        return
    body = {n: letter.pop(n) for n in ("value", "value_base64", "record") if n in letter}
    letter["failed_at"] = _when(letter.get("failed_at"))
    if "time" in letter:
        letter["time"] = _when(letter["time"])
    width = max(map(len, letter))
    for field, value in letter.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
        click.echo(f"{click.style(field.ljust(width), dim=True)}  {text}")
    for field, value in body.items():
        click.echo(f"\n{click.style(field, dim=True)}\n{_pretty(value)}")


def _pretty(value: Any) -> str:
    """JSON set out in lines; anything else as it is."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    return json.dumps(value, ensure_ascii=False, indent=2)


def _which(command: Any) -> Any:
    flags: list[Any] = [
        click.argument("name"),
        click.argument("ids", nargs=-1),
        option("--all", "every", is_flag=True, help="All of them, or all that the filters leave."),
        _filters,
        option("--yes", is_flag=True, help="Don't ask."),
        _at,
        home,
        as_json,
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


@dlq.command()
@_which
@option("--to", metavar="ADDRESS", help="Where to send them [default: the source that each came from].")
def replay(name: str, to: str | None, at: str | None, home: Path | None, as_json: bool, **which: Any) -> int:
    """Send the messages of dead letters to their source again, and drop each letter when that is confirmed.

    A letter whose message was too large to be carried whole stays. Exits 1 when any stays.
    """
    letters = _letters(home, name, at)
    chosen = _chosen(letters, **which)
    sources = sorted({one["source"] for one in chosen if "source" in one})
    _confirm(f"Send {_count(chosen)} again, to {to or ', '.join(sources)}?", chosen, which["yes"])
    told = letters.replay([one["id"] for one in chosen], sources, to) if chosen else _NOTHING
    return _tell(told, "sent again", as_json)


@dlq.command()
@_which
def drop(name: str, at: str | None, home: Path | None, as_json: bool, **which: Any) -> int:
    """Drop dead letters for good."""
    letters = _letters(home, name, at)
    chosen = _chosen(letters, **which)
    _confirm(f"Drop {_count(chosen)} for good?", chosen, which["yes"])
    told = letters.drop([one["id"] for one in chosen]) if chosen else _NOTHING
    return _tell(told, "dropped", as_json)


_NOTHING: dict[str, Any] = {"done": [], "stay": [], "repeated": 0}


def _chosen(
    letters: Letters, ids: tuple[str, ...], every: bool, yes: bool, **filters: str | None
) -> list[dict[str, Any]]:
    """In brief. Raises UsageError where it is not said which."""
    if bool(ids) == every:
        raise click.UsageError("Say which: ids, or --all.")
    from ..letters import choose

    listed = letters.list(_wanted(**filters))
    wanted = set(choose(listed, ids, letters.name)) if ids else None
    return [one for one in listed if wanted is None or one["id"] in wanted]


def _count(letters: list[dict[str, Any]]) -> str:
    return f"{len(letters):,} dead letter{'' if len(letters) == 1 else 's'}"


def _confirm(question: str, chosen: list[dict[str, Any]], yes: bool) -> None:
    if yes or not chosen:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask at: say --yes.")
    click.confirm(question, abort=True, err=True)


def _tell(told: dict[str, Any], done: str, as_json: bool) -> int:
    if as_json:
        from .packages import print_json

        print_json(told)
        return 1 if told["stay"] else 0
    also = f" ({told['repeated']:,} with another row of their message)" if told["repeated"] else ""
    click.echo(f"{len(told['done']):,} {done}{also}, {len(told['stay']):,} stay")
    for one in told["stay"]:
        click.echo(f"{one['id'][:12]}  {one['reason']}", err=True)
    return 1 if told["stay"] else 0
