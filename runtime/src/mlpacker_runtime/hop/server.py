"""A stage worker: one process in one environment that loads stages and answers for them over a Unix socket.

`python -m mlpacker_runtime.hop.server --socket PATH --package FOLDER [--digest sha256:…] [--accepted]`
Its parent holds the other end of its standard input and it ends when that closes: no orphan outlives its parent.
A connection carries frames (see the package), one answer for each question, in order. Questions:
  {"op": "load", "stage": {…}, "accepted": bool}  → {"description": {…}}
  {"op": "predict", "stage": name, "want": […]|null} + batch → outcome
An error answers {"error": {"class", "sentence", "next_step", "facts"}}.
Standard library and NumPy only: it also runs in a user's training interpreter.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import errors
from ..batch import Batch
from ..formats import Description, Files, FolderFiles, Predictor
from ..loading import load_stage
from ..manifest import Stage, from_plain, to_plain
from . import PREFIX, decode, encode, encode_outcome, lengths


class StageWorker:
    """Loaded stages by name. One question at a time computes; the others wait their turn."""

    def __init__(self, files: Files, accepted: bool) -> None:
        self.files = files
        self.accepted = accepted
        self.stages: dict[str, Predictor] = {}
        self.loaded: dict[str, Stage] = {}
        self.turn = threading.Lock()

    def answer(self, header: dict[str, Any], batch: Batch | None) -> list[bytes | memoryview]:
        try:
            with self.turn:
                return self._answer(header, batch)
        except errors.MlpackerError as error:
            return encode({"error": error_value(error)})
        except Exception as cause:  # noqa: BLE001  a stage may raise anything
            said = f"{type(cause).__name__}: {cause}"
            return encode({"error": {"class": "ModelFailed", "sentence": said, "next_step": "", "facts": {}}})

    def _answer(self, header: dict[str, Any], batch: Batch | None) -> list[bytes | memoryview]:
        if header["op"] == "load":
            return encode({"description": to_plain(self._load(header))})
        want = header.get("want")
        if batch is None:
            raise errors.BadInput("A question without a batch.")
        predictor = self.stages[header["stage"]]
        return encode_outcome(predictor.predict(batch, None if want is None else frozenset(want)))

    def _load(self, header: dict[str, Any]) -> Description:
        """Load a stage, once: several processes may ask for the same one."""
        stage = from_plain(Stage, header["stage"], "stage")
        if self.loaded.get(stage.name) != stage:
            self.stages[stage.name] = load_stage(self.files, stage, self.accepted)
            self.loaded[stage.name] = stage
        return self.stages[stage.name].describe()


def error_value(error: errors.MlpackerError) -> dict[str, Any]:
    facts = {k: list(v) if isinstance(v, (tuple, set, frozenset)) else str(v) for k, v in error.facts.items()}
    return {
        "class": type(error).__name__,
        "sentence": error.sentence,
        "next_step": error.next_step,
        "facts": facts,
    }


def error_from(value: dict[str, Any]) -> errors.MlpackerError:
    kind = getattr(errors, value["class"], errors.ModelFailed)
    error: errors.MlpackerError = kind(value["sentence"], value["next_step"], **value["facts"])
    return error


def read_exactly(connection: socket.socket, count: int) -> bytearray | None:
    """`count` bytes, or None at the end of the stream."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return data


def read_frame(connection: socket.socket) -> tuple[dict[str, Any], Batch | None] | None:
    prefix = read_exactly(connection, PREFIX.size)
    if prefix is None:
        return None
    head, body = lengths(prefix)
    text = read_exactly(connection, head)
    tensors = read_exactly(connection, body)
    return None if text is None or tensors is None else decode(bytes(text), tensors)


def write_frame(connection: socket.socket, pieces: list[bytes | memoryview]) -> None:
    if sum(len(p) for p in pieces) < 1 << 16:
        connection.sendall(b"".join(pieces))
        return
    for piece in pieces:
        connection.sendall(piece)


def serve(path: str, worker: StageWorker, ready: Callable[[], None]) -> None:
    """Answer connections until the process ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        old = os.umask(0o177)
        listener.bind(path)
        os.umask(old)
        listener.listen(64)
        ready()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_converse, args=(connection, worker), daemon=True).start()


def _converse(connection: socket.socket, worker: StageWorker) -> None:
    with connection:
        try:
            while (frame := read_frame(connection)) is not None:
                write_frame(connection, worker.answer(*frame))
        except (OSError, errors.BadInput) as error:
            sys.stderr.write(f"stage worker: a connection ended: {error}\n")


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def files_of(package: Path, digest: str | None) -> Files:
    if digest is None:
        return FolderFiles(package)
    from ..package import Package

    return Package.open(package, digest)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="mlpacker-runtime stages", description="Answer for stages over a Unix socket."
    )
    parser.add_argument("--socket", required=True)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--digest")
    parser.add_argument("--accepted", action="store_true", help="this machine accepted the package's code")
    options = parser.parse_args(argv)
    answers = os.dup(1)
    os.dup2(2, 1)  # what a model prints must not be taken for our word
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = StageWorker(files_of(options.package, options.digest), options.accepted)
    serve(options.socket, worker, lambda: os.close(answers) if os.write(answers, b"ready\n") else None)


if __name__ == "__main__":
    main()
