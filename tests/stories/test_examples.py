"""Each example, as its README walks it: trained where mlpacker is unknown, packed, served, and asked through every door.

Whatever the door, the answers are those of `reference.py`, which calls the pipeline in the training interpreter.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import doors
import mlpacker
from doors import Row
from mlpacker import streaming
from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Outgoing, Reading
from mlpacker_runtime.brokers.address import parse

pytestmark = pytest.mark.timeout(900)  # the first test of an example also trains, packs and starts it

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MLPACKER = str(Path(sys.executable).with_name("mlpacker"))
NAMES = ("iris", "mine-safety", "plant-quality", "visual-inspection")
TEXTS = ("sensor", "measured_at", "firmware", "line")
WHOLE = ("batch",)
STREAMED = {"mine-safety": "shift", "plant-quality": "sample", "visual-inspection": "sample"}
"""Case study → the rows that its README streams, as JSON lines and as CSV."""
SECONDS = 300


@dataclass(frozen=True)
class Served:
    """An example that was trained, packed and is being served.

    rows: its sample, read with the standard library. answers: the training interpreter's, None for a dropped row.
    """

    name: str
    folder: Path
    home: Path
    python: Path
    url: str
    rows: list[Row]
    answers: list[Row | None]

    @property
    def kept(self) -> list[int]:
        return [n for n, answer in enumerate(self.answers) if answer is not None]

    @property
    def outputs(self) -> list[str]:
        return list(self.kept_answers[0])

    @property
    def kept_answers(self) -> list[Row]:
        return [a for a in self.answers if a is not None]


@pytest.fixture(scope="module", params=NAMES)
def served(
    request: pytest.FixtureRequest, interpreter: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    name: str = request.param
    root = tmp_path_factory.mktemp(name)
    folder, home = root / name, root / "home"
    shutil.copytree(
        EXAMPLES / name,
        folder,
        ignore=shutil.ignore_patterns("*.joblib", "*.csv", "*.jsonl", "*.npy", "__pycache__"),
    )
    python = interpreter("3.11", *(folder / "requirements.txt").read_text().split())
    run([str(python), "train.py"], folder, home)
    run([MLPACKER, "pack", "-f", "pipeline.yaml", "--python", str(python)], folder, home)
    answers = json.loads(run([str(python), "reference.py", "sample.csv"], folder, home))
    with server(name, folder, home) as url:
        yield Served(name, folder, home, python, url, read(folder / "sample.csv"), answers)


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLPACKER_")}
    return kept | {"MLPACKER_HOME": str(home)}


def run(argv: Sequence[str], folder: Path, home: Path) -> str:
    done = subprocess.run(
        argv, cwd=folder, env=environment(home), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def server(name: str, folder: Path, home: Path) -> Iterator[str]:
    """`mlpacker run` on a free port; must end well on SIGTERM."""
    with started(["run", name, "--port", "0"], folder, home) as url:
        yield url


@contextmanager
def started(arguments: Sequence[str], folder: Path, home: Path) -> Iterator[str]:
    """What says when it is ready, and where; must end well on SIGTERM."""
    log = folder / f"{arguments[0]}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [MLPACKER, *arguments],
            cwd=folder,
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        assert line[:1] == ["ready"], f"{line}\n{log.read_text()}"
        yield line[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == 0, log.read_text()


def read(path: Path) -> list[Row]:
    """A CSV file's rows, numbers as numbers, an empty field as None."""
    with path.open(newline="") as file:
        return [{k: value_of(k, v) for k, v in row.items()} for row in csv.DictReader(file)]


def value_of(column: str, text: str) -> Any:
    if text == "":
        return None
    return text if column in TEXTS else int(text) if column in WHOLE else float(text)


# --- The doors -------------------------------------------------------------------------------------------------------


def test_plain_json_answers_as_the_training_interpreter_does(served: Served) -> None:
    doors.assert_rows_agree(doors.by_plain_json(served.url, served.rows), served.answers)


def test_one_row_in_plain_json_is_one_answer(served: Served) -> None:
    for n in (served.kept[0], served.kept[-1]):
        answer = doors.ask(served.url, "/predict", served.rows[n])
        assert answer["predict"] == served.answers[n]["predict"]  # type: ignore[index]


def test_v2_json_answers_as_the_training_interpreter_does(served: Served) -> None:
    doors.assert_rows_agree(doors.by_v2_json(served.url, served.name, served.rows), served.answers)


def test_v2_gives_the_outputs_asked_for_and_no_other(served: Served) -> None:
    asked = {"inputs": doors.tensors(served.rows), "outputs": [{"name": "predict"}]}
    answer = doors.ask(served.url, f"/v2/models/{served.name}/infer", asked)
    assert {o["name"] for o in answer["outputs"]} - {"row"} == {"predict"}
    given = doors.from_tensors(answer["outputs"], len(served.rows))
    doors.assert_rows_agree(given, [a and {"predict": a["predict"]} for a in served.answers])


def test_v2_binary_answers_as_the_training_interpreter_does(served: Served) -> None:
    doors.assert_rows_agree(doors.by_v2_binary(served.url, served.name, served.rows), served.answers)


def test_mlflows_protocol_gives_the_labels(served: Served) -> None:
    assert doors.by_invocations(served.url, served.rows) == [a and a["predict"] for a in served.answers]


def test_mlflows_protocol_takes_a_csv_file_as_it_is(served: Served) -> None:
    data = (served.folder / "sample.csv").read_bytes()
    status, _, said = doors.post(served.url, "/invocations", data, {"Content-Type": "text/csv"})
    assert status == 200, said
    assert json.loads(said)["predictions"] == [a and a["predict"] for a in served.answers]


def test_score_writes_a_line_for_each_row_that_was_not_dropped(served: Served) -> None:
    run([MLPACKER, "score", served.name, "sample.csv", "-o", "scored.csv"], served.folder, served.home)
    with (served.folder / "scored.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["predict"] for line in lines] == [str(a["predict"]) for a in served.kept_answers]


def test_the_sdk_answers_as_the_training_interpreter_does(served: Served) -> None:
    with mlpacker.open(served.name, home=served.home) as opened:
        answer = opened.predict(served.rows)
    rows = [int(r) for r in answer.get("row", range(len(served.rows)))]
    assert rows == served.kept
    for name in served.outputs:
        given, wanted = np.asarray(answer[name]).tolist(), [a[name] for a in served.kept_answers]
        assert doors.agrees(given, wanted), name


# --- On a stream -----------------------------------------------------------------------------------------------------


@pytest.fixture
def case_study(served: Served) -> Served:
    if served.name not in STREAMED:
        pytest.skip("iris is no case study; its stream is in the quickstart")
    return served


def test_a_file_streamed_as_the_readme_says_answers_as_the_training_interpreter_does(
    case_study: Served,
) -> None:
    name, rows = case_study.name, STREAMED[case_study.name]
    asked = [str(case_study.python), "reference.py", f"{rows}.csv"]
    wanted = [a for a in json.loads(run(asked, case_study.folder, case_study.home)) if a is not None]
    readme = (case_study.folder / "README.md").read_text().splitlines()
    (told,) = [line for line in readme if line.startswith("mlpacker stream")]
    words = told.partition(" #")[0].split()[1:]
    assert words[:4] == ["stream", name, "--from", f"file:{rows}.jsonl"]
    run([MLPACKER, *words], case_study.folder, case_study.home)
    sink = words[words.index("--to") + 1].removeprefix("file:")
    answers = [json.loads(line) for line in (case_study.folder / sink).read_text().splitlines()]
    assert len({a["mlpacker_id"] for a in answers}) == len(wanted)
    assert_answers_agree(answers, wanted)
    assert letters(name, case_study) == []


def test_a_stream_over_the_embedded_log_answers_as_the_training_interpreter_does(case_study: Served) -> None:
    logs, name = case_study.home / "logs", f"{case_study.name}-again"
    send(logs, [json.dumps(row).encode() for row in case_study.rows])
    ends = ["--from", "local:rows", "--to", "local:answers", "--name", name]
    with started(["stream", case_study.name, *ends], case_study.folder, case_study.home) as url:
        answers = received(logs, len(case_study.kept))
        until(lambda: status(url)["in_flight"] == 0)
        state = status(url)
    assert state["rows"] == {
        "answered": len(case_study.kept),
        "dropped": len(case_study.rows) - len(case_study.kept),
        "failed": 0,
    }
    assert_answers_agree(answers, case_study.kept_answers)
    assert letters(name, case_study) == []


def test_a_stream_in_a_file_of_settings_keeps_the_order_of_each_key_over_two_workers(served: Served) -> None:
    if served.name != "mine-safety":
        pytest.skip("the only example with a stream.yaml")
    logs = served.home / "logs"
    bodies = [json.dumps(row).encode() for row in served.rows]
    send(logs, [*bodies, b'{"sensor": "bolt-007", "mean_radius": "n/a"}'], "readings")
    with started(["stream", served.name, "-f", "stream.yaml"], served.folder, served.home):
        answers = received(logs, len(served.kept), "alerts")
        until(lambda: len(letters(served.name, served)) == 1)
    wanted = [
        {**{k: served.rows[n][k] for k in ("sensor", "measured_at")}, "predict": served.answers[n]["predict"]}  # type: ignore[index]
        for n in served.kept
    ]
    for sensor in {w["sensor"] for w in wanted}:
        assert of(sensor, answers) == of(sensor, wanted)
    assert len(answers) == len(wanted)


def test_the_stream_that_an_example_describes_is_accepted() -> None:
    files = list(EXAMPLES.glob("*/stream.yaml"))
    assert files
    for file in files:
        given = streaming.read(file)
        made = streaming.settings(given, file.parent.name, ("predict",), EXAMPLES)
        assert (made.source, made.sink) == (given["from"], given["to"])


def status(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/status", timeout=30) as answer:
        said: dict[str, Any] = json.load(answer)
    return said


def of(sensor: str, answers: Sequence[Row]) -> list[Row]:
    return [a for a in answers if a["sensor"] == sensor]


def assert_answers_agree(answers: Sequence[Row], wanted: Sequence[Row]) -> None:
    """In the order of the rows: there is one partition."""
    named = [{k: v for k, v in a.items() if k in wanted[0]} for a in answers]
    doors.assert_rows_agree(named, wanted)


def send(logs: Path, bodies: Sequence[bytes], topic: str = "rows") -> None:
    sink = brokers.get("local").sink(parse(f"local:{topic}?path={logs}"), "test")
    assert not sink.publish([Outgoing(body, str(n)) for n, body in enumerate(bodies)])
    sink.close()


class Nobody:
    """Of a source that has one reader."""

    def giving_up(self, partitions: Collection[str], seconds: float) -> None:
        raise AssertionError(f"{partitions} were given up, and nobody else reads them.")


def received(logs: Path, count: int, topic: str = "answers") -> list[Row]:
    """The answers on a topic, as soon as there are so many; and whatever comes within a moment."""
    source = brokers.get("local").source(parse(f"local:{topic}?path={logs}"), Reading("test"), Nobody())
    found: list[Row] = []
    end = time.monotonic() + SECONDS
    while len(found) < count and time.monotonic() < end:
        found += [json.loads(m.value) for m in source.poll(1000, 0.2)]
    found += [json.loads(m.value) for m in source.poll(1000, 0.2)]
    source.close()
    return found


def letters(deployment: str, served: Served) -> list[Row]:
    told = run([MLPACKER, "dlq", "ls", deployment, "--json"], served.folder, served.home)
    found: list[Row] = json.loads(told)["letters"]
    return found


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- What the examples promise ---------------------------------------------------------------------------------------


def test_no_training_script_knows_of_mlpacker() -> None:
    scripts = [p for name in NAMES for p in (EXAMPLES / name).glob("*.py")]
    assert len(scripts) >= 2 * len(NAMES)
    assert [p for p in scripts if "mlpacker" in p.read_text()] == []


def test_packing_an_example_again_gives_the_same_digest(served: Served) -> None:
    again = [MLPACKER, "pack", "-f", "pipeline.yaml", "--python", str(served.python), "--json"]
    shown = [MLPACKER, "inspect", served.name, "--json"]
    packed = json.loads(run(again, served.folder, served.home))
    assert packed["digest"] == json.loads(run(shown, served.folder, served.home))["digest"]


def test_an_example_drops_its_faulty_rows_and_no_other(served: Served) -> None:
    faulty = [n for n, row in enumerate(served.rows) if is_faulty(row)]
    assert bool(faulty) == (served.name in ("mine-safety", "plant-quality"))
    assert sorted({*range(len(served.rows))} - {*served.kept}) == faulty
    assert len({a["predict"] for a in served.kept_answers}) > 1


def is_faulty(row: Row) -> bool:
    """A gap, a broken sensor's -999, or a time that is none."""
    gone = None in row.values() or -999.0 in row.values()
    return gone or not str(row.get("measured_at", "2026-")).startswith("2026-")
