"""The kit finds what it is there to find: over a copy of the runtime in which one thing was spoilt its verdict is a breach.

The copy as it is keeps the promise under all that the spoilt ones are put through, so each breach is the plant's doing.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlpacker.testing.delivery.faults import Fault
from mlpacker.testing.delivery.ledger import POISON, SLOW, Verdict
from mlpacker.testing.delivery.servers.embedded import Embedded
from mlpacker.testing.delivery.walk import World, walk

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "runtime/src/mlpacker_runtime"
PATIENCE = 60.0
SLOW_SECONDS = 4.0
RATE = 150.0


def until(reached: Callable[[], object], world: World) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, world.subject.said()[-3000:]
        time.sleep(0.05)


# --- What is done to the stream --------------------------------------------------------------------------------------


def killed_and_swapped(world: World) -> None:
    """All processes are killed while one lane is at a slow row and the other has gone on; the next release starts with the notes
    of what was answered gone, as on another machine."""
    world.producer.inject(SLOW, x=SLOW_SECONDS)
    until(lambda: any(s.kind == SLOW for s in world.ledger.sent), world)
    slow = next(s.number for s in world.ledger.sent if s.kind == SLOW)
    until(lambda: sum((c.number or 0) > slow for c in world.ledger.outputs) > 20, world)
    time.sleep(0.3)
    world.subject.kill()
    (world.folder / "state" / "0" / "answered.ring").unlink()
    world.subject.package = world.next_release
    world.subject.start()


def letters_away(world: World) -> None:
    """A folder stands where the dead letters' log is, until rows have failed."""
    log = world.server.folder / "letters.log.db"
    aside = log.with_name("aside")
    log.rename(aside)
    log.mkdir()
    world.producer.inject(POISON)
    until(lambda: any(s.kind == POISON for s in world.ledger.sent), world)
    poison = next(s.number for s in world.ledger.sent if s.kind == POISON)
    before = [s.number for s in world.ledger.sent if s.number < poison]
    until(lambda: {c.number for c in world.ledger.outputs} >= set(before), world)
    time.sleep(0.5)
    log.rmdir()
    aside.rename(log)


def nothing(world: World) -> None:
    """Some time passes."""
    until(lambda: len(world.ledger.outputs) > 60, world)


def settled(world: World) -> bool:
    """Whether every row has come, or the stream says that none is left to do."""
    if not world.ledger.missing():
        return True
    lines = [json.loads(line) for line in world.subject.said().splitlines() if line.startswith("{")]
    urls = [line["url"] for line in lines if line["action"] == "ready"]
    try:
        for pause in (1.2, 0.3):  # the lag is asked for once a second
            with urllib.request.urlopen(f"{urls[-1]}/status", timeout=5) as answer:
                status = json.load(answer)
            if status["in_flight"] or status["lag"] != 0 or status["source"] != "up":
                return False
            time.sleep(pause)
    except OSError:
        return False
    return True


def judged(folder: Path, trials: Sequence[Callable[[World], None]], runtime: Path) -> Verdict:
    server = Embedded(folder / "broker")
    server.start()
    with World(server, folder, rate=RATE, runtime=runtime, lanes=2) as world:
        for trial in trials:
            trial(world)
        world.producer.stop()
        until(lambda: settled(world), world)
        time.sleep(0.5)  # for what comes late
        for consumer in world.consumers:
            consumer.stop()
    return world.ledger.verdict()


# --- What is spoilt --------------------------------------------------------------------------------------------------

COMMITTED_LATEST = """            for delivery in queue:
                if delivery.left <= 0:
                    self.committable[partition] = delivery.message.offset
"""
# name → file, text, what it becomes, what the stream goes through, the breach
PLANTS = {
    "acknowledged before it was published": (
        "stream/intake.py",
        "Delivery(message, id, now)",
        "Delivery(message, id, now, left=0)",
        killed_and_swapped,
        "lost",
    ),
    "the latest committed and not the prefix": (
        "stream/tracking.py",
        "            while queue and queue[0].left <= 0:\n",
        COMMITTED_LATEST + "            while queue and queue[0].left <= 0:\n",
        killed_and_swapped,
        "lost",
    ),
    "an error in publishing swallowed": (
        "stream/publishing.py",
        "            except Away as error:\n                now = time.monotonic()\n",
        "            except Away as error:\n                return {}\n                now = time.monotonic()\n",
        letters_away,
        "lost",
    ),
    "an id made from what a row says": (
        "stream/intake.py",
        "return self.ids.message(message.partition, message.offset)",
        "return self.ids.named(message.value)",
        nothing,
        "lost",
    ),
    "an id with the release in it": (  # a draft has no digest; its folder stands for it
        "stream/worker.py",
        'stage = "+".join(manifest.last)\n',
        'stage = "+".join(manifest.last) + self.options.package\n',
        killed_and_swapped,
        "renamed",
    ),
}


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder with a copy of the runtime that a test may spoil."""
    folder = tmp_path / "runtime"
    shutil.copytree(RUNTIME, folder / RUNTIME.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found(name: str, runtime: Path, tmp_path: Path) -> None:
    file, text, spoilt, trial, breach = PLANTS[name]
    source = runtime / RUNTIME.name / file
    assert source.read_text().count(text) == 1, "the plant has lost its place"
    source.write_text(source.read_text().replace(text, spoilt))
    verdict = judged(tmp_path, [trial], runtime)
    assert not verdict.kept
    assert getattr(verdict, breach), verdict.sentence()


def test_the_copy_as_it_is_keeps_the_promise_under_the_same_trials(runtime: Path, tmp_path: Path) -> None:
    verdict = judged(tmp_path, [nothing, letters_away, killed_and_swapped], runtime)
    assert verdict.kept, verdict.sentence()
    assert verdict.dead_letters == 1
    assert verdict.repeats > 0  # the plants that show in repeats had some to show in


def test_a_walk_gives_a_verdict_for_each_fault_and_says_what_can_not_be_tried(tmp_path: Path) -> None:
    faults = [
        Fault("quiet", "nothing is done", lambda world: None),
        Fault("unfit", "can't be done", lambda world: pytest.fail("it was tried"), lambda world: "no reason"),
    ]
    result = walk(Embedded(tmp_path / "broker"), tmp_path, faults=faults, rate=50.0)
    assert result.kept
    assert result.whole.rows_in > 0
    verdicts = {window.name: (window, verdict) for window, verdict in result.windows}
    assert verdicts["quiet"][1].rows_in > 0
    assert verdicts["unfit"][0].skipped == "no reason"
    assert any("not tried: no reason" in line for line in result.lines())
    assert {cell["fault"] for cell in result.to_json()["cells"]} == {"quiet", "unfit", "the whole run"}
