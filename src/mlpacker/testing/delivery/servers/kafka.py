"""Apache Kafka for a test: one node that is broker and controller (KRaft), run by Java from the jars that Maven fetches.

The jars are fetched once and kept in the test cache (MLPACKER_TEST_CACHE, else .cache/test in the clone).
"""

from __future__ import annotations

import base64
import fcntl
import importlib.util
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlpacker.testing.delivery.proxy import Proxy
from mlpacker.testing.delivery.servers.process import Running, free_ports

VERSION = "4.1.2"
"""The newest line whose broker runs on Java 17 and whose clients of all ages it takes."""
LOGGING = "1.7.36"
"""Of slf4j-simple: the same as the slf4j that this Kafka brings."""
FETCH_SECONDS = 500
START_SECONDS = 60
JAVA = (
    "-Xmx384m",
    "-Xms64m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xshare:auto",
)
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>test</groupId><artifactId>kafka</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>{LOGGING}</version></dependency>
</dependencies></project>
"""
SINGLE = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "group.min.session.timeout.ms": "1000",
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
}
"""What a node alone needs, and what lets a test be short; nothing here makes it more or less durable."""
DURABLE = {
    "log.flush.interval.messages": "1",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.retention.minutes": "525600",
    "log.retention.ms": "-1",
}
"""One node, each append flushed to the disk before it is confirmed: a node alone has no replica that would have it otherwise.
A killed process loses nothing even without (the page cache survives it); a power cut does."""


RELAYS = 3
"""Listeners that tell clients to come back through a proxy: Kafka's clients connect where the broker says it is."""


class Kafka(Running):
    """A real broker of the test's own: on loopback, on free ports, its data in `folder`, as durable as it can be set.

    users: name → password; then a second listener (`guarded`) wants SASL PLAIN. certificate: a PEM file with key and
    certificate; then that listener speaks TLS. durable False: Kafka's default settings.
    """

    name = "kafka"
    session = 6.0  # less is refused by its default group.min.session.timeout.ms

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        users: Mapping[str, str] | None = None,
        certificate: Path | None = None,
    ) -> None:
        self.folder = folder
        self.durable = durable
        self.port, self.guarded, self._controller, *relayed = free_ports(3 + 2 * RELAYS)
        self._relayed = tuple(zip(relayed[:RELAYS], relayed[RELAYS:], strict=True))
        self._relays = list(self._relayed)
        self._users, self._certificate = dict(users or {}), certificate
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def missing(cls) -> str | None:
        """Why it can't run here, as a skip reason; None where it can. The first call fetches the server."""
        for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
            if shutil.which(program) is None:
                return f"Kafka needs {program} (Debian: {package})"
        if importlib.util.find_spec("confluent_kafka") is None:
            return "Kafka's client confluent-kafka is not installed"
        try:
            _jars()
        except RuntimeError as cause:
            return str(cause)
        return None

    def version(self) -> str:
        return f"Apache Kafka {VERSION}"

    def address(self, topic: str, **options: str) -> str:
        return _address(f"kafka://127.0.0.1:{self.port}", topic, options)

    def guarded_address(self, topic: str, user: str = "", **options: str) -> str:
        """Of the listener that asks for credentials, or speaks TLS, or both."""
        scheme = "kafkas" if self._certificate else "kafka"
        return _address(f"{scheme}://{user and user + '@'}localhost:{self.guarded}", topic, options)

    def start(self) -> None:
        """Start, or start again on the same data and ports. Returns when it answers; raises RuntimeError with its last words."""
        if not (self.folder / "server.properties").exists():
            self._format()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", self.folder / "server.properties"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._await_answer()
        except BaseException:
            self.kill()
            raise

    def make(self, topic: str, partitions: int = 1, **settings: str) -> None:
        """settings: the topic's own, with underscores for dots (`max_message_bytes="2000"`)."""
        from confluent_kafka.admin import NewTopic

        config = {name.replace("_", "."): value for name, value in settings.items()}
        admin = self.admin()  # held: its answers end with it
        made = admin.create_topics([NewTopic(topic, partitions, 1, config=config)], operation_timeout=20)
        made[topic].result(30)
        self._await_leaders(topic, partitions)

    def forget(self, topic: str, group: str) -> None:
        """Delete the place of a group whose readers have ended, as soon as the broker believes that they have."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                admin = self.admin()  # held: its answers end with it
                admin.delete_consumer_groups([group])[group].result(10)
            except Exception:  # members that did not leave are there for a session
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
            else:
                return

    def admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        return AdminClient(
            {"bootstrap.servers": f"127.0.0.1:{self.port}", "log_level": 0, "reconnect.backoff.max.ms": 300}
        )

    def through(self) -> Proxy:
        """A proxy that this broker's clients stay behind; there are RELAYS of them. Closed by who asks."""
        port, advertised = self._relays.pop(0)
        return Proxy(port, listen=advertised)

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _java(self, main: str, *arguments: object) -> list[str]:
        logging = (
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
        )
        return ["java", *JAVA, *logging, "-cp", f"{_jars()}/*", main, *map(str, arguments)]

    def _format(self) -> None:
        written = self.folder / "server.properties.new"
        written.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        words = self._java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", written)
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=START_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(
                f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        written.rename(self.folder / "server.properties")

    def _settings(self) -> dict[str, str]:
        guarded = bool(self._users or self._certificate)
        kind = ("SASL_" if self._users else "") + ("SSL" if self._certificate else "PLAINTEXT")
        listeners = [f"PLAINTEXT://127.0.0.1:{self.port}"] + [f"GUARDED://localhost:{self.guarded}"] * guarded
        relays = [f"RELAY{i}://127.0.0.1:{port}" for i, (port, _) in enumerate(self._relayed)]
        advertised = [f"RELAY{i}://127.0.0.1:{port}" for i, (_, port) in enumerate(self._relayed)]
        plain = "".join(f",RELAY{i}:PLAINTEXT" for i in range(RELAYS))
        return {
            **SINGLE,
            **(DURABLE if self.durable else {}),
            "log.dirs": str(self.folder / "data"),
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": ",".join([*listeners, *relays, f"CONTROLLER://127.0.0.1:{self._controller}"]),
            "advertised.listeners": ",".join([*listeners, *advertised]),
            "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,GUARDED:{kind}{plain}",
            **self._guard(),
        }

    def _guard(self) -> dict[str, str]:
        settings = {}
        if self._users:
            users = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
            login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
            settings["listener.name.guarded.sasl.enabled.mechanisms"] = "PLAIN"
            settings["listener.name.guarded.plain.sasl.jaas.config"] = f"{login} {users};"
        if self._certificate:
            settings["listener.name.guarded.ssl.keystore.type"] = "PEM"
            settings["listener.name.guarded.ssl.keystore.location"] = str(self._certificate)
        return settings

    def _await_answer(self) -> None:
        from confluent_kafka import KafkaException

        admin, end = self.admin(), time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                known = admin.list_topics(timeout=0.5)
            except KafkaException:
                continue
            if known.brokers and all(
                p.leader >= 0 for t in known.topics.values() for p in t.partitions.values()
            ):
                return
            time.sleep(0.05)
        raise RuntimeError(f"Kafka does not answer on port {self.port}:\n{self._last_words()}")

    def _await_leaders(self, topic: str, partitions: int) -> None:
        admin, end = self.admin(), time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            found = admin.list_topics(timeout=10).topics.get(topic)
            if found and sum(p.leader >= 0 for p in found.partitions.values()) == partitions:
                return
            time.sleep(0.05)
        raise RuntimeError(f"Kafka gives the topic {topic} no leader:\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


def _address(place: str, topic: str, options: Mapping[str, str]) -> str:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{place}/{topic}" + (f"?{query}" if query else "")


# --- The server's jars -----------------------------------------------------------------------------------------------


def _cache() -> Path:
    named = os.environ.get("MLPACKER_TEST_CACHE")
    clone = Path(__file__).resolve().parents[5]
    if named:
        return Path(named)
    if (clone / "pyproject.toml").exists():
        return clone / ".cache" / "test"
    return Path.home() / ".cache" / "mlpacker" / "test"


def _jars() -> Path:
    """The folder with the server's jars; fetched by Maven where they are not there. Raises RuntimeError saying why not."""
    jars = _cache() / "kafka" / f"{VERSION}-{LOGGING}"
    if not (jars / "complete").exists():
        jars.mkdir(parents=True, exist_ok=True)
        with _alone(jars.with_suffix(".lock")):
            if not (jars / "complete").exists():
                _fetch(jars)
    return jars


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("a", encoding="ascii") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _fetch(jars: Path) -> None:
    pom = jars / "pom.xml"
    pom.write_text(POM)
    words = ["mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    try:
        done = subprocess.run(
            [*words, f"-DoutputDirectory={jars}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired as cause:
        raise RuntimeError(f"Kafka's jars did not come from Maven within {FETCH_SECONDS} s") from cause
    if done.returncode != 0:
        said = next(
            (line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line),
            "it did not say why",
        )
        raise RuntimeError(f"Kafka's jars can't be had from Maven: {said.strip()}")
    (jars / "complete").touch()
