"""NATS with JetStream, built from its Go module: `sync_interval` came with 2.10, which Debian does not have yet."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from mlpacker.testing.delivery.servers.process import Running, free_ports

VERSION = "v2.10.29"
MODULE = "github.com/nats-io/nats-server/v2"
BUILD_SECONDS = 900
START_SECONDS = 20.0
DURABLE = "sync_interval: always"
"""What is confirmed is on disk, not only with the system."""


class Nats(Running):
    """A real broker of the test's own: on loopback, on free ports, its data in `folder`, as durable as it can be set.

    durable: False for the defaults. settings: further lines of its configuration. user: `(name, password)`, without which nobody
    comes in. tls: files `(ca, cert, key)`; then it speaks TLS only.
    """

    name = "nats"

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        settings: Sequence[str] = (),
        user: tuple[str, str] | None = None,
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self._user, self._tls = user, tls
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = [
            f'listen: "127.0.0.1:{self.port}"',
            f'jetstream {{ store_dir: "{folder / "data"}", {DURABLE if durable else ""} }}',
            *settings,
        ]
        if user:
            self._lines.append(f'authorization {{ user: "{user[0]}", password: "{user[1]}" }}')
        if tls:
            self._lines.append(f'tls {{ cert_file: "{tls[1]}", key_file: "{tls[2]}" }}')

    @classmethod
    def missing(cls) -> str | None:
        """Why it can't run here, as a skip reason; None where it can. The first call builds the server."""
        try:
            _program()
        except RuntimeError as cause:
            return str(cause)
        return None

    def start(self) -> None:
        """Start, or start again on the same data and port. Returns when it answers; raises RuntimeError with its last words."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "nats.conf").write_text("".join(f"{line}\n" for line in self._lines))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program(), "-c", str(self.folder / "nats.conf")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                last = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"NATS does not start:\n{last}")
            time.sleep(0.02)

    def address(self, topic: str, **options: str) -> str:
        scheme = "natss" if self._tls else "nats"
        query = f"?{urlencode(options, safe=':/')}" if options else ""
        return f"{scheme}://127.0.0.1:{self.port}/{topic}{query}"

    def make(self, topic: str, partitions: int = 1, **settings: Any) -> None:
        """A stream of one subject, on disk and without bounds, named as the adapter would name it. settings: its own, over these."""
        name = stream_name(topic)
        self.ask(
            f"STREAM.CREATE.{name}",
            {"name": name, "subjects": [topic], "storage": "file", "retention": "limits", **settings},
        )

    def delete(self, topic: str) -> None:
        self.ask(f"STREAM.DELETE.{stream_name(topic)}", None)

    def forget(self, topic: str, group: str) -> None:
        """Delete the places of all groups of this topic whose readers have ended."""
        name = stream_name(topic)
        for consumer in self.ask(f"CONSUMER.NAMES.{name}", None).get("consumers") or ():
            self.ask(f"CONSUMER.DELETE.{name}.{consumer}", None)

    def ask(self, what: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """JetStream's answer; only where the server asks for neither credentials nor TLS."""
        import json

        from mlpacker_runtime.brokers.address import parse
        from mlpacker_runtime.brokers.nats_wire import Line

        line = Line(parse(self.address("test")), "test")
        try:
            payload = json.dumps(body).encode() if body is not None else b""
            told: dict[str, Any] = json.loads(line.request(f"$JS.API.{what}".encode(), payload).payload)
        finally:
            line.close()
        if "error" in told:
            raise RuntimeError(f"NATS refuses {what}: {told['error']}")
        return told

    def version(self) -> str:
        return f"NATS {_version(_program()) or 'of no known version'}"

    @property
    def _log(self) -> Path:
        return self.folder / "nats.log"

    def _answers(self) -> bool:
        """It listens once JetStream has read its data."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as line:
                line.settimeout(2)
                return line.recv(64).startswith(b"INFO ")
        except OSError:
            return False


def stream_name(topic: str) -> str:
    return re.sub(r"[^\w-]", "_", topic.replace(">", "all").replace("*", "any"))


# --- The program -----------------------------------------------------------------------------------------------------


@lru_cache(1)
def _program() -> str:
    """One that is installed, where it is new enough; else ours, built where it is not yet. Raises RuntimeError saying why not."""
    installed = shutil.which("nats-server")
    if installed and _numbers(_version(installed)) >= (2, 10):
        return installed
    built = _cache() / "bin" / "nats-server"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with _alone(built.with_suffix(".lock")):
            if not built.exists():
                _build(built)
    return str(built)


def _build(built: Path) -> None:
    if shutil.which("go") is None:
        raise RuntimeError("NATS 2.10 or newer is built with go, which is not here (or install nats-server)")
    words = ["go", "install", "-modcacherw", f"{MODULE}@{VERSION}"]
    own = {"GOBIN": str(built.parent), "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    try:
        done = subprocess.run(
            words,
            check=False,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )
    except subprocess.TimeoutExpired as cause:
        raise RuntimeError(f"NATS was not built within {BUILD_SECONDS} s") from cause
    if done.returncode != 0 or not built.exists():
        last = next(iter(done.stderr.strip().splitlines()[-1:]), "it did not say why")
        raise RuntimeError(f"NATS {VERSION} can't be built with go: {last}")


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v(\d+\.\d+\.\d+)", said)
    return found[1] if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in version.split(".") if n)


def _cache() -> Path:
    named = os.environ.get("MLPACKER_TEST_CACHE")
    clone = Path(__file__).resolve().parents[5]
    if named:
        return Path(named)
    if (clone / "pyproject.toml").exists():
        return clone / ".cache" / "test"
    return Path.home() / ".cache" / "mlpacker" / "test"


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("a", encoding="ascii") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
