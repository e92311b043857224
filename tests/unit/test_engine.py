"""The engine's rules: an outcome per row, whatever its neighbours do."""

from __future__ import annotations

import numpy as np
import pytest

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.engine import Engine
from mlpacker_runtime.manifest import INPUT, Stage
from mlpacker_runtime.signature import Field

OUT = (Field("y", "float64"),)


class Toy:
    """A runner from a function of (x, rows) to (y, rows)."""

    def __init__(self, compute):
        self.compute = compute
        self.calls = 0

    def predict(self, batch, want):
        self.calls += 1
        y, rows = self.compute(np.asarray(batch.columns[batch.names[0]]), batch.rows)
        return Outcome(Batch({"y": y}, rows))


def add(n):
    return Toy(lambda x, rows: (x + n, rows))


def drop_negative():
    return Toy(lambda x, rows: (x[x >= 0], rows[x >= 0]))


def fail_on(bad):
    def compute(x, rows):
        if bad in x:
            raise ValueError(f"can't take {bad}")
        return x, rows

    return Toy(compute)


def run(stages, x, **runners):
    return Engine(tuple(stages), runners).run(Batch({"x": np.asarray(x, dtype=float)}))


def stage(name, *after, **more):
    return Stage(name, "toy", "", after=after or (INPUT,), outputs=OUT, **more)


def test_rows_pass_through_stages_in_order():
    outcome = run([stage("a"), stage("b", "a")], [1, 2], a=add(1), b=add(10))
    assert outcome.batch["y"].tolist() == [12, 13]


def test_a_dropped_row_is_in_neither_answers_nor_errors():
    outcome = run([stage("a"), stage("b", "a")], [1, -1, 2], a=drop_negative(), b=add(0))
    assert outcome.batch.rows.tolist() == [0, 2]
    assert outcome.errors == {}


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_one_bad_row_fails_alone(size):
    x = np.arange(size, dtype=float)
    outcome = run([stage("a")], x, a=fail_on(size // 2))
    assert list(outcome.errors) == [size // 2]
    assert outcome.batch.rows.tolist() == [i for i in range(size) if i != size // 2]
    assert "can't take" in outcome.errors[size // 2]


def test_a_batch_of_bad_rows_costs_a_bounded_number_of_calls():
    def always(x, rows):
        raise ValueError("no")

    toy = Toy(always)
    outcome = run([stage("a")], np.zeros(10_000), a=toy)
    assert len(outcome.errors) == 10_000
    assert toy.calls < 100


@pytest.mark.parametrize("why", [{"stateful": True}, {"batch": "request"}])
def test_a_stage_that_must_not_be_halved_fails_whole(why):
    toy = fail_on(1)
    outcome = run([stage("a", **why)], [0, 1, 2], a=toy)
    assert sorted(outcome.errors) == [0, 1, 2]
    assert toy.calls == 1


def test_a_failed_row_does_not_reach_the_next_stage():
    seen = []
    outcome = run(
        [stage("a"), stage("b", "a")],
        [0, 1, 2],
        a=fail_on(1),
        b=Toy(lambda x, rows: (seen.extend(x) or x, rows)),
    )
    assert seen == [0, 2]
    assert list(outcome.errors) == [1]


def test_a_join_brings_branches_together_by_row_and_drops_what_one_branch_dropped():
    outcome = run(
        [stage("a"), stage("b"), stage("c", "a", "b")],
        [3, -1, 5],
        a=add(1),
        b=drop_negative(),
        c=Toy(lambda x, rows: (x, rows)),
    )
    assert outcome.batch.rows.tolist() == [0, 2]
    assert outcome.batch["y"].tolist() == [4, 6]


def test_two_last_stages_answer_under_their_own_names():
    outcome = run([stage("a"), stage("b")], [1.0], a=add(1), b=add(2))
    assert {n: outcome.batch[n].tolist() for n in outcome.batch.names} == {"a.y": [2.0], "b.y": [3.0]}


def test_a_row_with_several_answers_fails_at_a_join_and_no_other_row_does():
    def twice_above_one(x, rows):
        times = np.where(x > 1, 2, 1)
        return np.repeat(x, times), np.repeat(rows, times)

    for last in ((stage("c", "a", "b"),), ()):
        outcome = run(
            [stage("a"), stage("b"), *last], [1.0, 2.0, 0.0], a=Toy(twice_above_one), b=add(0), c=add(0)
        )
        assert outcome.batch.rows.tolist() == [0, 2]
        assert list(outcome.errors) == [1]
        assert "'a' gave several answers" in outcome.errors[1]


def test_an_empty_batch_answers_with_the_right_columns():
    outcome = run([stage("a")], [], a=fail_on(1))
    assert outcome.batch.names == ("y",)
    assert len(outcome.batch) == 0
