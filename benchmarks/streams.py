"""Compare `mlpacker stream` with what people write by hand and with other stream tools, on one broker, side by side.

Run: make bench ARGS=streams (or python benchmarks/streams.py --quick). Each contestant has one core, the broker the other.
A contestant is started and answers a few rows, is stopped (SIGSTOP) while its topic is filled, and goes on: timed from then to
the last answer's arrival, by the broker's own time. Nothing counts before all answers are there and are scikit-learn's, in order.
Writes the section Streams of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import machine
import report
import run
import stream_ends
from contestants import SCIKIT_LEARN
from report import AT_ONCE, BATCHED, HAND, OURS, USUAL, Age, Stream

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "stream_contestants"
MODEL = "linear"
WARM = 300
STARTS = 60.0
LABEL = re.compile(rb"predict\W+(\d)")
FRAMES = ("nats", "redis", "kafka")


@dataclass(frozen=True)
class Taker:
    """kind: see `report`. script: its file and mode; none is ours. field: under which a Redis entry carries a row.
    module: Bytewax runs it."""

    name: str
    kind: str
    broker: str
    venv: str = ""
    requirements: tuple[str, ...] = ()
    script: tuple[str, ...] = ()
    field: bytes = stream_ends.FIELD
    module: bool = False
    flags: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        return self.kind != USUAL


CLIENTS = (
    "nats-py>=2.9,<3",
    "redis>=5",
    "confluent-kafka>=2.6",
    SCIKIT_LEARN[0],
    "msgspec>=0.18",
)
FASTSTREAM = ("faststream[nats,redis,confluent]>=0.6,<0.7", SCIKIT_LEARN[0])
QUIX = ("quixstreams>=3,<4", SCIKIT_LEARN[0])
BYTEWAX = ("bytewax[kafka]>=0.21", SCIKIT_LEARN[0])
CLIENT = {"nats": "nats-py", "redis": "redis-py", "kafka": "confluent-kafka"}


def takers(broker: str) -> list[Taker]:
    """Who takes part, in the order of the table."""
    written, framework = f"written_{broker}.py", f"faststream_{broker}.py"
    name, enveloped = CLIENT[broker], b"__data__"
    found = [
        Taker("mlpacker", OURS, broker),
        Taker(f"{name} in batches, no model", USUAL, broker, "clients", CLIENTS, (written, "through")),
        Taker(f"{name}, by hand", AT_ONCE, broker, "clients", CLIENTS, (written, "one")),
        Taker(f"{name} in batches, by hand", HAND, broker, "clients", CLIENTS, (written, "batch")),
        Taker("FastStream", AT_ONCE, broker, "faststream", FASTSTREAM, (framework, "one"), enveloped),
        Taker(
            "FastStream in batches",
            BATCHED,
            broker,
            "faststream",
            FASTSTREAM,
            (framework, "batch"),
            enveloped,
        ),
    ]
    if broker == "kafka":
        found += [
            Taker("Quix Streams", AT_ONCE, broker, "quix", QUIX, ("quix.py", "one")),
            Taker("Bytewax", AT_ONCE, broker, "bytewax", BYTEWAX, ("bytewax_flow.py", "one"), module=True),
            Taker(
                "Bytewax in batches",
                BATCHED,
                broker,
                "bytewax",
                BYTEWAX,
                ("bytewax_flow.py", "batch"),
                module=True,
            ),
        ]
    return found


@dataclass
class Results:
    rates: dict[tuple[str, str], list[Stream]] = field(default_factory=dict)
    ages: dict[tuple[str, str], list[Age]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class TooFew(Exception):
    """Not all answers came, or not the right ones."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    if missing := [t for t in machine.missing_tools() if t != "wrk"]:
        print(f"Not here: {', '.join(missing)}. On Debian: apt-get install util-linux", file=sys.stderr)
        return 1
    began = time.monotonic()
    run.WORK.mkdir(exist_ok=True)
    (run.WORK / ".gitignore").write_text("*\n")
    results = Results()
    bench = _prepared(options, results)
    for broker in options.brokers:
        why = stream_ends.missing(broker)
        if why:
            results.skipped[broker] = why
            continue
        with tempfile.TemporaryDirectory(prefix="bench-streams-") as folder:
            _broker(broker, Path(folder), bench, options, results)
    text = report.streams(results.rates, results.ages, results.skipped, results.versions)
    if not options.only:
        page = options.out.read_text() if options.out.exists() else "# Benchmarks\n"
        options.out.write_text(report.with_section(page, text))
    plain = report.plain_streams(results.rates, results.ages)
    (run.WORK / "streams.json").write_text(json.dumps(plain, indent=1))
    print(f"\n{text}\nTook {(time.monotonic() - began) / 60:.1f} minutes.")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare mlpacker's streams with their peers on this machine."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=30_000, help="of those that work in batches (default 30000)"
    )
    parser.add_argument("--few", type=int, default=2_000, help="rows of those one at a time (default 2000)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the age at 1,000 rows/s (default 8)")
    parser.add_argument("--quick", action="store_true", help="one round of fewer rows")
    parser.add_argument("--brokers", nargs="+", default=list(FRAMES), choices=list(FRAMES), metavar="BROKER")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="contestants whose name contains one of these"
    )
    parser.add_argument("--out", type=Path, default=run.ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args([a for a in sys.argv[1:] if a != "streams"])
    if options.quick:
        options.rounds, options.rows, options.few, options.seconds = 1, 15_000, 800, 4.0
    return options


# --- What is there before anything is timed ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """model: the file. home: where ours is packed. rows: messages, with scikit-learn's labels."""

    model: Path
    home: Path
    bodies: Sequence[bytes]
    labels: Sequence[int]
    pythons: dict[str, Path]

    def rows(self, count: int) -> list[bytes]:
        return list(itertools.islice(itertools.cycle(self.bodies), count))

    def wanted(self, count: int) -> list[int]:
        return list(itertools.islice(itertools.cycle(self.labels), count))


def _chosen(broker: str, options: argparse.Namespace) -> list[Taker]:
    only = [o.lower() for o in options.only]
    return [t for t in takers(broker) if not only or any(o in t.name.lower() for o in only)]


def _prepared(options: argparse.Namespace, results: Results) -> Bench:
    training = run._venv("training", SCIKIT_LEARN)
    run._train(training)
    folder = run.WORK / "models" / MODEL
    pythons: dict[str, Path] = {}
    for taker in (t for b in options.brokers for t in _chosen(b, options) if t.venv):
        if taker.venv not in pythons:
            pythons[taker.venv] = run._venv(taker.venv, taker.requirements)
            for requirement in taker.requirements:
                _note_version(requirement, pythons[taker.venv], results)
    home = run.WORK / "places" / "mlpacker-stream"
    _pack(folder, home, training)
    _note_version("mlpacker", Path(sys.executable), results)
    known = json.loads((folder / "rows.json").read_text())
    bodies = [json.dumps(row).encode() for row in known["rows"]]
    return Bench(folder / "model.joblib", home, bodies, known["labels"], pythons)


def _note_version(requirement: str, python: Path, results: Results) -> None:
    name = re.split(r"[\[<>=]", requirement)[0]
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    done = subprocess.run([str(python), "-c", code, name], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        results.versions[name] = done.stdout.strip()


def _mlpacker() -> str:
    return str(Path(sys.executable).parent / "mlpacker")


def _pack(model: Path, home: Path, training: Path) -> None:
    """Ours, as a user does: packed once, and its environment made by the first start."""
    if (home / "packed").exists() and (home / "packed").read_text() == str(model.stat().st_mtime):
        return
    words = [_mlpacker(), "pack", str(model / "model.joblib"), "--name", MODEL, "--version", "v0"]
    words += ["--sample", str(model / "sample.csv"), "--python", str(training)]
    env = machine.environment({"MLPACKER_HOME": str(home)})
    subprocess.run(words, check=True, env=env, capture_output=True, text=True, timeout=600)
    (home / "packed").write_text(str(model.stat().st_mtime))


# --- One broker -------------------------------------------------------------------------------------------------------


def _broker(broker: str, folder: Path, bench: Bench, options: argparse.Namespace, results: Results) -> None:
    """All rounds over a broker that is started once; back and forth, so that a drift of the machine meets all alike."""
    numbers = itertools.count()
    with (
        machine.myself_on_core(machine.cores().load),
        contextmanager(stream_ends.started)(broker, folder) as ends,
    ):
        run.say(ends.server.version())
        name, _, version = ends.server.version().rpartition(" ")
        results.versions[name] = version
        entered = _chosen(broker, options)
        for number in range(options.rounds):
            for taker in entered[:: -1 if number % 2 else 1]:
                _measure(taker, Stage(bench, ends, folder, next(numbers)), options, results)


def _measure(taker: Taker, stage: Stage, options: argparse.Namespace, results: Results) -> None:
    label = f"{taker.name} over {taker.broker}"
    if label in results.skipped:
        return
    try:
        done = stage.rate(taker, options.few if taker.kind == AT_ONCE else options.rows)
        results.rates.setdefault((taker.broker, taker.name), []).append(done)
        run.say(f"  {label}: {done.rate:,.0f} rows/s, {done.core:,.1f} µs of the core a row")
        if taker.broker != "kafka":
            for number, paced in enumerate(_paced(taker)):
                age = replace(stage, number=stage.number + 10_000 * (number + 1)).age(paced, options.seconds)
                results.ages.setdefault((taker.broker, paced.name), []).append(age)
                run.say(f"    {paced.name} at 1,000 rows/s: p50 {age.p50:.2f} ms, p99 {age.p99:.2f} ms")
    except (OSError, TooFew, subprocess.SubprocessError) as cause:
        results.skipped[label] = str(cause)
        run.say(f"  skipping {label}: {cause}")


def _paced(taker: Taker) -> list[Taker]:
    """How a contestant is run whose answers' age is measured."""
    if taker.kind == USUAL:
        return [replace(taker, script=(taker.script[0], "paced"), name=taker.name.replace(" in batches", ""))]
    if taker.kind == OURS:
        return [taker, replace(taker, flags=("--wait", "2"), name=f"{taker.name} --wait 2")]
    return []


@dataclass(frozen=True)
class Stage:
    """One measurement: topics of its own."""

    bench: Bench
    ends: stream_ends.Ends
    folder: Path
    number: int

    @property
    def topics(self) -> tuple[str, str]:
        return f"in-{self.number}", f"out-{self.number}"

    def rate(self, taker: Taker, count: int) -> Stream:
        """From going on to the last answer's arrival."""
        source, sink = self.topics
        with self._running(taker) as process:
            with _stopped(process):
                self.ends.fill(source, self.bench.rows(WARM + count)[WARM:], taker.field)
                used, began = machine.core_seconds(process.popen.pid), time.time()
            self._await(process, sink, WARM + count, 10.0 + count / 150)
            used = machine.core_seconds(process.popen.pid) - used
        answers = self.ends.read(sink, WARM + count)
        self._check(taker, [m.value for m in answers], WARM + count)
        return Stream(taker.kind, count / (answers[-1].time - began), used / count * 1e6)

    def age(self, taker: Taker, seconds: float) -> Age:
        """From a row's time in the broker to its answer's, at 1,000 rows/s; the first second does not count."""
        source, sink = self.topics
        count = int(seconds * 1000)
        with self._running(taker) as process:
            _pace(self.ends.sender(source, taker.field), self.bench.rows(WARM + count)[WARM:])
            self._await(process, sink, WARM + count, 15.0)
        came, went = self.ends.read(source, WARM + count), self.ends.read(sink, WARM + count)
        self._check(taker, [m.value for m in went], WARM + count)
        ages = sorted(
            (b.time - a.time) * 1000 for a, b in zip(came, went, strict=True) if a.time > came[WARM].time + 1
        )
        return Age(statistics.median(ages), ages[int(len(ages) * 0.99)])

    @contextmanager
    def _running(self, taker: Taker) -> Iterator[machine.Process]:
        """Started, and warm: it has answered the first rows."""
        for topic in self.topics:
            self.ends.make(topic)
        self.ends.fill(self.topics[0], self.bench.rows(WARM), taker.field)
        argv, env = self._command(taker)
        log = run.WORK / "places" / f"stream-{taker.broker}-{re.sub(r'[^a-z]+', '-', taker.name.lower())}.log"
        process = machine.Process(
            machine.on_core(machine.cores().server, argv), machine.environment(env), self.folder, log
        )
        try:
            self._await(process, self.topics[1], WARM, STARTS)
            time.sleep(0.3)
            yield process
        finally:
            process.stop()

    def _command(self, taker: Taker) -> tuple[list[str], dict[str, str]]:
        source, sink = self.topics
        server = self.ends.server
        if not taker.script:
            words = [_mlpacker(), "stream", f"{MODEL}:v0", "--name", f"bench-{self.number}", *taker.flags]
            words += ["--outputs", "predict"]
            words += ["--from", server.address(source), "--to", server.address(sink)]
            return words, {"MLPACKER_HOME": str(self.bench.home)}
        python, script = self.bench.pythons[taker.venv], SCRIPTS / taker.script[0]
        env = {
            "BENCH_PORT": str(server.port),
            "BENCH_SOURCE": source,
            "BENCH_SINK": sink,
            "BENCH_MODEL": str(self.bench.model),
            "BENCH_MODE": taker.script[1],
        }
        if taker.module:
            return [str(python), "-m", "bytewax.run", script.stem], {**env, "PYTHONPATH": str(SCRIPTS)}
        return [str(python), str(script), taker.script[1]], env

    def _await(self, process: machine.Process, topic: str, count: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (there := self.ends.count(topic)) < count:
            if process.ended or time.monotonic() > end:
                said = process.last_words(1)
                raise TooFew(f"{there} of {count} answers in {seconds:.0f} s. {said}")
            time.sleep(0.05)

    def _check(self, taker: Taker, bodies: Sequence[bytes], count: int) -> None:
        if len(bodies) != count:
            raise TooFew(f"{len(bodies)} answers to {count} rows.")
        if not taker.labelled:
            return
        found = [int(m[1]) if (m := LABEL.search(b)) else -1 for b in bodies]
        if found != self.bench.wanted(count):
            raise TooFew("The answers are not scikit-learn's, in the order of the rows.")


@contextmanager
def _stopped(process: machine.Process) -> Iterator[None]:
    """Nothing of it runs meanwhile."""
    family = machine.tree(process.popen.pid)
    _signal(family, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(family, signal.SIGCONT)


def _signal(family: Sequence[int], which: signal.Signals) -> None:
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, which)


def _pace(send: Callable[[Sequence[bytes]], object], bodies: Sequence[bytes]) -> None:
    """A thousand a second: at each turn what is due."""
    began, sent = time.monotonic(), 0
    while sent < len(bodies):
        due = min(len(bodies), int((time.monotonic() - began) * 1000))
        if due > sent:
            send(bodies[sent:due])
            sent = due
        time.sleep(0.001)


if __name__ == "__main__":
    sys.exit(main())
