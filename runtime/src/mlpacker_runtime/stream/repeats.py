"""What was lately answered, kept on this machine's disk, so that most repeats after a crash are dropped and not answered twice.

A ring of message ids in a mapped file: an id enters when its answers are confirmed, and outlives this process (not a power
cut, which costs repeats and no rows). Beside it, how far each partition was committed: what is delivered from before that was
asked for by somebody who moved the group's place back, and is no repeat. It narrows repeats and promises none.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

from ..errors import EnvironmentFailed
from .ids import SIZE

PLACES = 1 << 17
HEADER = 16


class Repeats:
    """folder: of the deployment's state. Ids enter from the publisher's thread, the rest is the reader's."""

    def __init__(self, folder: Path, places: int = PLACES) -> None:
        self.places = places
        self.file = _map(folder / "answered.ring", HEADER + places * SIZE)
        self.next = int.from_bytes(self.file[:8], "little") % places
        self.known: dict[bytes, int] = {}
        for place in range(places):
            start = HEADER + place * SIZE
            id = self.file[start : start + SIZE]
            if any(id):
                self.known[id] = place
        self.committed_file = folder / "committed.json"
        self.committed = _read_committed(self.committed_file)

    def answered(self, *ids: bytes) -> None:
        """From the publisher's thread: all answers of these messages are confirmed."""
        file, known, place = self.file, self.known, self.next
        for id in ids:
            start = HEADER + place * SIZE
            gone = file[start : start + SIZE]
            if known.get(gone) == place:
                del known[gone]
            file[start : start + SIZE] = id
            known[id] = place
            place = place + 1 if place + 1 < self.places else 0
        self.next = place
        file[:8] = place.to_bytes(8, "little")

    def is_repeat(self, id: bytes, incarnation: str, partition: str, offset: int) -> bool:
        return id in self.known and offset > self.committed.get(f"{incarnation}/{partition}", -1)

    def commit(self, incarnation: str, finished: dict[str, int]) -> None:
        """The broker took this commit."""
        for partition, offset in finished.items():
            self.committed[f"{incarnation}/{partition}"] = offset
        draft = self.committed_file.with_suffix(".new")
        try:
            draft.write_text(json.dumps(self.committed))
            draft.replace(self.committed_file)
        except OSError:
            return  # a full disk costs repeats, and no row

    def close(self) -> None:
        self.file.close()


def _map(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, 0)
            _reserve(descriptor, size)
        return mmap.mmap(descriptor, size)
    except OSError as cause:
        raise EnvironmentFailed(
            f"{path} can't be made: {cause.strerror}.", "Make room on that disk."
        ) from cause
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, size: int) -> None:
    """Its place on the disk: a mapped page that finds none later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _read_committed(path: Path) -> dict[str, int]:
    try:
        value = json.loads(path.read_text())
        return {str(k): int(v) for k, v in value.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # nothing is known to be committed: a repeat more, no row less
