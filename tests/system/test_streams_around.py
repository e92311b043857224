"""Around a stream, on real brokers: dead letters on them, a replay of what they hold, and two outputs compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlpacker.testing.delivery.servers.kafka import Kafka
from mlpacker.testing.delivery.servers.nats import Nats
from mlpacker.testing.delivery.servers.redis import Redis
from mlpacker.testing.delivery.subject import draft
from mlpacker_runtime import brokers
from mlpacker_runtime.brokers import Message, Outgoing, Reading
from mlpacker_runtime.brokers.address import parse
from mlpacker_runtime.stream import compare, dlq, past
from mlpacker_runtime.stream.letters import Letter, outgoing
from mlpacker_runtime.stream.settings import Settings, to_json

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", params=[Redis, Kafka, Nats], ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    reason = request.param.missing()
    if reason is not None:
        pytest.skip(reason)
    with request.param(tmp_path_factory.mktemp("broker")) as started:
        yield started


def write(text: str, messages: Sequence[Outgoing]) -> None:
    address = parse(text)
    sink = brokers.get(address.scheme).sink(address, "test")
    try:
        assert sink.publish(messages) == {}
    finally:
        sink.close()


def read(text: str, group: str) -> list[Message]:
    with past.reader(parse(text), Reading(group)) as source:
        return list(past.everything(source))


def test_dead_letters_on_a_broker_are_sent_again_and_dropped_from_the_oldest_on(
    server: Any, tmp_path: Path
) -> None:
    for topic in ("dead", "rows"):
        server.make(topic)
    about = {"deployment": "bolts", "package": "", "source": server.address("rows")}
    letters = [Letter(Message("0", n, b"%d" % n), "too deep", f"{n:02}") for n in range(3)]
    write(server.address("dead"), [outgoing(letter, about) for letter in letters])

    def asked(do: str, *ids: str) -> dict[str, Any]:
        at = server.address("dead")
        return dlq.answer(
            {"do": do, "at": at, "name": "bolts", "logs": "", "state": str(tmp_path), "ids": ids}
        )

    assert [one["id"] for one in asked("list")["letters"]] == ["00", "01", "02"]
    assert asked("drop", "01")["done"] == []
    told = asked("replay", "00", "02")
    assert (told["done"], [one["id"] for one in told["stay"]]) == (["00"], ["02"])
    assert [one["id"] for one in asked("list")["letters"]] == ["01", "02"]
    assert asked("drop", "01", "02")["done"] == ["01", "02"]
    assert asked("list")["letters"] == []
    assert [m.value for m in read(server.address("rows"), "looks")] == [b"0"]


FAR = "time:4000000000"
"""Beyond all that is there."""


def replayed(folder: Path, package: Path, settings: Settings) -> dict[str, Any]:
    argv = [
        sys.executable,
        "-m",
        "mlpacker_runtime",
        "serve",
        "--package",
        str(package),
        "--accepted",
    ]
    argv += [
        "--port",
        "0",
        "--stage-worker",
        json.dumps({"environment": "default", "argv": [sys.executable]}),
    ]
    done = subprocess.run(
        [*argv, "--stream", to_json(settings)],
        capture_output=True,
        text=True,
        timeout=90,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads((folder / "replayed.json").read_text())
    return told


def test_a_past_is_replayed_to_its_end_with_the_ids_of_the_original(server: Any, tmp_path: Path) -> None:
    for topic in ("past", "first", "second"):
        server.make(topic)
    rows = [{"key": "k", "number": n, "kind": "plain", "x": float(n)} for n in range(50)]
    write(server.address("past"), [Outgoing(json.dumps(r).encode(), f"r{n}") for n, r in enumerate(rows)])
    package = draft(tmp_path / "package")
    for name in ("first", "second"):
        folder = tmp_path / name
        settings = Settings(
            name, server.address("past"), server.address(name), str(folder), ids_as="bolts", until=FAR
        )
        told = replayed(folder, package, settings)
        assert (told["ended"], told["rows"]["answered"]) == (True, 50)
    both = {"a": server.address("first"), "b": server.address("second")}
    told = compare.answer({**both, "key": "id", "tolerance": 0.0, "logs": ""})
    assert (told["equal"], told["different"], told["only"]) == (50, 0, {"a": 0, "b": 0})
