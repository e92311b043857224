"""Redis as Debian ships it, run in the foreground.

Debian's own settings (`durable=False`) keep rows in memory and write a snapshot now and then; DURABLE is what a stream needs.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpacker.testing.delivery.servers.process import Running, free_ports
from mlpacker_runtime.brokers.address import Address

STARTS = 30.0
"""Seconds for a start."""
DURABLE = ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction", 'save ""')
MADE_BY = "mlpacker-made"


class Redis(Running):
    """A real broker of the test's own: on loopback, on free ports, its data in `folder`, as durable as it can be set.

    settings: further lines of its configuration.
    """

    name = "redis"

    def __init__(self, folder: Path, *, durable: bool = True, settings: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        own = ["bind 127.0.0.1", f"port {self.port}", "daemonize no", f"dir {folder}"]
        self._settings = [*own, *(DURABLE if durable else ()), *settings]
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("redis-server") is None:
            return "no Redis here; apt-get install redis-server"
        try:
            import redis  # noqa: F401  is it here?
        except ImportError:
            return "no client for Redis here; pip install redis"
        return None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "redis.conf").write_text("".join(f"{line}\n" for line in self._settings))
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                ["redis-server", str(self.folder / "redis.conf")], cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._await()

    def address(self, topic: str, **options: str) -> str:
        return str(Address("redis", topic, (("127.0.0.1", self.port),), options=options))

    def make(self, topic: str, partitions: int = 1) -> None:
        """An empty stream: making a group makes it, and it stays when the group goes. partitions: 1; a stream has no more."""
        with self.connect() as client:
            client.xgroup_create(topic, MADE_BY, "$", mkstream=True)
            client.xgroup_destroy(topic, MADE_BY)

    def forget(self, topic: str, group: str) -> None:
        """Delete the place of a group whose readers have ended."""
        with self.connect() as client:
            client.xgroup_destroy(topic, group)

    def connect(self) -> Any:
        """A plain client of redis-py's; answers are bytes."""
        import redis

        return redis.Redis(port=self.port, socket_timeout=10)

    def version(self) -> str:
        told = subprocess.run(
            ["redis-server", "--version"], capture_output=True, text=True, check=True
        ).stdout
        return "Redis " + next(word[2:] for word in told.split() if word.startswith("v="))

    def _await(self) -> None:
        process, end = self._process, time.monotonic() + STARTS
        assert process is not None
        while time.monotonic() < end and process.poll() is None:
            if _answers(self.port):
                return
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"Redis does not start.\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join((self.folder / "output").read_text(errors="replace").splitlines()[-15:])


def _answers(port: int) -> bool:
    """Whether it has read its data: asked for a password, it has too."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as line:
            line.settimeout(2)
            line.sendall(b"PING\r\n")
            return line.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False
