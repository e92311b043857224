"""The stream that is tried: real processes, as `mlpacker stream` starts them, in an interpreter that has the brokers' clients."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mlpacker_runtime import manifest as manifests
from mlpacker_runtime.manifest import Manifest, Stage
from mlpacker_runtime.signature import Field
from mlpacker_runtime.stream.settings import Settings, to_json

STAGE = Path(__file__).with_name("stage.py")
FIELDS = (Field("key", "string"), Field("number", "int64"), Field("kind", "string"), Field("x", "float64"))


def draft(folder: Path, entry: str = "double") -> Path:
    """A package of the ledger's stage, as a folder."""
    (folder / "code").mkdir(parents=True)
    shutil.copyfile(STAGE, folder / "code" / "stage.py")
    stage = Stage(
        "double",
        "function",
        "code/stage.py",
        entry=entry,
        takes="record",
        inputs=FIELDS,
        outputs=(Field("double", "float64"),),
        holds_code=True,
    )
    manifest = Manifest("ledger", (stage,), FIELDS, stage.outputs)
    (folder / manifests.PATH).write_bytes(manifests.encode(manifest))
    return folder


class Subject:
    """One `mlpacker stream` process with its workers. runtime: a folder with another copy of the runtime, with a planted fault."""

    def __init__(
        self, folder: Path, package: Path, settings: Settings, *, name: str = "a", runtime: Path | None = None
    ) -> None:
        self.package = package
        self.settings = settings
        self.log = folder / f"stream-{name}.log"
        self.runtime = runtime
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns at once."""
        argv = [
            sys.executable,
            "-m",
            "mlpacker_runtime",
            "serve",
            "--package",
            str(self.package),
            "--accepted",
        ]
        argv += ["--port", "0", "--timeout", "10", "--log", "json"]
        argv += ["--stage-worker", json.dumps({"environment": "default", "argv": [sys.executable]})]
        argv += ["--stream", to_json(self.settings)]
        log = self.log.open("ab")
        self.process = subprocess.Popen(
            argv, stdout=log, stderr=log, env=self._variables(), start_new_session=True
        )
        log.close()

    def _variables(self) -> Mapping[str, str]:
        kept = dict(os.environ)
        if self.runtime is not None:
            kept["PYTHONPATH"] = str(self.runtime)
        return kept

    def swap(self, package: Path) -> None:
        """The next release: the old drains and ends, then the new reads."""
        self.stop()
        self.package = package
        self.start()

    def workers(self, module: str = "mlpacker_runtime.stream.worker") -> list[int]:
        """Process ids of the supervisor's children that run this module."""
        assert self.process is not None
        found = []
        for child in _children(self.process.pid):
            words = _words(child)
            if module in words:
                found.append(child)
        return found

    def kill_worker(self) -> None:
        self._signal_workers(signal.SIGKILL)

    def kill(self) -> None:
        """All of it at once, as a power cut takes the processes."""
        assert self.process is not None
        everyone = [*_children(self.process.pid), self.process.pid]
        for pid in everyone:
            send_signal(pid, signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        self._signal_workers(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_workers(signal.SIGCONT)

    def _signal_workers(self, number: signal.Signals) -> None:
        for pid in self.workers():
            send_signal(pid, number)

    def stop(self, seconds: float = 30) -> int:
        """As an operator stops it; the exit code."""
        if self.process is None:
            return 0
        self.resume()
        self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -9
        self.process = None
        return code

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def member(settings: Settings, name: str, folder: Path) -> Settings:
    """The same deployment on another machine: with a state folder of its own."""
    return replace(settings, state=str(folder / f"state-{name}"), dead_letters=settings.letters, member=name)


def send_signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return []


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
