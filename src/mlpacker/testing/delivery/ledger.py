"""The ledger: what was sent, what came back, and what that says. Pure: no broker, no clock.

A row is (number, key): numbers rise through the whole run, and within a key too. `inputs = outputs + dead letters` must hold, first
occurrences must rise within a key, only rows that fail by themselves may be dead letters, and an id must name one row: the same
at every repeat, another for a twin (two messages of equal bytes are two rows).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SOUND, POISON, CRASH, SLOW, BROKEN = "sound", "poison", "crash", "slow", "broken"
DEADLY = (POISON, CRASH, BROKEN)
"""Kinds of rows that must become dead letters."""


@dataclass(frozen=True)
class Sent:
    """A row whose broker confirmed it. copies: messages of it that were confirmed (a twin has 2). attempts: those that were
    sent at all, the producer's own repetitions included."""

    number: int
    key: str
    kind: str = SOUND
    copies: int = 1
    attempts: int = 1


@dataclass(frozen=True)
class Came:
    """An answer or a dead letter as the ledger's consumer read it, in order. number: None where it can't be told."""

    number: int | None
    id: str


@dataclass(frozen=True)
class Verdict:
    """lost, wrong: numbers. repeats: answers beyond the first of an id. renamed: rows that have more ids than messages.
    inversions: (key, number that came late, number before it)."""

    rows_in: int
    rows_out: int
    dead_letters: int
    lost: tuple[int, ...] = ()
    repeats: int = 0
    renamed: tuple[int, ...] = ()
    inversions: tuple[tuple[str, int, int], ...] = ()
    unjustly_buried: tuple[int, ...] = ()
    wrongly_answered: tuple[int, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the promise was."""
        return not (
            self.lost or self.renamed or self.inversions or self.unjustly_buried or self.wrongly_answered
        )

    def sentence(self) -> str:
        said = f"{self.rows_in} in, {self.rows_out} out, {self.dead_letters} dead letters, {self.repeats} repeats, {len(self.lost)} lost"
        for name in ("renamed", "inversions", "unjustly_buried", "wrongly_answered"):
            found = getattr(self, name)
            said += f", {len(found)} {name.replace('_', ' ')} {list(found[:5])}" if found else ""
        return said + (f" {list(self.lost[:10])}" if self.lost else "")


@dataclass(frozen=True)
class Window:
    """The rows that were sent while a fault was on, or soon after. end: exclusive. skipped: why it could not be tried."""

    name: str
    start: int
    end: int
    skipped: str = ""


@dataclass
class Ledger:
    """What is known so far. journalled: the source has no offsets, so a message delivered again is another row to the stream."""

    journalled: bool = False
    ordered: bool = True
    sent: list[Sent] = field(default_factory=list)
    outputs: list[Came] = field(default_factory=list)
    letters: list[Came] = field(default_factory=list)

    def missing(self) -> int:
        """Rows that are neither answered nor buried yet, twins counted twice."""
        found = _ids(self.outputs, self.letters)
        return sum(max(s.copies - len(found.get(s.number, ())), 0) for s in self.sent)

    def verdict(self, window: Window | None = None) -> Verdict:
        sent = [s for s in self.sent if window is None or window.start <= s.number < window.end]
        return check(sent, self.outputs, self.letters, journalled=self.journalled, ordered=self.ordered)


def check(
    sent: Sequence[Sent],
    outputs: Sequence[Came],
    letters: Sequence[Came],
    *,
    journalled: bool = False,
    ordered: bool = True,
) -> Verdict:
    """The verdict on these rows."""
    rows = {s.number: s for s in sent}
    out = [c for c in outputs if c.number in rows]
    dead = [c for c in letters if c.number in rows]
    answered, found = _ids(out, ()), _ids(out, dead)
    counted = Counter(c.id for c in out)
    renamed = [n for n, s in rows.items() if not journalled and len(found.get(n, ())) > s.attempts]
    return Verdict(
        rows_in=sum(s.copies for s in sent),
        rows_out=len(counted),
        dead_letters=len({c.id for c in dead}),
        lost=tuple(n for n, s in rows.items() if len(found.get(n, ())) < s.copies),
        repeats=sum(counted.values()) - len(counted),
        renamed=tuple(renamed),
        inversions=tuple(_inversions(rows, out)) if ordered else (),
        unjustly_buried=tuple(
            sorted({c.number for c in dead if c.number is not None and rows[c.number].kind not in DEADLY})
        ),
        wrongly_answered=tuple(sorted(n for n, s in rows.items() if s.kind in DEADLY and n in answered)),
    )


def _ids(outputs: Iterable[Came], letters: Iterable[Came]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = defaultdict(set)
    for came in (*outputs, *letters):
        if came.number is not None:
            found[came.number].add(came.id)
    return found


def _inversions(rows: dict[int, Sent], outputs: Sequence[Came]) -> Iterable[tuple[str, int, int]]:
    """Judged on first occurrences: a repeat may come late."""
    seen: set[int] = set()
    last: dict[str, int] = {}
    for came in outputs:
        number = came.number
        if number is None or number in seen:
            continue
        seen.add(number)
        key = rows[number].key
        if number < last.get(key, -1):
            yield key, number, last[key]
        last[key] = max(number, last.get(key, -1))
