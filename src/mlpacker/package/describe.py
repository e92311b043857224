"""From what loaded models say of themselves and what the sample shows, to stages with signatures."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.engine import Engine
from mlpacker_runtime.formats import Description
from mlpacker_runtime.manifest import INPUT, Stage
from mlpacker_runtime.signature import Field, field_of

from .. import tables
from ..errors import BadDescription, BadInput, MlpackerError
from . import prove

MADE_UP_ROWS = 16
ALONE_ROWS = 64
"""How many of the sample's rows are also answered one by one, to see whether rows look at their neighbours."""


def settle(stage: Stage, said: Description, last: bool, stateful: bool | None) -> Stage:
    """A stage with what its model says filled in where the user said nothing. stateful: as the user has it."""
    return dataclasses.replace(
        stage,
        methods=stage.methods or (said.methods if last else said.inner),
        takes=stage.takes or said.takes,
        inputs=stage.inputs or said.inputs or (),
        outputs=stage.outputs or said.outputs or (),
        stateful=said.stateful if stateful is None else stateful,
    )


def pipeline_inputs(
    stages: Sequence[Stage], sample: Batch | None, untyped: Collection[str] = ()
) -> tuple[Field, ...]:
    """What a request brings: the inputs of the stages that read it. Where these do not know, all of the sample's columns.

    untyped: names of inputs whose type the models do not tell; the sample does.
    """
    entries = [s for s in stages if INPUT in s.after]
    if any(not s.inputs for s in entries):
        if sample is None:
            name = next(s.name for s in entries if not s.inputs)
            raise BadDescription(
                f"Stage {name!r} does not say what goes in.",
                "Give some rows with --sample FILE (CSV, JSON, Parquet).",
            )
        return tuple(field_of(n, sample.columns[n]) for n in sample.names)
    fields: dict[str, Field] = {}
    for field in (f for s in entries for f in s.inputs):
        fields.setdefault(field.name, field)
    return tuple(
        _typed(f, sample) if f.name in untyped else f for f in _named(tuple(fields.values()), sample)
    )


def _named(fields: tuple[Field, ...], sample: Batch | None) -> tuple[Field, ...]:
    """A model that knows only how wide it is takes the names of a sample of plain columns of that width."""
    if sample is not None:
        fields = tuple(_as_called(f, sample) for f in fields)
    only = fields[0]
    if sample is None or len(fields) > 1 or len(only.shape) != 2 or len(sample.names) != only.shape[1]:
        return fields
    return tuple(Field(n, only.dtype) for n in sample.names)


def _as_called(field: Field, sample: Batch) -> Field:
    """A field under the sample's name for it: LightGBM writes the blanks of a name as underscores."""
    if field.name in sample:
        return field
    called = [n for n in sample.names if spelled(n) == field.name]
    return dataclasses.replace(field, name=called[0]) if len(called) == 1 else field


def spelled(name: str) -> str:
    """A column's name as a model may have kept it."""
    return name.replace(" ", "_")


def _typed(field: Field, sample: Batch | None) -> Field:
    """A field whose model does not know its type has the sample's."""
    if sample is None or field.name not in sample:
        raise BadDescription(
            f"The model does not say of what type the column {field.name!r} is.",
            "Give some rows with --sample FILE (CSV, JSON, Parquet).",
        )
    seen = field_of(field.name, sample.columns[field.name])
    return dataclasses.replace(seen, nullable=field.nullable or seen.nullable, required=field.required)


def made_up(fields: tuple[Field, ...]) -> Batch:
    """Rows that fit the fields, the same every time, for a model that came without a sample."""
    random = np.random.default_rng(0)
    return Batch({f.name: _made_up(f, random) for f in fields})


def _made_up(field: Field, random: np.random.Generator) -> np.ndarray:
    shape = (MADE_UP_ROWS, *(1 if n < 0 else n for n in field.shape[1:]))
    if field.dtype.startswith("float"):
        return random.normal(size=shape).round(3).astype(field.numpy)
    if field.dtype == "datetime":
        return np.full(shape, np.datetime64("2024-01-01", "ns"))
    if field.numeric:
        return random.integers(0, 2, size=shape).astype(field.numpy)
    words = list(
        field.categories or (b"a", b"b") if field.dtype == "bytes" else field.categories or ("a", "b")
    )
    column = np.empty(shape, dtype=object)
    column.ravel()[:] = [words[i % len(words)] for i in range(column.size)]
    return column


class Recorder:
    """A runner that keeps what its stage was asked and answered, and lets what it raises pass."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.asked: Batch | None = None
        self.answered: Outcome | None = None
        self.raised: Exception | None = None

    @property
    def expanded(self) -> int | None:
        """The first row that was given several answers."""
        rows, counts = np.unique(self.answered.batch.rows if self.answered else (), return_counts=True)
        return int(rows[counts > 1][0]) if (counts > 1).any() else None

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        try:
            outcome: Outcome = self.inner.predict(batch, want)  # type: ignore[attr-defined]
        except Exception as cause:
            self.raised = self.raised or cause
            raise
        if self.asked is None or len(batch) > len(self.asked):
            self.asked, self.answered = batch, outcome
        return outcome


def as_seen(stage: Stage, recorder: Recorder) -> Stage:
    """The stage with the outputs that were seen; as it was where no row of the sample came through."""
    return with_outputs(stage, recorder, ()) if recorder.answered and len(recorder.answered.batch) else stage


def rehearse(engine: Engine, batch: Batch) -> tuple[Outcome, dict[str, Recorder]]:
    """Answer the sample, keeping what went in and came out of each stage."""
    recorders = {name: Recorder(runner) for name, runner in engine.runners.items()}
    return Engine(engine.stages, recorders).run(batch), recorders


def with_outputs(stage: Stage, recorder: Recorder, labels: tuple[Any, ...]) -> Stage:
    """The stage with the outputs that were seen, as declared where they were.

    labels: the classes in the order of the probabilities' columns, which become that output's categories.

    Raises BadInput where no row of the sample came through.
    """
    if recorder.answered is None or len(recorder.answered.batch) == 0:
        raise _no_answer(stage, recorder)
    answer = recorder.answered.batch
    declared = {f.name: f for f in stage.outputs}
    seen = [field_of(n, answer.columns[n]) for n in answer.names]
    outputs = [_labelled(declared.get(f.name, f), labels) for f in seen]
    return dataclasses.replace(stage, outputs=tuple(outputs))


def _labelled(field: Field, labels: tuple[Any, ...]) -> Field:
    fits = field.name == "predict_proba" and field.shape[1:] == (len(labels),)
    return dataclasses.replace(field, categories=labels) if fits else field


def _no_answer(stage: Stage, recorder: Recorder) -> BadInput:
    if isinstance(recorder.raised, MlpackerError):
        said = f"Stage {stage.name!r} failed: {recorder.raised.sentence}"
        return BadInput(said, recorder.raised.next_step, **recorder.raised.facts)
    errors = list(recorder.answered.errors.values()) if recorder.answered is not None else []
    why = f"{recorder.raised}" if recorder.raised else errors[0] if errors else "it dropped every row."
    return BadInput(
        f"Stage {stage.name!r} answered no row of the sample: {why}", "Give rows that fit it with --sample."
    )


def judge_batching(stage: Stage, runner: object, recorder: Recorder) -> Stage:
    """Mark a stage whose answers depend on which rows stand beside each other: whole, one by one and shuffled differ."""
    asked, whole = recorder.asked, recorder.answered
    if stage.batch == "request" or stage.stateful or asked is None or whole is None:
        return stage
    if len(np.unique(asked.rows)) < len(asked):  # a stage before gave several answers a row: number them anew
        asked = asked.with_rows(np.arange(len(asked)))
        whole = runner.predict(asked, None)  # type: ignore[attr-defined]
    alone = asked.take(slice(0, ALONE_ROWS))
    shuffled = asked.take(np.random.default_rng(0).permutation(len(asked)))
    try:
        head = whole if len(alone) == len(asked) else _of(whole, alone.rows)
        one_by_one = [runner.predict(alone.take(slice(i, i + 1)), None) for i in range(len(alone))]  # type: ignore[attr-defined]
        same = prove.independent(head, one_by_one)
        same = same and prove.independent(whole, [runner.predict(shuffled, None)])  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  a stage that can't answer one row alone is one that needs its neighbours
        same = False
    return stage if same else dataclasses.replace(stage, batch="request")


def _of(outcome: Outcome, rows: np.ndarray) -> Outcome:
    kept = set(rows.tolist())
    batch = outcome.batch.take(np.isin(outcome.batch.rows, rows))
    return Outcome(batch, {r: e for r, e in outcome.errors.items() if r in kept})


def pipeline_outputs(outcome: Outcome) -> tuple[Field, ...]:
    return tuple(field_of(n, outcome.batch.columns[n]) for n in outcome.batch.names)


def fit_sample(sample: Batch | None, fields: tuple[Field, ...], limit: int) -> tuple[Batch, bool]:
    """The sample in the signature's types, and whether it had to be made up.

    Raises BadInput, with the fact `sample`, where the user's does not fit.
    """
    if sample is None:
        return tables.fit(made_up(fields), fields, "The made-up sample"), True
    try:
        batch = tables.fit(sample, fields, "The sample").take(slice(0, limit))
    except BadInput as cause:
        raise BadInput(cause.sentence, cause.next_step, sample="misfit") from cause
    return batch.with_rows(np.arange(len(batch))), False


def versions_agree(said: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """Sentences about libraries whose installed version is not the one the model file names."""
    return [
        f"{name} {installed[name]} is not the {version} the model was saved with"
        for name, version in sorted(said.items())
        if name in installed and installed[name] != version
    ]
