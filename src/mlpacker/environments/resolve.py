"""Requirements → lock, through uv, as of a date that follows from the requirements alone.

Why a date at all: what a pin needs is resolved as of the pin's own time. `scikit-learn==1.2.2` allows today's NumPy and
dies on importing it; with the NumPy of spring 2023 it runs. And a lock made again next month must be the same, so the
date is read from the pins' uploads, never from the clock:

1. Each requirement's version has a date, its first upload. The oldest date among those that need NumPy comes first
   (compiled code is what breaks), then the later ones: the first date as of which everything resolves is taken.
2. The runtime's own requirements come from the time of this release instead (RELEASED), added to what was just found.
3. A platform's wheels count when uploaded by that date, or within GRACE of the version's first wheel for the platform.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from email.parser import Parser
from pathlib import Path

import msgspec
from packaging.requirements import Requirement

from mlpacker.environments.interpreters import OLDEST, canonical
from mlpacker.environments.lock import SCHEMA, Lock, Pin, PlatformLock, Requirements, pinned, requirement
from mlpacker.environments.uv import Indexes, Unmet, uv
from mlpacker.errors import BadDescription, EnvironmentFailed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Raise it with each release: the runtime's own requirements are resolved as of this day.
RELEASED = date(2026, 11, 1)
NEWEST, OLDEST_WITH_WHEELS = "3.14", 6  # the span of Pythons named when none here fits
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
# uv's names of the platforms: manylinux_2_28 is what Debian 10, Ubuntu 18.10, RHEL 8 and later run.
_TARGETS = {
    "x86_64-linux": "x86_64-manylinux_2_28",
    "aarch64-linux": "aarch64-manylinux_2_28",
    "arm64-macos": "aarch64-apple-darwin",
}


def glibc() -> tuple[int, int]:
    """The version of this system's C library; (0, 0) where it is another one."""
    name, _, version = (
        (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ") if sys.platform == "linux" else ("", "", "")
    )
    major, _, minor = version.partition(".")
    return (int(major), int(minor)) if name == "glibc" and minor.isdigit() else (0, 0)


# Where nothing older will do, the packing platform is what this very system runs; uv knows versions from 31 to 40.
_NEWER = {
    f"{machine}-linux": f"{machine}-manylinux_2_{min(glibc()[1], 40)}"
    for machine in ("x86_64", "aarch64")
    if glibc() >= (2, 31)
}
_CPU_VARIANTS = {"xgboost": "xgboost-cpu"}
_NEEDS_NCCL = {"torch", "tensorflow", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda11x", "nvidia-dali-cuda120"}

_EXTRA_CLAUSE = r"""\s*(and\s*)?extra\s*==\s*['"][^'"]*['"](\s*and\s*)?"""

Progress = Callable[[str], None]


def silent(text: str) -> None:
    """Progress that is told to nobody."""


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


class Wheel(msgspec.Struct, frozen=True):
    """A file of an index. `uploaded` is None where the index does not say."""

    filename: str
    sha256: str
    uploaded: datetime | None


class Found(msgspec.Struct, frozen=True):
    """One distribution of a resolution: its wheels for the platform, and all its `files` (sdist too)."""

    name: str
    version: str
    wheels: tuple[Wheel, ...]
    files: tuple[Wheel, ...]


class Question(msgspec.Struct, frozen=True):
    """What all calls of one resolution share."""

    python: str
    indexes: Indexes
    folder: Path
    targets: dict[str, str]
    carried: dict[str, str]  # file name by sha256, of wheels that the package brings itself
    local: frozenset[str]  # names that folders of wheels have; a folder tells no upload times
    progress: Progress = silent


def resolve(
    wanted: Requirements,
    runtime: RuntimeRequirements,
    *,
    here: str,
    platforms: Iterable[str] = tuple(_TARGETS),
    indexes: Indexes = Indexes(),
    carried: Path | None = None,
    progress: Progress = silent,
) -> Lock:
    """Lock `wanted`, together with the runtime's own requirements, for `here` and the other `platforms`.

    `here` is the packing platform and must lock: raises EnvironmentFailed with uv's reason. The others are recorded as
    unavailable when they can't; an index that does not answer fails all. `carried` is a folder of wheels that the package brings itself (wheels.build_local);
    pins that they serve name the file.
    """
    for text in wanted.requirements:
        if requirement(text).url is not None:
            raise BadDescription(
                f"{text!r} is an address: it has to be made a wheel first.", "See wheels.carry."
            )
    with _asking(wanted.python, indexes, carried, progress) as question:
        progress(f"resolving for {here}")
        try:
            as_of, base = _as_of_and_base(question, wanted, here)
        except Unmet:
            if here not in _NEWER:
                raise
            question = msgspec.structs.replace(question, targets=_TARGETS | {here: _NEWER[here]})
            as_of, base = _as_of_and_base(question, wanted, here)
        locked, reasons = _platform(question, wanted, runtime, here, as_of, base)
        others = [platform for platform in platforms if platform != here]
        with ThreadPoolExecutor() as pool:
            asked = [
                pool.submit(_other_platform, question, wanted, runtime, platform, as_of)
                for platform in others
            ]
            answers = {here: locked} | {
                platform: one.result() for platform, one in zip(others, asked, strict=True)
            }
    extras = {
        extra: f"apart: {reasons[extra]}" if extra in reasons else "together" for extra in runtime.extras
    }
    return Lock(schema=SCHEMA, python=wanted.python, as_of=as_of, platforms=answers, extras=extras)


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

    `must_be_trained`: code pickled by value (cloudpickle) holds bytecode of its own Python and runs on no other.
    Raises EnvironmentFailed with one sentence that names the Python needed.
    """
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
    with _asking(python, indexes, carried, silent) as question:
        if here in _NEWER:
            question = msgspec.structs.replace(question, targets=_TARGETS | {here: _NEWER[here]})
        try:
            _compile(question, requirements, here, None, no_deps=True)
        except Unmet:
            return False
    return True


def _resolves_at_its_time(
    requirements: tuple[str, ...], python: str, here: str, indexes: Indexes, carried: Path | None
) -> bool:
    """Does everything resolve as of the first date that resolve() would try?"""
    wanted = Requirements(python, requirements)
    with _asking(python, indexes, carried, silent) as question:
        try:
            dates = _dates(question, requirements)
            days = _ladder(
                question, wanted, here, {name: day for name, day in dates.items() if day is not None}
            )
            undated = {name for name, day in dates.items() if day is None}
            _compile(question, requirements, here, days[0], free=_pins(wanted) | undated)
        except Unmet:
            return False
    return True


def _no_python(
    requirements: tuple[str, ...], known: list[str], here: str, indexes: Indexes, carried: Path | None
) -> EnvironmentFailed:
    """The error that names the Pythons for which the requirements have wheels."""
    told = ", ".join(pin for pin in requirements if pinned(pin)) or ", ".join(requirements)
    span = [f"3.{minor}" for minor in range(_minor(NEWEST), OLDEST_WITH_WHEELS - 1, -1)]
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


@contextmanager
def _asking(python: str, indexes: Indexes, carried: Path | None, progress: Progress) -> Iterator[Question]:
    """A question with a folder for its scratch files."""
    files = sorted(carried.glob("*.whl")) if carried is not None else []
    if carried is not None and files:
        links = (str(carried.resolve()), *indexes.find_links)
        indexes = msgspec.structs.replace(indexes, find_links=links)
    hashes = {hashlib.sha256(file.read_bytes()).hexdigest(): file.name for file in files}
    with tempfile.TemporaryDirectory(prefix="mlpacker-resolve-") as folder:
        yield Question(python, indexes, Path(folder), _TARGETS, hashes, _names_in(indexes), progress)


def _names_in(indexes: Indexes) -> frozenset[str]:
    folders = [Path(link) for link in indexes.find_links if "://" not in link]
    return frozenset(
        canonical(file.name.partition("-")[0]) for folder in folders for file in folder.glob("*.whl")
    )


# --- the date ---------------------------------------------------------------------------------------------------


def _as_of_and_base(question: Question, wanted: Requirements, here: str) -> tuple[date | None, list[Found]]:
    """The date to resolve as of, and what the requirements resolve to on the packing platform as of then."""
    if wanted.as_of is not None:
        return wanted.as_of, _compile(question, wanted.requirements, here, wanted.as_of, free=_pins(wanted))
    dates = _dates(question, wanted.requirements)
    undated = {name for name, day in dates.items() if day is None}
    if dates and undated - question.local and len(undated) == len(dates):
        question.progress("the index tells no upload times: resolved as of today, and pinned")
        return None, _compile(question, wanted.requirements, here, None)
    free = _pins(wanted) | undated
    failure: Unmet | None = None
    for day in _ladder(question, wanted, here, {name: day for name, day in dates.items() if day is not None}):
        try:
            return day, _compile(question, wanted.requirements, here, day, free=free)
        except Unmet as error:
            failure = failure or error
    try:
        base = _compile(question, wanted.requirements, here, None)
    except Unmet as error:
        raise failure or error from error
    question.progress("the requirements can't be met as of their own time: resolved as of today, and pinned")
    return None, base


def _ladder(question: Question, wanted: Requirements, here: str, dates: dict[str, date]) -> list[date]:
    """The dates to try, in order."""
    if not dates:  # nothing asked for, or all of it from folders of wheels
        return [RELEASED]
    latest = max(RELEASED, *dates.values())
    needy = _needing_numpy(question, wanted, here, latest) & dates.keys()
    first = sorted(dates[name] for name in needy)
    settled = _SETTLED.get(question.python, RELEASED)
    days = [*first, *sorted(dates.values()), max(settled, *dates.values()), latest]
    start = days[0]
    return list(dict.fromkeys(day for day in days if day >= start))


def _dates(question: Question, requirements: tuple[str, ...]) -> dict[str, date | None]:
    """For each requirement the day after which its version was out: first upload, GRACE and the rest of the day."""
    asked = tuple(text for text in requirements if requirement(text).url is None)
    if not asked:
        return {}
    free = {pin[0] for pin in map(pinned, asked) if pin}
    found = _compile(question, asked, None, RELEASED, free=free, no_deps=True)
    return {package.name: _day_after(package.files) for package in found}


def _day_after(files: tuple[Wheel, ...]) -> date | None:
    uploads = [file.uploaded for file in files if file.uploaded is not None]
    return (min(uploads) + GRACE).date() + _DAY if uploads else None


def _needing_numpy(question: Question, wanted: Requirements, here: str, latest: date) -> set[str]:
    """Names among the requirements that need numpy themselves. Raises when the requirements contradict each other."""
    text = _uv_compile(
        question, wanted.requirements, here, latest, form="requirements.txt", free=_pins(wanted)
    )
    block = re.search(r"^numpy==.*\n((?:\s+#.*\n?)*)", text, re.MULTILINE)
    return set(re.findall(r"[\w.-]+", block.group(1).replace("via", " "))) if block else set()


def _pins(wanted: Requirements) -> set[str]:
    return {pin[0] for pin in map(pinned, wanted.requirements) if pin}


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
    reasons = {}
    for extra, requirements in sorted(runtime.extras.items()):
        try:
            more = _beside(question, requirements, platform, later, known)
        except Unmet as error:
            reasons[extra] = plainly(str(error.facts.get("reason", error)))
            continue
        added = [found for found in more if found.name not in {one.name for one in known}]
        known = [*known, *added]
        for found in more:
            already = pins.get(found.name)
            if already is None:
                pins[found.name] = _pin(question, found, later, (extra,))
            elif already.extras:
                pins[found.name] = msgspec.structs.replace(already, extras=(*already.extras, extra))
    ordered = tuple(pins[name] for name in sorted(pins))
    return PlatformLock(status="locked", pins=ordered, apart=tuple(sorted(reasons))), reasons


def _other_platform(
    question: Question, wanted: Requirements, runtime: RuntimeRequirements, platform: str, as_of: date | None
) -> PlatformLock:
    try:
        base = _compile(question, wanted.requirements, platform, as_of, free=_pins(wanted))
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
        together = _compile(question, (*requirements, *runtime), platform, later, free=pins)
        return _for_cpu(question, together, platform)


def _beside(
    question: Question, requirements: tuple[str, ...], platform: str, later: date | None, known: list[Found]
) -> list[Found]:
    """What `requirements` need, with everything known held at its version."""
    if not requirements:
        return []
    held = {found.name: found.version for found in known}
    return _compile(question, requirements, platform, later, free=set(held), held=held)


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
        return _compile(question, (f"{other}=={found.version}",), platform, None, no_deps=True)[0]
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


# --- uv ---------------------------------------------------------------------------------------------------------


def _compile(
    question: Question,
    requirements: tuple[str, ...],
    platform: str | None,
    as_of: date | None,
    *,
    free: Iterable[str] = (),
    held: dict[str, str] | None = None,
    no_deps: bool = False,
) -> list[Found]:
    text = _uv_compile(question, requirements, platform, as_of, free=free, held=held, no_deps=no_deps)
    return [_found(package) for package in tomllib.loads(text).get("packages", [])]


def _uv_compile(
    question: Question,
    requirements: tuple[str, ...],
    platform: str | None,
    as_of: date | None,
    *,
    form: str = "pylock.toml",
    free: Iterable[str] = (),
    held: dict[str, str] | None = None,
    no_deps: bool = False,
) -> str:
    """One `uv pip compile`; without a platform for all of them. `free` names are not bound to the date."""
    scratch = Path(tempfile.mkdtemp(dir=question.folder))
    asked, holds = scratch / "requirements.in", scratch / "constraints.txt"
    asked.write_text("\n".join(requirements) + "\n")
    holds.write_text("".join(f"{name}=={version}\n" for name, version in sorted((held or {}).items())))
    argv = [
        *("pip", "compile", "--quiet", str(asked), "--constraints", str(holds)),
        *("--format", form, "--no-header", "--python", sys.executable, "--python-version", question.python),
        *(("--python-platform", question.targets.get(platform, platform)) if platform else ("--universal",)),
        *(("--only-binary", ":all:") if platform else ()),
        *(("--no-deps",) if no_deps else ()),
        *(("--exclude-newer", f"{as_of.isoformat()}T00:00:00Z") if as_of else ()),
    ]
    for name in sorted({*free, *question.local} if as_of else ()):
        argv += ["--exclude-newer-package", f"{name}=false"]
    return uv(
        argv,
        cwd=scratch,
        indexes=question.indexes,
        failing=f"The requirements can't be locked for Python {question.python} on {platform or 'any platform'}",
    )


def _found(package: dict) -> Found:
    wheels = [package["archive"]] if "archive" in package else package.get("wheels", [])
    sources = [package["sdist"]] if "sdist" in package else []
    return Found(
        name=canonical(package["name"]),
        version=package.get("version", "0"),
        wheels=tuple(_wheel(file) for file in wheels),
        files=tuple(_wheel(file) for file in (*wheels, *sources)),
    )


def _wheel(file: dict) -> Wheel:
    address = file.get("url") or file.get("path") or file.get("name", "")
    return Wheel(
        filename=file.get("name") or address.rpartition("/")[2].partition("#")[0],
        sha256=file.get("hashes", {}).get("sha256", ""),
        uploaded=file.get("upload-time"),
    )
