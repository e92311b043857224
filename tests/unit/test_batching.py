"""Requests that go through the pipeline together get the answers they would get alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpacker_runtime.batch import Batch, Outcome
from mlpacker_runtime.batching import Batcher, Limits, Overloaded, split
from mlpacker_runtime.engine import Engine
from mlpacker_runtime.errors import BadInput
from mlpacker_runtime.manifest import Stage
from mlpacker_runtime.signature import Field

DROP, TWICE, FAIL, RAISE = 7.0, 8.0, 9.0, 13.0
OUT = (Field("predict", "float64"), Field("half", "float64"))
STAGE = Stage("toy", "function", "toy.py", methods=("predict", "half"), outputs=OUT)


class Toy:
    """Adds one; drops, repeats, fails and raises on the values above; gives its rows back in another order."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict(self, batch: Batch, want: frozenset[str] | None) -> Outcome:
        self.asked.append(len(batch))
        x = np.asarray(batch.columns["x"])
        if (x == RAISE).any():
            raise ValueError("thirteen")
        errors = {int(r): "nine" for r in batch.rows[x == FAIL]}
        at = [i for i in range(len(x)) if x[i] not in (DROP, FAIL) for _ in range(2 if x[i] == TWICE else 1)][
            ::-1
        ]
        columns = {"predict": x[at] + 1, "half": x[at] / 2}
        if want is not None:
            columns = {n: c for n, c in columns.items() if n in want}
        return Outcome(Batch(columns, batch.rows[at]), errors)


def engine(**changes: object) -> Engine:
    import dataclasses

    return Engine((dataclasses.replace(STAGE, **changes),), {"toy": Toy()})  # type: ignore[arg-type]


def batch_of(values: Sequence[float], first_row: int = 0) -> Batch:
    return Batch({"x": np.array(values, dtype=float)}, np.arange(first_row, first_row + len(values)))


def told(outcome: Outcome | Exception) -> object:
    """An answer as something to compare: rows in order, whatever order they came in."""
    if isinstance(outcome, Exception):
        return repr(outcome)
    order = np.argsort(outcome.batch.rows, kind="stable")
    columns = {n: np.asarray(c)[order].tolist() for n, c in outcome.batch.columns.items()}
    return outcome.batch.rows[order].tolist(), columns, dict(outcome.errors)


VALUES = st.sampled_from([0.0, 1.0, 2.0, DROP, TWICE, FAIL, RAISE])
REQUESTS = st.lists(
    st.tuples(
        st.lists(VALUES, max_size=5),
        st.sampled_from([None, frozenset({"predict"}), frozenset({"half"})]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=12,
)


async def ask_all(
    batcher: Batcher, requests: list[tuple[list[float], frozenset[str] | None, int]]
) -> list[object]:
    """Ask each, letting the loop turn as often as its third part says before the next."""
    answers: dict[int, object] = {}
    for i, (values, want, turns) in enumerate(requests):
        batcher.submit(batch_of(values, first_row=i), want, lambda o, i=i: answers.__setitem__(i, told(o)))
        for _ in range(turns):
            await asyncio.sleep(0)
    while len(answers) < len(requests):
        await asyncio.sleep(0.0005)
    return [answers[i] for i in range(len(requests))]


@given(REQUESTS, st.sampled_from([True, False]), st.integers(1, 20), st.sampled_from(["rows", "request"]))
def test_any_interleaving_of_requests_gives_each_the_answer_it_gets_alone(
    requests, thread, batch_rows, batch
) -> None:
    async def together() -> list[object]:
        batcher = Batcher(
            engine(batch=batch), asyncio.get_running_loop(), Limits(batch_rows=batch_rows, thread=thread)
        )
        try:
            return await ask_all(batcher, requests)
        finally:
            batcher.close()

    async def alone() -> list[object]:
        answers = []
        for i, (values, want, _) in enumerate(requests):
            got: list[object] = []
            batcher = Batcher(engine(batch=batch), asyncio.get_running_loop(), Limits(thread=False))
            batcher.submit(batch_of(values, first_row=i), want, lambda o, got=got: got.append(told(o)))
            await asyncio.sleep(0.0005)
            answers += got
        return answers

    assert asyncio.run(together()) == asyncio.run(alone())


async def test_rows_read_in_one_turn_of_the_loop_are_asked_once() -> None:
    toy = engine()
    batcher = Batcher(toy, asyncio.get_running_loop(), Limits(thread=False))
    answers: list[object] = []
    for value in (1.0, 2.0, 3.0):
        batcher.submit(batch_of([value]), None, lambda o: answers.append(told(o)))
    await asyncio.sleep(0)
    assert toy.runners["toy"].asked == [3]
    assert answers == [([0], {"predict": [v + 1], "half": [v / 2]}, {}) for v in (1.0, 2.0, 3.0)]


async def test_a_lone_request_is_answered_in_the_same_turn() -> None:
    batcher = Batcher(engine(), asyncio.get_running_loop(), Limits(thread=False))
    answers: list[object] = []
    batcher.submit(batch_of([1.0]), None, answers.append)
    await asyncio.sleep(0)
    assert len(answers) == 1


async def test_a_pipeline_that_looks_at_neighbours_gets_whole_requests() -> None:
    toy = engine(batch="request")
    batcher = Batcher(toy, asyncio.get_running_loop(), Limits(thread=False))
    answers: list[object] = []
    for size in (2, 3, 1):
        batcher.submit(batch_of([1.0] * size), None, answers.append)
    while len(answers) < 3:
        await asyncio.sleep(0)
    assert toy.runners["toy"].asked == [2, 3, 1]


async def test_a_client_that_went_away_costs_nobody_anything() -> None:
    toy = engine()
    batcher = Batcher(toy, asyncio.get_running_loop(), Limits(thread=False))
    answers: list[object] = []
    gone = batcher.submit(batch_of([RAISE]), None, lambda _: pytest.fail("nobody waits for this"))
    batcher.submit(batch_of([1.0]), None, lambda o: answers.append(told(o)))
    gone.cancel()
    await asyncio.sleep(0)
    assert answers == [([0], {"predict": [2.0], "half": [0.5]}, {})]
    assert toy.runners["toy"].asked == [1]


async def test_more_than_may_wait_is_shed_and_the_rest_is_answered() -> None:
    batcher = Batcher(engine(), asyncio.get_running_loop(), Limits(thread=False, waiting_requests=2))
    answers: list[object] = []
    batcher.submit(batch_of([1.0]), None, answers.append)
    batcher.submit(batch_of([1.0]), None, answers.append)
    with pytest.raises(Overloaded) as shed:
        batcher.submit(batch_of([1.0]), None, answers.append)
    assert shed.value.facts["retry_after"] >= 1
    await asyncio.sleep(0)
    assert len(answers) == 2


async def test_what_would_be_answered_too_late_is_shed() -> None:
    batcher = Batcher(engine(), asyncio.get_running_loop(), Limits(thread=False, waiting_seconds=1.0))
    batcher.measured(10.0, 10)
    batcher.submit(batch_of([1.0] * 5), None, lambda _: None)
    with pytest.raises(Overloaded):
        batcher.submit(batch_of([1.0]), None, lambda _: None)


async def test_a_lone_request_is_never_shed_however_slow_the_pipeline() -> None:
    batcher = Batcher(engine(), asyncio.get_running_loop(), Limits(thread=False, waiting_seconds=0.0))
    batcher.measured(100.0, 1)
    answers: list[object] = []
    batcher.submit(batch_of([1.0]), None, answers.append)
    await asyncio.sleep(0)
    assert len(answers) == 1


class Held:
    """A pipeline that waits until it is let go."""

    shares_batches = True

    def __init__(self) -> None:
        self.go = threading.Event()
        self.sizes: list[int] = []

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
        self.go.wait(5)
        self.sizes.append(len(batch))
        return Outcome(batch)


async def test_while_a_slow_pipeline_computes_rows_queue_up_and_go_together() -> None:
    held = Held()
    batcher = Batcher(held, asyncio.get_running_loop(), Limits(thread=True))
    answers: list[object] = []
    for _ in range(4):
        batcher.submit(batch_of([1.0]), None, answers.append)
        await asyncio.sleep(0.01)
    assert not answers
    held.go.set()
    while len(answers) < 4:
        await asyncio.sleep(0.001)
    batcher.close()
    assert held.sizes == [1, 3]


class Broken:
    """A pipeline that raises as soon as it sees more than one row, or a thirteen."""

    shares_batches = True

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
        if len(batch) > 1 or RAISE in np.asarray(batch.columns["x"]):
            raise BadInput("no")
        return Outcome(batch)


async def test_a_request_that_breaks_the_whole_pipeline_breaks_no_other() -> None:
    batcher = Batcher(Broken(), asyncio.get_running_loop(), Limits(thread=False))
    answers: list[object] = []
    for value in (1.0, RAISE, 2.0):
        batcher.submit(batch_of([value]), None, answers.append)
    await asyncio.sleep(0)
    assert [isinstance(a, Exception) for a in answers] == [False, True, False]


class Counting:
    """A stateful pipeline: each answer is how many rows it saw before."""

    shares_batches = True

    def __init__(self) -> None:
        self.seen = 0

    def run(self, batch: Batch, want: frozenset[str] | None = None) -> Outcome:
        counts = np.arange(self.seen, self.seen + len(batch))
        self.seen += len(batch)
        return Outcome(Batch({"n": counts}, batch.rows))


async def test_nothing_overtakes_in_a_stateful_pipeline_whatever_is_wanted() -> None:
    batcher = Batcher(Counting(), asyncio.get_running_loop(), Limits(thread=False), stateful=True)
    answers: list[int] = []
    for i in range(6):
        want = frozenset({"n"}) if i % 2 else None
        batcher.submit(batch_of([0.0]), want, lambda o: answers.append(int(o.batch.columns["n"][0])))
    while len(answers) < 6:
        await asyncio.sleep(0)
    assert answers == [0, 1, 2, 3, 4, 5]


def test_split_gives_errors_and_rows_back_under_their_own_identities() -> None:
    batches = [batch_of([1.0, 2.0], 10), batch_of([], 0), batch_of([3.0], 5)]
    outcome = Outcome(Batch({"x": np.array([3.0, 1.0])}, np.array([2, 0])), {1: "no"})
    shares = [
        (s.batch.rows.tolist(), s.batch.columns["x"].tolist(), dict(s.errors))
        for s in split(outcome, batches)
    ]
    assert shares == [([10], [1.0], {11: "no"}), ([], [], {}), ([5], [3.0], {})]
