"""A registry of schemas that speaks Confluent's API (Confluent's own, Apicurio's `/apis/ccompat/v7`, Karapace), and its frame.

A framed message is a zero, the schema's id in four bytes (big-endian), and the body. What an id stands for never changes: a
schema is fetched once. The registry's address is one line, as a broker's:

    https://user@host:8081/path?password=env:NAME&ca=ca.pem

Options: password (with a user) or token, references both; seconds, the most a call may take (10); TLS's as for brokers.
Several hosts are asked in turn. Standard library and msgspec only.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote

import msgspec

from ...brokers import Away, Unusable
from ...brokers.address import Address, parse
from ...errors import BadDescription, BadInput

FRAME = 5
"""Bytes before the body."""
LARGEST = 4 << 20
"""Bytes of an answer that we read."""
LAST_ID = (1 << 31) - 1
UNKNOWN_SECONDS = 10.0
"""How long an id that the registry does not know is not asked for again."""
UNKNOWN_KEPT = 10_000
PORTS = {False: 80, True: 443}
JSON = "application/vnd.schemaregistry.v1+json"
PASSING = (408, 425, 429)

T = TypeVar("T")


class SchemaAway(Away):
    """The registry can't be reached, or is in trouble. What needs the schema waits; it is no row's fault."""


class Reference(msgspec.Struct, frozen=True):
    name: str
    subject: str
    version: int


class Schema(msgspec.Struct, frozen=True):
    """As the registry tells it. kind: AVRO, JSON or PROTOBUF. id: 0 where the answer does not repeat it."""

    schema: str
    kind: str = msgspec.field(default="AVRO", name="schemaType")
    references: list[Reference] | None = None
    id: int = 0


class Trouble(msgspec.Struct, frozen=True):
    message: str = ""
    error_code: int = 0


class Registered(msgspec.Struct, frozen=True):
    id: int


NO_SCHEMA = (40401, 40402, 40403)
"""Error codes: no such subject, version, schema. Another 404 is not the API's."""


def read_id(value: bytes) -> int:
    """The schema's id in a framed message. Raises BadInput for one without a frame."""
    if len(value) < FRAME or value[0]:
        raise BadInput(
            "The message does not begin with a zero and a schema's id, as messages of a registry do."
        )
    return int.from_bytes(value[1:FRAME], "big")


def frame(number: int) -> bytes:
    """What stands before the body."""
    return b"\0" + number.to_bytes(4, "big")


class Registry:
    """Called from one thread."""

    def __init__(self, address: Address) -> None:
        """Connects to nothing. Raises BadDescription for credentials or certificates that can't be read."""
        address.only("password", "token", "seconds")
        self._address = address
        self._seconds = address.number("seconds", 10)
        self._tls = address.context()
        self._headers = {"Accept": f"{JSON}, application/json", **_credentials(address)}
        self._known: dict[int, Schema] = {}
        self._versions: dict[tuple[str, int], Schema] = {}
        self._unknown: dict[int, float] = {}

    def __str__(self) -> str:
        return str(self._address)

    def by_id(self, number: int) -> Schema:
        """Raises BadInput for an id that is unknown there; SchemaAway, Unusable."""
        known = self._known.get(number)
        if known is not None:
            return known
        if number > LAST_ID or self._unknown.get(number, 0.0) > time.monotonic():
            raise _unknown(number)
        found = self._fetch(f"/schemas/ids/{number}", Schema)
        if found is None:
            self._remember_unknown(number)
            raise _unknown(number)
        self._known[number] = found
        return found

    def _remember_unknown(self, number: int) -> None:
        if len(self._unknown) >= UNKNOWN_KEPT:
            self._unknown.clear()
        self._unknown[number] = time.monotonic() + UNKNOWN_SECONDS

    def version(self, subject: str, number: int) -> Schema:
        """What a reference refers to. Raises BadInput where there is no such version; SchemaAway, Unusable."""
        known = self._versions.get((subject, number))
        if known is None:
            known = self._fetch(f"/subjects/{quote(subject, safe='')}/versions/{number}", Schema)
            if known is None:
                raise BadInput(
                    f"The registry has no version {number} of {subject}, to which a schema refers."
                )
            self._versions[subject, number] = known
        return known

    def latest(self, subject: str) -> Schema:
        """With its id. Raises SchemaAway, Unusable."""
        found = self._fetch(f"/subjects/{quote(subject, safe='')}/versions/latest", Schema)
        if found is None:
            raise Unusable(f"{self} has no schema {subject!r}.", "Register one, or give the schema's file.")
        return found

    def register(self, subject: str, text: str, kind: str = "AVRO") -> int:
        """The id of this schema under the subject, which is the same each time. Raises SchemaAway; Unusable where the registry
        does not take it, as one that is incompatible with the last."""
        body = msgspec.json.encode({"schema": text, "schemaType": kind})
        found = self._fetch(f"/subjects/{quote(subject, safe='')}/versions", Registered, body)
        if found is None or not 0 <= found.id <= LAST_ID:
            raise Unusable(f"{self} takes no schema for {subject!r}.")
        return found.id

    def _fetch(self, path: str, kind: type[T], body: bytes | None = None) -> T | None:
        """None where the registry says that it has no such thing."""
        status, answer = self._ask(path, body)
        if status == 200 and len(answer) <= LARGEST:
            return self._read(answer, kind, path)
        trouble = _trouble(answer)
        if status == 404 and trouble.error_code in NO_SCHEMA:
            return None
        if status >= 500 or status in PASSING:
            raise SchemaAway(f"{self} answers {status}: {trouble.message or 'no reason given'}.")
        if status in (401, 403):
            raise Unusable(
                f"{self} refuses our credentials ({status}).", "See user, password and token of its address."
            )
        if status == 404:
            raise Unusable(
                f"{self} has no {path}.", "See the path in its address: it ends where /schemas begins."
            )
        if len(answer) > LARGEST:
            raise BadInput(f"The registry's answer is longer than {LARGEST} bytes.")
        raise Unusable(f"{self} answers {status}: {trouble.message or 'no reason given'}.")

    def _read(self, answer: bytes, kind: type[T], path: str) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
            raise SchemaAway(f"{self}: the answer to {path} is not the API's: {cause}.") from cause

    def _ask(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Status and body from the first host that answers."""
        failed = ""
        last: Exception | None = None
        for host, port in self._address.hosts:
            try:
                return self._ask_host(host, port, path, body)
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
            ) as cause:  # ValueError: read from what we closed
                failed, last = f"{type(cause).__name__}: {cause}", cause
        raise SchemaAway(f"{self} can't be reached ({failed}).") from last

    def _ask_host(self, host: str, port: int, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = self._connection(host, port or PORTS[self._address.tls])
        try:
            connection.connect()
            end = threading.Timer(self._seconds, _cut, [connection.sock])  # what trickles in never times out
            end.daemon = True
            end.start()
            try:
                method = "GET" if body is None else "POST"
                headers = self._headers if body is None else {**self._headers, "Content-Type": JSON}
                connection.request(method, self._path(path), body, headers)
                response = connection.getresponse()
                return response.status, response.read(LARGEST + 1)
            finally:
                end.cancel()
        finally:
            connection.close()

    def _connection(self, host: str, port: int) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=self._seconds)
        return http.client.HTTPSConnection(host, port, timeout=self._seconds, context=self._tls)

    def _path(self, path: str) -> str:
        return f"/{quote(self._address.path.strip('/'))}{path}" if self._address.path.strip("/") else path


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _trouble(answer: bytes) -> Trouble:
    try:
        return msgspec.json.decode(answer, type=Trouble)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Trouble()


def _unknown(number: int) -> BadInput:
    return BadInput(f"The registry has no schema {number}.")


def _credentials(address: Address) -> dict[str, str]:
    token, password = address.secret("token"), address.secret("password")
    if token is not None:
        return {"Authorization": f"Bearer {token}"}
    if address.user is None:
        return {}
    pair = f"{address.user}:{password or ''}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def registry(options: Mapping[str, str]) -> Registry | None:
    """That of the option `registry`, None without it. Raises BadDescription."""
    text = options.get("registry")
    if text is None:
        return None
    if not text.startswith(("http://", "https://")):
        raise BadDescription("registry: an address as https://host:8081.")
    return Registry(parse(text, {"http": None}))
