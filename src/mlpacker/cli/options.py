"""Flags that several commands share. Each flag is also an environment variable, and `--help` says which."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

option = functools.partial(click.option, show_envvar=True)
"""`click.option` that names its environment variable in the help."""

as_json = option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
EXISTING = click.Path(exists=True, path_type=Path)
PATH = click.Path(path_type=Path)


def home(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flag that says where state lives."""
    decorated: Callable[..., Any] = click.option(
        "--home",
        type=PATH,
        envvar="MLPACKER_HOME",
        show_envvar=True,
        help="Where packages and environments live (default: the platform's data folder).",
    )(command)
    return decorated
