"""`mlpacker pack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import EXISTING, PATH, as_json, home, option

if TYPE_CHECKING:
    from ..app import Info


@click.command(context_settings={"show_default": True})
@click.argument("models", nargs=-1, metavar="MODEL|FILE.py:FUNCTION …")
@option(
    "-f",
    "--file",
    "descriptor",
    type=EXISTING,
    help="A descriptor, pipeline.yaml, instead of MODEL arguments.",
)
@option("--name", help="The package's name [default: the first model's file name].")
@option("--version", help="A version to give it; part of the digest.")
@option(
    "--sample", type=EXISTING, help="Rows to prove the package with (CSV, JSON, JSON lines, Parquet, NumPy)."
)
@option("--expect", type=EXISTING, help="The answers those rows must have.")
@option(
    "--python", type=PATH, help="The training interpreter [default: the active environment's, else PATH's]."
)
@option(
    "--code",
    multiple=True,
    type=EXISTING,
    help="A code file or folder that a saved model refers to. Repeatable.",
)
@option(
    "--requirement",
    "-r",
    "requirements",
    multiple=True,
    help='A pin of your own, as "pandas==2.2.3". Repeatable.',
)
@option(
    "--trust", multiple=True, metavar="MODULE.NAME", help="Accept this import of a saved model. Repeatable."
)
@option(
    "--trust-code",
    is_flag=True,
    help="Accept code inside a saved model (cloudpickle by value, MLflow's python models).",
)
@option("--index", help="The package index to resolve from [default: uv's].")
@option("--find-links", multiple=True, help="A folder or page of wheels. Repeatable.")
@option("--allow-build", is_flag=True, help="Allow building wheels from sources.")
@option("--vendor", is_flag=True, help="Carry the environment's wheels with the package.")
@option("--move", is_flag=True, help="Let name:version name this package even if it named another.")
@home
@as_json
def pack(as_json: bool, **given: Any) -> None:
    """Make a package of a trained model, or of a pipeline of models and functions.

    \b
      mlpacker pack model.joblib --name iris --sample rows.csv
      mlpacker pack clean.py:drop_bad_rows model.onnx --name plant
      mlpacker pack -f pipeline.yaml
    """
    from .. import app
    from .drawing import Drawn

    if bool(given["models"]) == bool(given["descriptor"]):
        raise click.UsageError("Give one or more MODELs, or a descriptor with -f, and not both.")
    with Drawn(quiet=as_json) as events:
        packer = app.Mlpacker(given.pop("home"), events=events)
        info = packer.pack(*given.pop("models"), **_renamed(given))
    if as_json:
        from .packages import print_json

        print_json(info.to_json())
    else:
        _summary(info, packer.home)


def _renamed(given: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None}


def _summary(info: Info, home: Path) -> None:
    from .packages import print_info

    print_info(info)
    ref = f"{info.name}:{info.version}" if info.version else info.name
    click.echo(f"\nServe it:  mlpacker run {ref}", err=True)
