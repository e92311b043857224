"""Which environments a pipeline needs, what they hold, and making them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlpacker_runtime.formats import Facts, Trust
from mlpacker_runtime.manifest import Stage

from ..environments import captured, install, interpreters, libraries, resolve, wheels
from ..environments import lock as locks
from ..environments.interpreters import Installed
from ..environments.runtime_wheel import RuntimeWheel
from ..environments.uv import Indexes
from ..errors import BadDescription, EnvironmentFailed
from ..events import Events
from ..pipeline import Pipeline, StageDescription
from .draft import Draft


@dataclass(frozen=True)
class Options:
    """How to pack. python: the training interpreter. trust: imports to accept beyond the allow-list."""

    python: Path | None = None
    trust: Trust = Trust()
    indexes: Indexes = Indexes()
    platforms: tuple[str, ...] = locks.PLATFORMS
    allow_build: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Tools:
    """What packing works with."""

    options: Options
    home: Path
    runtime: RuntimeWheel
    events: Events


@dataclass(frozen=True)
class Trained:
    """What the training interpreter has, where there is one that can have been it. frames: the stages that take them."""

    installed: Installed | None = None
    python: str | None = None
    frames: frozenset[str] = frozenset()


NOT_KNOWN = Trained()


@dataclass(frozen=True)
class Made:
    """An environment that is there."""

    lock: locks.Lock
    python: Path


@dataclass(frozen=True)
class Group:
    """Stages that share an environment. facts: by stage. versions: what their model files say."""

    name: str
    stages: tuple[StageDescription, ...]
    facts: Mapping[str, Facts]
    versions: Mapping[str, str]

    @property
    def python(self) -> str | None:
        """The Python its stages ask for. Raises BadDescription where they ask for several."""
        told = {f.python for f in self.facts.values() if f.python} | {
            s.python for s in self.stages if s.python
        }
        if len(told) > 1:
            raise BadDescription(
                f"The stages of environment {self.name!r} need Python {' and '.join(sorted(told))}."
            )
        return next(iter(told), None)

    @property
    def asked(self) -> str | None:
        """The Python that the user named for its stages, which no other replaces."""
        return self.stages[0].python

    @property
    def holds_bytecode(self) -> bool:
        """Code pickled by value: no other Python runs it, and the file does not say which one that is."""
        return any(s.model is not None and self.facts[s.name].code for s in self.stages)


def group(pipeline: Pipeline, drafted: Draft) -> tuple[Group, ...]:
    """One environment for all stages, unless they ask for different Pythons or requirements or name different versions."""
    groups: list[Group] = []
    for stage in pipeline.stages:
        told = drafted.facts[stage.name]
        at = next((i for i, g in enumerate(groups) if _fits(stage, told.versions, g)), None)
        before = groups[at] if at is not None else Group(stage.name if groups else "default", (), {}, {})
        joined = Group(
            before.name,
            (*before.stages, stage),
            {**before.facts, stage.name: told},
            {**before.versions, **told.versions},
        )
        groups[slice(at, at + 1) if at is not None else slice(len(groups), None)] = [joined]
    return tuple(groups)


def _fits(stage: StageDescription, said: Mapping[str, str], group: Group) -> bool:
    first = group.stages[0]
    same = (stage.python, stage.requirements) == (first.python, first.requirements)
    return same and all(group.versions.get(name, version) == version for name, version in said.items())


def assign(stages: Sequence[Stage], groups: Sequence[Group]) -> tuple[Stage, ...]:
    """The stages with the names of their environments."""
    of = {s.name: g.name for g in groups for s in g.stages}
    return tuple(dataclasses.replace(s, environment=of[s.name]) for s in stages)


def make(
    groups: Sequence[Group], pipeline: Pipeline, folder: Path, trained: Trained, tools: Tools
) -> dict[str, Made]:
    """Lock and make the environment of each group; wheels no index has go into the draft's `wheels`.

    Raises BadDescription or EnvironmentFailed.
    """
    carried = folder / "wheels"
    carried.mkdir(exist_ok=True)
    tools.events.step("Locking the environment")
    locked = {g.name: _lock(g, pipeline, carried, trained, tools) for g in groups}
    tools.events.step("Building the environment")
    return {name: _make(lock, carried, tools) for name, lock in locked.items()}


def _lock(group: Group, pipeline: Pipeline, carried: Path, trained: Trained, tools: Tools) -> locks.Lock:
    """With the Python it was trained with; where that is not known or can't be had, with the newest one that resolves."""
    python = group.python or pipeline.python or trained.python
    known = interpreters.available(tools.options.environ)
    if not known:
        raise EnvironmentFailed("No Python from 3.10 on was found here.", "Install one.")
    if group.asked is not None and group.asked not in known:
        raise EnvironmentFailed(
            f"Stage {group.stages[0].name!r} runs on Python {group.asked}, which was not found here.",
            f"Install it (for instance: uv python install {group.asked}), or name one of {', '.join(known)}.",
        )
    here = interpreters.find(python if python in known else known[0], tools.options.environ)
    assert here is not None
    requirements = _requirements(group, pipeline, carried, trained, here, tools)
    chosen = resolve.choose_python(
        requirements,
        python,
        here=here.platform,
        available=known,
        must_be_trained=group.holds_bytecode,
        indexes=tools.options.indexes,
        carried=carried,
    )
    if group.asked is not None and chosen != group.asked:
        tools.events.warn(
            f"What was trained with has no wheels for Python {group.asked}: environment {group.name!r} has other versions."
        )
        chosen = group.asked
        alone = Trained(python=trained.python, frames=trained.frames)
        requirements = _requirements(group, pipeline, carried, alone, here, tools)
    elif python is not None and chosen != python:
        tools.events.warn(
            f"Trained with Python {python}; packed for {chosen}, the newest here that has all pins."
        )
    return resolve.resolve(
        locks.Requirements(python=chosen, requirements=requirements),
        resolve.runtime_requirements(tools.runtime.path),
        here=here.platform,
        platforms=tools.options.platforms,
        indexes=tools.options.indexes,
        carried=carried,
        progress=tools.events.note,
    )


def _requirements(
    group: Group,
    pipeline: Pipeline,
    carried: Path,
    trained: Trained,
    here: interpreters.Interpreter,
    tools: Tools,
) -> tuple[str, ...]:
    """What the files say, then the user, then the training interpreter; what no index has is built into `carried`."""
    modules = {m for f in group.facts.values() for m in f.modules}
    modules |= {"pandas"} if trained.frames & group.facts.keys() else set()
    needed = captured.distributions_for(modules, trained.installed)
    wanted = captured.pins(
        group.versions,
        user=[*pipeline.requirements, *(r for s in group.stages for r in s.requirements)],
        mlmodel=[r for f in group.facts.values() for r in f.requirements],
        training=trained.installed,
        needed=needed,
    )
    strangers = captured.strangers(trained.installed, needed) if trained.installed else ()
    return wheels.carry(
        wanted,
        carried,
        here,
        sources={d.name: d.source for d in strangers},
        allow_build=tools.options.allow_build,
        indexes=tools.options.indexes,
        progress=tools.events.note,
    )


def _make(lock: locks.Lock, carried: Path, tools: Tools) -> Made:
    environment = install.ensure(
        lock,
        tools.home,
        tools.runtime,
        wheels=carried,
        indexes=tools.options.indexes,
        progress=tools.events.note,
    )
    needed = libraries.needed_libraries(environment.folder)
    missing = libraries.missing_libraries(environment.python, needed)
    if missing:
        raise EnvironmentFailed(
            f"The environment needs {', '.join(missing)}, which no wheel brings and this machine lacks.",
            "Install it with the system's packages (libgomp.so.1: apt-get install libgomp1).",
        )
    return Made(locks.with_libraries(lock, needed), environment.python)
