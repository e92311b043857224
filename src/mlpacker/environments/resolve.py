"""Requirements → lock: as of the requirements' own time (asof.py), and with what the runtime needs.

The runtime's own requirements come from the time of this release (RELEASED), added to what the user's resolve to.
A platform's wheels count when uploaded by the date, or within GRACE of the version's first wheel for the platform.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timezone
from email.parser import Parser
from pathlib import Path

import msgspec
from packaging.requirements import Requirement

from mlpacker.environments.asof import GRACE, RELEASED, Time, as_of_time, time_of
from mlpacker.environments.index import (
    TARGETS,
    Found,
    Progress,
    Question,
    Wheel,
    ask,
    asking,
    for_this_system,
    silent,
)
from mlpacker.environments.lock import SCHEMA, Lock, Pin, PlatformLock, Requirements, pinned, requirement
from mlpacker.environments.pythons import choose_python
from mlpacker.environments.uv import Indexes, Unmet
from mlpacker.errors import BadDescription

__all__ = ["RuntimeRequirements", "choose_python", "plainly", "resolve", "runtime_requirements"]

_CPU_VARIANTS = {"xgboost": "xgboost-cpu"}
_NEEDS_NCCL = {"torch", "tensorflow", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda11x", "nvidia-dali-cuda120"}

_EXTRA_CLAUSE = r"""\s*(and\s*)?extra\s*==\s*['"][^'"]*['"](\s*and\s*)?"""


class RuntimeRequirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the runtime itself needs: PEP 508 requirements, and those of each extra."""

    requirements: tuple[str, ...] = ()
    extras: dict[str, tuple[str, ...]] = {}


def runtime_requirements(wheel: Path) -> RuntimeRequirements:
    """What the runtime's wheel says it needs (METADATA's Requires-Dist), its extras apart."""
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(opened.read(name).decode(), headersonly=True)
    wanted = [requirement(text) for text in told.get_all("Requires-Dist", [])]
    plain = tuple(str(one) for one in wanted if not _of_extra(one))
    extras = {
        extra: tuple(_without_extra(one) for one in wanted if _of_extra(one, extra))
        for extra in told.get_all("Provides-Extra", [])
    }
    return RuntimeRequirements(plain, extras)


def _of_extra(wanted: Requirement, extra: str | None = None) -> bool:
    """Is it a requirement of this extra (or of any)?"""
    if wanted.marker is None or "extra" not in str(wanted.marker):
        return False
    return extra is None or wanted.marker.evaluate({"extra": extra})


def _without_extra(wanted: Requirement) -> str:
    """The requirement without its `extra == …`; other conditions of the same marker stay."""
    plain = re.sub(_EXTRA_CLAUSE, "", str(wanted.marker)).strip("() ")
    return str(wanted).partition(";")[0].strip() + (f"; {plain}" if plain else "")


def resolve(
    wanted: Requirements,
    runtime: RuntimeRequirements,
    *,
    here: str,
    platforms: Iterable[str] = tuple(TARGETS),
    indexes: Indexes = Indexes(),
    carried: Path | None = None,
    progress: Progress = silent,
) -> Lock:
    """Lock `wanted`, together with the runtime's own requirements, for `here` and the other `platforms`.

    `here` is the packing platform and must lock: raises EnvironmentFailed with uv's reason. The others are recorded as
    unavailable when they can't; an index that does not answer fails all. `carried` is a folder of wheels that the
    package brings itself (wheels.carry); pins that they serve name the file.
    """
    for text in wanted.requirements:
        if requirement(text).url is not None:
            raise BadDescription(  # whoever packs has wheels.carry make a wheel of it first
                f"{text!r} is an address, and no index has it under that name.",
                f"Build a wheel of it, pass its folder with --find-links, and require {requirement(text).name}==VERSION.",
            )
    with asking(wanted.python, indexes, carried, progress) as question:
        progress(f"resolving for {here}")
        question, time, as_of, base = _on_packing_platform(question, wanted, here)
        locked, reasons = _platform(question, wanted, runtime, here, as_of, base)
        others = [platform for platform in platforms if platform != here]
        with ThreadPoolExecutor() as pool:
            asked = [
                pool.submit(_other_platform, question, wanted, runtime, platform, as_of, time.free)
                for platform in others
            ]
            answers = {here: locked} | {
                platform: one.result() for platform, one in zip(others, asked, strict=True)
            }
    extras = {
        extra: f"apart: {reasons[extra]}" if extra in reasons else "together" for extra in runtime.extras
    }
    return Lock(schema=SCHEMA, python=wanted.python, as_of=as_of, platforms=answers, extras=extras)


def _on_packing_platform(
    question: Question, wanted: Requirements, here: str
) -> tuple[Question, Time, date | None, list[Found]]:
    """What `wanted` resolves to on `here`, and as of when; with wheels for newer systems only where nothing else will do."""
    newer = for_this_system(question, here)
    try:
        time = time_of(question, wanted, here)
        return (question, time, *as_of_time(question, wanted, here, time))
    except Unmet:
        if newer is None:
            raise
    time = time_of(newer, wanted, here)
    return (newer, time, *as_of_time(newer, wanted, here, time))


# --- one platform -----------------------------------------------------------------------------------------------


def _platform(
    question: Question,
    wanted: Requirements,
    runtime: RuntimeRequirements,
    platform: str,
    as_of: date | None,
    base: list[Found],
) -> tuple[PlatformLock, dict[str, str]]:
    """The lock of one platform, and for each extra that can't join the pins the reason."""
    later = None if as_of is None else max(as_of, RELEASED)
    base = _for_cpu(question, base, platform)
    known = _joined(question, wanted.requirements, runtime.requirements, platform, later, base)
    pins = {found.name: _pin(question, found, as_of, ()) for found in known}
    needed, reasons = _extras(question, runtime, platform, later, known)
    for extra, more in needed.items():
        for found in more:
            already = pins.get(found.name)
            if already is None:
                pins[found.name] = _pin(question, found, later, (extra,))
            elif already.extras:
                pins[found.name] = msgspec.structs.replace(already, extras=(*already.extras, extra))
    ordered = tuple(pins[name] for name in sorted(pins))
    return PlatformLock(status="locked", pins=ordered, apart=tuple(sorted(reasons))), reasons


def _extras(
    question: Question,
    runtime: RuntimeRequirements,
    platform: str,
    later: date | None,
    known: list[Found],
) -> tuple[dict[str, list[Found]], dict[str, str]]:
    """What each extra needs beside `known`, and for those that can't join the reason.

    All are asked for at once, and one by one only where that can't be. What no extra names, because another's distribution
    needs it, is then said to belong to each.
    """
    extras = dict(sorted(runtime.extras.items()))
    named = {extra: {requirement(text).name for text in texts} for extra, texts in extras.items()}
    everybody = set().union(*named.values())
    try:
        more = _beside(question, tuple(t for texts in extras.values() for t in texts), platform, later, known)
    except Unmet:
        return _extras_apart(question, extras, platform, later, known)
    return {
        e: [f for f in more if f.name in names or f.name not in everybody] for e, names in named.items()
    }, {}


def _extras_apart(
    question: Question,
    extras: dict[str, tuple[str, ...]],
    platform: str,
    later: date | None,
    known: list[Found],
) -> tuple[dict[str, list[Found]], dict[str, str]]:
    needed: dict[str, list[Found]] = {}
    reasons: dict[str, str] = {}
    for extra, requirements in extras.items():
        try:
            more = _beside(question, requirements, platform, later, known)
        except Unmet as error:
            reasons[extra] = plainly(str(error.facts.get("reason", error)))
            continue
        names = {found.name for found in known}
        known = [*known, *(found for found in more if found.name not in names)]
        needed[extra] = more
    return needed, reasons


def _other_platform(
    question: Question,
    wanted: Requirements,
    runtime: RuntimeRequirements,
    platform: str,
    as_of: date | None,
    free: frozenset[str],
) -> PlatformLock:
    try:
        base = ask(question, wanted.requirements, platform, as_of, free=free)
        return _platform(question, wanted, runtime, platform, as_of, base)[0]
    except Unmet as error:
        return PlatformLock(status="unavailable", reason=plainly(str(error.facts.get("reason", error))))


def _joined(
    question: Question,
    requirements: tuple[str, ...],
    runtime: tuple[str, ...],
    platform: str,
    later: date | None,
    base: list[Found],
) -> list[Found]:
    """The runtime's requirements beside `base`. Where the two can't meet as resolved, they are resolved as one."""
    try:
        return [*base, *_new(_beside(question, runtime, platform, later, base), base)]
    except Unmet:
        pins = {pin[0] for pin in map(pinned, requirements) if pin}
        together = ask(question, (*requirements, *runtime), platform, later, free=pins)
        return _for_cpu(question, together, platform)


def _beside(
    question: Question, requirements: tuple[str, ...], platform: str, later: date | None, known: list[Found]
) -> list[Found]:
    """What `requirements` need, with everything known held at its version."""
    if not requirements:
        return []
    held = {found.name: found.version for found in known}
    return ask(question, requirements, platform, later, free=set(held), held=held)


def _new(more: list[Found], base: list[Found]) -> list[Found]:
    names = {found.name for found in base}
    return [found for found in more if found.name not in names]


def _for_cpu(question: Question, base: list[Found], platform: str) -> list[Found]:
    """The same with CPU variants: xgboost-cpu for xgboost, and no NCCL (469 MB) that only xgboost asked for.

    xgboost loads NCCL only when it trains on several GPUs; without it, it imports and predicts as ever.
    """
    names = {found.name for found in base}
    if "xgboost" in names and not names & _NEEDS_NCCL:
        base = [found for found in base if not found.name.startswith("nvidia-nccl-")]
    return [_variant(question, found, platform) for found in base]


def _variant(question: Question, found: Found, platform: str) -> Found:
    other = _CPU_VARIANTS.get(found.name)
    if other is None or not platform.endswith("linux"):
        return found
    try:
        return ask(question, (f"{other}=={found.version}",), platform, None, no_deps=True)[0]
    except Unmet:
        return found


def _pin(question: Question, found: Found, by: date | None, extras: tuple[str, ...]) -> Pin:
    wheels = _timely(found.wheels, by)
    own = [wheel for wheel in wheels if wheel.sha256 in question.carried]
    return Pin(
        name=found.name,
        version=found.version,
        hashes=tuple(sorted(f"sha256:{wheel.sha256}" for wheel in own or wheels)),
        extras=extras,
        wheel=question.carried[own[0].sha256] if own else None,
    )


def _timely(wheels: tuple[Wheel, ...], by: date | None) -> tuple[Wheel, ...]:
    """The wheels that were there by then, or soon after the first of them: later uploads change no lock."""
    first = min((wheel.uploaded for wheel in wheels if wheel.uploaded), default=None)
    if by is None or first is None:
        return wheels
    limit = max(first + GRACE, datetime.combine(by, datetime.min.time(), timezone.utc))
    return tuple(wheel for wheel in wheels if wheel.uploaded is None or wheel.uploaded <= limit)


def plainly(reason: str) -> str:
    """uv's reason in words of ours that do not change with uv's, since they become part of the lock."""
    missing = re.search(r"([\w.-]+==[\w.+!-]+) has no (?:usable )?wheels", reason)
    if missing:
        return f"no wheel of {missing.group(1)}"
    missing = re.search(r"there is no version of ([\w.\[\]-]+[=<>!~]=?[\w.+!*,<>=-]+)", reason)
    return f"no version of {missing.group(1)}" if missing else "the requirements can't be met"
