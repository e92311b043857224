"""What a measurement needs of a Linux machine: a core for the server, one for the load, and what a process tree costs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 10


@dataclass(frozen=True)
class Cores:
    """server and load: core numbers; the same one where the machine has only one."""

    server: int
    load: int

    @property
    def apart(self) -> bool:
        return self.server != self.load


def cores() -> Cores:
    """The first and the last core this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(usable[0], usable[-1])


def on_core(core: int, argv: Sequence[str]) -> list[str]:
    return ["taskset", "-c", str(core), *argv]


@contextmanager
def myself_on_core(core: int) -> Iterator[None]:
    """Keep this process (which only polls and checks) off the server's core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment with bytecode on, one thread a library, and nobody phoning home."""
    quiet = {"DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "True", "MLFLOW_DISABLE_TELEMETRY": "true"}
    base = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV")
    }
    return base | quiet | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | dict(extra)


class Process:
    """A server and all its children, in a session of their own, writing to a log."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], folder: Path, log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self.popen.poll() is not None

    def stop(self) -> None:
        family = tree(self.popen.pid)
        self._signal(signal.SIGTERM)
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)
        for pid in family:  # those that left the session
            if _is_child_session(pid, self.popen.pid):
                _kill(pid)
        self.popen.wait()

    def _signal(self, which: signal.Signals) -> None:
        try:
            os.killpg(self.popen.pid, which)
        except ProcessLookupError:
            pass

    def last_words(self, lines: int = 6) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _is_child_session(pid: int, leader: int) -> bool:
    """Whether a process seen in the tree is still alive under a session that our server started."""
    try:
        return os.getsid(pid) in (leader, pid)
    except ProcessLookupError:
        return False


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent is not None:
                parents.setdefault(parent, []).append(int(entry.name))
    family = [root]
    for pid in family:
        family.extend(parents.get(pid, ()))
    return family


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def core_seconds(root: int) -> float:
    """What a process tree has used of the cores since its start, without children that have ended."""
    return sum(_ticks(pid) for pid in tree(root)) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def memory(root: int) -> float:
    """Megabytes of a process tree: the sum of proportional set sizes, so that shared pages count once."""
    return sum(_pss(pid) for pid in tree(root)) / 1e6


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def size(path: Path) -> float:
    """Megabytes of a file or of everything in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.stat().st_size for p in files) / 1e6


def missing_tools() -> list[str]:
    return [name for name in ("wrk", "taskset") if shutil.which(name) is None]


def uv(python: Path) -> str:
    """The uv beside this interpreter, else the one on PATH. Raises FileNotFoundError."""
    beside = python.parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise FileNotFoundError("uv is not here: run make setup first.")
    return found
