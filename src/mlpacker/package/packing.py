"""Packing: from a described pipeline to a proven package in the store.

draft → audit → describe and answer in the training interpreter → pins → lock → clean environments → describe and answer
again → compare → manifest → store. mlpacker's own process loads no model.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlpacker_runtime import manifest
from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.formats import Description, Trust
from mlpacker_runtime.manifest import Environment, Manifest, Stage
from mlpacker_runtime.signature import Field

from .. import tables
from ..environments import captured, install, interpreters, libraries, resolve, wheels
from ..environments import lock as locks
from ..environments.interpreters import Installed
from ..environments.runtime_wheel import RuntimeWheel, runtime_wheel
from ..environments.uv import Indexes
from ..errors import BadDescription, EnvironmentFailed, MlpackerError, NotProvable
from ..events import Events
from ..pipeline import Pipeline, StageDescription, check_between
from . import crew, describe, draft, prove

SAMPLE_ROWS = 256
"""Rows of the sample that are answered, compared and packed."""


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
class Proof:
    """verdict: `proven` (compared with `reference`) or `runs, not compared`; on `platform`, others are locked unproven.

    environments, environment_bytes: by name.
    """

    verdict: str
    reference: str
    rows: int
    made_up_sample: bool
    platform: str
    environments: dict[str, str]
    environment_bytes: dict[str, int]


@dataclass(frozen=True)
class Packed:
    """A package before it is in the store. files: path in the package → file on disk. golden: its answers to the sample."""

    manifest: Manifest
    folder: Path
    files: tuple[str, ...]
    locks: dict[str, locks.Lock]
    pythons: dict[str, Path]
    proof: Proof
    sample: Batch
    golden: Outcome


@dataclass(frozen=True)
class _Group:
    """Stages that share an environment."""

    name: str
    stages: tuple[StageDescription, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class _Reference:
    """Answers to compare with, and where they are from; outcome None where there are none."""

    outcome: Outcome | None
    source: str
    descriptions: dict[str, Description] = field(default_factory=dict)
    installed: Installed | None = None
    python: str | None = None


@dataclass(frozen=True)
class _Rehearsal:
    """The sample answered once: by which stages, with what inputs, and what each stage was asked and answered."""

    outcome: Outcome
    stages: tuple[Stage, ...]
    inputs: tuple[Field, ...]
    batch: Batch
    made_up: bool
    recorders: dict[str, describe.Recorder]


def pack(pipeline: Pipeline, folder: Path, home: Path, options: Options, events: Events) -> Packed:
    """Fill `folder` with a package of the pipeline.

    Raises BadDescription, BadInput, Refused, EnvironmentFailed or NotProvable.
    """
    events.step("Reading and auditing")
    drafted = draft.make(pipeline, folder, options.trust)
    sample = _sample(pipeline, drafted)
    groups = _groups(pipeline, drafted)
    stages = _assign(drafted.stages, groups)
    runtime = runtime_wheel(home / "cache")

    events.step("Asking the training interpreter")
    reference = _ask_training(stages, drafted, sample, pipeline, options, runtime, home, events)

    frames = any(d.takes == "frame" for d in reference.descriptions.values())
    locked, pythons = _environments(
        groups, pipeline, drafted, reference, options, runtime, home, events, frames
    )
    if not frames and _wants_frames(stages, drafted, pythons, options):
        events.note("the model knows its columns by name, so pandas joins its environment")
        locked, pythons = _environments(
            groups, pipeline, drafted, reference, options, runtime, home, events, True
        )

    events.step("Proving the answers")
    return _prove(stages, drafted, sample, pipeline, locked, pythons, reference, options, events)


def _environments(
    groups: Sequence[_Group],
    pipeline: Pipeline,
    drafted: draft.Draft,
    reference: _Reference,
    options: Options,
    runtime: RuntimeWheel,
    home: Path,
    events: Events,
    frames: bool,
) -> tuple[dict[str, locks.Lock], dict[str, Path]]:
    """Lock and make the environment of each group; the locks, and the interpreters."""
    events.step("Locking the environment")
    locked = {
        g.name: _lock(g, pipeline, drafted, reference, options, runtime, events, frames) for g in groups
    }
    events.step("Building the environment")
    made = {
        name: install.ensure(
            lock,
            home,
            runtime,
            wheels=drafted.folder / "wheels",
            indexes=options.indexes,
            progress=events.note,
        )
        for name, lock in locked.items()
    }
    for name, environment in made.items():
        needed = libraries.needed_libraries(environment.folder)
        locked[name] = locks.with_libraries(locked[name], needed)
        _check_libraries(environment.python, needed)
    return locked, {name: environment.python for name, environment in made.items()}


def _check_libraries(python: Path, needed: tuple[str, ...]) -> None:
    missing = libraries.missing_libraries(python, needed)
    if missing:
        raise EnvironmentFailed(
            f"The environment needs {', '.join(missing)}, which no wheel brings and this machine lacks.",
            "Install it with the system's packages (libgomp.so.1: apt-get install libgomp1).",
        )


def _wants_frames(
    stages: tuple[Stage, ...], drafted: draft.Draft, pythons: Mapping[str, Path], options: Options
) -> bool:
    """Whether a model knows its columns by name and can't be given a frame, since no training interpreter told us before."""
    clean = {name: crew.clean(python, options.environ) for name, python in pythons.items()}
    with crew.crew(drafted.folder, clean, accepted=True) as workers:
        said = [workers.load(s) for s in stages if s.format == "sklearn"]
    return any(d.takes == "matrix" and d.inputs is not None and len(d.inputs) > 1 for d in said)


def _sample(pipeline: Pipeline, drafted: draft.Draft) -> Batch | None:
    if pipeline.sample is not None:
        return tables.read(pipeline.sample, SAMPLE_ROWS)
    brought = next((f.sample for f in drafted.facts.values() if f.sample), None)
    return tables.read(drafted.files.file(brought), SAMPLE_ROWS) if brought else None


def _groups(pipeline: Pipeline, drafted: draft.Draft) -> tuple[_Group, ...]:
    """One environment for all stages, unless they ask for different Pythons or requirements or name different versions."""
    groups: list[_Group] = []
    for stage in pipeline.stages:
        said = drafted.facts[stage.name].versions
        for i, group in enumerate(groups):
            if _fits(stage, said, group):
                groups[i] = _Group(group.name, (*group.stages, stage), {**group.versions, **said})
                break
        else:
            groups.append(_Group("default" if not groups else stage.name, (stage,), dict(said)))
    return tuple(groups)


def _fits(stage: StageDescription, said: Mapping[str, str], group: _Group) -> bool:
    first = group.stages[0]
    same = (stage.python, stage.requirements) == (first.python, first.requirements)
    return same and all(group.versions.get(name, version) == version for name, version in said.items())


def _assign(stages: Sequence[Stage], groups: Sequence[_Group]) -> tuple[Stage, ...]:
    of = {s.name: g.name for g in groups for s in g.stages}
    return tuple(dataclasses.replace(s, environment=of[s.name]) for s in stages)


def _ask_training(
    stages: tuple[Stage, ...],
    drafted: draft.Draft,
    sample: Batch | None,
    pipeline: Pipeline,
    options: Options,
    runtime: RuntimeWheel,
    home: Path,
    events: Events,
) -> _Reference:
    """What the training interpreter answers. Where it can't be asked, why not is said, and the reference is empty."""
    modules = {m for f in drafted.facts.values() for m in f.modules}
    interpreter = interpreters.training(options.python, options.environ, wanted=_distributions(modules))
    if interpreter is None:
        return _no_reference("no training interpreter was found", events)
    if interpreter.minor < interpreters.OLDEST:
        return _no_reference(
            f"{interpreter.path} is Python {interpreter.python}, too old to be asked", events
        )
    installed = interpreters.installed(interpreter)
    for facts in drafted.facts.values():
        wrong = describe.versions_agree(facts.versions, installed.versions)
        if wrong:
            return _no_reference(f"in {interpreter.path} {wrong[0]}", events)
    sources = crew.unpack_runtime(runtime.path, runtime.sha256, home / "cache")
    python = crew.training(interpreter.path, sources, options.environ)
    try:
        with crew.crew(drafted.folder, {s.environment: python for s in stages}, accepted=True) as workers:
            described = {s.name: workers.load(s) for s in stages}
            outcome = _rehearse(stages, described, sample, workers, pipeline).outcome
    except MlpackerError as error:
        if options.python is not None:
            raise
        empty = _no_reference(f"{interpreter.path} could not answer: {error.sentence}", events)
        return dataclasses.replace(empty, installed=installed, python=interpreter.python)
    source = f"training interpreter, Python {interpreter.python}"
    return _Reference(outcome, source, described, installed, interpreter.python)


def _no_reference(why: str, events: Events) -> _Reference:
    events.warn(
        f"No reference answers: {why}. Name the training interpreter with --python to have them compared."
    )
    return _Reference(None, why)


def _distributions(modules: set[str]) -> tuple[str, ...]:
    return captured.distributions_for(modules, None)


def _rehearse(
    stages: tuple[Stage, ...],
    described: Mapping[str, Description],
    sample: Batch | None,
    workers: crew.Crew,
    pipeline: Pipeline,
) -> _Rehearsal:
    """Settle the stages and answer the sample."""
    last = Manifest("", stages, (), ()).last
    settled = tuple(
        describe.settle(s, described[s.name], s.name in last, pipeline.stage(s.name).stateful) for s in stages
    )
    untyped = {n for d in described.values() for n in d.untyped}
    inputs = pipeline.inputs or describe.pipeline_inputs(settled, sample, untyped)
    batch, made_up = describe.fit_sample(sample, inputs, SAMPLE_ROWS)
    return _answer(settled, inputs, batch, made_up, workers)


def _answer(
    stages: tuple[Stage, ...], inputs: tuple[Field, ...], batch: Batch, made_up: bool, workers: crew.Crew
) -> _Rehearsal:
    stages = tuple(_with_inputs(s, inputs) for s in stages)
    for stage in stages:
        workers.load(stage)
    outcome, recorders = describe.rehearse(workers.engine(stages), batch)
    return _Rehearsal(outcome, stages, inputs, batch, made_up, recorders)


def _without_unused(seen: _Rehearsal, workers: crew.Crew) -> _Rehearsal:
    """Without the sample's columns that no stage names and whose absence changes no answer: the target, most often.

    Only where the inputs are the sample's columns because the entry stage did not say what it takes.
    """
    named = {f.name for s in seen.stages if manifest.INPUT not in s.after for f in s.inputs}
    kept = tuple(f for f in seen.inputs if f.name in named)
    if not kept or len(kept) == len(seen.inputs):
        return seen
    stages = tuple(dataclasses.replace(s, inputs=kept) if s.inputs == seen.inputs else s for s in seen.stages)
    fewer = _answer(stages, kept, seen.batch.select([f.name for f in kept]), seen.made_up, workers)
    return seen if prove.differences(seen.outcome, fewer.outcome) else fewer


def _with_inputs(stage: Stage, inputs: tuple[Field, ...]) -> Stage:
    """An entry stage's inputs in the types that the pipeline's were given."""
    if manifest.INPUT not in stage.after or not stage.inputs:
        return (
            stage
            if stage.inputs or stage.after != (manifest.INPUT,)
            else dataclasses.replace(stage, inputs=inputs)
        )
    known = {f.name: f for f in inputs} | {describe.spelled(f.name): f for f in inputs}
    if len(stage.inputs) == 1 and stage.inputs[0].name not in known:  # one tensor, now told as plain columns
        return dataclasses.replace(stage, inputs=inputs)
    return dataclasses.replace(stage, inputs=tuple(known.get(f.name, f) for f in stage.inputs))


def _lock(
    group: _Group,
    pipeline: Pipeline,
    drafted: draft.Draft,
    reference: _Reference,
    options: Options,
    runtime: RuntimeWheel,
    events: Events,
    frames: bool,
) -> locks.Lock:
    """The locked environment of a group of stages.

    pandas joins what the files need where `frames`: a model takes them.
    """
    facts = [drafted.facts[s.name] for s in group.stages]
    modules = {m for f in facts for m in f.modules} | ({"pandas"} if frames else set())
    needed = captured.distributions_for(modules, reference.installed)
    strangers = captured.strangers(reference.installed, needed) if reference.installed else ()
    requirements = captured.pins(
        group.versions,
        user=[*pipeline.requirements, *(r for s in group.stages for r in s.requirements)],
        mlmodel=[r for f in facts for r in f.requirements],
        training=reference.installed,
        needed=needed,
    )
    told = {f.python for f in facts if f.python} | {s.python for s in group.stages if s.python}
    python = min(told) if told else pipeline.python or reference.python
    if len(told) > 1:
        raise BadDescription(
            f"The stages of environment {group.name!r} need Python {' and '.join(sorted(told))}."
        )
    # Code pickled by value holds bytecode, which no other Python runs; the file does not say which one that is.
    bound = any(drafted.facts[s.name].code and s.model is not None for s in group.stages)
    carried = drafted.folder / "wheels"
    carried.mkdir(exist_ok=True)
    return _resolve(requirements, python, bound, carried, strangers, options, runtime, events)


def _resolve(
    requirements: tuple[str, ...],
    python: str | None,
    bound: bool,
    carried: Path,
    strangers: Sequence[interpreters.Distribution],
    options: Options,
    runtime: RuntimeWheel,
    events: Events,
) -> locks.Lock:
    """With the Python it was trained with; where that is not known or can't be had, with the newest one that resolves."""
    known = interpreters.available(options.environ)
    if not known:
        raise EnvironmentFailed("No Python from 3.10 on was found here.", "Install one.")
    here = interpreters.find(python if python in known else known[0], options.environ)
    assert here is not None
    requirements = wheels.carry(
        requirements,
        carried,
        here,
        sources={d.name: d.source for d in strangers},
        allow_build=options.allow_build,
        indexes=options.indexes,
        progress=events.note,
    )
    chosen = resolve.choose_python(
        requirements,
        python,
        here=here.platform,
        available=known,
        must_be_trained=bound,
        indexes=options.indexes,
        carried=carried,
    )
    if python is not None and chosen != python:
        events.warn(f"Trained with Python {python}; packed for {chosen}, the newest here that has all pins.")
    return resolve.resolve(
        locks.Requirements(python=chosen, requirements=requirements),
        resolve.runtime_requirements(runtime.path),
        here=here.platform,
        platforms=options.platforms,
        indexes=options.indexes,
        carried=carried,
        progress=events.note,
    )


def _prove(
    stages: tuple[Stage, ...],
    drafted: draft.Draft,
    sample: Batch | None,
    pipeline: Pipeline,
    locked: dict[str, locks.Lock],
    pythons: dict[str, Path],
    reference: _Reference,
    options: Options,
    events: Events,
) -> Packed:
    clean = {name: crew.clean(python, options.environ) for name, python in pythons.items()}
    with crew.crew(drafted.folder, clean, accepted=True) as workers:
        described = {s.name: workers.load(s) for s in stages}
        for note in (n for d in described.values() for n in d.notes):
            events.warn(note)
        seen = _rehearse(stages, described, sample, workers, pipeline)
        if not pipeline.inputs:
            seen = _without_unused(seen, workers)
        settled = tuple(
            describe.with_outputs(s, seen.recorders[s.name], described[s.name].labels) for s in seen.stages
        )
        for stage in settled:
            workers.load(stage)
        settled = tuple(
            describe.judge_batching(s, workers.workers[s.environment].runner(s.name), seen.recorders[s.name])
            for s in settled
        )
    check_between(settled, pipeline)
    seen = dataclasses.replace(seen, stages=settled)
    sizes = {name: install.size(python.parents[1]) for name, python in pythons.items()}
    proof = _compare(seen, reference, pipeline, locked, sizes)
    return _write(seen, drafted, pipeline, locked, pythons, proof)


def _compare(
    seen: _Rehearsal,
    reference: _Reference,
    pipeline: Pipeline,
    locked: Mapping[str, locks.Lock],
    sizes: dict[str, int],
) -> Proof:
    """Raises NotProvable, showing the rows, where the answers are not the reference's."""
    outcome, rows, made_up = seen.outcome, len(seen.batch), seen.made_up
    expected, source = reference.outcome, reference.source
    if pipeline.expect is not None:
        expected, source = _expected(pipeline.expect, outcome), f"{pipeline.expect.name}"
    platform = interpreters.this_platform()
    environments = {name: f"Python {lock.python}" for name, lock in locked.items()}
    if expected is None:
        return Proof("runs, not compared", source, rows, made_up, platform, environments, sizes)
    found = prove.differences(expected, outcome)
    if found:
        shown = "\n".join(f"  {d}" for d in found[: prove.SHOWN])
        raise NotProvable(
            f"The clean environment does not answer as the {source} does:\n{shown}\n",
            "Pin what differs in the requirements, or name the right training interpreter with --python.",
            rows=tuple(str(d) for d in found),
        )
    return Proof("proven", source, rows, made_up, platform, environments, sizes)


def _expected(path: Path, outcome: Outcome) -> Outcome:
    """Expected answers from a file, in the outputs' types. A file of one column may name it as it likes."""
    fields = describe.pipeline_outputs(outcome)
    given = tables.read(path, SAMPLE_ROWS)
    if len(given.names) == 1 and given.names[0] not in {f.name for f in fields}:
        given = Batch({fields[0].name: given.columns[given.names[0]]})
    known = tuple(f for f in fields if f.name in given)
    if not known:
        raise BadDescription(
            f"{path.name} has none of the outputs.",
            f"Its columns should be {', '.join(f.name for f in fields)}.",
        )
    if len(given) < len(outcome.batch):
        raise BadDescription(f"{path.name} has {len(given)} rows for {len(outcome.batch)} answers.")
    fitted = tables.fit(given.take(slice(0, len(outcome.batch))), known, path.name)
    return Outcome(fitted.with_rows(outcome.batch.rows), outcome.errors)


def _outputs(seen: _Rehearsal) -> tuple[Field, ...]:
    """The pipeline's outputs as its last stages declare them, where their names are theirs alone."""
    last = Manifest("", seen.stages, (), ()).last
    declared = {f.name: f for s in seen.stages if s.name in last for f in s.outputs}
    return tuple(declared.get(f.name, f) for f in describe.pipeline_outputs(seen.outcome))


def _write(
    seen: _Rehearsal,
    drafted: draft.Draft,
    pipeline: Pipeline,
    locked: dict[str, locks.Lock],
    pythons: dict[str, Path],
    proof: Proof,
) -> Packed:
    """The manifest and the files it names, beside what the draft already holds."""
    made = Manifest(
        name=pipeline.name,
        version=pipeline.version,
        stages=seen.stages,
        inputs=seen.inputs,
        outputs=_outputs(seen),
        environments={n: Environment(lock.python, f"env/{n}.lock.json") for n, lock in locked.items()},
        sample="sample.json",
        metadata=dict(pipeline.metadata),
    )
    folder = drafted.folder
    (folder / "env").mkdir(exist_ok=True)
    for name, lock in locked.items():
        (folder / made.environments[name].lock).write_bytes(locks.encode(lock))
    (folder / "sample.json").write_bytes(tables.encode(seen.batch))
    (folder / manifest.PATH).write_bytes(manifest.encode(made))
    return Packed(made, folder, drafted.files.paths, locked, pythons, proof, seen.batch, seen.outcome)


def proof_document(packed: Packed) -> bytes:
    """The proof as it hangs on the package."""
    return _document(dataclasses.asdict(packed.proof))


def golden_document(packed: Packed) -> bytes:
    """The package's answers to its sample: columns, row identities and errors, with floats exactly."""
    answer = packed.golden.batch
    errors = {str(row): said for row, said in packed.golden.errors.items()}
    return _document({"columns": tables.to_json(answer), "rows": answer.rows.tolist(), "errors": errors})


def _document(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode() + b"\n"
