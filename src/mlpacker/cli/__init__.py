"""The command line: words in, one call of the SDK, words out.

stdout carries the answer (with --json: one object), stderr all else. Exit codes: 0, 1 failed, 2 usage, 3 not found,
4 refused by audit, 5 not provable, 6 environment, 7 store or registry, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from .. import errors

COMMANDS = {
    "pack": ("packing", "Make a package of a trained model, or of a pipeline of models and functions."),
    "run": ("serving", "Serve a package as a REST API on this machine."),
    "stream": ("streaming", "Run a package on a stream: rows in from a broker, answers out to one."),
    "dlq": ("dlq", "Look at a stream's dead letters, send them again or drop them."),
    "replay": ("replaying", "Answer a stream's past once more, into another output."),
    "compare": ("replaying", "Compare two outputs, row by row."),
    "score": ("scoring", "Answer every row of a file."),
    "ls": ("packages", "List the packages in the local store."),
    "inspect": ("packages", "Show what a package holds and what was proven of it."),
    "diff": ("packages", "Show what changed between two packages."),
    "tag": ("packages", "Give a package another name or version."),
    "rm": ("packages", "Remove a name; its bytes go with the next gc."),
    "gc": ("packages", "Delete bytes and environments that no package needs."),
    "verify": ("packages", "Check every byte of a package against its digest."),
    "save": ("moving", "Write a package to one file, to carry it elsewhere."),
    "load": ("moving", "Take in a package that was saved to a file."),
    "push": ("moving", "Send a package to an OCI registry."),
    "pull": ("moving", "Fetch a package from an OCI registry."),
    "doctor": ("doctor", "Check this machine: what is here, what is missing, how to mend it."),
    "completion": ("completion", "Print the completion script of your shell."),
}
"""Command → module and short help, so that a command imports only what it needs."""


class Commands(click.Group):
    """Imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from mlpacker_runtime import __version__

        click.echo(f"mlpacker {__version__}")
        ctx.exit()


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MLPACKER"}
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def cli() -> None:
    """Pack a trained pipeline once; run it anywhere.

    \b
      mlpacker pack model.joblib --name iris
      mlpacker run iris
    """


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line; the exit code. Errors are told on stderr."""
    try:
        result: Any = cli.main(argv, prog_name="mlpacker", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except errors.MlpackerError as error:
        return tell(error)
    except BrokenPipeError:
        return 1


def tell(error: errors.MlpackerError) -> int:
    """One sentence, the next step on a line of its own, and the exit code of the error's class."""
    from mlpacker_runtime.serve import exit_code

    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.sentence}", err=True)
    if error.next_step:
        click.echo(f"{click.style('  try:', fg='cyan')} {error.next_step}", err=True)
    return exit_code(error)
