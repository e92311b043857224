"""Commands that carry packages between machines: save, load, push, pull."""

from __future__ import annotations

from pathlib import Path

import click

from .options import EXISTING, PATH, as_json, home, option


@click.command()
@click.argument("ref")
@click.argument("file", type=PATH)
@option(
    "--with-env", is_flag=True, help="Carry the environment's wheels too: it runs with no index reachable."
)
@option("--platform", help="The platform those wheels are for [default: this one].")
@home
def save(ref: str, file: Path, with_env: bool, platform: str | None, home: Path | None) -> None:
    """Write a package to one file, to carry it elsewhere."""
    from .. import app
    from .drawing import Drawn, size

    with Drawn() as events:
        written = app.Mlpacker(home, events=events).save(ref, file, with_env=with_env, platform=platform)
    click.echo(f"{written} ({size(written.stat().st_size)})", err=True)


@click.command()
@click.argument("file", type=EXISTING)
@option("--move", is_flag=True, help="Let its name:version name this package even if it named another.")
@home
@as_json
def load(file: Path, move: bool, home: Path | None, as_json: bool) -> None:
    """Take in a package that was saved to a file."""
    from .. import app
    from .drawing import Drawn
    from .packages import print_info, print_json

    with Drawn(quiet=as_json) as events:
        loaded = app.Mlpacker(home, events=events).load(file, move=move)
    if as_json:
        print_json({"packages": [info.to_json() for info in loaded]})
        return
    for info in loaded:
        print_info(info)


@click.command()
@click.argument("ref")
@click.argument("remote", metavar="HOST/REPOSITORY:TAG")
@option("--plain-http", is_flag=True, help="No TLS (this machine itself never needs it).")
@option("--with-env", is_flag=True, help="Carry the environment's wheels too.")
@home
def push(ref: str, remote: str, plain_http: bool, with_env: bool, home: Path | None) -> None:
    """Send a package to an OCI registry, with the login of docker or podman."""
    from .. import app
    from .drawing import Drawn

    with Drawn() as events:
        place = app.Mlpacker(home, events=events).push(ref, remote, plain_http=plain_http, with_env=with_env)
    click.echo(place)


@click.command()
@click.argument("remote", metavar="HOST/REPOSITORY:TAG")
@option("--plain-http", is_flag=True, help="No TLS (this machine itself never needs it).")
@option("--move", is_flag=True, help="Let its name:version name this package even if it named another.")
@home
@as_json
def pull(remote: str, plain_http: bool, move: bool, home: Path | None, as_json: bool) -> None:
    """Fetch a package from an OCI registry, with the login of docker or podman."""
    from .. import app
    from .drawing import Drawn
    from .packages import print_info, print_json

    with Drawn(quiet=as_json) as events:
        info = app.Mlpacker(home, events=events).pull(remote, plain_http=plain_http, move=move)
    print_json(info.to_json()) if as_json else print_info(info)
