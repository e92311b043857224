"""An interpreter that has the brokers' clients which some addresses need, and programs of the runtime that are asked there.

mlpacker itself needs no broker's client. Where one is installed beside it, it is used; else there is an environment for it, made
once: the runtime with those extras, and no package's pins.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpacker_runtime import brokers, errors
from mlpacker_runtime.brokers.address import parse

from .environments import install, interpreters, resolve, variables
from .environments import lock as locks
from .environments.runtime_wheel import runtime_wheel
from .errors import EnvironmentFailed
from .events import Events

MODULES = {"kafka": "confluent_kafka", "mqtt": "paho.mqtt", "redis": "redis", "rabbitmq": "pika"}
"""Extra of the runtime → the module that it brings."""


def extras(addresses: Iterable[str]) -> tuple[str, ...]:
    """The runtime's extras that these need. Raises BadDescription for what is no address."""
    schemes = {parse(text).scheme for text in addresses}
    return tuple(sorted({brokers.EXTRAS[s] for s in schemes if s in brokers.EXTRAS}))


def missing(wanted: Iterable[str]) -> tuple[str, ...]:
    """Those of these extras that this interpreter has not."""
    return tuple(extra for extra in wanted if not _is_here(MODULES.get(extra, extra)))


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def interpreter(addresses: Iterable[str], home: Path, events: Events) -> Path:
    """One that can speak to all of these. Raises EnvironmentFailed."""
    wanted = extras(addresses)
    if not missing(wanted):
        return Path(sys.executable)
    runtime = runtime_wheel(home / "cache")
    events.step(f"Preparing an environment with {', '.join(wanted)}")
    lock = resolve.resolve(
        locks.Requirements(python=interpreters.inspect(Path(sys.executable)).python),
        resolve.runtime_requirements(runtime.path),
        here=interpreters.this_platform(),
        platforms=(),
        progress=events.note,
    )
    return install.ensure(lock, home, runtime, extras=wanted, progress=events.note).python


def ask(python: Path, program: str, order: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """What a program of the runtime's streams says to an order. Raises what it raised."""
    done = subprocess.run(
        [str(python), "-I", "-B", "-m", f"mlpacker_runtime.stream.{program}"],
        input=json.dumps(order),
        env=variables.clean(environ),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError as cause:
        raise EnvironmentFailed(
            f"{program} ended with exit code {done.returncode} and no answer.", "Standard error says why."
        ) from cause
    if "error" in told:
        said = told["error"]
        kind: type[errors.MlpackerError] = getattr(errors, said["class"], errors.MlpackerError)
        raise kind(said["sentence"], said["next_step"])
    return told
