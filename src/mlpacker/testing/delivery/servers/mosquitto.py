"""Mosquitto, of a test's own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from mlpacker.testing.delivery.servers.process import Running

DURABLE = (
    "persistence true",
    "autosave_on_changes true",
    "autosave_interval 1",  # of changes: all is on disk again after each
    "max_queued_messages 0",  # 0: no bound
    "max_inflight_messages 0",  # 0: as many as the protocol can number
    "queue_qos0_messages false",
)
"""Nothing confirmed is lost when it is killed. No `persistent_client_expiration`: a session that is away is kept."""
DEBIAN = ("persistence true",)
"""What Debian ships: on disk every 30 minutes and when it ends in peace."""


class Mosquitto(Running):
    """A real broker of the test's own: on loopback, on a free port, its data in `folder`, as durable as it can be set.

    durable: False for Debian's default. extra: further lines of its configuration. tls: files `(ca, cert, key)` for a second port.
    """

    name = "mqtt"
    rate = 60.0  # with durable settings it writes all that it holds to the disk at each change

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        extra: Sequence[str] = (),
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.tls_port = free_port() if tls else 0
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self._log = folder / "mosquitto.log"
        lines = [*(DURABLE if durable else DEBIAN), f"persistence_location {folder / 'data'}/", "user root"]
        if not any(line.startswith(("password_file", "allow_anonymous")) for line in extra):
            lines.append("allow_anonymous true")
        lines += [*extra, f"listener {self.port} 127.0.0.1"]
        if tls:
            ca, cert, key = tls
            lines += [
                f"listener {self.tls_port} 127.0.0.1",
                f"cafile {ca}",
                f"certfile {cert}",
                f"keyfile {key}",
            ]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    @staticmethod
    def _program() -> str | None:
        return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")

    @classmethod
    def missing(cls) -> str | None:
        return None if cls._program() else "mosquitto is not installed: apt-get install mosquitto"

    def start(self) -> None:
        """Returns when it answers. Raises RuntimeError with the log's last lines."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program() or "mosquitto", "-c", str(self.folder / "mosquitto.conf")],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 15
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                last = self._log.read_text(errors="replace").splitlines()[-15:]
                raise RuntimeError("mosquitto does not start:\n" + "\n".join(last))
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def address(self, topic: str, **options: str) -> str:
        return f"mqtt://127.0.0.1:{self.port}/{topic}" + (f"?{urlencode(options)}" if options else "")

    def make(self, topic: str, partitions: int = 1) -> None:
        """Nothing: a topic of MQTT needs no making, and has one partition."""

    def version(self) -> str:
        program = self._program()
        if program is None:
            return "none"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=10, check=False)
            found = re.search(r"version (\S+)", said.stdout)
            return f"Mosquitto {found[1]}" if found else "unknown"
        return "unknown"


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port
