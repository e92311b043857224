"""Writes docs/reference/cli.md from the command line itself: every command, its words, its options, its variables.

`make docs` runs it; a test compares the committed page with what `page()` makes, so it can't go stale.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from mlpacker import cli
from mlpacker_runtime.serve import EXIT_CODES

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"

OPENING = """\
# The command line

Written from the code by `make docs`. The answer of a command is on standard output, all else on standard error.
`mlpacker COMMAND --help` says the same at the terminal.

- **A REF** names a package: `iris`, `iris:1.0`, `iris@sha256:…`, or the first digits of a digest if no other begins so.
- **`--json`** prints one object on standard output and nothing else there.
- **Every flag is also a variable**, named in its row. A flag given on the command line wins. Where a flag may be
  repeated, the variable holds its values with spaces between them.
- **State** (packages, environments, trust) lives under `MLPACKER_HOME`; by default the platform's data folder.
"""

ERRORS = (
    (0, "done", ""),
    (
        1,
        "failed",
        "A sample, a file of rows or a model is not what it should be; `doctor` found something broken; `diff` found a "
        "difference; a served request outlived the drain. The sentence says which and what to do.",
    ),
    (
        2,
        "usage",
        "A flag, a descriptor or a reference is wrong, or a name is taken. Correct it; the path into the file is told.",
    ),
    (3, "not found", "No package of that name here. `mlpacker ls` shows what there is; near names are told."),
    (
        4,
        "refused",
        "The audit refuses a model file, or this machine has not accepted a package's code. "
        "[Trust and safety](../howto/trust.md).",
    ),
    (
        5,
        "not provable",
        "The clean environment's answers are not the reference's. "
        "[What proven means](../howto/pack.md#what-proven-means).",
    ),
    (
        6,
        "environment",
        "A Python, a pinned version, a wheel or a system library can't be had. "
        "[When packing stops](../howto/pack.md#when-packing-stops).",
    ),
    (
        7,
        "store or registry",
        "Bytes are not what their digest says, the disk or the registry failed, or a login was refused.",
    ),
    (130, "interrupted", "Ctrl-C."),
)
"""Exit code, its name, and what to do. The codes of error classes are checked against the command line's own table."""


def page() -> str:
    """The whole page."""
    known = {code for _, code in EXIT_CODES}
    missing = known - {code for code, _, _ in ERRORS}
    if missing:
        raise SystemExit(f"docs_cli.py says nothing of the exit codes {sorted(missing)}.")
    parts = [OPENING, "| command | |\n|---|---|"]
    parts[-1] += "".join(
        f"\n| [`{n}`](#mlpacker-{n}) | {_cell(said)} |" for n, (_, said) in cli.COMMANDS.items()
    )
    parts += ["", *_exit_codes(), ""]
    context = click.Context(cli.cli, info_name="mlpacker", auto_envvar_prefix="MLPACKER")
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        parts += [*_command(command, name, context), ""]
    return "\n".join(parts).rstrip() + "\n"


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | | what it means, and the next step |\n|---|---|---|"
    yield from (f"| {code} | {name} | {said} |" for code, name, said in ERRORS)


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    """Of a group also its commands, a level lower."""
    context = click.Context(command, info_name=name, parent=parent)
    yield f"## {context.command_path}\n"
    yield f"`{' '.join([context.command_path, *command.collect_usage_pieces(context)])}`"
    yield from _prose(command.help or "")
    rows = [_option(p, context) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if rows:
        yield "\n| option | | variable |\n|---|---|---|\n" + "\n".join(rows)
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield "\n#" + "\n".join(_command(inner, word, context))


def _prose(text: str) -> Iterator[str]:
    r"""Help as Markdown: paragraphs, and what click is told to leave as it is (`\b`) as code."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.startswith("\b"):
            lines = block.splitlines()[1:]
            yield "\n```\n" + inspect.cleandoc("\n".join(lines)) + "\n```"
        else:
            yield "\n" + " ".join(block.split())


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{n}`" for n in sorted(option.opts, key=len))
    value = "" if option.is_flag else f" *{_value(option, context)}*"
    said = option.help or ""
    if option.required:
        said += " **Required.**"
    if not option.is_flag and isinstance(option.default, (str, int, float)):
        said += f" Default: `{option.default}`."
    return f"| {names}{_cell(value)} | {_cell(said)} | `{_variable(option, context)}` |"


def _value(option: click.Option, context: click.Context) -> str:
    """What to write after the flag; click's own words but for ranges, which it calls by their type."""
    return "N" if isinstance(option.type, click.IntRange) else option.make_metavar(ctx=context)


def _variable(option: click.Option, context: click.Context) -> str:
    if isinstance(option.envvar, str):
        return option.envvar
    return f"{context.auto_envvar_prefix}_{(option.name or '').upper()}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
    print(PAGE.relative_to(PAGE.parent.parent.parent))
