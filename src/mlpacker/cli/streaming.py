"""`mlpacker stream`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .options import EXISTING, as_json, home, option

SERVED = ("host", "port", "timeout", "log")


def described(command: Any) -> Any:
    """The flags that are keys of stream.yaml."""
    flags = [
        option(
            "--from",
            "source",
            metavar="ADDRESS",
            help="Where messages come from, as kafka://host:9092/topic or local:readings.",
        ),
        option("--to", metavar="ADDRESS", help="Where answers go."),
        option(
            "--dead-letters",
            metavar="ADDRESS",
            help="Where rows go that failed by themselves [default: kept for `mlpacker dlq`].",
        ),
        option("-f", "--file", type=EXISTING, help="A stream.yaml with these settings; flags win over it."),
        option(
            "--name",
            help="The deployment: its place in the source and its state go by this name [default: the package's].",
        ),
        option("--group", help="The consumer group [default: mlpacker-NAME]."),
        option(
            "--start",
            metavar="WHERE",
            help="Where a new group begins: earliest, latest, offset:N, time:SECONDS [default: earliest].",
        ),
        option(
            "--key",
            metavar="FIELD",
            help="Rows of one value of this field keep their order [default: the message's key].",
        ),
        option(
            "--keep",
            metavar="FIELD",
            multiple=True,
            help="A field of the row to echo in the answer. Repeatable.",
        ),
        option(
            "--outputs",
            multiple=True,
            metavar="NAME",
            help="Compute only this output. Repeatable [default: all].",
        ),
        option(
            "--payload",
            metavar="FORM",
            help="Form of messages: json, msgpack, csv, v2, avro, protobuf [default: as they say].",
        ),
        option("--answer", metavar="FORM", help="Form of answers [default: json]."),
        option("--batch", type=click.IntRange(1), help="The most rows scored together [default: 1024]."),
        option(
            "--wait",
            type=click.IntRange(0),
            metavar="MS",
            help="Wait so long for a fuller batch [default: 0].",
        ),
        option(
            "--workers",
            type=click.IntRange(1),
            help="Processes that score side by side; a key's rows keep to one [default: 1].",
        ),
        option(
            "--unordered",
            is_flag=True,
            default=None,
            help="Readers compete for messages, and no order is kept.",
        ),
        option("--retries", type=click.IntRange(0), help="Ask a row again whose stage raised [default: 0]."),
        option(
            "--id-from",
            metavar="HEADER",
            help="The header that identifies a message [default: mlpacker-id, else its place].",
        ),
        option(
            "--max-message",
            type=click.IntRange(1),
            metavar="BYTES",
            help="A larger message is a dead letter [default: 16 MiB].",
        ),
        option(
            "--spool",
            type=click.IntRange(0),
            metavar="BYTES",
            help="Keep so much on disk while the sink is away [default: 0].",
        ),
        option(
            "--watchdog",
            type=click.IntRange(0),
            metavar="S",
            help="Start anew after so long without progress [default: 120].",
        ),
        option("--no-wait", is_flag=True, default=None, help="Fail at once where a broker is not there."),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


@click.command(context_settings={"show_default": True})
@click.argument("ref")
@described
@option("--host", default="127.0.0.1", help="The address of /metrics and health.")
@option("--port", default=0, type=click.IntRange(0, 65535), help="Its port; 0 picks a free one.")
@option("--timeout", type=float, help="Seconds to finish what is out when told to end [default: 30].")
@option("--log", type=click.Choice(["auto", "json", "human"]), help="The form of the log on stderr.")
@option("--explain", is_flag=True, help="Say what is guaranteed between these ends, and start nothing.")
@option(
    "--trust-code",
    is_flag=True,
    help="Accept the code of a package that was not packed here; once per digest.",
)
@home
@as_json
def stream(ref: str, home: Path | None, trust_code: bool, explain: bool, as_json: bool, **given: Any) -> None:
    """Run a package on a stream: rows in from a broker, answers out to one, at least once for every row.

    \b
      mlpacker stream iris --from local:rows --to local:answers
      mlpacker stream bolts --from mqtt://hall/bolts/# --to kafka://broker/alerts --key bolt

    Prints `ready URL NAME@DIGEST` when it reads. Ctrl-C or SIGTERM take nothing more, finish what is out, commit, and end.
    A further process of the same --name stands by, or takes a share of the partitions.
    """
    from .. import app
    from .serving import WhenNeeded

    served = {name: given.pop(name) for name in SERVED}
    with WhenNeeded() as events:
        mlpacker = app.Mlpacker(home, events=events)
        if explain:
            told = mlpacker.explain(ref, **given)
        else:
            launch = mlpacker.stream(ref, trust_code=trust_code, served=served, **given)
    if explain:
        _explain(told, as_json)
        return
    os.execve(launch.argv[0], launch.argv, launch.environ)


def _explain(told: dict[str, Any], as_json: bool) -> None:
    from .packages import print_json

    if as_json:
        print_json(told)
        return
    click.secho(told["promise"], bold=True)
    for end in ("source", "sink", "dead_letters"):
        said = told[end]
        click.echo(f"\n{end.replace('_', ' ')}  {said['address']}")
        for sentence in said["holds"]:
            click.echo(f"  {sentence}")
        for setting in said["settings"]:
            mark, colour = {True: ("ok", "green"), False: ("at risk", "red"), None: ("not known", "yellow")}[
                setting["good"]
            ]
            value = "" if setting["value"] is None else f" = {setting['value']}"
            click.echo(f"  {click.style(mark, fg=colour):<9} {setting['name']}{value}")
            if setting["good"] is not True and setting["consequence"]:
                click.echo(f"            {setting['consequence']}")
