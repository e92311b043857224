"""`mlpacker completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of your shell.

    \b
      eval "$(mlpacker completion bash)"       in ~/.bashrc
      mlpacker completion fish | source        in config.fish
    """
    from . import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "mlpacker", "_MLPACKER_COMPLETE").source())
