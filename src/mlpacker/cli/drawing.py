"""What a person sees while work goes on: steps with their time on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Drawn:
    """Events drawn on stderr. A context manager, so that an interrupted bar leaves the terminal whole.

    quiet: only warnings, which a script's owner wants to find in its log too.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.title = ""
        self.began = 0.0
        self.task: TaskID | None = None

    def step(self, title: str) -> None:
        self._finish()
        self.title, self.began = title, time.monotonic()
        self.task = self.bars.add_task(title, total=None)

    def progress(self, done: int, total: int | None) -> None:
        if self.task is not None:
            self.bars.update(self.task, completed=done, total=total)

    def note(self, text: str) -> None:
        if self.console.is_terminal and self.task is not None:
            self.bars.update(self.task, description=f"{self.title} [dim]{text}[/]")

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]![/] {text}")

    def _finish(self, ok: bool = True) -> None:
        if not self.title:
            return
        if self.task is not None:
            self.bars.remove_task(self.task)
        mark = "[green]✓[/]" if ok else "[red]✗[/]"
        if not self.quiet:
            self.console.print(f"{mark} {self.title} [dim]{time.monotonic() - self.began:.1f} s[/]")
        self.title, self.task = "", None

    def __enter__(self) -> Drawn:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._finish(kind is None)
        self.bars.stop()
        sys.stderr.flush()


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
