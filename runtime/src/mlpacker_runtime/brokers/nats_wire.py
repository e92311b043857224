"""NATS's client protocol: the bytes of a connection as frames, and one blocking connection.

The protocol is lines of text with counted payloads (https://docs.nats.io/reference/reference-protocols/nats-protocol). Frames are
cut in bulk from large reads, and what is sent is put together by the caller and sent at once. A connection's first failure is its
last. Standard library only.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import Away, BadDescription, MlpackerError, Unusable
from .address import Address

PORT = 4222
LINE = 64 << 10
"""Bytes of the longest line taken. A server's INFO grows with its cluster; all others stay under 4 kB."""
LARGEST = 64 << 20
"""Bytes of the largest message taken: more than a server can be set to."""
READS = 256 << 10
CONNECTS = 5.0
ANSWERS = 10.0
"""Seconds for a request, and for the server to take what is sent."""
SILENCE = 10.0
"""Seconds without a word, after which the server is asked for one; after as many more it is away."""
ENDED = b"\r\n"


class ProtocolError(Exception):
    """The bytes are not the protocol's."""


class Frame(NamedTuple):
    """A message. sid: of the subscription. header: the whole block, unchecked: it is its publisher's."""

    sid: int
    subject: bytes
    reply: bytes
    header: bytes
    payload: bytes


class Said(NamedTuple):
    """Anything else a server says: INFO, PING, PONG, +OK, -ERR and what follows the word."""

    word: bytes
    rest: bytes


class Parser:
    """Bytes in whatever pieces → frames. Holds what is incomplete, never more than LARGEST and a line."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0

    @property
    def held(self) -> int:
        """Bytes that are not part of any frame yet."""
        return self._have

    def feed(self, data: bytes) -> list[Frame | Said]:
        """Raises ProtocolError, after which there is no going on."""
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        frames: list[Frame | Said] = []
        at, size = 0, len(data)
        while True:
            end = data.find(ENDED, at, at + LINE + 2)
            if end < 0:
                if size - at >= LINE + 2:
                    raise ProtocolError("a line without an end")
                self._need = size - at + 1
                break
            line = data[at:end]
            if line[:4] not in MESSAGES:
                frames.append(_said(line))
                at = end + 2
                continue
            sid, subject, reply, header, total = _counted(line)
            start = end + 2
            stop = start + total
            if stop + 2 > size:
                self._need = stop + 2 - at
                break
            if data[stop : stop + 2] != ENDED:
                raise ProtocolError("a payload that is not as long as it was said to be")
            body = start + header
            frames.append(Frame(sid, subject, reply, data[start:body], data[body:stop]))
            at = stop + 2
        self._pieces = [data[at:]]
        self._have = size - at
        return frames


MESSAGES = (b"MSG ", b"HMSG")
WORDS = (b"INFO", b"PING", b"PONG", b"+OK", b"-ERR")


def _said(line: bytes) -> Said:
    word, _, rest = line.partition(b" ")
    if word not in WORDS:
        raise ProtocolError(f"{line[:20]!r} is no word of the protocol")
    return Said(word, rest)


def _counted(line: bytes) -> tuple[int, bytes, bytes, int, int]:
    """`MSG subject sid [reply] size`, `HMSG subject sid [reply] header-size size` → sid, subject, reply, header size, size."""
    parts = line.split(b" ")
    sizes = 2 if parts[0] == b"HMSG" else 1
    reply = len(parts) - sizes - 3
    if parts[0] not in (b"MSG", b"HMSG") or reply not in (0, 1) or not parts[1]:
        raise ProtocolError(f"{line[:80]!r} is no message's line")
    total = _number(parts[-1])
    header = _number(parts[-2]) if sizes == 2 else 0
    if header > total or total > LARGEST:
        raise ProtocolError(f"{line[:80]!r} counts what can't be")
    return _number(parts[2]), parts[1], parts[3] if reply else b"", header, total


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 9:
        raise ProtocolError(f"{text[:20]!r} is no count")
    return int(text)


def status(header: bytes) -> int:
    """The status a server gave, as 503; 0: it is a message."""
    line = header[: header.find(ENDED)]
    code = line[9:12]
    return int(code) if line.startswith(b"NATS/1.0 ") and code.isdigit() and len(code) == 3 else 0


def fields(header: bytes) -> list[tuple[str, bytes]]:
    """Whatever bytes a publisher put there; what is no `name: value` is left out."""
    found = []
    for line in header.split(ENDED)[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found.append((name.decode("ascii", "replace"), value.strip(b" \t")))
    return found


def pub(subject: bytes, reply: bytes, payload: bytes) -> bytes:
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)


def hpub(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> bytes:
    """header: the whole block."""
    total = len(header) + len(payload)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(header), total, header, payload)


class Line:
    """One connection to the first of the address's hosts that answers. inbox: what all answers' subjects begin with.

    Raises Away, Unusable, BadDescription, and Away from everything once it has failed.
    """

    def __init__(self, address: Address, name: str) -> None:
        prefix = address.option("inbox", "_INBOX")
        if not prefix.replace(".", "").replace("_", "").isalnum():
            raise BadDescription(f"{address}: inbox is the beginning of a subject, as _INBOX_mine.")
        self.address = address
        self.info: Mapping[str, Any] = {}
        self.inbox = f"{prefix}.{secrets.token_hex(11)}".encode()
        self._broken = ""
        self._kept: list[Frame] = []
        self._requests = 0
        self._heard = time.monotonic()
        self._asked = 0.0
        self._parser = Parser()
        self._socket = self._first(name)

    def send(self, data: bytes) -> None:
        if self._broken:
            raise self._failed(self._broken)
        try:
            self._socket.settimeout(ANSWERS)
            self._socket.sendall(data)
        except OSError as cause:
            raise self._failed(f"it does not take what is sent ({cause})") from cause

    def read(self, seconds: float) -> list[Frame]:
        """What is there; else what comes first within `seconds`."""
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        return self._receive(seconds)

    def request(
        self, subject: bytes, payload: bytes = b"", header: bytes = b"", seconds: float = ANSWERS
    ) -> Frame:
        """The answer; what else comes meanwhile is kept for `read`."""
        self._requests += 1
        token = b"%b.r%d" % (self.inbox, self._requests)
        self.send(hpub(subject, token, header, payload) if header else pub(subject, token, payload))
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            answer = None
            for frame in self._receive(left):
                if frame.subject == token:
                    answer = frame
                else:
                    self._kept.append(frame)
            if answer is not None:
                return answer
        raise self._failed(f"no answer to {subject.decode(errors='replace')} within {seconds:.0f} s")

    def ended(self) -> bool:
        """Whether it has failed meanwhile; looks at what has come."""
        try:
            self._kept += self._receive(0)
        except Away:
            return True
        return False

    def close(self) -> None:
        self._broken = self._broken or "the connection was closed"
        try:
            self._socket.close()
        except OSError:
            pass

    def _receive(self, seconds: float) -> list[Frame]:
        if self._broken:
            raise self._failed(self._broken)
        try:
            self._socket.settimeout(max(seconds, 0.0))
            data = self._socket.recv(READS)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            self._silent()
            return []
        except OSError as cause:
            raise self._failed(f"the connection broke ({cause})") from cause
        if not data:
            raise self._failed("it closed the connection")
        self._heard, self._asked = time.monotonic(), 0.0
        try:
            cut = self._parser.feed(data)
        except ProtocolError as cause:
            raise self._failed(f"it does not speak NATS's protocol: {cause}") from cause
        if all(type(one) is Frame for one in cut):
            return cut  # type: ignore[return-value]
        return [one for one in cut if isinstance(one, Frame) or self._heed(one)]  # type: ignore[misc]

    def _heed(self, said: Said) -> bool:
        """False: it is no message."""
        if said.word == b"PING":
            self.send(b"PONG\r\n")
        elif said.word == b"-ERR":
            raise self._refused(said.rest.decode(errors="replace").strip("'"))
        elif said.word == b"INFO":
            self.info = _info(said)
        return False

    def _silent(self) -> None:
        now = time.monotonic()
        if self._asked and now - self._asked > SILENCE:
            raise self._failed("it is silent")
        if not self._asked and now - self._heard > SILENCE:
            self._asked = now
            self.send(b"PING\r\n")

    def _failed(self, why: str) -> Away:
        self._broken = why
        return Away(f"{self.address} is away: {why}.")

    def _refused(self, why: str) -> MlpackerError:
        self._broken = f"it refused us: {why}"
        lower = why.lower()
        if "authorization" in lower or ("authentication" in lower and "timeout" not in lower):
            return Unusable(
                f"{self.address}: NATS refuses the credentials ({why}).",
                "Give user and password=, or token=.",
            )
        if "permissions violation" in lower:
            return Unusable(f"{self.address}: NATS forbids this user what is needed: {why}.", NEEDED)
        if "tls required" in lower:
            return Unusable(f"{self.address}: the server wants TLS.", "Write natss:// for nats://.")
        return Away(f"{self.address} is away: it said {why!r}.")

    # Connecting

    def _first(self, name: str) -> socket.socket:
        failed: MlpackerError = BadDescription(f"{self.address}: a host is missing.")
        for host, port in self.address.hosts:
            try:
                return self._open(host, port or PORT, name)
            except Away as cause:
                failed = cause
                self._broken, self._parser = "", Parser()
        raise failed

    def _open(self, host: str, port: int, name: str) -> socket.socket:
        try:
            self._socket = socket.create_connection((host, port), CONNECTS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as cause:
            raise Away(f"{self.address} is away: {host}:{port} can't be reached ({cause}).") from cause
        try:
            self._greet(host)
            self._introduce(name)
        except MlpackerError:
            self._socket.close()
            raise
        return self._socket

    def _greet(self, host: str) -> None:
        self._heard = time.monotonic()
        self._await("INFO")
        context = self.address.context()
        wants, can = self.info.get("tls_required"), self.info.get("tls_available")
        if context is None:
            if wants:
                raise Unusable(f"{self.address}: the server wants TLS.", "Write natss:// for nats://.")
            return
        if not (wants or can):
            raise Unusable(f"{self.address}: the server has no TLS.", "Write nats://, or set the server up.")
        if self._parser.held:  # anybody on the way could have put it there
            raise self._failed("it spoke on before TLS")
        try:
            self._socket.settimeout(CONNECTS)
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        except ssl.SSLCertVerificationError as cause:
            raise Unusable(
                f"{self.address}: its certificate is not trusted ({cause.verify_message}).",
                "Give ca= the file of the authority that signed it.",
            ) from cause
        except OSError as cause:
            raise self._failed(f"TLS does not come about ({cause})") from cause

    def _introduce(self, name: str) -> None:
        said: dict[str, Any] = {
            "verbose": False, "pedantic": False, "tls_required": self.address.tls, "name": f"mlpacker-{name}",
            "lang": "python-mlpacker", "version": "1", "protocol": 1, "echo": True, "headers": True, "no_responders": True,
        }  # fmt: skip
        password, token = self.address.secret("password"), self.address.secret("token")
        if self.address.user:
            said["user"] = self.address.user
        if password is not None:
            said["pass"] = password
        if token is not None:
            said["auth_token"] = token
        if not self.info.get("headers"):
            raise Unusable(f"{self.address}: the server knows no headers.", "NATS 2.10 or newer is needed.")
        greeting = b"CONNECT " + json.dumps(said).encode() + ENDED
        self.send(greeting + b"SUB %b.* 1\r\nPING\r\n" % self.inbox)
        self._await("PONG")

    def _await(self, word: str) -> None:
        """Until the server says it."""
        until = time.monotonic() + CONNECTS
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(READS)
                cut = self._parser.feed(data)
            except TimeoutError:
                break
            except (OSError, ProtocolError) as cause:
                raise self._failed(f"it does not greet as NATS does ({cause})") from cause
            if not data:
                raise self._failed("it closed the connection")
            for said in cut:
                if isinstance(said, Said):
                    self._heed(said)
            if any(said.word == word.encode() for said in cut if isinstance(said, Said)):
                return
        raise self._failed(f"no {word} within {CONNECTS:.0f} s")


NEEDED = "It needs its subjects, $JS.API.>, $JS.ACK.>, $KV.mlpacker.> and its inbox (_INBOX.>, or inbox=)."


def _info(said: Said) -> dict[str, Any]:
    try:
        told = json.loads(said.rest)
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}
