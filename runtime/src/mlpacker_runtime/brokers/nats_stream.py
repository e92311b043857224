"""JetStream's own interface, as far as it is needed: a stream, its consumers, and a lease that one reader holds.

Requests are JSON on `$JS.API.…`; a refusal carries a code of five digits. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import Away, BadDescription, MlpackerError, Unusable
from .address import Address
from .nats_wire import Line, status

LEASES = "KV_mlpacker"
NO_STREAM, NO_CONSUMER, NO_MESSAGE, WRONG_SEQUENCE, TOO_LARGE = 10059, 10014, 10037, 10071, 10054
NOT_ON = (10035, 10039, 10076)
FOR_GOOD = (10003, 10025, 10026, 10027, 10052, 10058, 10065, 10074, 10084, 10099, 10100, 10101, 10109)
"""Codes of errors that do not pass: limits of the account, settings that clash, a stream that is sealed …"""


class ApiError(Exception):
    """What JetStream answered. code: its own, of five digits."""

    def __init__(self, code: int, told: str) -> None:
        super().__init__(told)
        self.code = code


class Stream:
    """A connection, and the stream that keeps the address's subjects.

    name, incarnation: the stream's; the second names this making of it. Raises Away, Unusable, BadDescription.
    """

    def __init__(self, address: Address, name: str) -> None:
        self.address = address
        self.subject = subject_of(address)
        self.line = Line(address, re.sub(r"[^\w.-]", "-", name)[:60])
        try:
            self.name = self._found()
            self.info = self.look()
        except MlpackerError:
            self.line.close()
            raise
        self.incarnation = f"{self.name}@{self.info['created']}"
        self.config: Mapping[str, Any] = self.info["config"]

    def ask(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Raises ApiError for a refusal that the caller may expect; see `refused`."""
        payload = json.dumps(body).encode() if body else b""
        answer = self.line.request(f"$JS.API.{what}".encode(), payload)
        if status(answer.header) == 503:
            if self.line.info.get("jetstream"):
                raise Away(f"{self.address} is away: JetStream does not answer yet.")
            raise Unusable(f"{self.address}: this server has no JetStream.", TURN_ON)
        return judge(answer.payload, self.address)

    def expect(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same where no refusal is awaited."""
        try:
            return self.ask(what, body)
        except ApiError as cause:
            self.refused(cause)

    def refused(self, cause: ApiError) -> NoReturn:
        if cause.code in FOR_GOOD:
            raise Unusable(f"{self.address}: JetStream refuses: {cause}.") from cause
        raise Away(f"{self.address}: JetStream refuses for now: {cause}.") from cause

    def look(self) -> dict[str, Any]:
        try:
            return self.ask(f"STREAM.INFO.{self.name}")
        except ApiError as cause:
            if cause.code == NO_STREAM:
                raise self._missing(self.name) from cause
            self.refused(cause)

    def consumer(self, name: str) -> dict[str, Any] | None:
        try:
            return self.ask(f"CONSUMER.INFO.{self.name}.{name}")
        except ApiError as cause:
            if cause.code == NO_CONSUMER:
                return None
            self.refused(cause)

    def consumers(self, beginning: str) -> list[str]:
        found: list[str] = []
        seen = 0
        while True:
            page = self.expect(f"CONSUMER.NAMES.{self.name}", {"offset": seen})
            names = page.get("consumers") or []
            found += [name for name in names if name.startswith(beginning)]
            seen += len(names)
            if not names or seen >= page.get("total", 0):
                return found

    def create(self, consumer: str, config: Mapping[str, Any]) -> dict[str, Any]:
        body = {"stream_name": self.name, "config": {**config, "durable_name": consumer}}
        return self.expect(f"CONSUMER.DURABLE.CREATE.{self.name}.{consumer}", body)

    def delete(self, consumer: str) -> None:
        try:
            self.ask(f"CONSUMER.DELETE.{self.name}.{consumer}")
        except ApiError as cause:
            if cause.code != NO_CONSUMER:
                self.refused(cause)

    def _found(self) -> str:
        named = self.address.option("stream")
        if named:
            if re.search(r"[\s.*>/\\]", named):
                raise BadDescription(f"{self.address}: {named!r} is no name of a stream.")
            if self.address.flag("create") and not self.keepers():
                self._make(named)
            return named
        names = self.keepers()
        if len(names) > 1:
            raise Unusable(
                f"{self.address}: several streams keep {self.subject}: {', '.join(sorted(names))}.",
                "Name one: stream=NAME.",
            )
        if not names:
            if not self.address.flag("create"):
                raise self._missing(self.subject)
            names = [self._make(re.sub(r"[^\w-]", "_", self.subject.replace(">", "all").replace("*", "any")))]
        return names[0]

    def keepers(self) -> list[str]:
        return self.expect("STREAM.NAMES", {"subject": self.subject}).get("streams") or []

    def _make(self, name: str) -> str:
        """On disk and without bounds: with one, it loses its oldest rows, read or not."""
        config = {
            "name": name, "subjects": [self.subject], "storage": "file", "retention": "limits", "discard": "new",
            "num_replicas": self.address.number("replicas", 1), "max_msgs": -1, "max_bytes": -1, "max_age": 0,
            "max_consumers": -1, "duplicate_window": 120 * 10**9,
        }  # fmt: skip
        self.expect(f"STREAM.CREATE.{name}", config)
        return name

    def _missing(self, what: str) -> Unusable:
        return Unusable(
            f"{self.address}: there is no stream for {what}.",
            "Make one (nats stream add), or add create=on.",
        )


TURN_ON = "Add `jetstream { store_dir: … }` to its configuration."


def judge(payload: bytes, address: Address) -> dict[str, Any]:
    try:
        told = json.loads(payload)
    except (ValueError, RecursionError) as cause:
        raise Away(f"{address}: an answer of JetStream's can't be read.") from cause
    if not isinstance(told, dict):
        raise Away(f"{address}: an answer of JetStream's can't be read.")
    error = told.get("error")
    if not error:
        return told
    code, why = int(error.get("err_code", 0)), str(error.get("description", "no reason given"))
    if code in NOT_ON:
        raise Unusable(f"{address}: JetStream is not on here ({why}).", TURN_ON)
    raise ApiError(code, why)


def subject_of(address: Address) -> str:
    tokens = address.path.split(".")
    if not address.path or not all(tokens) or re.search(r"\s", address.path) or ">" in tokens[:-1]:
        raise BadDescription(
            f"{address}: {address.path!r} is no subject.", "It is words with dots between: plant.readings."
        )
    return address.path


# --- The lease -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A lease as it was read. sequence: moves with every writing. holder: empty where it was released.

    position: the offset up to which all is done with, of the stream's making `incarnation`; -1: it is not known yet.
    """

    sequence: int
    holder: str
    session: float
    epoch: int
    position: int
    incarnation: str


class Lease:
    """Who reads: the last message of one subject, written only by who knows which one was the last before."""

    def __init__(self, stream: Stream, key: str) -> None:
        self._stream = stream
        self._subject = f"$KV.mlpacker.{key}"
        self._last = 0

    def look(self) -> Held | None:
        try:
            told = self._stream.ask(f"STREAM.MSG.GET.{LEASES}", {"last_by_subj": self._subject})
        except ApiError as cause:
            if cause.code == NO_STREAM:
                self._make()
            elif cause.code != NO_MESSAGE:
                self._stream.refused(cause)
            self._last = 0
            return None
        self._last = told["message"]["seq"]
        return _held(self._last, told["message"].get("data", ""))

    def write(self, held: Held, seconds: float = 10.0) -> bool:
        """False: somebody else wrote since we last looked or wrote."""
        value = {
            "holder": held.holder, "session": held.session, "epoch": held.epoch,
            "position": held.position, "incarnation": held.incarnation,
        }  # fmt: skip
        header = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n\r\n" % self._last
        line = self._stream.line
        answer = line.request(self._subject.encode(), json.dumps(value).encode(), header, seconds)
        if status(answer.header):
            raise Away(f"{self._stream.address}: nobody keeps {self._subject}.")
        try:
            self._last = judge(answer.payload, self._stream.address)["seq"]
        except ApiError as cause:
            if cause.code == WRONG_SEQUENCE:
                return False
            self._stream.refused(cause)
        return True

    def _make(self) -> None:
        """As NATS's own key-value buckets are made. With as many copies as the stream that is read."""
        config = {
            "name": LEASES, "subjects": ["$KV.mlpacker.>"], "max_msgs_per_subject": 1, "discard": "new",
            "storage": "file", "num_replicas": self._stream.config.get("num_replicas", 1), "allow_rollup_hdrs": True,
            "deny_delete": True, "allow_direct": True, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_consumers": -1,
        }  # fmt: skip
        self._stream.expect(f"STREAM.CREATE.{LEASES}", config)


def _held(sequence: int, data: str) -> Held:
    """Something that nobody of ours wrote is a lease that nobody holds."""
    try:
        told = json.loads(base64.b64decode(data))
        return Held(
            sequence, str(told["holder"]), float(told["session"]), int(told["epoch"]),
            int(told["position"]), str(told["incarnation"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError):
        return Held(sequence, "", 0.0, 0, -1, "")


closed: set[str] = set()
"""Holders whose source this process closed, perhaps without a word to NATS."""


def new_holder() -> str:
    """`<where>/<process>/<random>`: a successor in the same place sees at once whether the process is still there."""
    return f"{_where()}/{os.getpid()}-{_began(os.getpid())}/{secrets.token_hex(8)}"


def gone(holder: str) -> bool:
    """Whether a holder is known to be no more: closed in this process, or of a process of this place that ended."""
    if holder in closed:
        return True
    where, _, rest = holder.partition("/")
    number, _, began = rest.partition("/")[0].partition("-")
    if not where or where != _where() or not number.isdecimal() or began == "0":
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return _began(int(number)) not in (began, "0")  # a number is used again


def _where() -> str:
    """The machine since its start, and the namespace in which its processes are numbered. Empty: not known here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
    except (OSError, UnicodeDecodeError):
        return ""
    return hashlib.sha256(f"{boot} {space}".encode()).hexdigest()[:16]


def _began(process: int) -> str:
    """When a process began, in the kernel's ticks; 0: not known."""
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
        return str(int(stat.rpartition(b")")[2].split()[19]))
    except (OSError, ValueError, IndexError):
        return "0"
