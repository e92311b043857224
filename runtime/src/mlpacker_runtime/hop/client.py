"""The near end of a hop: starts a stage worker in its environment, and asks it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..batch import Batch, Outcome
from ..errors import EnvironmentFailed, ModelFailed
from ..formats import Description
from ..manifest import Stage, from_plain, to_plain
from . import decode_outcome, encode
from .server import error_from, read_frame, write_frame

START_SECONDS = 120.0
RECONNECT_SECONDS = 5.0


class Asking:
    """What can be asked of a stage worker, however it is reached."""

    def _ask(self, question: dict[str, Any], batch: Batch | None) -> tuple[dict[str, Any], Batch | None]:
        """Header and batch of the answer. Raises what the worker raised, ModelFailed where it died."""
        raise NotImplementedError

    def load(self, stage: Stage) -> Description:
        header, _ = self._ask({"op": "load", "stage": to_plain(stage)}, None)
        description: Description = from_plain(Description, header["description"], "description")
        return description

    def predict(self, stage: str, batch: Batch, want: frozenset[str] | None) -> Outcome:
        question = {"op": "predict", "stage": stage, "want": None if want is None else sorted(want)}
        return decode_outcome(*self._ask(question, batch))

    def runner(self, stage: str) -> RemoteStage:
        return RemoteStage(self, stage)


class StageWorker(Asking):
    """A stage worker's process and one connection to it. Use as a context manager, or call `close`."""

    def __init__(
        self,
        python: Sequence[str],
        package: Path,
        *,
        digest: str | None = None,
        accepted: bool = False,
        environ: Mapping[str, str] | None = None,
        seconds: float = START_SECONDS,
    ) -> None:
        """python: the interpreter and its flags. Raises EnvironmentFailed, with its last words, where it does not start."""
        self.folder = tempfile.TemporaryDirectory(prefix="mlpacker-")
        path = os.path.join(self.folder.name, "s")
        argv = [*python, "-m", "mlpacker_runtime.hop.server", "--socket", path, "--package", str(package)]
        argv += ["--digest", digest] if digest else []
        argv += ["--accepted"] if accepted else []
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=dict(environ) if environ is not None else None,
            cwd=self.folder.name,
            start_new_session=True,
        )
        self.turn = threading.Lock()
        try:
            self._await_ready(seconds)
            self.connection = socket.socket(socket.AF_UNIX)
            self.connection.connect(path)
        except BaseException:
            self.close()
            raise

    def _await_ready(self, seconds: float) -> None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self.process.stdout], [], [], 0.25)[0]:
                if self.process.stdout.read(6) == b"ready\n":
                    return
                break
        self.process.kill()
        self.process.wait()
        raise EnvironmentFailed(f"A stage worker did not start: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what the process said on its standard error."""
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with exit code {self.process.poll()} and said nothing."

    def _ask(self, question: dict[str, Any], batch: Batch | None) -> tuple[dict[str, Any], Batch | None]:
        try:
            with self.turn:
                write_frame(self.connection, encode(question, batch))
                answer = read_frame(self.connection)
        except OSError as cause:
            raise self._died() from cause
        if answer is None:
            raise self._died()
        if "error" in answer[0]:
            raise error_from(answer[0]["error"])
        return answer

    def _died(self) -> ModelFailed:
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            pass
        return ModelFailed(f"The stage worker ended (exit code {self.process.poll()}): {self.last_words()}")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process: its standard input closes; what does not end by that is killed."""
        if hasattr(self, "connection"):
            self.connection.close()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()
        self.folder.cleanup()

    def __enter__(self) -> StageWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StageConnection(Asking):
    """A connection to a stage worker that somebody else keeps running, and starts again at the same path when it dies.

    A question that finds the worker dead waits for the next one, which is first told to load what this connection had
    loaded. A worker that dies of a question is not asked the same again. `facts["hop"]` of a ModelFailed says which: `away`,
    nobody was asked, or `died`. Called from one thread at a time.
    """

    def __init__(self, path: str, seconds: float = RECONNECT_SECONDS) -> None:
        """seconds: how long to wait for a worker that is being started. The first question connects."""
        self.path = path
        self.seconds = seconds
        self.connection: socket.socket | None = None
        self.broken = False
        self.stages: dict[str, Stage] = {}

    def reachable(self) -> bool:
        """Whether a question now would find a worker. From any thread, without waiting."""
        if self.broken:
            with socket.socket(socket.AF_UNIX) as trial:
                self.broken = trial.connect_ex(self.path) != 0
        return not self.broken

    def load(self, stage: Stage) -> Description:
        description = super().load(stage)
        self.stages[stage.name] = stage
        return description

    def _ask(self, question: dict[str, Any], batch: Batch | None) -> tuple[dict[str, Any], Batch | None]:
        """Raises ModelFailed where there is no worker, or it dies of the question; and what it answers with."""
        connection = self._send(encode(question, batch))
        try:
            return _answer_from(connection)
        except OSError as cause:
            self._lost()
            raise ModelFailed(f"The stage worker ended while it answered: {cause}.", hop="died") from cause

    def _send(self, pieces: list[bytes | memoryview]) -> socket.socket:
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                connection = self.connection or self._connect()
                write_frame(connection, pieces)
            except OSError as cause:
                self._lost()
                if time.monotonic() > deadline:
                    raise ModelFailed(
                        f"The stage worker at the end of the hop does not answer: {cause}.", hop="away"
                    ) from cause
                time.sleep(0.05)
            else:
                return connection

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.path)
            for stage in self.stages.values():
                write_frame(connection, encode({"op": "load", "stage": to_plain(stage)}))
                _answer_from(connection)
        except BaseException:
            connection.close()
            raise
        self.connection, self.broken = connection, False
        return connection

    def _lost(self) -> None:
        self.broken = True
        self.close()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _answer_from(connection: socket.socket) -> tuple[dict[str, Any], Batch | None]:
    """Raises OSError where the far end is gone, and what it answers with."""
    answer = read_frame(connection)
    if answer is None:
        raise ConnectionResetError("it closed the connection")
    if "error" in answer[0]:
        raise error_from(answer[0]["error"])
    return answer


class RemoteStage:
    """One stage at the far end of a hop, as the engine's runner."""

    def __init__(self, worker: Asking, stage: str) -> None:
        self.worker = worker
        self.stage = stage

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        return self.worker.predict(self.stage, batch, want)
