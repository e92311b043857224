"""The embedded log as a broker of the kit's: nothing runs, so nothing of it can be killed."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class Embedded:
    name = "local"

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder

    @classmethod
    def missing(cls) -> str | None:
        return None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        """Nothing runs."""

    def make(self, topic: str, partitions: int = 1) -> None:
        """A log is made when it is opened."""

    def address(self, topic: str, **options: str) -> str:
        return f"local:{topic}?path={self.folder}"

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"
