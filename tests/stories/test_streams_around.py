"""What a person does around a stream: look at what failed, mend it and send it again, and try a new release on the past."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from mlpacker_runtime.brokers import Outgoing
from mlpacker_runtime.brokers.log import Log
from storytelling import MLPACKER, TRAIN, Person

FIELDS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")


@pytest.fixture
def packed(person: Person) -> Person:
    person.trains(TRAIN)
    person.says("pack", "model.joblib", "--name", "iris", "--sample", "rows.csv", "--python", person.python)
    return person


@contextmanager
def streaming(person: Person, *words: str) -> Iterator[None]:
    """`mlpacker stream words…`; sees it end well on SIGTERM."""
    log = person.folder / "stream.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(MLPACKER), "stream", *words],
            cwd=person.folder, env=person.variables(), stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready"), log.read_text()
        yield
    finally:
        process.terminate()
        code = process.wait(60)
        process.stdout.close()
    assert code == 0, log.read_text()


def row(number: int, **more: Any) -> Outgoing:
    value = {**dict.fromkeys(FIELDS, 1.0 + number / 10), **more}
    return Outgoing(json.dumps(value).encode(), str(number), b"%d" % (number % 3))


def write(person: Person, topic: str, *rows: Outgoing) -> None:
    with closing(Log(person.home / "logs" / f"{topic}.log.db")) as log:
        log.append(rows)


def last(person: Person, topic: str) -> int:
    path = person.home / "logs" / f"{topic}.log.db"
    if not path.exists():
        return 0
    with closing(Log(path)) as log:
        return log.last()


def until(reached: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_what_failed_is_looked_at_sent_again_and_dropped(packed: Person) -> None:
    bad = {FIELDS[0]: "much"}
    write(packed, "rows", *(row(n, **(bad if n % 4 == 3 else {})) for n in range(12)))
    with streaming(packed, "iris", "--name", "plant", "--from", "local:rows", "--to", "local:answers"):
        until(lambda: last(packed, "answers") == 9, "nine rows are answered")
        until(lambda: packed.told("dlq", "ls", "plant")["count"] == 3, "three are dead letters")
        listed = packed.told("dlq", "ls", "plant", "--reason", "much", "--stage", "input", "--limit", "2")
        assert (listed["count"], len(listed["letters"])) == (3, 2)
        assert "'much'" in packed.says("dlq", "ls", "plant").stdout
        first, second, third = (one["id"] for one in packed.told("dlq", "ls", "plant")["letters"])
        assert '"sepal length (cm)": "much"' in packed.says("dlq", "show", "plant", first[:10]).stdout

        packed.says("dlq", "drop", "plant", first, code=2)  # no terminal to ask at
        packed.says("dlq", "drop", "plant", first, "--yes")
        packed.says("dlq", "show", "plant", first, code=3)
        packed.says("dlq", "replay", "plant", second, "--to", "local:elsewhere", "--yes")
        assert last(packed, "elsewhere") == 1

        told = packed.told("dlq", "replay", "plant", "--all", "--yes")
        assert told["done"] == [third]
        until(lambda: last(packed, "rows") == 13, "it is in the source again")
        until(lambda: packed.told("dlq", "ls", "plant")["count"] == 1, "and has failed again")
    assert packed.told("dlq", "ls", "plant")["letters"][0]["offset"] == 13
    assert "plant" in packed.says("dlq", "ls", "plan", code=3).stderr


def test_a_new_release_is_tried_on_the_past_and_compared(packed: Person) -> None:
    packed.trains(TRAIN.replace("max_iter=500", "max_iter=500, C=0.1"))
    packed.says(
        "pack", "model.joblib", "--name", "iris", "--version", "2",
        "--sample", "rows.csv", "--python", packed.python,
    )  # fmt: skip
    write(packed, "rows", *(row(n) for n in range(40)))
    with streaming(packed, "iris:latest", "--name", "plant", "--from", "local:rows", "--to", "local:answers"):
        until(lambda: last(packed, "answers") == 40, "all are answered")
        same = packed.told(
            "replay", "iris:latest", "--name", "plant", "--from", "local:rows", "--to", "local:same"
        )
        assert (same["ended"], same["rows"]["answered"]) == (True, 40)
        packed.says("compare", "local:answers", "local:same")

        new = ("replay", "iris:2", "--name", "plant", "--from", "local:rows", "--to", "local:shadow")
        packed.says(*new, "--since", "offset:11", "--until", "offset:30", "--as", "trial")
        write(packed, "rows", row(40))
        until(lambda: last(packed, "answers") == 41, "the stream goes on where it was")
    told = json.loads(
        packed.says("compare", "local:answers", "local:shadow", "-o", "diff.jsonl", "--json", code=1).stdout
    )
    assert (told["different"], told["only"]) == (20, {"a": 21, "b": 0})
    assert told["fields"]["predict_proba"]["max"] > 0.001
    assert len((packed.folder / "diff.jsonl").read_text().splitlines()) == 41
    assert "predict_proba" in packed.says("compare", "local:answers", "local:shadow", code=1).stdout
    packed.says("compare", "local:answers", "local:shadow", "--tolerance", "1", code=1)
    with closing(Log(packed.home / "logs" / "rows.log.db")) as log:
        assert log.rows("SELECT DISTINCT reader FROM place") == [("mlpacker-plant",)]
