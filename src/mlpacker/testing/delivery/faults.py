"""What is done to a stream while it runs. Each fault is a name and a function; what can't be done to a broker says why."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ledger import BROKEN, CRASH, POISON, SLOW
from .subject import send_signal

if TYPE_CHECKING:
    from .walk import World

LONGER = 1.5
"""Seconds beyond a session."""


@dataclass(frozen=True)
class Fault:
    """says: what happens, for the report. unfit: why it can't be tried in this world, else nothing."""

    name: str
    says: str
    run: Callable[[World], None]
    unfit: Callable[[World], str] = lambda world: ""


def _killed_worker(world: World) -> None:
    for _ in range(2):
        world.subject.kill_worker()
        time.sleep(1.5)


def _killed_all(world: World) -> None:
    world.subject.kill()
    world.subject.start()


def _killed_stage_worker(world: World) -> None:
    for pid in world.subject.workers("mlpacker_runtime.hop.server"):
        send_signal(pid, signal.SIGKILL)


def _stopped(world: World) -> None:
    world.subject.pause()
    time.sleep(world.settings.session + LONGER)
    world.subject.resume()


def _replaced(world: World) -> None:
    second = world.second()
    second.start()
    world.until_reads(second)
    world.subject.pause()
    time.sleep(world.settings.session + LONGER)
    world.subject.resume()
    time.sleep(1)
    world.subject.stop()
    time.sleep(1)
    world.subject.start()
    world.until_reads(world.subject)
    second.stop()


def _killed_broker(world: World) -> None:
    world.server.kill()
    time.sleep(0.5)
    world.server.start()


def _cut(world: World) -> None:
    for ends in (("in",), ("out",), ("in", "out")):
        for end in ends:
            world.proxies[end].cut()
        time.sleep(1)
        for end in ends:
            world.proxies[end].mend()
        time.sleep(0.3)


def _hung(world: World) -> None:
    for end in ("in", "out"):
        world.proxies[end].hang()
    time.sleep(2)
    for end in ("in", "out"):
        world.proxies[end].mend()


def _slow(world: World) -> None:
    world.producer.inject(SLOW, x=world.settings.session + LONGER)
    time.sleep(1)


def _poison(world: World) -> None:
    for _ in range(5):
        world.producer.inject(POISON)
    time.sleep(0.5)


def _crash(world: World) -> None:
    world.producer.inject(CRASH)
    time.sleep(0.5)


def _malformed(world: World) -> None:
    world.producer.inject(BROKEN)
    world.producer.inject(BROKEN, size=world.settings.max_message + 1)
    world.producer.inject(BROKEN)
    time.sleep(0.5)


def _letters_away(world: World) -> None:
    world.proxies["letters"].cut()
    world.producer.inject(POISON)
    world.producer.inject(POISON)
    time.sleep(1.5)
    world.proxies["letters"].mend()


def _swapped(world: World) -> None:
    world.subject.kill()
    world.subject.package = world.next_release
    world.subject.start()
    time.sleep(1)
    world.subject.swap(world.package)


def _vanished(world: World) -> None:
    world.subject.stop()
    world.server.forget("in", world.settings.reads_as)
    world.subject.start()


def _needs_proxy(world: World) -> str:
    return "" if world.proxies else "no connection to cut"


def _needs_second(world: World) -> str:
    return "" if world.shareable else "one process on one machine reads"


def _needs_forget(world: World) -> str:
    return "" if hasattr(world.server, "forget") else "it has no groups to forget"


def _needs_process(world: World) -> str:
    return "" if hasattr(world.server, "kill") else "no broker process to kill"


FAULTS = (
    Fault("worker killed", "SIGKILL of the reading process in mid-batch, twice", _killed_worker),
    Fault("all killed", "SIGKILL of every process of the stream at once, and a new start", _killed_all),
    Fault("model process killed", "SIGKILL of the process that holds the model", _killed_stage_worker),
    Fault("worker stopped", "SIGSTOP for longer than the session", _stopped),
    Fault(
        "replica added and removed",
        "a second replica takes over from a stopped first, and gives back",
        _replaced,
        _needs_second,
    ),
    Fault(
        "broker killed", "SIGKILL of the broker, and a new start on its data", _killed_broker, _needs_process
    ),
    Fault(
        "connection cut",
        "connections reset, and refused for 1 s: the source's, the sink's, both",
        _cut,
        _needs_proxy,
    ),
    Fault("connection hung", "nothing passes for 2 s, and nobody is told", _hung, _needs_proxy),
    Fault("slow model", "a row that takes longer than the session", _slow),
    Fault("poison rows", "rows that the stage raises on", _poison),
    Fault("crashing row", "a row that kills the process that scores it", _crash),
    Fault("malformed messages", "bytes that are no row, and a message larger than allowed", _malformed),
    Fault(
        "dead letters away", "the dead letters' topic can't be written for 1.5 s", _letters_away, _needs_proxy
    ),
    Fault("swap", "killed, and started with another release; then swapped back in peace", _swapped),
    Fault("group vanished", "the group's place is deleted at the broker", _vanished, _needs_forget),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
