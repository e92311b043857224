"""The server as a process: it starts, says so once, answers, survives its workers' deaths, drains, and ends with a code."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpacker_runtime.manifest import Manifest, Stage, encode
from mlpacker_runtime.signature import Field

INPUTS = (Field("x", "float64"),)
CODE = """
import os, pathlib, time
import numpy as np

def double(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    x = columns["x"]
    if (x == 13).any():
        os._exit(13)
    if (x > 1000).any():
        pathlib.Path(os.environ["NAPPING"]).touch()
        time.sleep(float(x.max() - 1000))
    return {"y": x * 2, "pid": np.full(len(x), os.getpid())}
"""


class Server:
    """A running `serve`, its lines, and requests to it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        argv = [
            sys.executable,
            "-m",
            "mlpacker_runtime",
            "serve",
            "--package",
            str(folder),
            "--port",
            "0",
            "--accepted",
            *flags,
        ]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        self.log: list[dict[str, Any]] = []
        self.stray: list[str] = []
        self.readers = [threading.Thread(target=self._read_out), threading.Thread(target=self._read_log)]
        for reader in self.readers:
            reader.start()

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.stray.append(line)

    def ready(self) -> Server:
        try:
            line = self.lines.get(timeout=60)
        except queue.Empty:
            pytest.fail(f"not ready: {self.log} {self.stray}")
        word, self.url, self.reference = line.split()
        assert word == "ready"
        return self

    def ask(self, path: str, body: Any = None, timeout: float = 20.0) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=timeout) as answer:
            text = answer.read().decode()
        return json.loads(text) if text[:1] in "[{" else text

    def ask_until(self, good: Callable[[Any], bool], path: str, body: Any = None) -> Any:
        """Ask again until an answer is good; what is refused meanwhile does not count."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                if good(answer := self.ask(path, body)):
                    return answer
            except (OSError, urllib.error.HTTPError):
                pass
            time.sleep(0.05)
        return pytest.fail(f"{path} never answered well: {self.log} {self.stray}")

    def workers(self) -> list[int]:
        return [
            int(p)
            for p in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def end(self, sign: int = signal.SIGTERM) -> int:
        self.process.send_signal(sign)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(60)
        for reader in self.readers:
            reader.join(5)
        return code

    def actions(self) -> list[str]:
        return [line["action"] for line in self.log]


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A draft of a function that doubles, naps beyond 1000 (and says so in a file) and dies of 13."""
    monkeypatch.setenv("NAPPING", str(tmp_path / "napping"))
    (tmp_path / "double.py").write_text(CODE)
    outputs = (Field("y", "float64"), Field("pid", "int64"))
    stage = Stage(
        "double", "function", "double.py", entry="double", inputs=INPUTS, outputs=outputs, holds_code=True
    )
    manifest = Manifest("doubler", (stage,), INPUTS, outputs, sample="sample.json")
    (tmp_path / "mlpacker.json").write_bytes(encode(manifest))
    (tmp_path / "sample.json").write_text('{"columns": {"x": [1.0, 2.0]}}')
    return tmp_path


@pytest.fixture
def serve(draft: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*flags: str, folder: Path = draft) -> Server:
        servers.append(Server(folder, *flags))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()


def test_it_says_ready_once_answers_and_ends_in_peace(serve: Callable[..., Server]) -> None:
    server = serve().ready()
    assert server.reference == "doubler@draft"
    assert server.ask("/predict", [{"x": 1}, {"x": 2}])[1]["y"] == 4
    assert server.end() == 0
    assert server.lines.empty()
    assert server.actions() == ["ready", "draining", "stopped"]
    assert not server.stray


def test_ctrl_c_ends_it_as_well(serve: Callable[..., Server]) -> None:
    server = serve().ready()
    assert server.end(signal.SIGINT) == 0
    assert not server.stray


def appears(file: Path) -> None:
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} is not there"
        time.sleep(0.02)


def test_what_is_in_flight_is_answered_before_it_ends(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve().ready()
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(server.ask("/predict", {"x": 1001})))
    asking.start()
    appears(tmp_path / "napping")
    assert server.end() == 0
    asking.join(30)
    assert answers[0]["y"] == 2002
    with pytest.raises(OSError):
        server.ask("/ping")


def test_what_does_not_finish_in_time_is_left(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve("--timeout", "0.5").ready()

    def ask() -> None:
        with pytest.raises(OSError):
            server.ask("/predict", {"x": 1120}, timeout=120)

    asking = threading.Thread(target=ask)
    asking.start()
    appears(tmp_path / "napping")
    began = time.monotonic()
    assert server.end() == 1
    assert time.monotonic() - began < 60
    asking.join(30)


def test_a_worker_that_dies_is_started_again(serve: Callable[..., Server]) -> None:
    server = serve().ready()
    before = server.ask("/predict", {"x": 1})["pid"]
    with pytest.raises(OSError):
        server.ask("/predict", {"x": 13})
    after = server.ask_until(lambda a: a["y"] == 2, "/predict", {"x": 1})["pid"]
    assert before != after
    assert server.end() == 0
    assert "died" in server.actions()


def test_when_one_worker_dies_the_other_answers(serve: Callable[..., Server]) -> None:
    server = serve("--workers", "2").ready()
    workers = server.workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    answers = [server.ask_until(lambda a: a["y"] == 2, "/predict", {"x": 1})["pid"] for _ in range(20)]
    assert workers[1] in answers
    server.ask_until(lambda text: "mlpacker_worker_starts_total 3" in text, "/metrics")
    assert server.end() == 0


def test_workers_do_not_outlive_a_killed_supervisor(serve: Callable[..., Server]) -> None:
    server = serve().ready()
    worker = server.workers()[0]
    server.process.kill()
    server.wait()
    end = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_numbers_of_all_workers_are_added(serve: Callable[..., Server]) -> None:
    server = serve("--workers", "2").ready()
    for _ in range(10):
        server.ask("/predict", [[1], [2]])
    text = server.ask("/metrics")
    assert 'mlpacker_requests_total{route="predict",status="200"} 10' in text
    assert 'mlpacker_rows_total{outcome="answered"} 20' in text
    assert "mlpacker_worker_starts_total 2" in text


def test_keys_are_wanted_and_an_open_door_is_warned_of(serve: Callable[..., Server], tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# ours\nopen sesame\n")
    server = serve("--api-key-file", str(keys)).ready()
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.ask("/predict", {"x": 1})
    assert refused.value.code == 401
    server = serve("--host", "0.0.0.0").ready()
    server.end()
    assert server.log[0]["action"] == "open"
    assert "--api-key-file" in server.log[0]["reason"]


def other_environment() -> str:
    return json.dumps({"environment": "default", "argv": [sys.executable]})


def test_stages_of_another_environment_answer_through_a_hop_and_are_started_again(
    serve: Callable[..., Server],
) -> None:
    server = serve("--stage-worker", other_environment(), "--workers", "2").ready()
    stage_worker = server.ask("/predict", {"x": 4})["pid"]
    assert {server.ask("/predict", {"x": 4})["pid"] for _ in range(6)} == {
        stage_worker
    }  # one for all HTTP workers
    os.kill(stage_worker, signal.SIGKILL)
    answer = server.ask_until(lambda a: a["y"] == 8, "/predict", {"x": 4})
    assert answer["pid"] != stage_worker
    assert server.end() == 0


def test_a_port_that_is_taken_is_told_with_what_to_do(serve: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve("--port", str(taken.getsockname()[1]))
        assert server.wait() == 1
    assert "--port 0" in server.log[-1]["next_step"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda d: ["--package", str(d / "nowhere")], 3),
        (lambda d: (d / "mlpacker.json").unlink() or [], 3),
        (lambda d: ["--api-key-file", str(d / "nowhere")], 3),
        (lambda d: ["--host", "no.such.host.invalid"], 2),
        (lambda d: ["--port", "99999"], 2),
        (lambda d: ["--stage-worker", "nonsense"], 2),
        (lambda d: ["--stage-worker", "default=/no/such/python"], 6),
        (lambda d: (d / "mlpacker.json").write_text("[]") and [], 1),
        (lambda d: ["--digest", "sha256:" + "0" * 64], 3),
        (lambda d: (d / "double.py").write_text("import no_such_module") and [], 1),
    ],
)
def test_what_cannot_be_served_ends_with_its_code_and_a_reason(
    serve: Callable[..., Server], draft: Path, spoil: Any, code: int
) -> None:
    server = serve(*spoil(draft))
    assert server.wait() == code, server.log + server.stray
    assert server.lines.empty()
    assert server.stray or server.log[-1]["reason"]


def test_a_scikit_learn_model_answers_as_it_does_in_python(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    joblib = pytest.importorskip("joblib")
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = datasets.load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    folder = tmp_path / "cancer"
    folder.mkdir()
    joblib.dump(model, folder / "model.joblib")
    inputs = (Field("input", "float64", (-1, 30)),)
    outputs = (Field("predict", "int64"), Field("predict_proba", "float64", (-1, 2)))
    stage = Stage(
        "model",
        "sklearn",
        "model.joblib",
        methods=("predict", "predict_proba"),
        takes="matrix",
        inputs=inputs,
        outputs=outputs,
    )
    (folder / "mlpacker.json").write_bytes(encode(Manifest("cancer", (stage,), inputs, outputs)))
    server = serve(folder=folder).ready()
    rows = x[:40]
    tensor = {"name": "input", "shape": [40, 30], "datatype": "FP64", "data": rows.ravel().tolist()}
    answer = server.ask("/v2/models/cancer/infer", {"inputs": [tensor]})
    assert answer["outputs"][0]["data"] == model.predict(rows).tolist()
    assert answer["outputs"][1]["data"] == pytest.approx(
        model.predict_proba(rows).ravel().tolist(), abs=1e-12
    )
    alone = [server.ask("/predict", [row.tolist()])[0] for row in rows]
    assert [a["predict"] for a in alone] == model.predict(rows).tolist()
