"""RabbitMQ as Debian ships it, run in the foreground with a folder, ports and a port mapper (epmd) of its own.

It is durable by how a queue is made, not by how the broker is set: `make` makes quorum queues, or transient classic ones where
`durable` is off. A disk flush is behind each confirmation of a quorum queue.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpacker.testing.delivery.servers.process import END_SECONDS, Running, free_ports
from mlpacker_runtime.brokers.address import Address

SCRIPTS = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"
"""Debian's commands in the path change to another user first; these do not."""
STARTS = 60.0
"""Seconds for a start; a busy machine takes fifteen."""

CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
vm_memory_high_watermark.absolute = 256MB
disk_free_limit.absolute = 50MB
max_message_size = {max_bytes}
log.console = false
log.file.level = warning
{more}
"""
TLS = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.certfile = {file}
ssl_options.keyfile = {file}
ssl_options.verify = verify_none
"""


class RabbitMQ(Running):
    """A real broker of the test's own: on loopback, on free ports, its data in `folder`, as durable as it can be set.

    max_bytes: the largest message it takes. settings: further lines of its configuration. certificate: a file with the key and
    the certificate; with it, TLS is spoken on `tls_port`.
    """

    name = "rabbitmq"

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        max_bytes: int = 1 << 20,
        settings: Sequence[str] = (),
        certificate: Path | None = None,
    ) -> None:
        self.folder = folder
        self.durable = durable
        self.port, self.tls_port, self._dist, self._epmd = free_ports(4)
        self._node = f"mlpacker-{uuid.uuid4().hex[:8]}@localhost"
        if certificate is not None:
            settings = [*settings, *TLS.format(port=self.tls_port, file=certificate).splitlines()]
        self._config = CONFIG.format(port=self.port, max_bytes=max_bytes, more="\n".join(settings))
        self._process: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        if _scripts() is None or shutil.which("epmd") is None:
            return "no RabbitMQ here; apt-get install rabbitmq-server"
        try:
            import pika  # noqa: F401  is it here?
        except ImportError:
            return "no client for RabbitMQ here; pip install pika"
        return None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(self._config)
        (self.folder / "enabled_plugins").write_text("[].")
        (self.folder / "none").touch()
        self._start_mapper()
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [f"{_scripts()}/rabbitmq-server"], env=self._environment(), cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._await()

    def stop(self) -> None:
        super().stop()
        if self._mapper is not None:
            self._mapper.terminate()
            try:
                self._mapper.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._mapper.kill()
                self._mapper.wait()
        self._mapper = None

    def address(self, topic: str, **options: str) -> str:
        return str(Address("amqp", topic, (("127.0.0.1", self.port),), options=options))

    def make(self, topic: str, partitions: int = 1) -> None:
        """partitions: 1; a queue has no more."""
        with self.connect() as connection:
            if self.durable:
                from mlpacker_runtime.brokers.rabbitmq import QUEUE

                connection.channel().queue_declare(topic, durable=True, arguments=dict(QUEUE))
            else:
                connection.channel().queue_declare(topic)

    def connect(self) -> Any:
        """A plain connection of pika's, as the guest."""
        import pika

        return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port, heartbeat=60))

    def control(self, *command: str) -> str:
        """What rabbitmqctl says to this command. Raises CalledProcessError."""
        done = subprocess.run(
            [f"{_scripts()}/rabbitmqctl", "--node", self._node, "--quiet", *command], env=self._environment(),
            cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    def version(self) -> str:
        with self.connect() as connection:
            return f"RabbitMQ {connection._impl.server_properties['version']}"

    def _start_mapper(self) -> None:
        """A port mapper in the foreground: one that the broker started itself would outlive it."""
        if self._mapper is None or self._mapper.poll() is not None:
            self._mapper = subprocess.Popen(
                ["epmd", "-port", str(self._epmd), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            _until(lambda: _answers(self._epmd), 10)

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
        return kept | {
            "HOME": folder,
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 +sbwt none",
            "detached": "1",  # makes the script become the broker, so that a signal reaches the broker itself
        }

    def _await(self) -> None:
        process = self._process
        assert process is not None
        ready = _until(lambda: process.poll() is not None or _answers(self.port, b"AMQP\0\0\t\1"), STARTS)
        if not ready or process.poll() is not None:
            self.stop()
            raise RuntimeError(f"RabbitMQ does not start.\n{self._tail()}")

    def _tail(self) -> str:
        logs = sorted([self.folder / "output", *(self.folder / "log").glob("*.log")])
        lines = [
            line
            for log in logs
            if log.exists()
            for line in log.read_text(errors="replace").splitlines()[-15:]
        ]
        return "\n".join(lines)


def _scripts() -> str | None:
    found = sorted(Path("/").glob(SCRIPTS.lstrip("/") + "/rabbitmq-server"))
    return str(found[-1].parent) if found else None


def _answers(port: int, say: bytes = b"") -> bool:
    """Whether something listens there, and answers to what is said."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as line:
            line.settimeout(2)
            line.sendall(say)
            return not say or bool(line.recv(1))
    except OSError:
        return False


def _until(true: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False
