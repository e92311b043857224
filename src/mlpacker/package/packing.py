"""Packing: from a described pipeline to a proven package in the store.

draft → audit → describe and answer in the training interpreter → pins → lock → clean environments → describe and answer
again → compare → manifest → store. mlpacker's own process loads no model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlpacker_runtime import manifest
from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.formats import Description
from mlpacker_runtime.manifest import Environment, Manifest, Stage
from mlpacker_runtime.signature import Field

from .. import tables
from ..environments import captured, install, interpreters
from ..environments.lock import encode as encode_lock
from ..environments.runtime_wheel import runtime_wheel
from ..errors import BadDescription, BadInput, MlpackerError, NotProvable
from ..events import Events
from ..pipeline import Pipeline, check_between
from . import crew, describe, draft, environment, prove
from .environment import NOT_KNOWN, Made, Options, Tools, Trained

SAMPLE_ROWS = 256
"""Rows of the sample that are answered, compared and packed."""
TRIED_COLUMNS = 64
"""How many of the sample's columns are left out on trial, one at a time."""


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
    proof: Proof
    golden: Outcome


@dataclass(frozen=True)
class _Reference:
    """Answers to compare with, and where they are from; outcome None where there are none."""

    outcome: Outcome | None
    source: str
    trained: Trained = NOT_KNOWN


@dataclass(frozen=True)
class _Rehearsal:
    """The sample answered once: by which stages, with what inputs, and what each stage was asked and answered."""

    outcome: Outcome
    stages: tuple[Stage, ...]
    inputs: tuple[Field, ...]
    batch: Batch
    made_up: bool
    recorders: dict[str, describe.Recorder]


def pack(
    pipeline: Pipeline,
    folder: Path,
    home: Path,
    options: Options,
    events: Events,
    drafted_in: Callable[[Path], None] = lambda folder: None,
) -> Packed:
    """Fill `folder` with a package of the pipeline.

    drafted_in: told when the models and the code lie in the folder; what it raises stops us before the long work.
    Raises BadDescription, BadInput, Refused, EnvironmentFailed or NotProvable.
    """
    events.step("Reading and auditing")
    drafted = draft.make(pipeline, folder, options.trust)
    drafted_in(folder)
    sample = _sample(pipeline, drafted)
    if pipeline.expect is not None:
        tables.read(pipeline.expect, SAMPLE_ROWS)  # what nobody can read is said before the long work
    groups = environment.group(pipeline, drafted)
    stages = environment.assign(drafted.stages, groups)
    tools = Tools(options, home, runtime_wheel(home / "cache"), events)

    events.step("Asking the training interpreter")
    reference = _ask_training(stages, drafted, sample, pipeline, tools)
    made = environment.make(groups, pipeline, folder, reference.trained, tools)
    frames = frozenset() if reference.trained.frames else _wants_frames(stages, drafted, made, options)
    if frames:
        events.note("the model knows its columns by name, so pandas joins its environment")
        trained = dataclasses.replace(reference.trained, frames=frames)
        made = environment.make(groups, pipeline, folder, trained, tools)

    events.step("Proving the answers")
    seen = _ask_clean(stages, drafted, sample, pipeline, made, tools)
    return _write(seen, drafted, pipeline, made, _compare(seen, reference, pipeline, drafted, made))


def _wants_frames(
    stages: tuple[Stage, ...], drafted: draft.Draft, made: Mapping[str, Made], options: Options
) -> frozenset[str]:
    """Stages whose model knows its columns by name and can't be given a frame: no training interpreter told us before."""
    with crew.crew(drafted.folder, _clean(made, options), accepted=True) as workers:
        said = {s.name: workers.load(s) for s in stages if s.format == "sklearn"}
    return frozenset(n for n, d in said.items() if d.takes == "matrix" and d.inputs and len(d.inputs) > 1)


def _clean(made: Mapping[str, Made], options: Options) -> dict[str, crew.Python]:
    return {name: crew.clean(m.python, options.environ) for name, m in made.items()}


def _sample(pipeline: Pipeline, drafted: draft.Draft) -> Batch | None:
    if pipeline.sample is not None:
        sample = tables.read(pipeline.sample, SAMPLE_ROWS)
        if not len(sample):
            raise BadInput(f"{pipeline.sample.name} has no rows.", "Give a sample of a few rows.")
        return sample
    brought = next((f.sample for f in drafted.facts.values() if f.sample), None)
    return tables.read(drafted.files.file(brought), SAMPLE_ROWS) if brought else None


def _ask_training(
    stages: tuple[Stage, ...],
    drafted: draft.Draft,
    sample: Batch | None,
    pipeline: Pipeline,
    tools: Tools,
) -> _Reference:
    """What the training interpreter answers. Where it can't be asked, why not is said, and the reference is empty."""
    options, events = tools.options, tools.events
    modules = {m for f in drafted.facts.values() for m in f.modules}
    wanted = captured.distributions_for(modules, None)
    interpreter = interpreters.training(options.python, options.environ, wanted=wanted)
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
    sources = crew.unpack_runtime(tools.runtime.path, tools.runtime.sha256, tools.home / "cache")
    python = crew.training(interpreter.path, sources, options.environ)
    try:
        with crew.crew(drafted.folder, {s.environment: python for s in stages}, accepted=True) as workers:
            described = {s.name: workers.load(s) for s in stages}
            outcome = _rehearse(stages, described, sample, workers, pipeline).outcome
    except MlpackerError as error:
        if options.python is not None or "sample" in error.facts:
            raise  # a sample that does not fit the model fits it in no environment
        empty = _no_reference(f"{interpreter.path} could not answer: {error.sentence}", events)
        return dataclasses.replace(empty, trained=Trained(installed, interpreter.python))
    frames = frozenset(name for name, d in described.items() if d.takes == "frame")
    source = f"the training interpreter, Python {interpreter.python}"
    return _Reference(outcome, source, Trained(installed, interpreter.python, frames))


def _no_reference(why: str, events: Events) -> _Reference:
    events.warn(
        f"No reference answers: {why}. Name the training interpreter with --python to have them compared."
    )
    return _Reference(None, why)


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
    seen = _answer(settled, inputs, batch, made_up, workers)
    _check_graph(seen, pipeline)
    return seen


def _check_graph(seen: _Rehearsal, pipeline: Pipeline) -> None:
    """Raises BadDescription, naming the line, where stages do not fit, whatever failed or came through because of it."""
    check_between(tuple(describe.as_seen(s, seen.recorders[s.name]) for s in seen.stages), pipeline)
    joined = {n for s in seen.stages if len(s.after) > 1 for n in s.after}
    last = Manifest("", seen.stages, (), ()).last
    for name in sorted(joined | (set(last) if len(last) > 1 else set())):
        row = seen.recorders[name].expanded if name != manifest.INPUT else None
        if row is not None:
            raise pipeline.wrong(
                pipeline.stage(name).at,
                f"stage {name!r} gave several answers for row {row} of the sample, and what it gives is joined with others.",
                "Let it give one answer a row, or put it after the join.",
            )


def _answer(
    stages: tuple[Stage, ...], inputs: tuple[Field, ...], batch: Batch, made_up: bool, workers: crew.Crew
) -> _Rehearsal:
    stages = tuple(_with_inputs(s, inputs) for s in stages)
    for stage in stages:
        workers.load(stage)
    outcome, recorders = describe.rehearse(workers.engine(stages), batch)
    return _Rehearsal(outcome, stages, inputs, batch, made_up, recorders)


def _without_unused(seen: _Rehearsal, drafted: draft.Draft, workers: crew.Crew) -> _Rehearsal:
    """Without the sample's columns that nobody uses: the target, most often.

    A column stays that a later stage names, that the packed code mentions (it may look only now and then), or whose absence
    changes an answer. All others are left out at once; where that changes something, one by one.
    """
    named = {f.name for s in seen.stages if manifest.INPUT not in s.after for f in s.inputs}
    code = "".join(
        drafted.files.read(p).decode(errors="replace") for p in drafted.files.paths if p.endswith(".py")
    )
    idle = [f for f in seen.inputs if f.name not in named and f.name not in code][:TRIED_COLUMNS]
    fewer = _answers_without(idle, seen, workers)
    if fewer is not None:
        return fewer
    for field in idle:
        seen = _answers_without([field], seen, workers) or seen
    return seen


def _answers_without(idle: list[Field], seen: _Rehearsal, workers: crew.Crew) -> _Rehearsal | None:
    """The rehearsal without these inputs; None where an answer changes, or nothing is left."""
    kept = tuple(f for f in seen.inputs if f not in idle)
    if not kept or not idle:
        return None
    stages = tuple(dataclasses.replace(s, inputs=kept) if s.inputs == seen.inputs else s for s in seen.stages)
    fewer = _answer(stages, kept, seen.batch.select([f.name for f in kept]), seen.made_up, workers)
    return None if prove.differences(seen.outcome, fewer.outcome) else fewer


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


def _ask_clean(
    stages: tuple[Stage, ...],
    drafted: draft.Draft,
    sample: Batch | None,
    pipeline: Pipeline,
    made: Mapping[str, Made],
    tools: Tools,
) -> _Rehearsal:
    """What the clean environments answer; its stages have their outputs, and are marked where rows need each other."""
    with crew.crew(drafted.folder, _clean(made, tools.options), accepted=True) as workers:
        described = {s.name: workers.load(s) for s in stages}
        for note in (n for d in described.values() for n in d.notes):
            tools.events.warn(note)
        seen = _rehearse(stages, described, sample, workers, pipeline)
        entries = [s for s in stages if manifest.INPUT in s.after]
        if not pipeline.inputs and any(not (s.inputs or described[s.name].inputs) for s in entries):
            seen = _without_unused(seen, drafted, workers)
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
    return dataclasses.replace(seen, stages=settled)


def _compare(
    seen: _Rehearsal,
    reference: _Reference,
    pipeline: Pipeline,
    drafted: draft.Draft,
    made: Mapping[str, Made],
) -> Proof:
    """Raises NotProvable, showing the rows, where the answers are not the reference's."""
    references = _references(seen, reference, pipeline, drafted)
    for expected, source in references:
        _refuse(prove.differences(expected, seen.outcome), source)
    return Proof(
        verdict="proven" if references else "runs, not compared",
        reference=" and ".join(source for _, source in references) or reference.source,
        rows=len(seen.batch),
        made_up_sample=seen.made_up,
        platform=interpreters.this_platform(),
        environments={name: f"Python {m.lock.python}" for name, m in made.items()},
        environment_bytes={name: install.size(m.python.parents[1]) for name, m in made.items()},
    )


def _references(
    seen: _Rehearsal, reference: _Reference, pipeline: Pipeline, drafted: draft.Draft
) -> list[tuple[Outcome, str]]:
    """The answers to compare with, each with its source: --expect; for the outputs it lacks, the training interpreter;
    without that, what a model file brought."""
    found: list[tuple[Outcome, str]] = []
    if pipeline.expect is not None:
        expected = _expected(pipeline.expect, seen.outcome)
        found.append((expected, f"{pipeline.expect.name} ({', '.join(expected.batch.names)})"))
    if reference.outcome is not None:
        answer = reference.outcome.batch
        rest = [n for n in answer.names if not any(n in other.batch for other, _ in found)]
        if rest or not found:
            found.append((Outcome(answer.select(rest), reference.outcome.errors), reference.source))
    brought = next((f.expected for f in drafted.facts.values() if f.expected), None)
    if not found and brought is not None and pipeline.sample is None:
        found.append((_expected(drafted.files.file(brought), seen.outcome), Path(brought).name))
    return found


def _refuse(found: list[prove.Difference], source: str) -> None:
    if found:
        shown = "\n".join(f"  {d}" for d in found[: prove.SHOWN])
        raise NotProvable(
            f"The clean environment does not answer as {source} does:\n{shown}\n",
            "Where those answers are right: pin what differs with -r, or name the training interpreter with --python.",
            rows=tuple(str(d) for d in found),
        )


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
    seen: _Rehearsal, drafted: draft.Draft, pipeline: Pipeline, made: Mapping[str, Made], proof: Proof
) -> Packed:
    """The manifest and the files it names, beside what the draft already holds."""
    document = Manifest(
        name=pipeline.name,
        version=pipeline.version,
        stages=seen.stages,
        inputs=seen.inputs,
        outputs=_outputs(seen),
        environments={n: Environment(m.lock.python, f"env/{n}.lock.json") for n, m in made.items()},
        sample="sample.json",
        metadata=dict(pipeline.metadata),
    )
    folder = drafted.folder
    (folder / "env").mkdir(exist_ok=True)
    for name, m in made.items():
        (folder / document.environments[name].lock).write_bytes(encode_lock(m.lock))
    (folder / "sample.json").write_bytes(tables.encode(seen.batch))
    (folder / manifest.PATH).write_bytes(manifest.encode(document))
    return Packed(document, folder, drafted.files.paths, proof, seen.outcome)


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
