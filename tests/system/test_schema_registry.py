"""Schemas from a registry: Apicurio's, which speaks Confluent's API and is run by Java from what Maven fetches, and a server that
does what a healthy registry never would."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from google.protobuf import descriptor_pb2

from mlpacker_runtime.brokers import Away, Message, Unusable
from mlpacker_runtime.errors import BadInput
from mlpacker_runtime.signature import Field
from mlpacker_runtime.stream import payloads
from mlpacker_runtime.stream.payloads.schema_registry import Registry, SchemaAway, frame, registry

VERSION = "3.0.9"
"""The last line that was tried; it runs on Java 17 and keeps its schemas in memory."""
FETCH_SECONDS = 280
START_SECONDS = 90
JAVA = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
FIELDS = (Field("depth", "float64"), Field("rock", "string"))
ROCK = {"type": "enum", "name": "Rock", "namespace": "plant", "symbols": ["basalt", "granite"]}
READING = {
    "type": "record",
    "name": "Reading",
    "namespace": "plant",
    "fields": [{"name": "depth", "type": "double"}, {"name": "rock", "type": "string"}],
}
ROW = {"depth": 1.5, "rock": "basalt"}


def avro(number: int, schemas: list[Any], value: Any) -> bytes:
    """A framed message; all but the last schema are what the last refers to."""
    named: dict[str, Any] = {}
    parsed = [fastavro.parse_schema(s, named) for s in schemas]
    out = BytesIO()
    fastavro.schemaless_writer(out, parsed[-1], value)
    return frame(number) + out.getvalue()


def message(value: bytes) -> Message:
    return Message("0", 1, value)


# --- A real registry -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. Skips where it can't be had, saying why."""
    folder = tmp_path_factory.mktemp("apicurio")
    with tarfile.open(_archive()) as packed:
        packed.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else packed.extractall(
            folder
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = (f"-Dquarkus.http.port={port}", "-Dquarkus.http.host=127.0.0.1", "-Dapicurio.storage.kind=sql")
    with (folder / "log").open("wb") as log:
        words = ["java", *JAVA, *settings, "-jar", f"apicurio-registry-app-{VERSION}-runner.jar"]
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}/apis/ccompat/v7"
        _await(address, process, folder / "log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _archive() -> Path:
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None:
            pytest.skip(f"Apicurio Registry needs {program} (Debian: {package})")
    cache = os.environ.get("MLPACKER_TEST_CACHE") or Path(__file__).resolve().parents[2] / ".cache" / "test"
    folder = Path(cache) / "apicurio-registry"
    archive = folder / f"apicurio-registry-app-{VERSION}-all.tar.gz"
    if not archive.exists():
        what = f"-Dartifact=io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
        part = folder / f"fetching-{os.getpid()}"
        try:
            done = subprocess.run(
                ["mvn", "-B", "-q", "dependency:copy", what, f"-DoutputDirectory={part}"],
                capture_output=True,
                text=True,
                timeout=FETCH_SECONDS,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"Apicurio Registry did not come from Maven within {FETCH_SECONDS} s")
        if done.returncode != 0:
            said = next((line for line in done.stdout.splitlines() if "ERROR" in line), "it did not say why")
            pytest.skip(f"Apicurio Registry can't be had from Maven: {said.strip()[:300]}")
        (part / archive.name).rename(archive)
        part.rmdir()
    return archive


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/subjects", timeout=5).close()
            return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"Apicurio Registry does not answer:\n{log.read_text(errors='replace')[-2000:]}")


def register(address: str, subject: str, schema: str, **more: Any) -> int:
    """As a producer does it, without our client."""
    body = json.dumps({"schema": schema, **more}).encode()
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    asked = urllib.request.Request(f"{address}/subjects/{subject}/versions", body, headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return int(json.load(answer)["id"])


def test_avro_is_read_by_the_schema_that_its_id_names(apicurio: str) -> None:
    number = register(apicurio, "readings-value", json.dumps(READING))
    for name in ("avro", "auto"):
        decoder = payloads.decoder(name, FIELDS, {"registry": apicurio})
        assert decoder.decode(message(avro(number, [READING], ROW))).records == [ROW]


def test_messages_of_an_older_and_a_newer_schema_are_read_side_by_side(apicurio: str) -> None:
    newer = {**READING, "fields": [*READING["fields"], {"name": "wet", "type": "boolean", "default": False}]}
    first = register(apicurio, "changing-value", json.dumps(READING))
    second = register(apicurio, "changing-value", json.dumps(newer))
    assert first != second
    decoder = payloads.decoder("avro", FIELDS, {"registry": apicurio})
    assert decoder.decode(message(avro(second, [newer], {**ROW, "wet": True}))).records == [
        {**ROW, "wet": True}
    ]
    assert decoder.decode(message(avro(first, [READING], ROW))).records == [ROW]


def test_a_schema_that_refers_to_another_is_read(apicurio: str) -> None:
    register(apicurio, "rocks", json.dumps(ROCK))
    fields = [{"name": "depth", "type": "double"}, {"name": "rock", "type": "plant.Rock"}]
    schema = {"type": "record", "name": "Sample", "namespace": "plant", "fields": fields}
    number = register(
        apicurio,
        "samples-value",
        json.dumps(schema),
        references=[{"name": "plant.Rock", "subject": "rocks", "version": 1}],
    )
    decoder = payloads.decoder("avro", FIELDS, {"registry": apicurio})
    assert decoder.decode(message(avro(number, [ROCK, schema], ROW))).records == [ROW]


def test_an_unknown_id_and_another_kind_of_schema_are_refused(apicurio: str) -> None:
    decoder = payloads.decoder("avro", FIELDS, {"registry": apicurio})
    with pytest.raises(BadInput, match="no schema 99999"):
        decoder.decode(message(frame(99999) + b"x"))
    number = register(
        apicurio,
        "json-value",
        '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}',
        schemaType="JSON",
    )
    with pytest.raises(BadInput, match="as JSON, not AVRO"):
        decoder.decode(message(frame(number) + b"{}"))
    auto = payloads.decoder("auto", FIELDS, {"registry": apicurio})
    assert auto.decode(message(frame(number) + json.dumps(ROW).encode())).records == [ROW]


def test_answers_are_registered_under_their_subject_and_can_be_read_by_anybody(
    apicurio: str, tmp_path: Path
) -> None:
    (tmp_path / "answer.avsc").write_text(json.dumps(READING))
    named = {"registry": apicurio, "subject": "answers-value"}
    first = payloads.encoder("avro", FIELDS, {**named, "schema": str(tmp_path / "answer.avsc")})
    [written] = first.encode([ROW])
    assert payloads.decoder("avro", FIELDS, {"registry": apicurio}).decode(message(written)).records == [ROW]
    later = payloads.encoder("avro", FIELDS, named)
    assert later.encode([ROW]) == [written]


def test_a_subject_that_is_not_there_or_a_schema_that_is_not_taken_stops_us(apicurio: str) -> None:
    with pytest.raises(Unusable, match="no schema 'nobody-value'"):
        payloads.encoder("avro", FIELDS, {"registry": apicurio, "subject": "nobody-value"}).encode([ROW])
    with pytest.raises(Unusable, match="422"):
        client(apicurio).register("bad-value", '{"type": "no such type"}')


def test_a_path_that_is_not_the_apis_stops_us(apicurio: str) -> None:
    with pytest.raises(Unusable, match="where /schemas begins"):
        client(apicurio.removesuffix("/ccompat/v7")).by_id(1)


def test_protobuf_is_checked_against_what_the_registry_holds(apicurio: str, tmp_path: Path) -> None:
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add(name="r.proto", package="plant", syntax="proto3")
    file.message_type.add(name="Reading").field.add(name="depth", number=1, type=1, label=1)
    (tmp_path / "r.desc").write_bytes(files.SerializeToString())
    options = {"descriptor": str(tmp_path / "r.desc"), "message": "plant.Reading", "registry": apicurio}
    text = 'syntax = "proto3"; package plant; message %s { double depth = 1; }'
    known = register(apicurio, "proto-value", text % "Reading", schemaType="PROTOBUF")
    other = register(apicurio, "other-value", text % "Other", schemaType="PROTOBUF")
    kind = register(apicurio, "kind-value", json.dumps(READING))
    body = b"\0\x09" + b"\0" * 6 + b"\xf8\x3f"
    for name in ("protobuf", "auto"):
        decoder = payloads.decoder(name, FIELDS, options)
        assert decoder.decode(message(frame(known) + body)).records == [{"depth": 1.5}]
        for number in (other, kind, 99999):
            with pytest.raises(BadInput):
                decoder.decode(message(frame(number) + body))


# --- A registry in trouble -------------------------------------------------------------------------------------------

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Misbehaving:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.headers = dict(self.headers)
                answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.port = self.server.server_port

    def __enter__(self) -> Misbehaving:
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def reply(status: int, body: bytes, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def tells(schema: Any, **more: Any) -> Answer:
    return reply(200, json.dumps({"schema": json.dumps(schema), **more}).encode())


def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
    try:
        for _ in range(1500):
            handler.wfile.write(b"H")
            time.sleep(0.05)
    except OSError:
        pass


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def client(address: str) -> Registry:
    made = registry({"registry": address})
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(500, b'{"error_code": 50001, "message": "store"}'), SchemaAway),
        (reply(503, b""), SchemaAway),
        (reply(429, b""), SchemaAway),
        (reply(200, b"<html>"), SchemaAway),
        (reply(200, b"[" * 100_000), SchemaAway),
        (reply(200, b'{"schema": 5}'), SchemaAway),
        (reply(200, b'{"schema"', **{"Content-Length": "100"}), SchemaAway),
        (hang_up, SchemaAway),
        (trickle, SchemaAway),
        (reply(401, b""), Unusable),
        (reply(403, b"no"), Unusable),
        (reply(404, b"<html>"), Unusable),
        (reply(302, b"", Location="http://127.0.0.1:1/"), Unusable),
        (reply(404, b'{"error_code": 40403}'), BadInput),
        (reply(200, b" " * (5 << 20)), BadInput),
    ],
)
def test_trouble_is_told_apart_from_a_bad_message(answer: Answer, error: type[Exception]) -> None:
    begun = time.monotonic()
    with Misbehaving(answer) as server, pytest.raises(error) as caught:
        client(f"{server.address}?seconds=1").by_id(1)
    assert caught.type is error
    assert str(caught.value)
    assert time.monotonic() - begun < 30


def test_a_registry_that_is_away_is_nobodys_fault_and_is_asked_again() -> None:
    with Misbehaving(tells(READING)) as server:
        address = server.address
        port = server.port
    decoder = payloads.decoder("avro", FIELDS, {"registry": f"{address}?seconds=2"})
    with pytest.raises(Away, match="can't be reached"):
        decoder.decode(message(avro(3, [READING], ROW)))
    with Misbehaving(tells(READING)) as other:
        decoder = payloads.decoder(
            "avro", FIELDS, {"registry": f"http://127.0.0.1:{port},127.0.0.1:{other.port}/?seconds=2"}
        )
        assert decoder.decode(message(avro(3, [READING], ROW))).count == 1


def test_a_schema_is_fetched_once_and_an_unknown_id_asked_for_once() -> None:
    with Misbehaving(tells(READING)) as server:
        decoder = payloads.decoder("avro", FIELDS, {"registry": server.address})
        for _ in range(3):
            decoder.decode(message(avro(3, [READING], ROW)))
        assert server.asked == ["/schemas/ids/3"]
        with pytest.raises(BadInput, match="no schema 4294967295"):
            decoder.decode(message(frame((1 << 32) - 1) + b"x"))
        assert len(server.asked) == 1
        asked = client(server.address)
        assert asked.by_id(3) is asked.by_id(3)
        assert len(server.asked) == 2
    with Misbehaving(reply(404, b'{"error_code": 40403}')) as server:
        decoder = payloads.decoder("avro", FIELDS, {"registry": server.address})
        for _ in range(3):
            with pytest.raises(BadInput, match="no schema 3"):
                decoder.decode(message(frame(3) + b"x"))
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]},
        {"type": "array", "items": "null"},
        {"type": "no such type"},
    ],
)
def test_a_registered_schema_that_is_not_safe_to_read_by_makes_its_messages_dead_letters(schema: Any) -> None:
    with Misbehaving(tells(schema)) as server:
        decoder = payloads.decoder("avro", FIELDS, {"registry": server.address})
        for _ in range(2):
            with pytest.raises(BadInput, match="Schema 3"):
                decoder.decode(message(frame(3) + b"\x02" * 1000))
        assert len(server.asked) == 1


def test_schemas_that_refer_to_each_other_without_end_are_refused() -> None:
    count = 0

    def ever_more(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal count
        count += 1
        further = [{"name": "x", "subject": "s", "version": count}]
        tells(READING, references=further)(handler)

    with Misbehaving(ever_more) as server:
        decoder = payloads.decoder("avro", FIELDS, {"registry": server.address})
        with pytest.raises(BadInput, match="more than 100"):
            decoder.decode(message(frame(3) + b"x"))
    assert count < 110


def test_credentials_are_references_and_reach_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "s3cret")
    with Misbehaving(tells(READING)) as server:
        asked = client(f"http://reader@127.0.0.1:{server.port}/?password=env:REGISTRY_PASSWORD")
        asked.by_id(1)
        assert server.headers["Authorization"] == "Basic " + base64.b64encode(b"reader:s3cret").decode()
        assert "s3cret" not in str(asked)
        client(f"{server.address}/?token=env:REGISTRY_PASSWORD").by_id(1)
        assert server.headers["Authorization"] == "Bearer s3cret"


def test_a_registry_is_believed_over_tls_only_with_its_authority(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate with openssl, which is not installed")
    pem = tmp_path / "registry.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    extra = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(pem), "-out", str(tmp_path / "ca.pem")]
    subprocess.run([*words, *extra], check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "ca.pem").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with Misbehaving(tells(READING), context) as server:
        address = f"https://localhost:{server.port}/"
        assert client(f"{address}?ca={tmp_path / 'ca.pem'}").by_id(1).kind == "AVRO"
        with pytest.raises(SchemaAway, match="CERTIFICATE_VERIFY_FAILED"):
            client(address).by_id(1)
