"""The command that serves a package: its flags as a value, its end as an exit code. Standard library only, as is the supervisor.

Standard output has one line, `ready http://HOST:PORT name@sha256:…`, written when the workers answer; all else goes to
standard error. Exit codes: 0 ended in peace, 2 usage, 3 not found, 4 refused by the audit, 5 not provable, 6 environment,
7 store, 1 anything else.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import errors
from .telemetry.log import logger

EXIT_CODES: tuple[tuple[type[errors.MlpackerError], int], ...] = (
    (errors.BadDescription, 2),
    (errors.NotFound, 3),
    (errors.Refused, 4),
    (errors.NotProvable, 5),
    (errors.EnvironmentFailed, 6),
    (errors.StoreFailed, 7),
)
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class StageWorkerOptions:
    """A process for the stages of another environment. argv: the interpreter there, and its flags."""

    environment: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """package, digest: the materialised package; without a digest a draft folder. accepted: this machine trusts its code.
    environment: whose stages the HTTP workers answer themselves; None for all that have no stage worker.
    port: 0 for a free one. max_body: bytes. timeout: seconds to send a request's body, and to finish when told to end.
    limit_rows: rows in one request; 0 for no limit. batching: rows of different requests may go together.
    stream: the settings of a stream; the worker is then one that reads and publishes, and HTTP tells its numbers only.
    """

    package: str
    digest: str | None = None
    accepted: bool = False
    environment: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    api_key_file: str | None = None
    max_body: int = 64 * MEGABYTE
    timeout: float = 30.0
    limit_rows: int = 0
    batching: bool = True
    original: bool = False
    log: str = "auto"
    access_log: bool = False
    stage_workers: tuple[StageWorkerOptions, ...] = field(default_factory=tuple)
    stream: dict[str, Any] | None = None

    @property
    def lanes(self) -> int:
        """Processes for each stage worker: one for each lane of a stream."""
        return int((self.stream or {}).get("lanes", 1))

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def to_json(options: Options) -> str:
    return json.dumps(asdict(options))


def from_json(text: str) -> Options:
    value = json.loads(text)
    workers = tuple(
        StageWorkerOptions(w["environment"], tuple(w["argv"])) for w in value.pop("stage_workers")
    )
    return Options(**value, stage_workers=workers)


def parse(argv: list[str]) -> Options:
    """Raises BadDescription for what the parser lets through; exits with 2 for what it does not."""
    given = vars(_parser().parse_args(argv))
    given["stage_workers"] = tuple(_stage_worker(w) for w in given.pop("stage_worker"))
    given["batching"] = not given.pop("no_batching")
    given["stream"] = _stream(given["stream"]) if given["stream"] is not None else None
    options = Options(**given)
    if options.digest is None and not Path(options.package).is_dir():
        raise errors.NotFound(f"There is no folder {options.package}.")
    return options


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mlpacker_runtime serve", description="Serve a package over HTTP."
    )
    p.add_argument("--package", required=True, metavar="FOLDER", help="the materialised package")
    p.add_argument(
        "--digest",
        metavar="sha256:…",
        help="verify the package against this; without it the folder is a draft",
    )
    p.add_argument("--accepted", action="store_true", help="this machine accepted the package's code")
    p.add_argument("--environment", metavar="NAME", help="the environment this interpreter belongs to")
    p.add_argument("--host", default=Options.host, help="address to listen on (%(default)s)")
    p.add_argument("--port", type=_port, default=Options.port, help="0 for a free one (%(default)s)")
    p.add_argument("--workers", type=_positive, default=Options.workers, help="HTTP processes (%(default)s)")
    p.add_argument(
        "--api-key-file", metavar="FILE", help="keys, one a line; every route but health then needs one"
    )
    p.add_argument(
        "--max-body", type=_positive, default=Options.max_body, metavar="BYTES", help="(%(default)s)"
    )
    p.add_argument(
        "--timeout",
        type=_seconds,
        default=Options.timeout,
        metavar="S",
        help="to send a body, and to drain (%(default)s)",
    )
    p.add_argument(
        "--limit-rows",
        type=_count,
        default=Options.limit_rows,
        metavar="N",
        help="rows in one request; 0: no limit",
    )
    p.add_argument("--no-batching", action="store_true", help="each request alone: bit-exact, and slower")
    p.add_argument(
        "--original", action="store_true", help="the models as they were saved, not their compiled forms"
    )
    p.add_argument(
        "--log",
        choices=("auto", "json", "human"),
        default=Options.log,
        help="form of the log on standard error",
    )
    p.add_argument("--access-log", action="store_true", help="a line for each request")
    p.add_argument(
        "--stage-worker",
        action="append",
        default=[],
        metavar="ENV=PYTHON|JSON",
        help='the interpreter of another environment, as NAME=PATH or {"environment": …, "argv": […]}',
    )
    p.add_argument(
        "--stream",
        metavar="JSON",
        help="run as a stream with these settings; every environment needs a stage worker then",
    )
    return p


def _stream(text: str) -> dict[str, Any]:
    """What is wrong within them the stream's own process says. Raises BadDescription for what is no object."""
    try:
        value = json.loads(text)
    except ValueError as cause:
        raise errors.BadDescription(f"The settings of a stream are not JSON: {cause}.") from cause
    if not isinstance(value, dict):
        raise errors.BadDescription("The settings of a stream are an object.")
    return value


def _stage_worker(text: str) -> StageWorkerOptions:
    if not text.startswith("{"):
        name, equals, python = text.partition("=")
        if not equals or not name or not python:
            raise errors.BadDescription(f"--stage-worker {text}: NAME=PYTHON or a JSON object belongs there.")
        return StageWorkerOptions(name, (python, "-I"))
    try:
        value: dict[str, Any] = json.loads(text)
        return StageWorkerOptions(str(value["environment"]), tuple(str(a) for a in value["argv"]))
    except (ValueError, KeyError, TypeError) as cause:
        raise errors.BadDescription(f"--stage-worker {text}: {cause!r}.") from cause


def _port(text: str) -> int:
    return _within(int(text), 0, 65535)


def _positive(text: str) -> int:
    return _within(int(text), 1, 1 << 62)


def _count(text: str) -> int:
    return _within(int(text), 0, 1 << 62)


def _seconds(text: str) -> float:
    return float(_within(float(text), 0.1, 86400))


def _within(value: Any, low: Any, high: Any) -> Any:
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
    return value


def exit_code(error: BaseException) -> int:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def main(argv: list[str]) -> int:
    from .supervisor import Supervisor

    log = logger()
    try:
        options = parse(argv)
        log = logger(options.log)
        return Supervisor(options, log).run()
    except errors.MlpackerError as error:
        log(
            "failed",
            level="error",
            reason=error.sentence,
            next_step=error.next_step or None,
            error=type(error).__name__,
        )
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
