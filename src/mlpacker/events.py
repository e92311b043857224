"""What long work says while it goes on. The console draws it, a script ignores it."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    """Called from the thread that works. Must not raise."""

    def step(self, title: str) -> None:
        """A new step begins; the one before has ended well."""

    def progress(self, done: int, total: int | None) -> None:
        """How far the present step is, in whatever unit it counts (bytes, rows); total None where unknown."""

    def note(self, text: str) -> None:
        """Something decided on the user's behalf, worth a line."""

    def warn(self, text: str) -> None:
        """Something that may surprise later, worth a line that stands out."""


class Silent:
    """Says nothing."""

    def step(self, title: str) -> None: ...

    def progress(self, done: int, total: int | None) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...
