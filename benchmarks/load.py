"""Load on one server: wrk, from another core, over the loopback."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from machine import Cores, Process, on_core

HERE = Path(__file__).parent
START_SECONDS = 90
POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Ask:
    """One request."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Figures:
    """rate in requests a second, p50 and p99 in milliseconds, failed: answers that were errors or never came."""

    rate: float
    p50: float
    p99: float
    failed: int


class NoAnswer(Exception):
    """The server never answered; says its last words."""


def ask(port: int, what: Ask, timeout: float = 30) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", what.path, what.body, what.headers)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def first_answer(
    process: Process, port: int, what: Ask, right: Callable[[Answer], bool], began: float
) -> float:
    """Seconds from `began` until the server gives the right answer. Raises NoAnswer."""
    last: object = "nothing"
    while time.perf_counter() - began < START_SECONDS and not process.ended:
        try:
            answer = ask(port, what)
        except OSError as cause:
            last = cause
        except http.client.HTTPException as cause:
            last = cause
        else:
            if right(answer):
                return time.perf_counter() - began
            last = answer
        time.sleep(POLL_SECONDS)
    raise NoAnswer(f"no right answer ({str(last)[:300]}). Its last words: {process.last_words()}")


def all_at_once(port: int, asks: Sequence[Ask]) -> list[Answer]:
    """Every request, 16 at a time: batches form, and each answer must still be its own."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda one: ask(port, one), asks))


def write_bodies(asks: Sequence[Ask], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, one in enumerate(asks):
        (folder / str(n)).write_bytes(one.body)


def press(
    port: int, asks: Sequence[Ask], folder: Path, cores: Cores, connections: int, seconds: float
) -> Figures:
    """`seconds` of load (whole ones) over keep-alive connections. The bodies were written to `folder` before."""
    env = os.environ | {
        "BENCH_BODIES": str(folder),
        "BENCH_COUNT": str(len(asks)),
        "BENCH_HEADERS": "\n".join(f"{k}: {v}" for k, v in asks[0].headers.items()),
    }
    argv = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{round(seconds)}s",
        "--timeout",
        "20s",
        "-s",
        str(HERE / "post.lua"),
    ]
    url = f"http://127.0.0.1:{port}{asks[0].path}"
    done = subprocess.run(
        on_core(cores.load, [*argv, url]),
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if done.returncode:
        raise NoAnswer(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Figures(said["requests"] / said["seconds"], said["p50"], said["p99"], said["failed"])
