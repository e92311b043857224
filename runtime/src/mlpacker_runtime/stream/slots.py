"""Which replica of the group this process is, on this machine: the lowest number nobody else holds.

Each has a folder of its own for what must outlive it (journal, spool, what was answered), with one writer by flock, and its
successor takes it over: the group's members keep their names, and what a dead one left is found.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
from pathlib import Path

MOST = 64


def machine(state: Path) -> str:
    """A short name of this machine's part in the deployment, the same at every start."""
    told = f"{socket.gethostname()}\0{state.absolute()}"
    return hashlib.blake2b(told.encode(), digest_size=4).hexdigest()


class Slot:
    """A held folder. number: the replica's."""

    def __init__(self, folder: Path, number: int, descriptor: int) -> None:
        self.folder = folder
        self.number = number
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


def take(state: Path, *, only_first: bool) -> Slot | None:
    """The lowest free slot; None where all are held. only_first: one process at a time reads, the others stand by."""
    for number in range(1 if only_first else MOST):
        folder = state / str(number)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return Slot(folder, number, descriptor)
    return None
