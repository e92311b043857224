"""The whole way in under two minutes: train, pack, serve, ask, score, stream. Run: make demo

Training is a plain scikit-learn script in an environment that has never heard of mlpacker. Everything lies in .demo/ and
everything started is stopped again, also by Ctrl-C.
"""

from __future__ import annotations

import csv
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from demo_stream import ControlRoom, Count, Gateway, count, days_of, kill_all
from rich.console import Console
from rich.markup import escape

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".demo"
EXAMPLE = "mine-safety"
TOOLS = Path(sys.executable).parent
INSTALL_SECONDS = PACK_SECONDS = 600
SECONDS = 120

console = Console(highlight=False)


class Failed(Exception):
    """A step did not do what it should; says what it said."""


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    console.print("\n  [bold]MLPacker[/]  from a training script to answers\n")
    began = time.monotonic()
    try:
        _walk()
    except KeyboardInterrupt:
        console.print("\n  Stopped; nothing is left running.\n")
        return 130
    except Failed as reason:
        console.print(f"  [bold red]✗[/] {escape(str(reason))}\n", soft_wrap=True)
        return 1
    _what_next(time.monotonic() - began)
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _walk() -> None:
    folder = _fresh_copy()
    python = WORK / "training" / "bin" / "python"
    with step("install", "scikit-learn and pandas, to train with") as done:
        uv = str(TOOLS / "uv")
        _run(
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(WORK / "training")],
            INSTALL_SECONDS,
        )
        _run(
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                str(python),
                "-r",
                str(folder / "requirements.txt"),
            ],
            INSTALL_SECONDS,
        )
        done(f"{', '.join(_installed(python))}, to train with; no mlpacker")
    with step("train", f"python {EXAMPLE}/train.py") as done:
        done(_run([str(python), "train.py"], SECONDS, folder).strip())
    with step("pack", "mlpacker pack -f pipeline.yaml") as done:
        packed = json.loads(
            _mlpacker(
                ["pack", "-f", "pipeline.yaml", "--python", str(python), "--json"], folder, PACK_SECONDS
            )
        )
        proof = packed["proof"]
        done(
            f"{len(packed['stages'])} stages, {proof['verdict']} on {proof['rows']} rows  [dim]{packed['digest'][:19]}[/]"
        )
    with server(folder) as url:
        _ask(url, folder)
    with step("score", "mlpacker score shift.csv") as done:
        _mlpacker(["score", EXAMPLE, "shift.csv", "-o", "judged.csv"], folder, SECONDS)
        asked, judged = _lines(folder / "shift.csv"), _lines(folder / "judged.csv")
        unsafe = sum(row["predict"] == "unsafe" for row in judged)
        done(
            f"shift.csv, {len(asked)} readings: {unsafe} unsafe, {len(asked) - len(judged)} dropped as faulty"
        )
    _stream(folder)


def _fresh_copy() -> Path:
    """The example in a folder of its own, so that a clone stays as it was."""
    shutil.rmtree(WORK, ignore_errors=True)
    folder = WORK / EXAMPLE
    shutil.copytree(
        ROOT / "examples" / EXAMPLE,
        folder,
        ignore=shutil.ignore_patterns("*.joblib", "*.csv", "*.jsonl", "__pycache__"),
    )
    (WORK / ".gitignore").write_text("*\n")
    return folder


def _ask(url: str, folder: Path) -> None:
    """One reading as plain JSON, then three in one V2 body, one of them faulty."""
    readings = _lines(folder / "sample.csv")
    faulty = next(r for r in readings if not r["sensor"])
    sound = [r for r in readings if all(r.values()) and "-999.0" not in r.values()][:2]
    with step("ask", "POST /predict") as done:
        answer, took = _post(url, "/predict", _typed(sound[0]))
        label, chance = _label(answer)
        done(f"POST /predict, a reading in plain JSON: [bold]{label}[/]{chance}, {took:.0f} ms")
    with step("ask", "POST /v2/models/…/infer") as done:
        body = {"inputs": _tensors([*sound, faulty]), "outputs": [{"name": "predict"}]}
        answer, took = _post(url, f"/v2/models/{EXAMPLE}/infer", body)
        outputs = {o["name"]: o["data"] for o in answer["outputs"]}
        rows = outputs.get("row", range(len(outputs["predict"])))
        labels = dict(zip(rows, outputs["predict"], strict=True))
        told = ", ".join(labels.get(n, "dropped") for n in range(3))
        done(f"POST /v2/…/infer, three in one body: [bold]{told}[/], {took:.0f} ms")


def _stream(folder: Path) -> None:
    """Readings in, alerts out, over the embedded log; everything is killed in the middle, and then it is counted."""
    logs = WORK / "home" / "logs"
    sent = days_of(_lines(folder / "shift.csv"), _lines(folder / "judged.csv"))
    gateway, room = Gateway(logs, sent), ControlRoom(logs)
    with ExitStack() as running:
        with step("stream", "mlpacker stream, from local:readings to local:alerts") as done:
            process, _ = running.enter_context(stream(folder))
            done("mlpacker stream: local:readings in, local:alerts out, nothing to install")
        with step("kill", "kill -9, in the middle of the readings") as done:
            gateway.start()
            _until(lambda: room.collect() > len(sent) // 3, "a third of the alerts", process)
            killed = kill_all(process.pid)
            process, url = running.enter_context(stream(folder))
            done(
                f"kill -9 of all {killed} processes after {room.collect():,} alerts, while more came in; started again"
            )
        with step("letter", "mlpacker dlq ls, once the stream has caught up") as done:
            _until(lambda: gateway.done and _idle(url), "the stream to catch up", process)
            letters = _letters(folder)
            done(f"mlpacker dlq: the poison one, with its reason: {escape(_reason(letters))}")
        with step("count", "every reading that was sent") as done:
            _until(lambda: room.collect() == room.collect(), "the last alerts", process)
            told = count(sent, room, letters)
            _judge(told)
            again = f", {told.repeats} came twice, under the same id" if told.repeats else ""
            done(
                f"{told.sent:,} readings in: {told.answered:,} alerts, {told.left_out} dropped as faulty, "
                f"{told.dead} dead letter: [bold]{len(told.lost)} lost[/]{again}"
            )


def _reason(letters: Sequence[Mapping[str, Any]]) -> str:
    return str(letters[0]["reason"]) if letters else "none, though there should be one"


def _idle(url: str) -> bool:
    """Whether the stream has read all there is and finished it, as it says itself."""
    state = _get(url, "/status")
    return state["lag"] == 0 and state["in_flight"] == 0


def _until(reached: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while not reached():
        if process.poll() is not None or time.monotonic() > end:
            raise Failed(
                f"Waited for {what} in vain:\n{_last((WORK / 'stream.log').read_text(errors='replace'))}"
            )
        time.sleep(0.05)


def _letters(folder: Path) -> list[dict[str, Any]]:
    """The stream's dead letters, each with its message; the newest few where there are many."""
    told = json.loads(_mlpacker(["dlq", "ls", EXAMPLE, "--limit", "5", "--json"], folder, SECONDS))
    ids = [letter["id"] for letter in told["letters"]]
    return [json.loads(_mlpacker(["dlq", "show", EXAMPLE, i, "--json"], folder, SECONDS)) for i in ids]


def _judge(told: Count) -> None:
    """Raises Failed where a reading was lost, or answered otherwise than `mlpacker score` does."""
    if told.lost:
        raise Failed(f"{len(told.lost)} readings were lost, as the one of {told.lost[0]}.")
    if told.wrong:
        raise Failed(f"{len(told.wrong)} readings were answered wrongly, as the one of {told.wrong[0]}.")


def _label(answer: Any) -> tuple[str, str]:
    """The label in an answer of /predict, and how sure the model is where it says so."""
    first = answer[0] if isinstance(answer, list) else answer
    if not isinstance(first, dict):
        return str(first), ""
    return str(
        first["predict"]
    ), f" ({max(first['predict_proba']):.1%} sure)" if "predict_proba" in first else ""


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


TEXTS = ("sensor", "measured_at", "firmware")


def _typed(reading: Mapping[str, str]) -> dict[str, object]:
    return {k: (v or None) if k in TEXTS else float(v or "nan") for k, v in reading.items()}


def _tensors(readings: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """One tensor a column, as the Open Inference Protocol writes them."""
    rows = [_typed(r) for r in readings]
    return [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": "BYTES" if name in TEXTS else "FP64",
            "data": [r[name] for r in rows],
        }
        for name in rows[0]
    ]


def _post(url: str, path: str, body: object) -> tuple[Any, float]:
    """The answer's JSON and how many milliseconds it took. Raises Failed for anything but a 200."""
    began = time.perf_counter()
    answer = _request(url, "POST", path, json.dumps(body))
    return answer, (time.perf_counter() - began) * 1000


def _get(url: str, path: str) -> Any:
    return _request(url, "GET", path)


def _request(url: str, method: str, path: str, body: str | None = None) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        said = response.read()
    except (OSError, http.client.HTTPException) as cause:
        raise Failed(f"{path} gave no answer: {cause}") from cause
    finally:
        connection.close()
    if response.status != 200:
        raise Failed(f"{path} answered {response.status}: {said.decode(errors='replace')[:500]}")
    return json.loads(said)


@contextmanager
def step(name: str, doing: str) -> Iterator[Any]:
    """One line of the story: what is being done while it is done, then what came of it and how long it took."""
    began = time.monotonic()
    told = [doing]
    with console.status(f"{name}: {escape(doing)} …") if console.is_terminal else _silence():
        yield lambda text: told.__setitem__(0, text)
    took = f"{time.monotonic() - began:.1f} s"
    console.print(f"  [green]✓[/] [bold cyan]{name:<8}[/][dim]{took:>7}[/]  {told[0]}", soft_wrap=True)


@contextmanager
def _silence() -> Iterator[None]:
    yield


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The package served on a free port until the block ends."""
    with ExitStack() as running:
        with step("serve", f"mlpacker run {EXAMPLE} --port 0") as done:
            argv = ["run", EXAMPLE, "--port", "0"]
            _, url = running.enter_context(_started(argv, folder, WORK / "server.log"))
            done(f"[link={url}/docs]{url}[/link]")
        yield url


def stream(folder: Path) -> AbstractContextManager[tuple[subprocess.Popen[bytes], str]]:
    """The package on a stream until the block ends; gives its process and the address of its status."""
    ends = ["--from", "local:readings", "--to", "local:alerts"]
    argv = ["stream", EXAMPLE, *ends, "--keep", "sensor", "--keep", "measured_at"]
    return _started(argv, folder, WORK / "stream.log")


@contextmanager
def _started(
    arguments: Sequence[str], folder: Path, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """What says when it is ready, and where, until the block ends."""
    with log.open("ab") as errors, _process([_tool(), *arguments], folder, errors) as process:
        yield process, _ready(process, log, _shown([_tool(), *arguments]))


def _ready(process: subprocess.Popen[bytes], log: Path, told: str) -> str:
    """The address on the server's ready line. Raises Failed where it ends, or says nothing in time."""
    watch = threading.Timer(SECONDS, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            words = line.decode().split()
            if words[:1] == ["ready"]:
                return words[1]
    finally:
        watch.cancel()
    raise Failed(f"{told} ended without being ready:\n{_last(log.read_text(errors='replace'))}")


@contextmanager
def _process(argv: Sequence[str], folder: Path, errors: int | IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own, ended with all its children when the block ends, however it ends."""
    process = subprocess.Popen(
        list(argv),
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for which in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, which)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        process.wait()


def _run(argv: Sequence[str], seconds: float, folder: Path = ROOT) -> str:
    """What a command prints. Raises Failed with its last words where it fails or takes too long."""
    with _process(argv, folder, subprocess.PIPE) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as cause:
            raise Failed(f"{_shown(argv)} was not done after {seconds:.0f} s.") from cause
    if process.returncode:
        raise Failed(f"{_shown(argv)} failed ({process.returncode}):\n{_last(err.decode(errors='replace'))}")
    return out.decode()


def _mlpacker(arguments: Sequence[str], folder: Path, seconds: float) -> str:
    return _run([_tool(), *arguments], seconds, folder)


def _tool() -> str:
    return str(TOOLS / "mlpacker")


def _environment() -> dict[str, str]:
    """Ours, with state inside .demo/, and nothing of the shell's that would change what is shown."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLPACKER_", "PYTHON", "VIRTUAL_ENV"))}
    return kept | {"MLPACKER_HOME": str(WORK / "home")}


def _installed(python: Path) -> list[str]:
    code = "import sklearn, pandas; print('scikit-learn', sklearn.__version__); print('pandas', pandas.__version__)"
    return _run([str(python), "-c", code], SECONDS).split("\n")[:2]


def _shown(argv: Sequence[str]) -> str:
    return " ".join([Path(argv[0]).name, *(a.replace(f"{ROOT}/", "") for a in argv[1:])])


def _last(text: str, lines: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _what_next(seconds: float) -> None:
    tool, here = _relative(TOOLS / "mlpacker"), _relative(WORK)
    console.print(f"\n  All of it took {seconds:.0f} s and lies in {here}.")
    console.print("  The data stand in for a mine's: they are scikit-learn's own.\n")
    console.print("  [bold]Try next[/]")
    tries = (
        (f"export MLPACKER_HOME={here}/home", "where the demo keeps its packages"),
        (f"{tool} run {EXAMPLE}", "then open http://127.0.0.1:8080/docs"),
        (f"{tool} inspect {EXAMPLE}", "what it holds, what was proven"),
        (f"{tool} dlq ls {EXAMPLE}", "the dead letter; then dlq show, dlq replay"),
        (f"{tool} stream {EXAMPLE} --from - --to -", "type a reading as JSON"),
        (f"{tool} pack YOUR.joblib --name mine", "your own model"),
    )
    width = max(len(command) for command, _ in tries)
    for command, why in tries:
        console.print(f"    {command:<{width}}  [dim]{why}[/]", soft_wrap=True)
    console.print()


def _relative(path: Path) -> str:
    """Short where the reader stands in the clone, as after `make demo`."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
