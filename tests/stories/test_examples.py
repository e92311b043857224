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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import doors
import mlpacker
from doors import Row

pytestmark = pytest.mark.timeout(900)  # the first test of an example also trains, packs and starts it

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MLPACKER = str(Path(sys.executable).with_name("mlpacker"))
NAMES = ("iris", "mine-safety", "plant-quality", "visual-inspection")
TEXTS = ("sensor", "measured_at", "firmware", "line")
WHOLE = ("batch",)
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
        EXAMPLES / name, folder, ignore=shutil.ignore_patterns("*.joblib", "*.csv", "*.npy", "__pycache__")
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
    log = folder / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [MLPACKER, "run", name, "--port", "0"],
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
            code = process.wait(20)
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
