"""Each example, as its README walks it: trained where mlpacker is unknown, packed, served, and asked through every door.

Whatever the door, the answers are those of `reference.py`, which calls the pipeline in the training interpreter.
"""

from __future__ import annotations

import csv
import http.client
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlpacker

pytestmark = pytest.mark.timeout(900)  # the first test of an example also trains, packs and starts it

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MLPACKER = str(Path(sys.executable).with_name("mlpacker"))
NAMES = ("iris", "mine-safety", "plant-quality", "visual-inspection")
TEXTS = ("sensor", "measured_at", "firmware", "line")
WHOLE = ("batch",)
HEADER_LENGTH = "Inference-Header-Content-Length"
SECONDS = 300

Row = dict[str, Any]


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


def post(url: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def post_json(served: Served, path: str, body: object) -> Any:
    status, _, said = post(served.url, path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert status == 200, said
    return json.loads(said)


def agrees(given: Any, wanted: Any) -> bool:
    """Labels exactly; probabilities to 1e-12, as for float64 answers of the same batch."""
    if isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(agrees, given, wanted))
    if isinstance(wanted, float):
        return math.isclose(given, wanted, rel_tol=1e-12, abs_tol=1e-12)
    return bool(given == wanted)


def assert_rows_agree(given: Sequence[Row | None], wanted: Sequence[Row | None]) -> None:
    assert len(given) == len(wanted)
    for n, (one, other) in enumerate(zip(given, wanted, strict=True)):
        if other is None:
            assert one is None, f"row {n}"
        else:
            assert one is not None, f"row {n}"
            assert all(agrees(one[k], v) for k, v in other.items()), f"row {n}: {one} where {other} was right"


def tensors(rows: Sequence[Row]) -> list[Row]:
    """One V2 JSON tensor a column."""
    return [
        {"name": name, "shape": [len(rows)], "datatype": datatype(name), "data": [r[name] for r in rows]}
        for name in rows[0]
    ]


def datatype(column: str) -> str:
    return "BYTES" if column in TEXTS else "INT64" if column in WHOLE else "FP64"


def from_tensors(outputs: Sequence[Row], count: int) -> list[Row | None]:
    """V2 outputs as rows; `row` says which row an answer belongs to, where some were dropped."""
    arrays = {o["name"]: np.array(o["data"], dtype=object).reshape(o["shape"]) for o in outputs}
    rows = [int(r) for r in arrays.pop("row", np.arange(count))]
    answers: list[Row | None] = [None] * count
    for at, row in enumerate(rows):
        answers[row] = {
            name: column[at].tolist() if column.ndim > 1 else column[at] for name, column in arrays.items()
        }
    return answers


# --- The doors -------------------------------------------------------------------------------------------------------


def test_plain_json_answers_as_the_training_interpreter_does(served: Served) -> None:
    answer = post_json(served, "/predict", served.rows)
    rows = answer["predictions"] if isinstance(answer, dict) else answer
    single = served.outputs == ["predict"]
    given = [r if r is None or isinstance(r, dict) or not single else {"predict": r} for r in rows]
    assert_rows_agree(given, served.answers)


def test_one_row_in_plain_json_is_one_answer(served: Served) -> None:
    for n in (served.kept[0], served.kept[-1]):
        answer = post_json(served, "/predict", served.rows[n])
        first = answer[0] if isinstance(answer, list) else answer
        label = first["predict"] if isinstance(first, dict) else first
        assert label == served.answers[n]["predict"]  # type: ignore[index]


def test_v2_json_answers_as_the_training_interpreter_does(served: Served) -> None:
    answer = post_json(served, f"/v2/models/{served.name}/infer", {"inputs": tensors(served.rows), "id": "7"})
    assert answer["id"] == "7"
    assert_rows_agree(from_tensors(answer["outputs"], len(served.rows)), served.answers)


def test_v2_gives_the_outputs_asked_for_and_no_other(served: Served) -> None:
    asked = {"inputs": tensors(served.rows), "outputs": [{"name": "predict"}]}
    answer = post_json(served, f"/v2/models/{served.name}/infer", asked)
    assert {o["name"] for o in answer["outputs"]} - {"row"} == {"predict"}
    given = from_tensors(answer["outputs"], len(served.rows))
    assert_rows_agree(given, [a and {"predict": a["predict"]} for a in served.answers])


def test_v2_binary_answers_as_the_training_interpreter_does(served: Served) -> None:
    blobs, inputs = [], []
    for name in served.rows[0]:
        for tensor, blob in binary_column(name, [r[name] for r in served.rows]):
            inputs.append({**tensor, "parameters": {"binary_data_size": len(blob)}})
            blobs.append(blob)
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    path = f"/v2/models/{served.name}/infer"
    status, given, said = post(served.url, path, header + b"".join(blobs), headers)
    assert status == 200, said
    length = int(given[HEADER_LENGTH.lower()])
    outputs = list(unpacked(json.loads(said[:length])["outputs"], said[length:]))
    assert_rows_agree(from_tensors(outputs, len(served.rows)), served.answers)


def binary_column(name: str, values: list[Any]) -> Iterator[tuple[Row, bytes]]:
    """A column as binary tensors: its values, and which of them are there where text is missing."""
    kind = datatype(name)
    tensor = {"name": name, "shape": [len(values)], "datatype": kind}
    if kind == "BYTES":
        texts = [(v or "").encode() for v in values]
        yield tensor, b"".join(struct.pack("<I", len(t)) + t for t in texts)
        if None in values:
            valid = [v is not None for v in values]
            yield {"name": f"{name}.valid", "shape": [len(values)], "datatype": "BOOL"}, bytes(valid)
    elif kind == "INT64":
        yield tensor, np.array(values, "<i8").tobytes()
    else:
        yield tensor, np.array([np.nan if v is None else v for v in values], "<f8").tobytes()


def unpacked(outputs: Sequence[Row], data: bytes) -> Iterator[Row]:
    """Binary output tensors as JSON ones would be."""
    numbers = {"FP64": "<f8", "FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "BOOL": "?"}
    at = 0
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        part = data[at : at + size]
        at += size
        values = (
            texts(part)
            if output["datatype"] == "BYTES"
            else np.frombuffer(part, numbers[output["datatype"]]).tolist()
        )
        yield {"name": output["name"], "shape": output["shape"], "data": values}
    assert at == len(data)


def texts(part: bytes) -> list[str]:
    found = []
    while part:
        (length,) = struct.unpack_from("<I", part)
        found.append(part[4 : 4 + length].decode())
        part = part[4 + length :]
    return found


def test_mlflows_protocol_gives_the_labels(served: Served) -> None:
    columns = list(served.rows[0])
    split = {"columns": columns, "data": [[r[c] for c in columns] for r in served.rows]}
    answer = post_json(served, "/invocations", {"dataframe_split": split})
    assert answer["predictions"] == [a and a["predict"] for a in served.answers]


def test_mlflows_protocol_takes_a_csv_file_as_it_is(served: Served) -> None:
    data = (served.folder / "sample.csv").read_bytes()
    status, _, said = post(served.url, "/invocations", data, {"Content-Type": "text/csv"})
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
        assert agrees(given, wanted), name


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
