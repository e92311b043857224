"""`mlpacker run`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from .options import EXISTING, home, option


@click.command(context_settings={"show_default": True})
@click.argument("ref")
@option("--host", default="127.0.0.1", help="The address to listen on.")
@option("--port", default=8080, type=click.IntRange(0, 65535), help="The port; 0 picks a free one.")
@option("--workers", default=1, type=click.IntRange(1), help="How many worker processes answer.")
@option(
    "--api-key-file", type=EXISTING, help="Require one of these keys, one a line, on every route but health."
)
@option("--max-body", type=click.IntRange(1), help="The largest request body, in bytes.")
@option("--timeout", type=float, help="Seconds to send a body, and to finish when told to end.")
@option("--limit-rows", type=click.IntRange(0), help="The most rows in one request; 0: no limit.")
@option("--log", type=click.Choice(["auto", "json", "human"]), help="The form of the log on stderr.")
@option("--access-log", is_flag=True, help="A log line for each request.")
@option("--no-batching", is_flag=True, help="Never score rows of different requests together (bit-exact).")
@option(
    "--extra",
    "extras",
    multiple=True,
    help="An extra of the runtime: parquet, for Parquet bodies. Repeatable.",
)
@option(
    "--trust-code",
    is_flag=True,
    help="Accept the code of a package that was not packed here; once per digest.",
)
@home
def run(ref: str, home: Path | None, trust_code: bool, extras: tuple[str, ...], **served: Any) -> None:
    """Serve a package as a REST API on this machine.

    Prints one line, `ready URL NAME@DIGEST`, when it answers. Ctrl-C or SIGTERM finish what is in flight, then end it.
    """
    from .. import app

    with WhenNeeded() as events:
        launch = app.Mlpacker(home, events=events).launch(ref, trust_code=trust_code, extras=extras, **served)
    os.execve(launch.argv[0], launch.argv, launch.environ)


class WhenNeeded(ExitStack):
    """Events drawn from the first one on: where all is there already, nothing is, and serving starts sooner."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("step", "progress", "note", "warn"):
            raise AttributeError(name)
        from .drawing import Drawn

        drawn = self.enter_context(Drawn())
        for event in ("step", "progress", "note", "warn"):
            setattr(self, event, getattr(drawn, event))
        return getattr(drawn, name)
