"""Compare `mlpacker run` with its peers, side by side on this machine. Run: make bench

Each contestant has a virtual environment of its own with compiled bytecode, one worker, and one core; the load comes from
the other core. Rounds are interleaved, every round starts every server anew, and no server is timed before its answers were
compared with scikit-learn's. Writes docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import load
import machine
import report
from contestants import CEILING, MODELS, SCIKIT_LEARN, Contestant, Place, every_one

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / ".bench"
WARM_SECONDS = 1


@dataclass(frozen=True)
class Workload:
    """rows: of one request. asks: how many different requests take turns."""

    name: str
    title: str
    rows: int
    asks: int
    rounds: int
    seconds: float


WORKLOADS = (
    Workload("W1", "a scaler and a logistic regression, one row of 30 floats a request", 1, 64, 3, 2),
    Workload("W2", "a forest of 100 trees, one row of 30 floats a request", 1, 64, 3, 2),
    Workload("W3", "a scaler and a logistic regression, 1,000 rows of 30 floats a request", 1000, 4, 3, 3),
)


@dataclass
class Results:
    """Per workload and contestant a list of rounds; reasons for those that could not take part."""

    rounds: dict[tuple[str, str], list[report.Round]] = field(default_factory=dict)
    packs: dict[str, report.Pack] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def main() -> int:
    if sys.argv[1:2] == ["streams"]:
        import streams  # it builds on this module

        return streams.main()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # an exit unwinds, and so stops the server under load
    options = _options()
    missing = machine.missing_tools()
    if missing:
        print(f"Not here: {', '.join(missing)}. On Debian: apt-get install wrk util-linux", file=sys.stderr)
        return 1
    began = time.monotonic()
    WORK.mkdir(exist_ok=True)
    (WORK / ".gitignore").write_text("*\n")
    results = Results()
    workloads = [w for w in WORKLOADS if w.name in options.workloads]
    chosen = [
        c for c in every_one() if not options.only or any(o.lower() in c.name.lower() for o in options.only)
    ]
    try:
        training = _venv("training", SCIKIT_LEARN)
        _train(training)
    except (OSError, subprocess.SubprocessError) as cause:
        print(f"The models can't be trained: {_reason(cause)}", file=sys.stderr)
        return 1
    ready = _installed(chosen, training, results)
    fields = [_field(w, ready, training, results, options) for w in workloads]
    _rounds(fields, results, began + options.minutes * 60, options.quick)
    text = report.write(
        results.rounds, results.packs, results.skipped, results.versions, workloads, every_one()
    )
    before = options.out.read_text() if options.out.exists() else ""
    options.out.write_text(report.with_section(text, report.section_of(before)))
    (WORK / "results.json").write_text(json.dumps(report.plain(results.rounds, results.packs), indent=1))
    print(f"\n{text}\nWritten to {options.out}. Took {(time.monotonic() - began) / 60:.1f} minutes.")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare mlpacker with its peers on this machine.")
    parser.add_argument(
        "--minutes", type=float, default=13, help="start no round that would end later (default 13)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round a workload: does everything still answer?"
    )
    parser.add_argument(
        "--workloads", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="W", help="of W1 W2 W3"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="contestants whose name contains one of these"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    return parser.parse_args()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _venv(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of a cached environment that holds exactly these requirements, bytecode compiled."""
    folder = WORK / "venvs" / name
    python, mark = folder / "bin" / "python", folder / "requirements"
    wanted = "\n".join(requirements)
    if mark.exists() and mark.read_text() == wanted:
        return python
    uv, env = machine.uv(Path(sys.executable)), machine.environment({})
    say(f"making the environment of {name}")
    for argv in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *requirements],
    ):
        subprocess.run(argv, check=True, env=env, capture_output=True, text=True, timeout=600)
    mark.write_text(wanted)
    return python


def _train(python: Path) -> None:
    argv = [str(python), str(HERE / "train.py"), str(WORK / "models")]
    subprocess.run(argv, check=True, env=machine.environment({}), capture_output=True, text=True, timeout=300)


def _installed(
    chosen: Sequence[Contestant], training: Path, results: Results
) -> list[tuple[Contestant, Path]]:
    ready = []
    for contestant in chosen:
        if contestant.name in results.skipped:
            continue
        try:
            python = (
                _venv(contestant.venv, contestant.requirements) if contestant.venv else Path(sys.executable)
            )
        except (OSError, subprocess.SubprocessError) as cause:
            _skip(contestant, cause, results)
        else:
            ready.append((contestant, python))
            results.versions |= _versions(contestant, python)
    return ready


def _versions(contestant: Contestant, python: Path) -> dict[str, str]:
    """The version of what the contestant is named after, and of scikit-learn."""
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    asked = [
        contestant.venv or "mlpacker",
        *(["uvicorn", "scikit-learn"] if contestant.venv == "fastapi" else []),
    ]
    found = {}
    for name in asked:
        done = subprocess.run([str(python), "-c", code, name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = done.stdout.strip()
    return found


def _skip(contestant: Contestant, cause: Exception, results: Results) -> None:
    reason = _reason(cause)
    results.skipped[contestant.name] = reason
    say(f"  skipping {contestant.name}: {reason}")


def _reason(cause: Exception) -> str:
    """The last line of what a failed command said, else the error's own words."""
    said = getattr(cause, "stderr", None) or str(cause)
    said = said.decode(errors="replace") if isinstance(said, bytes) else said
    return (said.strip().splitlines() or [type(cause).__name__])[-1].strip()[-400:]


@dataclass(frozen=True)
class Field:
    """Who takes part in a workload, prepared; and its rows with scikit-learn's labels."""

    workload: Workload
    takers: Sequence[tuple[Contestant, Place]]
    known: dict[str, list]


def _field(
    workload: Workload,
    ready: Sequence[tuple[Contestant, Path]],
    training: Path,
    results: Results,
    options: argparse.Namespace,
) -> Field:
    source = WORK / "models" / MODELS[workload.name]
    takers = [
        (c, _place(c, python, source, training))
        for c, python in ready
        if not c.workloads or workload.name in c.workloads
    ]
    for contestant, place in takers:
        _prepare(contestant, place, workload, results, options)
    return Field(workload, takers, json.loads((source / "rows.json").read_text()))


def _rounds(fields: Sequence[Field], results: Results, until: float, quick: bool) -> None:
    """The first round of every workload, then the second, and so on, as long as the next is likely to end in time."""
    took: dict[str, float] = {}
    for number in range(1 if quick else max(f.workload.rounds for f in fields)):
        for field_ in fields:
            workload = field_.workload
            began = time.monotonic()
            if number >= workload.rounds or (number and began + took[workload.name] > until):
                continue
            say(f"{workload.name}, round {number + 1}")
            takers = field_.takers[
                :: -1 if number % 2 else 1
            ]  # back and forth: a drift of the machine meets all alike
            _every_taker(replace(field_, takers=takers), results, 1 if quick else workload.seconds)
            took[workload.name] = time.monotonic() - began


def _every_taker(field_: Field, results: Results, seconds: float) -> None:
    for contestant, place in field_.takers:
        if contestant.name in results.skipped:
            continue
        began = time.monotonic()
        try:
            done = _round(contestant, place, field_.workload, field_.known, seconds)
        except (OSError, load.NoAnswer, WrongAnswer, subprocess.SubprocessError) as cause:
            _skip(contestant, cause, results)
        else:
            results.rounds.setdefault((field_.workload.name, contestant.name), []).append(done)
            say(f"  {contestant.name}: {done.rate:,.0f} requests/s ({time.monotonic() - began:.0f} s)")


def _place(contestant: Contestant, python: Path, source: Path, training: Path) -> Place:
    folder = WORK / "places" / (contestant.venv or "mlpacker") / source.name
    folder.mkdir(parents=True, exist_ok=True)
    return Place(python, folder, source, training)


_prepared: set[tuple[str, str]] = set()


def _prepare(
    contestant: Contestant, place: Place, workload: Workload, results: Results, options: argparse.Namespace
) -> None:
    """Once for a place; and, in the first workload, the timing of packing (3 times, warm)."""
    if contestant.name in results.skipped:
        return
    mark = (
        str(place.folder),
        contestant.prepare.__qualname__ + contestant.name.split(",")[-1] * bool(contestant.venv),
    )
    try:
        if mark not in _prepared:
            contestant.prepare(place)
            _prepared.add(mark)
    except (OSError, subprocess.SubprocessError) as cause:
        _skip(contestant, cause, results)
        return
    if contestant.pack is not None and workload.name == "W1":
        try:
            results.packs[contestant.name] = _pack(contestant, place, 1 if options.quick else 3)
        except (OSError, subprocess.SubprocessError) as cause:
            say(f"{contestant.name} can't be packed: {_reason(cause)}")


def _pack(contestant: Contestant, place: Place, times: int) -> report.Pack:
    assert contestant.pack is not None
    seconds = []
    for n in range(1, times + 1):
        began = time.perf_counter()
        where = contestant.pack(place, n)
        seconds.append(time.perf_counter() - began)
    return report.Pack(seconds, machine.size(where))


class WrongAnswer(Exception):
    """The server answered, but not what scikit-learn answers."""


@contextmanager
def _server(
    contestant: Contestant, place: Place, port: int, cores: machine.Cores
) -> Iterator[machine.Process]:
    start = contestant.start(place, port)
    log = place.folder / f"{contestant.name.replace(', ', '-').replace(' ', '-')}.log"
    process = machine.Process(
        machine.on_core(cores.server, start.argv), machine.environment(start.env), place.folder, log
    )
    try:
        yield process
    finally:
        process.stop()


def _round(
    contestant: Contestant, place: Place, workload: Workload, known: dict[str, list], seconds: float
) -> report.Round:
    """One start, one check, one warm-up, one measurement."""
    cores, port = machine.cores(), machine.free_port()
    slices = [slice(n * workload.rows, (n + 1) * workload.rows) for n in range(workload.asks)]
    if workload.rows > 1:  # the same thousand rows, begun elsewhere
        turned = [known["rows"][n:] + known["rows"][:n] for n in range(workload.asks)]
        labels = [known["labels"][n:] + known["labels"][:n] for n in range(workload.asks)]
    else:
        turned, labels = [known["rows"][s] for s in slices], [known["labels"][s] for s in slices]
    asks = [contestant.ask(rows) for rows in turned]
    constant = contestant.kind == CEILING

    def right(answer: load.Answer, wanted: list[float] = labels[0]) -> bool:
        return answer.status == 200 and (constant or contestant.labels(answer) == wanted)

    bodies = place.folder / "bodies"
    load.write_bodies(asks, bodies)
    with machine.myself_on_core(cores.load):
        began = time.perf_counter()
        with _server(contestant, place, port, cores) as process:
            cold = load.first_answer(process, port, asks[0], right, began)
            for answer, wanted in zip(load.all_at_once(port, asks), labels, strict=True):
                if not right(answer, wanted):
                    raise WrongAnswer(f"{answer.status}: {answer.body[:200]!r} where {wanted[:5]} was right")
            load.press(port, asks, bodies, cores, 64, WARM_SECONDS)
            used = machine.memory(process.popen.pid)
            many = load.press(port, asks, bodies, cores, 64, seconds)
            one = load.press(port, asks, bodies, cores, 1, max(1, seconds - 1))
    return report.Round(many.rate, many.p50, many.p99, one.p50, one.p99, cold, used, many.failed + one.failed)


if __name__ == "__main__":
    sys.exit(main())
