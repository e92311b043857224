"""Which Python an environment gets: the trained one where it can be, else the newest of the pins' time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlpacker.environments.asof import time_of
from mlpacker.environments.index import ask, asking, for_this_system, silent
from mlpacker.environments.interpreters import OLDEST
from mlpacker.environments.lock import Requirements, pinned, requirement
from mlpacker.environments.uv import Indexes, Unmet
from mlpacker.errors import EnvironmentFailed

_NAMED = range(14, 5, -1)  # Python 3.X that are named when none found here fits


def choose_python(
    requirements: tuple[str, ...],
    trained: str | None,
    *,
    here: str,
    available: Iterable[str],
    must_be_trained: bool = False,
    indexes: Indexes = Indexes(),
    carried: Path | None = None,
) -> str:
    """The minor version of the clean environment: the trained one where it is available and every requirement has a
    wheel for it; else the newest of `available` for which everything resolves as of the requirements' time, or at least
    at some time.

    Requirements with an address fit any Python: they are built for the one chosen.
    `must_be_trained`: code pickled by value (cloudpickle) holds bytecode of its own Python and runs on no other.
    Raises EnvironmentFailed with one sentence that names the Python needed.
    """
    requirements = tuple(text for text in requirements if requirement(text).url is None)
    known = sorted(available, key=_minor, reverse=True)
    if must_be_trained and trained is not None:
        if trained in known:
            return trained
        raise EnvironmentFailed(
            f"The model holds bytecode of Python {trained}, which was not found here.",
            f"Install Python {trained} (for instance: uv python install {trained}).",
            python=trained,
        )
    if trained in known and has_wheels(requirements, trained, here, indexes, carried):
        return trained
    fitting = [python for python in known if has_wheels(requirements, python, here, indexes, carried)]
    for python in fitting:
        if _resolves_at_its_time(requirements, python, here, indexes, carried):
            return python
    if fitting:
        return fitting[0]
    raise _no_python(requirements, known, here, indexes, carried)


def _minor(python: str) -> int:
    return int(python.partition(".")[2])


def has_wheels(
    requirements: tuple[str, ...], python: str, here: str, indexes: Indexes, carried: Path | None
) -> bool:
    """Has every one of the requirements a wheel for this Python and platform?"""
    with asking(python, indexes, carried, silent) as question:
        question = for_this_system(question, here) or question
        try:
            ask(question, requirements, here, None, no_deps=True)
        except Unmet:
            return False
    return True


def _resolves_at_its_time(
    requirements: tuple[str, ...], python: str, here: str, indexes: Indexes, carried: Path | None
) -> bool:
    """Does everything resolve as of the first date that resolve() would try?"""
    wanted = Requirements(python, requirements)
    with asking(python, indexes, carried, silent) as question:
        try:
            time = time_of(question, wanted, here)
            ask(question, requirements, here, time.ladder[0], free=time.free)
        except Unmet:
            return False
    return True


def _no_python(
    requirements: tuple[str, ...], known: list[str], here: str, indexes: Indexes, carried: Path | None
) -> EnvironmentFailed:
    """The error that names the Pythons for which the requirements have wheels."""
    told = ", ".join(pin for pin in requirements if pinned(pin)) or ", ".join(requirements)
    span = [f"3.{minor}" for minor in _NAMED]
    fitting = [
        one for one in span if one not in known and has_wheels(requirements, one, here, indexes, carried)
    ]
    if not fitting:
        return EnvironmentFailed(
            f"No Python version has wheels of {told} for {here}.",
            "Check names and versions, or pass --allow-build.",
        )
    run = [one for one in fitting if _minor(one) >= OLDEST[1]]
    needed = (
        f"Python {run[0]}"
        if run
        else f"Python {fitting[0]}, which is older than what mlpacker runs on (3.10)"
    )
    return EnvironmentFailed(
        f"{told} needs {needed}; found here: {', '.join(known) or 'none'}.",
        f"Install Python {run[0]} (for instance: uv python install {run[0]})."
        if run
        else "Train or save the model anew with newer versions.",
        python=fitting[0],
    )
