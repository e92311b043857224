"""Redis Streams: `redis://host:6379/readings?db=0`, with redis-py.

A message is an entry of a stream: the field `value`, where there is one `key`, and each header as `h:<name>`. An entry that others
wrote in other fields is read as a JSON object of them, all text. An offset is the entry's id as one number, `(ms << 64) | sequence`.

A Redis group hands entries to whoever asks, in no order across its consumers. In ordered mode whoever holds a lease (a key that
expires) reads, and always as the consumer ACTIVE: what is unacknowledged is his whoever read it, and is read before anything
newer. Each read asks for the lease and reads in one script, so a reader that was taken for dead takes nothing any more: it would
be an entry his successor never sees. Unordered, each member is a consumer, and what a dead one left goes to the next who looks.

One connection, and its first failure is its last: a client that connects again by itself can't tell what was lost between.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from ..errors import BadDescription, MlpackerError
from . import CELLS, Address, Away, Guarantee, Lag, Listener, Message, Outgoing, Reading, Setting, Unusable

journalled = False

CONNECTION = ("db", "password", "create")
PORT = 6379
OLDEST = (6, 2)
ACTIVE = "active"
"""The one consumer of a group in ordered mode."""
NEW = b">"
LAST = f"{2**64 - 1}-{2**64 - 1}"
"""The largest id there can be."""
NOTHING = f"{2**64 - 1}-{2**64 - 2}".encode()
"""Behind it nothing is ever pending. (LAST itself would read as NEW.)"""
MARK = "mlpacker-incarnation-"
"""Name of a group without readers; it names the stream, and goes with it."""

CONNECTS = 5.0
SILENCE = 10.0
"""Seconds a command may take before Redis counts as away; never spent waiting for messages."""
SLOW = 30.0
"""The same for publishing: large values, slow disks."""
REPLICATES = 5.0
"""Seconds that replicas have to take what was published."""
WAITS = 1.0
STANDS_BY = 0.1
"""Seconds between two looks at another's lease."""
TRIMS = 10.0
LAGS = 1.0
ACKS = 1000
BATCH, BATCH_BYTES = 500, 1 << 20
"""Of messages in one script: nobody else is served meanwhile."""
FIELDS = 1000
"""More than these do not pass through a script."""
MOST, READ_BYTES = 1000, 8 << 20
"""Of messages in one read, as far as the last ones let it be foreseen."""
BULK = 512 << 20
"""Redis's own bound of a value, where it does not tell another."""

TAKE = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1"""
ALTHOUGH_FULL = (7, 0), "#!lua flags=allow-oom\n"
"""Since when, and how, a script may write when memory is full: reading goes on, it is what makes room."""
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1"""
READ = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return {0} end
if ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
if ARGV[3] == '0' then return {1, false} end
return {1, redis.call('XREADGROUP', 'GROUP', ARGV[4], ARGV[5], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], ARGV[6])}"""
CLAIM = """
local listed = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[4], '-', '+', 100, ARGV[2])
local ids = {}
for at, one in ipairs(listed) do ids[at] = one[1] end
if #ids == 0 then return {ids, ids} end
local words = {'XCLAIM', KEYS[1], ARGV[1], ARGV[3], ARGV[4]}
for _, id in ipairs(ids) do words[#words + 1] = id end
words[#words + 1] = 'JUSTID'
return {ids, redis.call(unpack(words))}"""
NAME = """
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if string.sub(group[2], 1, #ARGV[1]) == ARGV[1] then return group[2] end
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1] .. ARGV[2], ARGV[3])
return ARGV[1] .. ARGV[2]"""
ADD = """
if ARGV[1] == '0' and redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local at, last = 2, #ARGV
while at <= last do
  local count = tonumber(ARGV[at])
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
return 1"""
TRIM = """
local function shorter(a, b) if #a ~= #b then return #a < #b end return a < b end
local function before(a, b)
  local a_ms, a_seq = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_seq = string.match(b, '(%d+)-(%d+)')
  if a_ms ~= b_ms then return shorter(a_ms, b_ms) end
  return shorter(a_seq, b_seq)
end
local lowest
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local told = {}
  for at = 1, #group, 2 do told[group[at]] = group[at + 1] end
  if string.sub(told['name'], 1, #ARGV[1]) ~= ARGV[1] then
    local pending = redis.call('XPENDING', KEYS[1], told['name'])
    local at = pending[1] > 0 and pending[2] or told['last-delivered-id']
    if not lowest or before(at, lowest) then lowest = at end
  end
end
if not lowest then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', lowest)"""
"""Ids as text: a number of Lua's has no room for them."""

_notes: dict[str, str] = {}
"""Of sources of this process, by their note's name: the last lease. Outlives a source, which is closed when Redis was away."""
_living: set[str] = set()
"""Leases of sources of this process that are not closed."""


def source(address: Address, reading: Reading, listener: Listener) -> StreamSource:
    address.only(*CONNECTION, "trim")
    return (Ordered if reading.ordered else Competing)(address, reading, listener)


def sink(address: Address, name: str) -> StreamSink:
    address.only(*CONNECTION, "replicas")
    return StreamSink(address, name)


def trim(address: Address) -> int:
    """Remove what every group of the stream has acknowledged; how many entries. Whole blocks of them, so some stay."""
    line = Line(address, "trim", SILENCE)
    try:
        return _trim(line)
    finally:
        line.close()


# --- The connection --------------------------------------------------------------------------------------------------


class Line:
    """One connection to the first of the address's hosts that is no replica. Raises Away, Unusable, BadDescription."""

    def __init__(self, address: Address, name: str, seconds: float) -> None:
        if not address.path:
            raise BadDescription(
                f"{address}: the stream is missing.", "It stands behind the host: redis://host/readings."
            )
        self.address = address
        self.stream = address.path
        name = re.sub(r"[^\w.-]", "-", f"mlpacker-{name}")
        self._connection, self.version = _first(address, name, seconds)
        self.broken = False

    def ask(self, *command: Any) -> Any:
        return self.ask_all([command])[0]

    def ask_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers, once all are there. Raises what the first error means."""
        return self._exchange(self._connection.pack_commands(commands), len(commands))

    def _exchange(self, packed: Sequence[bytes], count: int) -> list[Any]:
        """packed: so many commands, as they are sent."""
        answers: list[Any] = []
        refused: ResponseError | None = None
        if self.broken:
            raise Away(f"The connection to {self.address} is gone.")
        try:
            self._connection.send_packed_command(packed)
            for _ in range(count):
                try:
                    answers.append(self._connection.read_response())
                except ResponseError as cause:
                    refused = refused or cause
        except (RedisError, OSError) as cause:
            self.broken = True
            raise _meaning(cause, self.address) from cause
        except BaseException:
            self.broken = True  # an answer may be under way that nobody waits for any more
            raise
        if refused is not None:
            raise _meaning(refused, self.address) from refused
        return answers

    def run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        return self.ask("EVAL", script, len(keys), *keys, *arguments)

    def run_packed(self, script: str, key: str, flag: int, arguments: Sequence[bytes]) -> Any:
        """The same for many arguments, each packed already as `bulk` does: the client's own way takes longer than all else."""
        head = [bulk(word) for word in (b"EVAL", script.encode(), b"1", key.encode(), b"%d" % flag)]
        count = b"*%d\r\n" % (len(head) + len(arguments))
        return self._exchange([b"".join([count, *head, *arguments])], 1)[0]

    def kind(self) -> bytes:
        kind: bytes = self.ask("TYPE", self.stream)
        if kind not in (b"stream", b"none"):
            raise Unusable(
                f"{self.address}: {self.stream} is a {kind.decode()}, not a stream.", "Name another key."
            )
        return kind

    def close(self) -> None:
        self.broken = True
        try:
            self._connection.disconnect()
        except Exception:  # noqa: BLE001, S110  it is being left: whatever happens, nothing is lost by it
            pass


def bulk(word: bytes) -> bytes:
    """A word of a command, as the protocol has it."""
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _first(address: Address, name: str, seconds: float) -> tuple[Any, tuple[int, ...]]:
    """The connection, and the version of what is there."""
    failed: MlpackerError | None = None
    for host, port in address.hosts:
        try:
            return _open(address, host, port or PORT, name, seconds)
        except Away as cause:
            failed = cause
    raise failed or BadDescription(f"{address}: a host is missing.")


def _open(address: Address, host: str, port: int, name: str, seconds: float) -> tuple[Any, tuple[int, ...]]:
    words = {
        "host": host, "port": port, "db": address.number("db", 0), "username": address.user,
        "password": address.secret("password"), "client_name": name, "protocol": 2, "socket_timeout": seconds,
        "socket_connect_timeout": CONNECTS, "socket_keepalive": True, "retry": Retry(NoBackoff(), 0),
    }  # fmt: skip
    made = SSLConnection(**words, **_tls(address)) if address.tls else Connection(**words)
    try:
        made.connect()
        made.send_command("HELLO")
        return made, _version(address, host, _pairs(made.read_response()))
    except (RedisError, OSError) as cause:
        made.disconnect()
        raise _meaning(cause, address) from cause
    except MlpackerError:
        made.disconnect()
        raise


def _version(address: Address, host: str, told: Mapping[str, Any]) -> tuple[int, ...]:
    text = told["version"].decode()
    version = tuple(int(n) for n in re.findall(r"\d+", text)[:2])
    if version < OLDEST:
        raise Unusable(
            f"{address}: this is Redis {text}.", "Streams need 6.2, and 7 tells how far behind a reader is."
        )
    if told["role"] != b"master":
        raise Away(
            f"{address}: {host} is a replica and takes nothing.",
            "Name the primary, or all hosts, with commas.",
        )
    return version


def _tls(address: Address) -> dict[str, Any]:
    address.context()  # says what is wrong with the files
    verify = address.flag("verify", True)
    return {
        "ssl_ca_certs": address.options.get("ca"),
        "ssl_certfile": address.options.get("cert"),
        "ssl_keyfile": address.options.get("key"),
        "ssl_password": address.secret("key_password"),
        "ssl_cert_reqs": "required" if verify else "none",
        "ssl_check_hostname": verify,
    }


FORBIDDEN = ("NOPERM", "The user executing the script can't")
HOPELESS = {
    "WRONGTYPE": "The key is no stream: name another.",
    "DB index": "Give db= a number the server has.",
    "MOVED": "This is a cluster, which is not supported: name a Redis that stands alone.",
    "CERTIFICATE_VERIFY_FAILED": "Give ca= the file of the authority that signed its certificate.",
    "wrong number of arguments": "The server is too old.",
    "unknown command": "The server is too old, or has the command renamed.",
}


def _meaning(cause: Exception, address: Address) -> MlpackerError:
    """What an error of the client's means. Whatever is not known to be for good, passes: memory, loading, failover, the disk."""
    said = str(cause).partition("\n")[0].partition(" script: ")[0].rstrip(". ")
    if isinstance(cause, (AuthenticationError, NoPermissionError)) or any(sign in said for sign in FORBIDDEN):
        return Unusable(
            f"{address}: Redis refuses us: {said}.", "See user and password, and what the user may do (ACL)."
        )
    for sign, step in HOPELESS.items():
        if sign in said or type(cause).__name__ == f"{sign.title()}Error":
            return Unusable(f"{address}: {said}.", step)
    return Away(f"{address}: {said or type(cause).__name__}.")


# --- The source ------------------------------------------------------------------------------------------------------


class StreamSource:
    """What both ways of reading share. lost: offsets of what was delivered, not committed, and then removed by others: it can't
    be delivered again. Acknowledged here, for whoever has this list to report."""

    consumer = ACTIVE

    def __init__(self, address: Address, reading: Reading, listener: Listener) -> None:
        start = _start(reading.start)
        self._trims = address.flag("trim")
        self._create = address.flag("create")
        self._line = Line(address, reading.group, SILENCE)
        self.stream = self._line.stream
        self.lost: list[int] = []
        self._reading = reading
        self._listener = listener
        self._out: deque[tuple[int, bytes]] = deque()
        self._most = 100
        self._cursor = b"0"
        self._told: tuple[float, Lag | None] = (-LAGS, None)
        self._trimmed = time.monotonic()
        self._note = _note_of(address, reading)
        try:
            self._begin(start)
        except MlpackerError:
            self._line.close()
            raise

    def poll(self, limit: int, seconds: float) -> list[Message]:
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            got = self._read(limit, max(0.0, min(left, WAITS, self._reading.session / 4)))
            self._tidy()
            if got or left <= 0:
                return got

    def commit(self, finished: Mapping[str, int]) -> None:
        upto, ids = finished.get(self.stream, -1), []
        while self._out and self._out[0][0] <= upto:
            ids.append(self._out.popleft()[1])
        self._acknowledge(ids)

    def lag(self) -> Lag | None:
        at, told = self._told
        if time.monotonic() - at >= LAGS:
            told = self._ask_lag()
            self._told = (time.monotonic(), told)
        return told

    def close(self) -> None:
        self._line.close()

    def _read(self, limit: int, seconds: float) -> list[Message]:
        """What is there, else what comes within these seconds; may give up earlier."""
        raise NotImplementedError

    def _begin(self, start: str) -> None:
        if self._line.kind() == b"none" and not self._create:
            raise Unusable(
                f"{self._line.address}: there is no stream {self.stream}.",
                "Redis makes it with its first entry; or add create=on.",
            )
        group = self._reading.group
        if group not in self._groups():
            # A group we knew is gone with Redis's memory: what was written since is behind no place of ours.
            start = "0" if _recall(self._note) else start
            self._make(group, start)
        name: bytes = self._line.run(NAME, [self.stream], MARK, uuid.uuid4().hex, LAST)
        self.incarnation = name.decode().removeprefix(MARK)

    def _groups(self) -> dict[str, dict[str, Any]]:
        try:
            told = self._line.ask("XINFO", "GROUPS", self.stream)
        except Away as cause:
            if "no such key" not in str(cause):
                raise
            return {}
        return {group["name"].decode(): group for group in map(_pairs, told)}

    def _make(self, group: str, start: str) -> None:
        extra = ("MKSTREAM",) if self._create else ()
        try:
            self._line.ask("XGROUP", "CREATE", self.stream, group, start, *extra)
        except Away as cause:
            if "BUSYGROUP" not in str(cause):  # another member was first
                raise

    def _history(self, read: Any, limit: int) -> list[Message]:
        """read: cursor, limit → entries; None: not ours to read. First what is unacknowledged, the oldest first, then what is new."""
        while True:
            entries = read(self._cursor, min(limit, self._most))
            if entries is None:
                return []
            if not entries:
                if self._cursor is NEW:
                    return []
                self._cursor = NEW
                continue
            if self._cursor is not NEW:
                self._cursor = entries[-1][0]
            got = self._messages(entries)
            if got:
                return got

    def _messages(self, entries: Sequence[Any]) -> list[Message]:
        got, gone = [], []
        for ident, fields in entries:
            offset = _offset(ident)
            if fields is None:
                gone.append(ident)
            else:
                self._out.append((offset, ident))
                got.append(_message(self.stream, offset, fields))
        self._give_up_on(gone)
        if got:
            self._most = max(1, min(MOST, READ_BYTES * len(got) // (1 + sum(len(m.value) for m in got))))
        return got

    def _give_up_on(self, ids: Sequence[bytes]) -> None:
        self.lost += map(_offset, ids)
        self._acknowledge(ids)

    def _acknowledge(self, ids: Sequence[bytes]) -> None:
        words = ("XACK", self.stream, self._reading.group)
        if ids:
            self._line.ask_all([(*words, *ids[at : at + ACKS]) for at in range(0, len(ids), ACKS)])

    def _claim(self, seconds: float) -> bool:
        """Whether anything was taken over that others of the group left unacknowledged, silent for so long."""
        idle, taken = int(seconds * 1000), False
        for other in map(_pairs, self._line.ask("XINFO", "CONSUMERS", self.stream, self._reading.group)):
            if other["name"].decode() == self.consumer or not other["pending"] or other["idle"] < idle:
                continue
            for listed, claimed in self._claims(other["name"], idle):
                taken = True
                known = set(claimed)
                self._give_up_on([ident for ident in listed if ident not in known])
        return taken

    def _claims(self, other: bytes, idle: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """What was pending, and what of it is still there and ours now."""
        while True:
            listed, claimed = self._line.run(
                CLAIM, [self.stream], self._reading.group, other, self.consumer, idle
            )
            if not listed:
                return
            yield listed, claimed

    def _again(self, seconds: float) -> None:
        """What is out may be finished within `seconds`; the rest is delivered again, from the oldest on."""
        self._listener.giving_up((self.stream,), seconds)
        self._out.clear()
        self._cursor = b"0"

    def _ask_lag(self) -> Lag | None:
        group = self._groups().get(self._reading.group)
        if group is None or group.get("lag") is None:
            return None
        return Lag({self.stream: int(group["lag"]) + self._unread(int(group["pending"]))})

    def _unread(self, pending: int) -> int:
        return 0

    def _tidy(self) -> None:
        if self._trims and time.monotonic() - self._trimmed >= TRIMS:
            _trim(self._line)
            self._trimmed = time.monotonic()


class Ordered(StreamSource):
    """One reads, the others stand by. The lease is the reader's for `session`, prolonged each third of it."""

    def __init__(self, address: Address, reading: Reading, listener: Listener) -> None:
        self._token = ""
        self._renewed = 0.0
        self._seen = b"0"
        super().__init__(address, reading, listener)
        self._lease = f"mlpacker:lease:{{{self.stream}}}:{reading.group}"
        self._milliseconds = max(1, int(reading.session * 1000))

    def close(self) -> None:
        if self._token and not self._line.broken:
            try:
                self._line.run(RELEASE, [self._lease], self._token)
            except MlpackerError:
                pass  # it expires
        _living.discard(self._token)
        self._token = ""
        super().close()

    def _read(self, limit: int, seconds: float) -> list[Message]:
        if not self._token and not self._take():
            time.sleep(min(seconds, STANDS_BY))
            return []
        if not limit:
            self._fenced(NEW, 0)
            time.sleep(seconds)
            return []
        got = self._history(self._fenced, limit)
        if got or not seconds or not self._token:
            return got
        return self._history(self._fenced, limit) if self._woken(seconds) else []

    def _take(self) -> bool:
        token, left = f"{self._reading.member}:{uuid.uuid4().hex}", _left(self._note)
        since, flag = ALTHOUGH_FULL
        script = (flag if self._line.version >= since else "") + TAKE
        if not self._line.run(script, [self._lease], token, left, self._milliseconds):
            return False
        self._token, self._renewed = token, time.monotonic()
        _living.add(token)
        _write(self._note, self._reading.state, token)
        self._claim(0)
        group = self._groups().get(self._reading.group, {})
        self._seen = group.get("last-delivered-id", b"0")
        self._cursor = b"0"
        return True

    def _fenced(self, cursor: bytes, limit: int) -> list[Any] | None:
        """Entries, where the lease is still ours; else None, and the listener knows."""
        now, prolong = time.monotonic(), 0
        if now - self._renewed >= self._reading.session / 3:
            prolong, self._renewed = self._milliseconds, now
        words = (self._token, prolong, limit, self._reading.group, self.consumer, cursor)
        answer = self._line.run(READ, [self.stream, self._lease], *words)
        if answer[0] == 0:
            self._step_back()
            return None
        entries: list[Any] = answer[1][0][1] if answer[1] else []
        if entries and cursor is NEW:
            self._seen = entries[-1][0]
        return entries

    def _step_back(self) -> None:
        _living.discard(self._token)
        self._token = ""
        self._again(0)

    def _woken(self, seconds: float) -> bool:
        """Whether something new came: looked at only, for what reads without the lease in hand takes it from its holder."""
        words = (
            "XREAD",
            "COUNT",
            1,
            "BLOCK",
            max(1, int(seconds * 1000)),
            "STREAMS",
            self.stream,
            self._seen,
        )
        answer = self._line.ask(*words)
        if answer:
            self._seen = answer[0][1][-1][0]
        return bool(answer)

    def _unread(self, pending: int) -> int:
        return max(0, pending - len(self._out)) if self._token and self._cursor is not NEW else 0


class Competing(StreamSource):
    """Each member reads what no other has. What one leaves unacknowledged who was silent for `session` goes to the next."""

    def __init__(self, address: Address, reading: Reading, listener: Listener) -> None:
        self.consumer = f"member-{reading.member}"
        self._alive = 0.0
        self._looked = time.monotonic()
        super().__init__(address, reading, listener)
        _write(self._note, reading.state, "-")

    def _read(self, limit: int, seconds: float) -> list[Message]:
        self._show_life()
        if not limit:
            time.sleep(seconds)
            return []
        return self._history(lambda cursor, count: self._of_group(cursor, count, seconds), limit)

    def _show_life(self) -> None:
        """Redis counts a member as idle that waits for what is new; so we ask for something old."""
        session, now = self._reading.session, time.monotonic()
        if now - self._alive >= session / 5:
            self._of_group(NOTHING, 1)
            self._alive = now
        if now - self._looked >= session / 2:
            self._looked = now
            if self._claim(session):
                self._again(session / 3)

    def _of_group(self, cursor: bytes, limit: int, seconds: float = 0.0) -> list[Any]:
        block = ("BLOCK", int(seconds * 1000)) if seconds >= 0.001 and cursor is NEW else ()
        words = ("XREADGROUP", "GROUP", self._reading.group, self.consumer, "COUNT", limit, *block)
        answer = self._line.ask(*words, "STREAMS", self.stream, cursor)
        return answer[0][1] if answer else []


def _start(text: str) -> str:
    """The id behind which a new group begins."""
    kind, _, at = text.partition(":")
    if text == "earliest":
        return "0"
    if text == "latest":
        return "$"
    try:
        if kind == "offset" and at.isdecimal():
            return _ident(int(at) - 1)
        if kind == "time":
            return _ident((math.ceil(float(at) * 1000) << 64) - 1)
    except (ValueError, OverflowError):
        pass
    raise BadDescription(
        f"{text!r} is no start.",
        "There are earliest, latest, offset:N and time: with seconds since the epoch.",
    )


def _offset(ident: bytes) -> int:
    ms, _, sequence = ident.partition(b"-")
    return int(ms) << 64 | int(sequence)


def _ident(offset: int) -> str:
    """Raises OverflowError for one that no entry can have."""
    if offset >= 2**128:
        raise OverflowError(offset)
    offset = max(0, offset)
    return f"{offset >> 64}-{offset & (2**64 - 1)}"


def _message(stream: str, offset: int, fields: Sequence[bytes]) -> Message:
    value, key, headers = None, None, []
    for at in range(0, len(fields), 2):
        name = fields[at]
        if name == b"value":
            value = fields[at + 1]
        elif name == b"key":
            key = fields[at + 1]
        elif name.startswith(b"h:"):
            headers.append((name[2:].decode(errors="replace"), fields[at + 1]))
        else:
            value = None
            break
    if value is None:
        return Message(stream, offset, _object(fields), None, CELLS, (offset >> 64) / 1000)
    return Message(stream, offset, value, key, tuple(headers), (offset >> 64) / 1000)


def _object(fields: Sequence[bytes]) -> bytes:
    """The fields of an entry that others wrote. Of a field given twice the last; bytes that are no UTF-8 as `\\xff`."""
    text = [one.decode(errors="backslashreplace") for one in fields]
    return json.dumps({text[at]: text[at + 1] for at in range(0, len(text), 2)}, ensure_ascii=False).encode()


def _pairs(flat: Sequence[Any]) -> dict[str, Any]:
    return {flat[at].decode(): flat[at + 1] for at in range(0, len(flat), 2)}


def _trim(line: Line) -> int:
    removed = 0
    while some := int(line.run(TRIM, [line.stream], MARK)):  # Redis bounds what one call removes
        removed += some
    return removed


# What outlives a source: that its group was there, and the lease it may have left in Redis when it could not reach it any more.
# Only its successor may take that over at once; everybody else waits until it expires.


def _note_of(address: Address, reading: Reading) -> str:
    place = (address.hosts, address.option("db"), address.path, reading.group, reading.member, reading.state)
    digest = hashlib.sha256(repr(place).encode()).hexdigest()[:16]
    return str(Path(reading.state, f"redis-{digest}")) if reading.state else f"redis-{digest}"


def _recall(note: str) -> str:
    """Lease and process, or nothing."""
    if note in _notes:
        return _notes[note]
    try:
        return Path(note).read_text(encoding="ascii") if os.path.dirname(note) else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _write(note: str, state: str, token: str) -> None:
    _notes[note] = f"{token} {os.getpid()}"
    if state:
        try:
            Path(state).mkdir(parents=True, exist_ok=True)
            Path(note).write_text(_notes[note], encoding="ascii")
        except (OSError, UnicodeEncodeError):
            pass  # a successor waits until the lease expires, that is all


def _left(note: str) -> str:
    """The lease of a predecessor that is no more."""
    token, _, process = _recall(note).partition(" ")
    gone = token not in _living and (process == str(os.getpid()) or not _runs(process))
    return token if gone else ""


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        pass
    return True


# --- The sink --------------------------------------------------------------------------------------------------------


class StreamSink:
    """Many messages in one script: all of them and in order, or none. Never shortens the stream."""

    headers = True

    def __init__(self, address: Address, name: str) -> None:
        self._create = address.flag("create")
        self._replicas = address.number("replicas", 0)
        self._line = Line(address, name, SLOW)
        try:
            if self._line.kind() == b"none" and not self._create:
                raise self._missing()
            bulk = _settings(self._line, "proto-max-bulk-len")["proto-max-bulk-len"]
        except MlpackerError:
            self._line.close()
            raise
        self.max_bytes = int(bulk or BULK)

    def publish(self, messages: Sequence[Outgoing]) -> Mapping[int, str]:
        refused: dict[int, str] = {}
        entries: list[list[Any]] = []
        size = 0
        for place, message in enumerate(messages):
            fields, weight = _fields(message)
            if max(map(len, fields)) > self.max_bytes:
                refused[place] = (
                    f"larger than the {self.max_bytes} bytes that Redis takes (proto-max-bulk-len)"
                )
                continue
            if entries and (len(entries) >= BATCH or size + weight > BATCH_BYTES or len(fields) > FIELDS):
                self._add(entries)
                entries, size = [], 0
            entries.append(fields)
            size += weight
        self._add(entries)
        self._await_replicas()
        return refused

    def close(self) -> None:
        self._line.close()

    def _add(self, entries: Sequence[Sequence[Any]]) -> None:
        if not entries:
            return
        if len(entries) == 1:
            guard = () if self._create else ("NOMKSTREAM",)
            there = self._line.ask("XADD", self._line.stream, *guard, "*", *entries[0]) is not None
        else:
            packed: list[bytes] = []
            for fields in entries:
                packed.append(bulk(b"%d" % len(fields)))
                packed += map(bulk, fields)
            there = self._line.run_packed(ADD, self._line.stream, int(self._create), packed) > 0
        if not there:
            raise self._missing()

    def _await_replicas(self) -> None:
        if not self._replicas:
            return
        there = self._line.ask("WAIT", self._replicas, int(REPLICATES * 1000))
        if there < self._replicas:
            raise Away(f"{self._line.address}: {there} of {self._replicas} replicas have the messages.")

    def _missing(self) -> Unusable:
        return Unusable(
            f"{self._line.address}: there is no stream {self._line.stream}.",
            "Redis makes it with its first entry: add create=on.",
        )


def _fields(message: Outgoing) -> tuple[list[Any], int]:
    """The entry's fields, and their bytes."""
    fields: list[Any] = [b"value", message.value]
    if message.key is not None:
        fields += (b"key", message.key)
    for name, value in message.headers:
        fields += (b"h:" + name.encode(), value)
    return fields, sum(map(len, fields))


# --- What it rests on ------------------------------------------------------------------------------------------------


def _settings(line: Line, *names: str) -> dict[str, str | None]:
    """None: the user may not ask (ACL)."""
    told: dict[str, str | None] = {}
    for name in names:
        try:
            answer = line.ask("CONFIG", "GET", name)
            told[name] = answer[1].decode() if answer else None
        except Unusable:
            told[name] = None
    return told


WRITTEN = (
    "Rows that were confirmed are lost when Redis is killed or the machine stops, back to the last snapshot."
)
SYNCED = "The last second of confirmed rows is lost when the machine stops; with `no` half a minute or more."
EVICTED = "When memory is full Redis removes whole streams to make room."
ASKED = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "save")


def explain(address: Address, role: str) -> Guarantee:
    told: Mapping[str, str | None] = dict.fromkeys(ASKED)
    try:
        line = Line(address, "explain", SILENCE)
        try:
            told = _settings(line, *ASKED)
        finally:
            line.close()
    except (Away, Unusable):
        pass  # they stay unknown, and are said to be
    holds: tuple[str, ...] = SINK_HOLDS if role == "sink" else SOURCE_HOLDS
    if address.number("replicas", 0):
        holds += (
            f"{address.number('replicas', 0)} replicas have each message, in memory, before it counts.",
        )
    return Guarantee(holds, tuple(_judged(told)))


SOURCE_HOLDS = (
    "A message is acknowledged after its answer is confirmed; until then Redis delivers it again, the oldest first.",
    "Order is that of the stream: one process of the group reads, the others stand by. With `--unordered` there is none.",
    "An entry that others remove (XTRIM, MAXLEN, XDEL) while it is out is counted as lost, by its offset; one removed before it "
    "was ever read is gone without a trace.",
    "A stream is told from one made again under its name by a group without readers, `mlpacker-incarnation-…`, which goes with it.",
)
SINK_HOLDS = (
    "A batch is written in one step, in order: all of it or nothing. It counts once Redis has answered.",
    "The stream is never shortened here, and nothing is dropped when memory is full: publishing waits.",
    "Redis does not drop repeats: the id travels in the field `h:mlpacker-id`.",
)


def _judged(told: Mapping[str, str | None]) -> Iterator[Setting]:
    log, sync = told["appendonly"], told["appendfsync"]
    bound, policy, save = told["maxmemory"], told["maxmemory-policy"], told["save"]
    yield Setting("appendonly", log, None if log is None else log == "yes", WRITTEN)
    yield Setting("appendfsync", sync, None if sync is None else sync == "always", SYNCED)
    safe = policy == "noeviction" or bound == "0"
    yield Setting("maxmemory-policy", policy, None if policy is None else safe, EVICTED)
    if log != "yes":
        often = "The snapshot's times: what came since the last one is lost."
        yield Setting("save", save, None if save is None else False, often)
