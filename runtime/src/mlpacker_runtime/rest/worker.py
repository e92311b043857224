"""An HTTP worker: one process that loads the package and answers on the supervisor's listening socket.

`python -m mlpacker_runtime.rest.worker`, started by the supervisor only. Standard input brings one line of JSON (its orders)
and stays open: when it closes the supervisor is gone, and the worker drains and ends. It says on the descriptor `status`
that it is ready, or why it never will be. What a model prints on standard output goes to standard error.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import errors
from ..batching import Batcher, Limits
from ..engine import Engine, Runner
from ..formats import Files, FolderFiles
from ..hop.client import StageConnection
from ..hop.server import error_value
from ..loading import load_stage
from ..manifest import PATH, Manifest, decode
from ..serve import Options, from_json
from ..telemetry.log import Log, logger
from ..telemetry.metrics import Metrics, Timed
from . import Served, sample, served
from .connection import Bounds, Connections
from .keys import read as read_keys
from .service import ROUTES, Service
from .v2 import refuse

WARM_UP_SECONDS = 0.3


def open_package(options: Options) -> tuple[Files, Manifest]:
    """Raises NotFound, StoreFailed or BadInput."""
    if options.digest is not None:
        from ..package import Package

        files: Files = Package.open(Path(options.package), options.digest)
    else:
        files = FolderFiles(Path(options.package))
    try:
        return files, decode(files.read(PATH))
    except FileNotFoundError as cause:
        raise errors.NotFound(f"{options.package} holds no {PATH}: it is no package.") from cause


def runners(
    options: Options, files: Files, manifest: Manifest, hops: Mapping[str, StageConnection]
) -> dict[str, Runner]:
    """Each stage's runner: loaded here, or at the end of its environment's hop. Raises what loading raises."""
    found: dict[str, Runner] = {}
    for stage in manifest.stages:
        hop = hops.get(stage.environment)
        if hop is None:
            found[stage.name] = load_stage(files, stage, options.accepted)
        else:
            hop.load(stage)
            found[stage.name] = hop.runner(stage.name)
    return found


def warm_up(served: Served, batcher: Batcher, service: Service) -> None:
    """Ask the pipeline the packed sample, so that the first client does not pay for it, and see what one row takes."""
    batch = sample.batch(served.sample, service.reader)
    if batch is None or batcher.stateful:
        return
    end = time.monotonic() + WARM_UP_SECONDS
    one = batch.take(slice(0, 1))
    batcher.engine.run(batch)
    batcher.engine.run(one)
    for _ in range(5):
        began = time.thread_time()
        batcher.engine.run(one)
        batcher.measured(time.thread_time() - began, 1)
        if time.monotonic() > end:
            return


class Worker:
    """Everything one process serves with."""

    def __init__(self, orders: dict[str, Any], options: Options, log: Log) -> None:
        self.options = options
        self.log = log
        self.listener = socket.socket(fileno=orders["listen"])
        self.slot = int(orders["slot"])
        files, manifest = open_package(options)
        self.served = served(manifest, options.digest, sample.read(files, manifest))
        about = {"name": self.served.name, "version": self.served.version, "digest": options.digest or ""}
        stages = [s.name for s in manifest.stages]
        self.metrics = Metrics(Path(orders["folder"]), self.slot, stages, ROUTES, about)
        self.hops = {name: StageConnection(path) for name, path in orders["sockets"].items()}
        found = runners(options, files, manifest, self.hops)
        self.engine = Engine(
            manifest.stages, {n: Timed(r, n, self.metrics, time.perf_counter) for n, r in found.items()}
        )
        self.stateful = any(s.stateful for s in manifest.stages)
        self.remote = any(s.environment in self.hops for s in manifest.stages)
        self.keys = read_keys(Path(options.api_key_file)) if options.api_key_file else None

    def healthy(self) -> bool:
        """Whether every stage can be asked. One at a hop that broke is looked for again."""
        return all(hop.reachable() for hop in self.hops.values())

    async def serve(self, say: Any) -> int:
        loop = asyncio.get_running_loop()
        limits = Limits(thread=True if self.remote else None, share=self.options.batching)
        batcher = Batcher(self.engine, loop, limits, stateful=self.stateful, seen=self.metrics.batch)
        service = Service(
            self.served,
            batcher,
            keys=self.keys,
            told=self.metrics,
            healthy=self.healthy,
            log=self.log,
            limit_rows=self.options.limit_rows,
            access_log=self.options.access_log,
        )
        warm_up(self.served, batcher, service)
        gc.collect()
        gc.set_threshold(20_000, 20, 100)  # requests leave no cycles behind; looking for them often is p99
        gc.freeze()  # what is loaded stays; the collector need not look at it again and again
        bounds = Bounds(max_body=self.options.max_body, body_seconds=self.options.timeout)
        connections = Connections(
            service, bounds, refuse, lambda status: self.metrics.request("connection", status, 0.0)
        )
        stop = asyncio.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, stop.set)
        threading.Thread(target=_await_orphaned, args=(loop, stop), daemon=True).start()
        server = await loop.create_server(connections, sock=self.listener, backlog=2048)
        watch = loop.create_task(
            connections.watch(each=lambda: self.metrics.gauge(len(connections.open), batcher.rows))
        )
        say({"ready": self.served.reference})
        await stop.wait()
        service.draining = True
        server.close()
        done = await connections.drain(self.options.timeout)
        watch.cancel()
        batcher.close()
        return 0 if done else 1


def _await_orphaned(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """The supervisor holds the other end of our standard input; when that closes, we are alone."""
    while os.read(0, 4096):
        pass
    try:
        loop.call_soon_threadsafe(stop.set)
    except RuntimeError:
        os._exit(1)


def main() -> int:
    line = sys.stdin.buffer.raw.readline()  # type: ignore[union-attr]  # unbuffered: the thread reads the rest
    orders = json.loads(line)
    status = os.fdopen(orders["status"], "w")
    os.dup2(2, 1)

    def say(value: dict[str, Any]) -> None:
        status.write(json.dumps(value) + "\n")
        status.flush()

    options = from_json(json.dumps(orders["options"]))
    log = logger(options.log, worker=orders["slot"])
    try:
        worker = Worker(orders, options, log)
    except errors.MlpackerError as error:
        say({"failed": error_value(error)})
        return 1
    except Exception as cause:  # noqa: BLE001  a library may raise anything while a model is built
        said = f"The package can't be loaded: {type(cause).__name__}: {cause}."
        say({"failed": error_value(errors.EnvironmentFailed(said))})
        return 1
    try:
        import uvloop

        run = uvloop.run if hasattr(uvloop, "run") else _run_on(uvloop)
    except ImportError:
        run = asyncio.run
    code: int = run(worker.serve(say))
    sys.stderr.flush()
    os._exit(code)  # a model's threads must not keep us


def _run_on(uvloop: Any) -> Any:
    def run(main: Any) -> Any:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        return asyncio.run(main)

    return run


if __name__ == "__main__":
    sys.exit(main())
