"""The date that requirements are resolved as of. It follows from them alone, never from the clock.

What a pin needs is resolved as of the pin's own time. `scikit-learn==1.2.2` allows today's NumPy and dies on importing
it; with the NumPy of spring 2023 it runs. And a lock made again next month must be the same.

Each requirement's version has a date, its first upload. The oldest date among those that need NumPy comes first
(compiled code is what breaks, and versions say better what they need at least than at most), then the later ones: the
first date as of which everything resolves is taken.
"""

from __future__ import annotations

import re
from datetime import date, timedelta

import msgspec

from mlpacker.environments.index import Found, Question, Wheel, ask, ask_text
from mlpacker.environments.lock import Requirements, pinned
from mlpacker.environments.uv import Unmet

# Raise it with each release: the runtime's own requirements are resolved as of this day.
RELEASED = date(2026, 11, 1)
GRACE = timedelta(days=2)  # a release's wheels and its companions are uploaded over hours, seldom over days
_DAY = timedelta(days=1)
# By when the common packages had wheels for a new Python; older pins with pure wheels resolve as of then on it.
_SETTLED = {
    "3.10": date(2022, 2, 1),
    "3.11": date(2023, 2, 1),
    "3.12": date(2024, 2, 1),
    "3.13": date(2025, 2, 1),
    "3.14": date(2026, 2, 1),
}


class Time(msgspec.Struct, frozen=True):
    """What is known of the requirements' time: the dates to try, in order; and the names that no date binds."""

    ladder: tuple[date | None, ...]
    free: frozenset[str]


def time_of(question: Question, wanted: Requirements, here: str) -> Time:
    """The time of the requirements, as the packing platform `here` sees it. Raises Unmet when they contradict each other."""
    pins = frozenset(pin[0] for pin in map(pinned, wanted.requirements) if pin)
    if wanted.as_of is not None:
        return Time((wanted.as_of,), pins)
    dates = _dates(question, wanted.requirements, pins)
    undated = frozenset(name for name, day in dates.items() if day is None)
    known = {name: day for name, day in dates.items() if day is not None}
    if undated - question.local and not known:
        question.progress("the index tells no upload times: resolved as of today, and pinned")
        return Time((None,), pins)
    return Time((*_ladder(question, wanted, here, known, pins), None), pins | undated)


def as_of_time(
    question: Question, wanted: Requirements, here: str, time: Time
) -> tuple[date | None, list[Found]]:
    """The first date of the ladder as of which the requirements resolve on `here`, and what they resolve to."""
    failure: Unmet | None = None
    for day in time.ladder:
        try:
            found = ask(question, wanted.requirements, here, day, free=time.free)
        except Unmet as error:
            failure = failure or error
            continue
        if day is None and failure is not None:
            question.progress(
                "the requirements can't be met as of their own time: resolved as of today, and pinned"
            )
        return day, found
    assert failure is not None
    raise failure


def _ladder(
    question: Question, wanted: Requirements, here: str, dates: dict[str, date], pins: frozenset[str]
) -> list[date]:
    """The dates to try, in order."""
    if not dates:  # nothing asked for, or all of it from folders of wheels
        return [RELEASED]
    latest = max(RELEASED, *dates.values())
    needy = _needing_numpy(question, wanted.requirements, here, latest, pins) & dates.keys()
    first = sorted(dates[name] for name in needy)
    settled = _SETTLED.get(question.python, RELEASED)
    days = [*first, *sorted(dates.values()), max(settled, *dates.values()), latest]
    start = days[0]
    return list(dict.fromkeys(day for day in days if day >= start))


def _dates(question: Question, requirements: tuple[str, ...], pins: frozenset[str]) -> dict[str, date | None]:
    """For each requirement the day after which its version was out: first upload, GRACE and the rest of the day."""
    if not requirements:
        return {}
    try:
        found = ask(question, requirements, None, RELEASED, free=pins, no_deps=True)
    except Unmet:  # perhaps one that is younger than this release
        found = ask(question, requirements, None, None, no_deps=True)
    return {package.name: _day_after(package.files) for package in found}


def _day_after(files: tuple[Wheel, ...]) -> date | None:
    uploads = [file.uploaded for file in files if file.uploaded is not None]
    return (min(uploads) + GRACE).date() + _DAY if uploads else None


def _needing_numpy(
    question: Question, requirements: tuple[str, ...], here: str, latest: date, pins: frozenset[str]
) -> set[str]:
    """Names among the requirements that need numpy themselves. Raises Unmet when they contradict each other."""
    try:
        text = ask_text(question, requirements, here, latest, form="requirements.txt", free=pins)
    except Unmet:
        text = ask_text(question, requirements, here, None, form="requirements.txt")
    block = re.search(r"^numpy==.*\n((?:\s+#.*\n?)*)", text, re.MULTILINE)
    return set(re.findall(r"[\w.-]+", block.group(1).replace("via", " "))) if block else set()
