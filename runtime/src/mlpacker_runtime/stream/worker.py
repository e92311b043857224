"""A stream's process: reads, asks the stage workers, publishes, commits; and answers for its numbers and its health.

`python -m mlpacker_runtime.stream.worker`, started by the supervisor only, as a REST worker is: one line of JSON on standard input
(its orders), which stays open as long as the supervisor lives. It says on the descriptor `status` that it reads, that its source
has an end and it came there, or why it never will. No model is loaded here.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import brokers, errors
from ..brokers import Sink, Source
from ..engine import Engine
from ..formats import Files
from ..hop.client import StageConnection
from ..hop.server import error_value
from ..rest import served
from ..rest.connection import Bounds, Connections
from ..rest.v2 import refuse
from ..rest.worker import open_package
from ..serve import Options, from_json
from ..telemetry.log import Log, logger
from ..telemetry.numbers import Timed
from . import payloads, slots
from . import settings as settings_of
from .door import Door
from .job import Ends, Job
from .journal import Journal
from .letters import Letter, outgoing
from .numbers import StreamNumbers
from .patience import Patient
from .publishing import Outlet
from .repeats import Repeats
from .scoring import Lane, Wording
from .spool import Spool

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the others from running: messages pass through three."""
COLLECTED = (50_000, 20, 100)
"""What lives for a batch has no cycles: looking for them after every 700 objects took a tenth of the time."""
STANDBY_SECONDS = 0.5


class Stream:
    """Everything one stream process works with."""

    def __init__(
        self, orders: dict[str, Any], options: Options, log: Log, say: Callable[[dict[str, Any]], None]
    ) -> None:
        assert options.stream is not None
        self.options = options
        self.settings = settings_of.from_value(options.stream)
        self.log = log
        self.say = say
        files, self.manifest = open_package(options)
        self.reference = served(self.manifest, options.digest).reference
        self.stopping = threading.Event()
        self.slot = self._slot()
        self.settings = replace(
            self.settings,
            dead_letters=self.settings.letters,  # of the deployment, not of the slot
            member=f"{slots.machine(Path(self.settings.state))}-{self.slot.number}",
            state=str(self.slot.folder),
        )
        about = {
            "name": self.manifest.name,
            "version": self.manifest.version or "1",
            "digest": options.digest or "",
        }
        self.numbers = StreamNumbers(Path(orders["folder"]), [s.name for s in self.manifest.stages], about)
        self.repeats = Repeats(self.slot.folder)
        self.job = self._job(orders, files)
        self.listener = socket.socket(fileno=orders["listen"]) if orders.get("listen") is not None else None
        self.seen = (0, time.monotonic())

    def _slot(self) -> slots.Slot:
        """Ours, as soon as there is one. Where only one process may read, the others wait for its end."""
        source = settings_of.placed(self.settings.source, self.settings)
        alone = bool(brokers.get(source.scheme).journalled) and self.settings.ordered
        said = False
        while (slot := slots.take(Path(self.settings.state), only_first=alone)) is None:
            if not said:
                said = True
                self.log("standing by", reason="Another process reads for this deployment.")
            if self.stopping.wait(STANDBY_SECONDS):
                raise errors.MlpackerError("Stopped while standing by.")
        return slot

    # --- how it is put together -----------------------------------------------------------------------------------------

    def _job(self, orders: dict[str, Any], files: Files) -> Job:
        settings, manifest = self.settings, self.manifest
        stage = "+".join(manifest.last)
        about = {"deployment": settings.name, "package": self.options.digest or "", "source": settings.source}
        engines = [self._engine(orders["sockets"], lane) for lane in range(settings.lanes)]
        wording = Wording(
            package=self.options.digest or "",
            stage=stage,
            encoder=payloads.encoder(settings.answer, manifest.outputs, settings.answer_options),
            keep=settings.keep,
            key=settings.key,
            in_payload=not self._sink_has_headers(),
        )
        want = frozenset(settings.outputs) or None
        retries = 0 if any(s.stateful for s in manifest.stages) else settings.retries
        return Job(
            settings,
            Ends(self._source, self._sink, self._letters),
            [
                Lane(e, manifest.inputs, wording, want=want, retries=retries, pause=self.stopping.wait)
                for e in engines
            ],
            payloads.decoder(settings.payload, manifest.inputs, settings.payload_options),
            self.repeats,
            self.numbers,
            self.log,
            about=about,
            stage=stage,
            together=engines[0].shares_batches,
            opened=lambda: self.say({"ready": self.reference}),
        )

    def _engine(self, sockets: dict[str, str], lane: int) -> Engine:
        """Of one lane: each stage at the end of its environment's hop."""
        hops: dict[str, StageConnection] = {}
        found = {}
        for stage in self.manifest.stages:
            hop = hops.setdefault(
                stage.environment, StageConnection(sockets[lane_of(stage.environment, lane)])
            )
            hop.load(stage)
            patient = Patient(
                hop.runner(stage.name),
                self._ended,
                self.stopping.wait,
                again=not stage.stateful,
                together=stage.batch != "rows",
            )
            found[stage.name] = Timed(patient, stage.name, self.numbers, time.perf_counter)
        return Engine(self.manifest.stages, found)

    def _ended(self) -> bool:
        return self.job.ending.is_set()

    def _broker(self, text: str) -> tuple[Any, Any]:
        address = settings_of.placed(text, self.settings)
        return brokers.get(address.scheme), address

    def _source(self, job: Job) -> Source:
        broker, address = self._broker(self.settings.source)
        reading = settings_of.reading(self.settings)
        if not broker.journalled:
            source: Source = broker.source(address, reading, job)
            return source
        return Journal(
            Path(self.settings.state),
            lambda: broker.source(address, reading, job),
            bound=self.settings.journal,
            at=self.settings.source,
            log=self.log,
        )

    def _sink_has_headers(self) -> bool:
        broker, address = self._broker(self.settings.sink)
        told = getattr(broker, "has_headers", None)
        return told is None or bool(told(address))

    def _plain_sink(self) -> Sink:
        broker, address = self._broker(self.settings.sink)
        sink: Sink = broker.sink(address, self.settings.name)
        return sink

    def _sink(self) -> Sink:
        if not self.settings.spool:
            return self._plain_sink()
        return Spool(
            Path(self.settings.state),
            self._plain_sink,
            self._bury,
            bound=self.settings.spool,
            drop_oldest=self.settings.spool_full == "drop_oldest",
            at=self.settings.sink,
            log=self.log,
        )

    def _letters(self) -> Sink:
        broker, address = self._broker(self.settings.letters)
        sink: Sink = broker.sink(address, self.settings.name)
        return sink

    def _bury(self, letters: Sequence[Letter]) -> None:
        """Letters of the spool's own thread, confirmed on return."""
        about = {
            "deployment": self.settings.name,
            "package": self.options.digest or "",
            "source": self.settings.source,
        }
        outlet = Outlet(
            self.settings.letters, self._letters, self.log, stopped=self._ended, pause=self.job.ending.wait
        )
        try:
            outlet.publish([outgoing(letter, about) for letter in letters])
        finally:
            outlet.close()

    # --- the life of it -------------------------------------------------------------------------------------------------

    async def serve(self) -> int:
        """Until told to end, or at the end of a source that has one."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, stop.set)
        threading.Thread(target=_await_orphaned, args=(loop, stop), daemon=True).start()
        server, watch = None, None
        if self.listener is not None:
            door = Door(self._text, self.state, self.ready)
            connections = Connections(door, Bounds(), refuse, lambda status: None)
            server = await loop.create_server(connections, sock=self.listener, backlog=128)
            watch = loop.create_task(connections.watch())
        running = loop.run_in_executor(None, self.job.run, self.options.timeout)
        ended = loop.create_task(stop.wait())
        line = loop.create_task(self._look(loop))
        tasks: list[asyncio.Future[Any]] = [running, ended, line]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        late = line.done() and not running.done()
        self.stopping.set()
        self.job.stop()
        if late:
            self.log(
                "stuck",
                level="error",
                reason=f"No progress for {self.settings.watchdog:.0f} s with rows waiting.",
            )
            return 1
        try:
            await asyncio.wait_for(asyncio.shield(running), self.options.timeout + 5)
        except asyncio.TimeoutError:
            return 1
        finally:
            for task in (line, watch):
                if task is not None:
                    task.cancel()
            if server is not None:
                server.close()
        if self.job.ended:
            self.say({"done": self.reference})
        return 0

    async def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends when there is something to do and nothing has moved for too long."""
        from .line import Line

        shown = Line(sys.stderr)
        while True:
            await asyncio.sleep(0.5)
            self.numbers.gauges()
            self.numbers.set(self.numbers.spooled, getattr(self.job.answers.sink, "depth", 0))
            self.numbers.set(self.numbers.up, not self.job.answers.away_since, 1)
            self.numbers.set(self.numbers.up, not self.job.letters.away_since, 2)
            shown.show(self.state(), self.numbers)
            done = self.numbers.total_finished
            now = time.monotonic()
            if done != self.seen[0] or self.job.blocked or not self.job.due:
                self.seen = (done, now)
            elif self.settings.watchdog and now - self.seen[1] > self.settings.watchdog:
                return

    def _text(self) -> str:
        return self.numbers.text()

    def ready(self) -> bool:
        return not self.job.blocked and not self.numbers.get(self.numbers.lost)

    def state(self) -> dict[str, object]:
        settings = self.settings
        return {
            "package": self.reference,
            "deployment": settings.name,
            "member": settings.member,
            "from": settings.source,
            "to": settings.sink,
            **self.job.state(),
            "rows": {
                o: int(self.numbers.get(self.numbers.outcomes, i))
                for i, o in enumerate(("answered", "dropped", "failed"))
            },
        }


def lane_of(environment: str, lane: int) -> str:
    """The name of a lane's stage worker."""
    return environment if lane == 0 else f"{environment}#{lane}"


def _await_orphaned(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """The supervisor holds the other end; when that closes, we are alone."""
    while os.read(ORDERS, 4096):
        pass
    try:
        loop.call_soon_threadsafe(stop.set)
    except RuntimeError:
        os._exit(1)


ORDERS = 0
"""Where the supervisor's pipe is; moved away where standard input is a source of rows."""


def _streams(orders: dict[str, Any]) -> None:
    """Standard input and output as the person has them, where rows come or go there."""
    global ORDERS
    if orders.get("stdin") is not None:
        ORDERS = os.dup(0)
        os.dup2(orders["stdin"], 0)
    os.dup2(orders["stdout"] if orders.get("stdout") is not None else 2, 1)


def main(kind: type[Stream] = Stream) -> int:
    line = sys.stdin.buffer.raw.readline()  # type: ignore[union-attr]  # unbuffered: the thread reads the rest
    orders = json.loads(line)
    _streams(orders)
    sys.setswitchinterval(SWITCH_SECONDS)
    status = os.fdopen(orders["status"], "w")

    def say(value: dict[str, Any]) -> None:
        status.write(json.dumps(value) + "\n")
        status.flush()

    options = from_json(json.dumps(orders["options"]))
    log = logger(options.log)
    try:
        stream = kind(orders, options, log, say)
        gc.freeze()
        gc.set_threshold(*COLLECTED)
        code = asyncio.run(stream.serve())
    except errors.MlpackerError as error:
        log("failed", level="error", reason=error.sentence, next_step=error.next_step or None)
        say({"failed": error_value(error)})
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
