"""The demo counts what it says: a reading that is lost, answered wrongly or buried unjustly is noticed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parent.parent.parent / "examples" / "demo_stream.py"
MEASURES = {"firmware": "2.1", "battery": "3.5", "mean_radius": "12.4"}
SHIFT = [
    {"sensor": "bolt-001", "measured_at": "2026-03-02T06:00:00", **MEASURES},
    {"sensor": "", "measured_at": "2026-03-02T06:01:00", **MEASURES},
    {"sensor": "bolt-002", "measured_at": "2026-03-02T06:02:00", **MEASURES},
]
JUDGED = [{"row": "0", "predict": "safe"}, {"row": "2", "predict": "unsafe"}]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_stream", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class Room:
    """What a control room has collected."""

    def __init__(self, answers: dict[str, dict[str, str]], count: int) -> None:
        self.answers = answers
        self.count = count


def right(sent: list[Any]) -> Room:
    answers = {s.name: {f"id-{n}": s.label} for n, s in enumerate(sent) if s.label is not None}
    return Room(answers, len(answers))


def buried(sent: list[Any]) -> list[dict[str, object]]:
    return [{"value": s.body.decode()} for s in sent if s.poison]


def test_all_readings_answered_or_buried_is_nothing_lost(demo: ModuleType) -> None:
    sent = demo.days_of(SHIFT, JUDGED)
    told = demo.count(sent, right(sent), buried(sent))
    days = len(demo.DAYS)
    assert (told.sent, told.answered, told.left_out, told.dead) == (3 * days + 1, 2 * days, days, 1)
    assert (told.repeats, told.lost, told.wrong) == (0, (), ())


def test_no_two_readings_that_must_be_answered_have_one_name(demo: ModuleType) -> None:
    sent = [s for s in demo.days_of(SHIFT, JUDGED) if s.label is not None or s.poison]
    assert len({s.name for s in sent}) == len(sent)
    assert all(json.loads(s.body)["measured_at"] == s.name for s in sent)


def test_a_reading_without_an_answer_is_lost(demo: ModuleType) -> None:
    sent = demo.days_of(SHIFT, JUDGED)
    room = right(sent)
    gone = next(iter(room.answers))
    del room.answers[gone]
    assert demo.count(sent, room, buried(sent)).lost == (gone,)


def test_a_poison_reading_that_is_nowhere_is_lost(demo: ModuleType) -> None:
    sent = demo.days_of(SHIFT, JUDGED)
    (poison,) = [s.name for s in sent if s.poison]
    assert demo.count(sent, right(sent), []).lost == (poison,)


def test_a_sound_reading_among_the_dead_letters_is_wrong(demo: ModuleType) -> None:
    sent = demo.days_of(SHIFT, JUDGED)
    letters = [*buried(sent), {"value": sent[0].body.decode()}]
    assert demo.count(sent, right(sent), letters).wrong == (sent[0].name,)


@pytest.mark.parametrize("given", [{"id-0": "unsafe"}, {"id-0": "safe", "id-other": "safe"}])
def test_another_answer_or_a_second_id_is_wrong(demo: ModuleType, given: dict[str, str]) -> None:
    sent = demo.days_of(SHIFT, JUDGED)
    room = right(sent)
    room.answers[sent[0].name] = given
    assert demo.count(sent, room, buried(sent)).wrong == (sent[0].name,)


def test_an_answer_that_came_twice_under_one_id_is_a_repeat_and_no_more(demo: ModuleType) -> None:
    sent = demo.days_of(SHIFT, JUDGED)
    room = right(sent)
    room.count += 1
    told = demo.count(sent, room, buried(sent))
    assert (told.repeats, told.lost, told.wrong) == (1, (), ())


def test_everything_of_a_process_is_killed(demo: ModuleType) -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], start_new_session=True); print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert demo.kill_all(process.pid) == 2
    assert process.wait(10) == -9
    process.stdout.close()
    end = (
        time.monotonic() + 30
    )  # a killed process is gone, or waits to be asked how it ended, as soon as it runs once more
    while not _gone(demo, child):
        assert time.monotonic() < end
        time.sleep(0.02)


def _gone(demo: ModuleType, pid: int) -> bool:
    try:
        return pid not in demo._parents() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return True
