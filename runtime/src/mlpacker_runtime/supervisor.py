"""The process that keeps a served package's processes running. Light on purpose: no NumPy, no model, no event loop.

It holds the port. One worker listens on the supervisor's own socket, so that its death costs no connection that was not
its own: the kernel queues new ones until the next one accepts. Several workers listen on a socket each, and the kernel
spreads connections over those that live; where it can't (outside Linux) they share one. It starts a stage worker for each further environment, then the
HTTP workers; says `ready` when they answer; starts again what dies, later each time; and on SIGTERM or Ctrl-C lets the
workers finish what they have, within a bound.
"""

from __future__ import annotations

import http.client
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import errors
from .serve import Options, StageWorkerOptions
from .telemetry.log import Log

FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
STEADY_SECONDS = 60.0
"""A process that lived this long is started at once when it dies."""
START_SECONDS = 300.0
LAST_FAILURE = 5
"""A stream's process that never was ready, waiting for its broker, is started again that often."""
BACKLOG = 2048
GRACE_SECONDS = 5.0
"""Beyond the drain's own bound, before a worker is killed."""


class Process:
    """A process we keep running: how to start it, and how long to wait before starting it again."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self.start = start
        self.popen: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.ever_ready = False
        self.failures = 0
        self.started = 0.0
        self.due = 0.0
        self.status: Any = None

    def again(self, now: float) -> float:
        """When to start it again: later each time it fails early."""
        self.failures = 0 if now - self.started > STEADY_SECONDS else self.failures + 1
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.failures - 1)) if self.failures else 0.0
        self.due = now + wait
        return wait


class Supervisor:
    def __init__(self, options: Options, log: Log, out: Any = None) -> None:
        self.options = options
        self.log = log
        self.out = out or sys.stdout
        self.stopping = False
        self.signals = 0
        self.announced = False
        self.finished = False
        self.reference = ""
        self.processes: list[Process] = []
        self.selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Until told to end. Raises what a worker could not load for; returns the exit code."""
        with tempfile.TemporaryDirectory(prefix="mlpacker-") as folder:
            self.folder = folder
            self.wake, wake = os.pipe()
            os.set_blocking(wake, False)
            os.set_blocking(self.wake, False)
            signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
            for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(sign, self._on_signal)
            self.selector.register(self.wake, selectors.EVENT_READ)
            try:
                return self._supervise()
            finally:
                self._kill()

    def _on_signal(self, number: int, _: Any) -> None:
        if number != signal.SIGCHLD:
            self.signals += 1

    # --- the life of it ---------------------------------------------------------------------------------------------

    def _supervise(self) -> int:
        self.listener = bind(self.options.host, self.options.port)
        self.address = self.listener.getsockname()
        self.spread = self.options.workers > 1 and sys.platform == "linux"
        if self.spread:
            self.listener.close()  # it was here to see that nobody else has the port
            self.listener = bind_beside(self.listener.family, self.address)
        else:
            self.listener.listen(BACKLOG)
        self._warn_if_open()
        named = [
            (w.environment if lane == 0 else f"{w.environment}#{lane}", w)
            for w in self.options.stage_workers
            for lane in range(self.options.lanes)
        ]
        self.sockets = {name: os.path.join(self.folder, f"s{i}") for i, (name, _) in enumerate(named)}
        stages = [self._stage_worker(name, worker) for name, worker in named]
        self.processes += stages
        for process in stages:
            self._start(process)
        self._until(lambda: all(p.ready for p in stages))
        workers = [self._http_worker(slot) for slot in range(self.options.workers)]
        self.processes += workers
        if not self.signals:
            for process in workers:
                self._start(process)
            self._until(
                lambda: self.finished or all(p.ready for p in workers),
                patient=self.options.stream is not None,
            )
        if not self.signals and not self.finished:
            self._announce()
        while not self.signals and not self.finished:
            self._turn(60.0)
        return self._drain(workers)

    def _until(self, reached: Callable[[], bool], *, patient: bool = False) -> None:
        """patient: a stream waits for its broker as long as it takes."""
        deadline = time.monotonic() + START_SECONDS
        while not reached() and not self.signals:
            if time.monotonic() > deadline and not patient:
                raise errors.EnvironmentFailed(f"The workers were not ready within {START_SECONDS:.0f} s.")
            self._turn(1.0)

    def _announce(self) -> None:
        host, port = self.address[:2]
        self._ask_for_health()
        shown = f"[{host}]" if ":" in host else host
        if not self._rows_on("sink"):
            self.out.write(f"ready http://{shown}:{port} {self.reference}\n")
            self.out.flush()
        self.announced = True
        self.log("ready", url=f"http://{shown}:{port}", package=self.reference, workers=self.options.workers)

    def _ask_for_health(self) -> None:
        """A real request over the real socket: `ready` is said of what answers."""
        host, port = self.address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound
        for _ in range(50):
            connection = http.client.HTTPConnection(host, port, timeout=10)
            try:
                connection.request("GET", "/v2/health/live" if self.options.stream else "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.1)
        raise errors.EnvironmentFailed(
            f"The workers say they are ready, and http://{host}:{port} does not answer."
        )

    def _warn_if_open(self) -> None:
        if not self.options.loopback and self.options.api_key_file is None:
            reason = f"Anybody who reaches {self.options.host} can ask this server: no keys are set. Set them with --api-key-file."
            self.log("open", level="warning", reason=reason)

    # --- processes --------------------------------------------------------------------------------------------------

    def _http_worker(self, slot: int) -> Process:
        process = Process(f"worker {slot}", lambda: self._start_http(process, slot))
        return process

    def _start_http(self, process: Process, slot: int) -> subprocess.Popen[bytes]:
        read, write = os.pipe()
        listener = bind_beside(self.listener.family, self.address) if self.spread else self.listener
        orders: dict[str, Any] = {
            "listen": listener.fileno(),
            "status": write,
            "slot": slot,
            "folder": self.folder,
            "sockets": self.sockets,
            "options": asdict(self.options),
        }
        argv = [*same_interpreter(), "-m", worker_module(self.options)]
        passed = [listener.fileno(), write]
        for end, name, descriptor in (("source", "stdin", 0), ("sink", "stdout", 1)):
            if self._rows_on(end):
                passed.append(os.dup(descriptor))
                orders[name] = passed[-1]
        popen = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=passed, start_new_session=True)
        for descriptor in passed[2:]:
            os.close(descriptor)
        os.close(write)
        if self.spread:
            listener.close()
        self._listen(process, read)
        assert popen.stdin is not None
        try:
            popen.stdin.write(json.dumps(orders).encode() + b"\n")
            popen.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead already; the next turn sees that
        return popen

    def _rows_on(self, end: str) -> bool:
        """Whether a stream's rows come or go on our own standard input or output."""
        return str((self.options.stream or {}).get(end, "")).partition("?")[0] == "-"

    def _stage_worker(self, name: str, worker: StageWorkerOptions) -> Process:
        process = Process(f"stages of {name}", lambda: self._start_stage(process, name, worker))
        return process

    def _start_stage(
        self, process: Process, name: str, worker: StageWorkerOptions
    ) -> subprocess.Popen[bytes]:
        path = Path(self.sockets[name])
        path.unlink(missing_ok=True)
        argv = [
            *worker.argv,
            "-m",
            "mlpacker_runtime.hop.server",
            "--socket",
            str(path),
            "--package",
            self.options.package,
        ]
        argv += ["--digest", self.options.digest] if self.options.digest else []
        argv += ["--accepted"] if self.options.accepted else []
        try:
            popen = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.folder, start_new_session=True
            )
        except OSError as cause:
            raise errors.EnvironmentFailed(f"{worker.argv[0]} can't be started: {cause}.") from cause
        assert popen.stdout is not None
        self._listen(process, os.dup(popen.stdout.fileno()))
        popen.stdout.close()
        return popen

    def _listen(self, process: Process, descriptor: int) -> None:
        process.status = os.fdopen(descriptor, "rb", buffering=0)
        self.selector.register(process.status, selectors.EVENT_READ, process)

    def _start(self, process: Process) -> None:
        process.ready = False
        process.started = time.monotonic()
        process.due = 0.0
        process.popen = process.start()

    # --- what happens -----------------------------------------------------------------------------------------------

    def _turn(self, seconds: float) -> None:
        """Wait for something to happen, and act on it."""
        now = time.monotonic()
        dues = [p.due - now for p in self.processes if p.popen is None and p.due]
        for key, _ in self.selector.select(max(0.0, min([seconds, *dues]))):
            if key.data is None:
                os.read(self.wake, 4096)
            else:
                self._heard(key.data)
        for process in self.processes:
            self._look_at(process)

    def _heard(self, process: Process) -> None:
        text = process.status.read(65536)
        if not text:
            self._unlisten(process)
            return
        for line in text.splitlines():
            if line == b"ready":
                process.ready = process.ever_ready = True
            elif line.startswith(b"{"):
                self._told(process, json.loads(line))

    def _told(self, process: Process, said: dict[str, Any]) -> None:
        if "ready" in said:
            self.reference = said["ready"]
            process.ready = process.ever_ready = True
            if self.announced:
                self.log("restarted", process=process.name)
        elif "done" in said:
            self.finished = True
        elif "failed" in said:
            error = _error_from(said["failed"])
            if not self.announced:
                raise error
            self.log("failed", level="error", process=process.name, reason=error.sentence)

    def _unlisten(self, process: Process) -> None:
        if process.status is not None:
            self.selector.unregister(process.status)
            process.status.close()
            process.status = None

    def _look_at(self, process: Process) -> None:
        now = time.monotonic()
        if process.popen is None:
            if process.due and now >= process.due and not self.signals:
                self._start(process)
            return
        code = process.popen.poll()
        if code is None:
            return
        if process.status is not None:
            self._heard(process)  # its last words
        if process.status is not None:
            self._unlisten(process)
        if process.popen.stdin is not None:
            process.popen.stdin.close()
        process.popen = None
        if self.signals or self.finished:
            return
        if not process.ever_ready and (self.options.stream is None or process.failures >= LAST_FAILURE):
            raise errors.EnvironmentFailed(
                f"{process.name.capitalize()} ended before it was ready ({_code(code)})."
            )
        process.ready = False
        wait = process.again(now)
        process.due = max(process.due, now) or now
        self.log(
            "died",
            level="error",
            process=process.name,
            reason=f"{process.name} ended ({_code(code)}).",
            again_in=round(wait, 2),
        )

    # --- the end ----------------------------------------------------------------------------------------------------

    def _drain(self, workers: list[Process]) -> int:
        """Let the HTTP workers finish, then end the stage workers. A second signal ends the waiting."""
        if not self.finished:
            self.log("draining", seconds=self.options.timeout)
        self.listener.close()  # the workers close theirs: new connections are refused, not left waiting
        running = [p for p in workers if p.popen is not None]
        for process in running:
            assert process.popen is not None
            process.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.options.timeout + GRACE_SECONDS
        codes = [self._await_end(process, deadline) for process in running]
        codes = [
            c for c, process in zip(codes, running, strict=True) if process.ready
        ]  # others had nothing to finish
        self._kill()
        self.log("stopped")
        return 0 if all(c == 0 for c in codes) else 1

    def _await_end(self, process: Process, deadline: float) -> int:
        assert process.popen is not None
        while time.monotonic() < deadline and self.signals < 2:
            code = process.popen.poll()
            if code is not None:
                return code
            self.selector.select(0.05)
            try:
                os.read(self.wake, 4096)
            except BlockingIOError:
                pass
        process.popen.kill()
        return process.popen.wait()

    def _kill(self) -> None:
        for process in self.processes:
            if process.popen is not None:
                if process.popen.stdin is not None:
                    try:
                        process.popen.stdin.close()
                    except BrokenPipeError:
                        pass
                if process.popen.poll() is None:
                    process.popen.kill()
                process.popen.wait()
                process.popen = None


def worker_module(options: Options) -> str:
    """What a worker's process runs: a stream that has an end is a replay."""
    if options.stream is None:
        return "mlpacker_runtime.rest.worker"
    return (
        "mlpacker_runtime.stream.replay" if options.stream.get("until") else "mlpacker_runtime.stream.worker"
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket that has this address alone. Raises BadDescription for an address that can't be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as cause:
        raise errors.BadDescription(
            f"There is no address {host}: {cause.strerror}.", "Give one with --host."
        ) from cause
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as cause:
        listener.close()
        if isinstance(cause, PermissionError):
            raise errors.BadDescription(
                f"Port {port} needs more rights than we have.", "Choose one from 1024."
            ) from cause
        raise errors.MlpackerError(
            f"Port {port} on {host} can't be had: {cause.strerror}.",
            "Choose another with --port, or --port 0 for a free one.",
        ) from cause
    return listener


def bind_beside(family: int, address: Any) -> socket.socket:
    """A socket that may have the same address as others of ours. It takes connections once somebody listens on it."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address)
    return listener


def same_interpreter() -> list[str]:
    """This interpreter with the flags that decide what it imports."""
    flags = [
        f
        for f, on in (("-I", sys.flags.isolated), ("-s", sys.flags.no_user_site and not sys.flags.isolated))
        if on
    ]
    return [sys.executable, *flags]


def _code(code: int) -> str:
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"


def _error_from(value: dict[str, Any]) -> errors.MlpackerError:
    kind = getattr(errors, str(value["class"]), errors.EnvironmentFailed)
    error: errors.MlpackerError = kind(value["sentence"], value["next_step"], **value["facts"])
    return error
