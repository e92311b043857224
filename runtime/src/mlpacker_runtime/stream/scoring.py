"""A lane: rows of some messages through the engine together, an outcome for each, and what is to be published of it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batch import Batch, Outcome, concat, to_records
from ..brokers import Outgoing
from ..engine import Engine
from ..errors import BadInput, MlpackerError, ModelFailed
from ..rest.answers import records
from ..rest.rows import Read, Reader
from ..signature import Field
from . import ids
from .letters import Letter
from .payloads import Encoder, Rows
from .tracking import Delivery

FIRST_RETRY = 0.05
_ROW = re.compile(r"^Row \d+[,:]? ?")


class Part:
    """Some rows of a message that go through one lane. numbers: their places in the message."""

    __slots__ = ("count", "delivery", "numbers", "rows")

    def __init__(self, delivery: Delivery, rows: Rows, numbers: Sequence[int]) -> None:
        self.delivery = delivery
        self.rows = rows
        self.numbers = numbers
        self.count = len(numbers)


@dataclass(slots=True)
class Done:
    """What became of a part. dropped: rows that a stage left out."""

    delivery: Delivery
    outgoing: list[Outgoing]
    letters: list[Letter]
    rows: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Wording:
    """How answers are written. stage: the pipeline's last, as ids and headers name it. in_payload: the id is a field of the
    answer, where the sink carries no headers."""

    package: str
    stage: str
    encoder: Encoder
    keep: tuple[str, ...] = ()
    key: str | None = None
    in_payload: bool = False


class Lane:
    """Answers parts, one list at a time. Called from one thread."""

    def __init__(
        self,
        engine: Engine,
        inputs: Sequence[Field],
        wording: Wording,
        *,
        want: frozenset[str] | None = None,
        retries: int = 0,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.engine = engine
        self.reader = Reader(inputs)
        self.wording = wording
        self.want = want
        self.retries = retries
        self.pause = pause
        self._same = (
            (ids.PACKAGE, wording.package.encode()),
            (ids.STAGE, wording.stage.encode()),
        )

    def answer(self, parts: Sequence[Part]) -> list[Done]:
        """In the order of the parts. Raises only what is no row's fault (the lane's end)."""
        dones = {id(p): Done(p.delivery, [], [], p.count) for p in parts}
        self._answer([p for p in parts if not p.delivery.forgotten], dones)
        return [dones[id(p)] for p in parts]

    def _answer(self, parts: Sequence[Part], dones: dict[int, Done]) -> None:
        if not parts:
            return
        try:
            batch, errors = self._read(parts)
        except (BadInput, ValueError) as cause:  # they do not go together, as tensors of several shapes
            if len(parts) > 1:
                for part in parts:
                    self._answer([part], dones)
                return
            batch, errors = Batch({}), dict.fromkeys(range(parts[0].count), str(cause))
        outcome, attempts = self._run(batch)
        self._tell(parts, dones, batch, outcome, errors, attempts)

    # --- in -------------------------------------------------------------------------------------------------------------

    def _read(self, parts: Sequence[Part]) -> tuple[Batch, dict[int, str]]:
        """All rows of the parts as one batch, numbered through, and why the others can't be read."""
        found: list[Batch] = []
        errors: dict[int, str] = {}
        start = 0
        for together in _runs(parts):
            if together[0].rows.read is None:
                read = self._read_records([r for p in together for r in p.rows.records])
            else:
                read = together[0].rows.read
            found.append(read.batch.with_rows(read.batch.rows + start))
            errors.update({row + start: reason for row, reason in read.errors.items()})
            start += sum(p.count for p in together)
        return concat([b for b in found if len(b)] or found[:1]), errors

    def _read_records(self, rows: list[Any]) -> Read:
        if self.reader.lone is None and all(type(r) is list for r in rows):
            return self.reader.lists(rows)
        return self.reader.records(self._named(rows))

    def _named(self, rows: list[Any]) -> list[Any]:
        """Rows as objects: those that came as lists get the signature's names."""
        if all(type(r) is dict for r in rows):
            return rows
        lone = self.reader.lone
        named = []
        for row in rows:
            if isinstance(row, dict):
                named.append(row)
            elif lone is not None:
                named.append({lone.name: row})
            elif isinstance(row, list) and len(row) == len(self.reader.names):
                named.append(dict(zip(self.reader.names, row, strict=True)))
            else:
                named.append(row)  # the reader says what is wrong with it
        return named

    # --- through --------------------------------------------------------------------------------------------------------

    def _run(self, batch: Batch) -> tuple[Outcome, dict[int, int]]:
        """The outcome of each row, and how often those were asked that had to be asked again."""
        attempts: dict[int, int] = {}
        if not len(batch):
            return Outcome(batch.take(slice(0, 0))), attempts
        outcome = self._once(batch)
        for retry in range(self.retries):
            if not outcome.errors:
                break
            self.pause(FIRST_RETRY * 2**retry * (0.5 + random.random()))  # noqa: S311  jitter
            again = self._once(batch.take(np.isin(batch.rows, list(outcome.errors))))
            attempts.update(dict.fromkeys(outcome.errors, retry + 2))
            answers = [b for b in (outcome.batch, again.batch) if len(b)]
            whole = concat(answers) if answers else outcome.batch
            outcome = Outcome(whole.take(np.argsort(whole.rows, kind="stable")), again.errors)
        return outcome, attempts

    def _once(self, batch: Batch) -> Outcome:
        try:
            return self.engine.run(batch, self.want)
        except MlpackerError as error:  # between the stages: of all rows alike
            return Outcome(batch.take(slice(0, 0)), {int(r): error.sentence for r in batch.rows})

    # --- out ------------------------------------------------------------------------------------------------------------

    def _tell(
        self,
        parts: Sequence[Part],
        dones: dict[int, Done],
        batch: Batch,
        outcome: Outcome,
        errors: dict[int, str],
        attempts: dict[int, int],
    ) -> None:
        owners: list[tuple[Done, Part, int]] = [(dones[id(p)], p, at) for p in parts for at in range(p.count)]
        kept, keys = self._echoed(owners, batch)
        answered_batch = _in_order(outcome.batch)
        rows = answered_batch.rows.tolist()
        answers = records(answered_batch) if rows else []
        said, told = [], []
        wording = self.wording
        last, index = -1, 0
        for row, given in zip(rows, answers, strict=True):
            done, part, at = owners[row]
            index = index + 1 if row == last else 0
            last = row
            message = part.delivery.message
            own = ids.answer(part.delivery.id, part.numbers[at], wording.stage, index)
            value = {**kept[row], **given} if kept is not None else given
            if wording.in_payload:
                value = {**value, "mlpacker_id": own}
            said.append(value)
            key = keys.get(row)
            told.append((done, own, message.key if key is None else str(key).encode(), message))
        for body, (done, own, key, message) in zip(self._encoded(said), told, strict=True):
            if isinstance(body, MlpackerError):
                done.letters.append(Letter(message, body.sentence, own, stage=wording.stage))
            else:
                done.outgoing.append(Outgoing(body, own, key, self._headers(message.headers, own)))
        answered = set(rows)
        for row, reason in {**errors, **outcome.errors}.items():
            done, part, at = owners[row]
            answered.add(row)
            done.letters.append(self._letter(part, at, reason, row in errors, attempts.get(row, 1)))
        if len(answered) < len(owners):
            for row, (done, _, _) in enumerate(owners):
                done.dropped += row not in answered

    def _encoded(self, said: list[dict[str, Any]]) -> list[bytes | MlpackerError]:
        """Each answer's body, or why it can't be written."""
        encode = self.wording.encoder.encode
        try:
            return list(encode(said))
        except ModelFailed:
            found: list[bytes | MlpackerError] = []
            for value in said:
                try:
                    found += encode([value])
                except ModelFailed as error:
                    found.append(error)
            return found

    def _echoed(
        self, owners: list[tuple[Done, Part, int]], batch: Batch
    ) -> tuple[dict[int, dict[str, Any]] | None, dict[int, Any]]:
        """What is echoed of each row, None where nothing is; and each row's value of the key field."""
        keep, key = self.wording.keep, self.wording.key
        if not keep and not key:
            return None, {}
        found: dict[int, dict[str, Any]] = {}
        for row, (_, part, at) in enumerate(owners):
            if part.rows.read is None:
                record = part.rows.records[at]
                if not isinstance(record, dict):
                    record = self._named([record])[0]
                found[row] = record if isinstance(record, dict) else {}
        if len(found) < len(owners):
            for row, record in zip(batch.rows.tolist(), to_records(batch), strict=True):
                found.setdefault(row, record)
        kept = {row: {n: record[n] for n in keep if n in record} for row, record in found.items()}
        return kept, {row: record.get(key) for row, record in found.items()} if key else {}

    def _headers(self, came: Sequence[tuple[str, bytes]], own: str) -> tuple[tuple[str, bytes], ...]:
        if self.wording.in_payload:
            return ()
        context = next((v for n, v in came if n == ids.TRACE), None) if came else None
        return ((ids.ID, own.encode()), *self._same, (ids.TRACE, ids.trace(context, own)))

    def _letter(self, part: Part, at: int, reason: str, unread: bool, attempts: int) -> Letter:
        number = part.numbers[at]
        several = not part.rows.one
        record = part.rows.records[at] if several and part.rows.read is None else None
        return Letter(
            part.delivery.message,
            _ROW.sub("", reason),
            ids.answer(part.delivery.id, number, self.wording.stage, 0),
            number if several else None,
            "input" if unread else _stage_of(reason),
            attempts,
            record,
        )


def _in_order(batch: Batch) -> Batch:
    """By row: a stage may answer in any order, and a row's answers are numbered as they stand side by side."""
    if len(batch) < 2 or (np.diff(batch.rows) >= 0).all():
        return batch
    return batch.take(np.argsort(batch.rows, kind="stable"))


def _stage_of(reason: str) -> str:
    found = re.match(r"Stage '([^']+)'", reason)
    return found[1] if found else ""


def _runs(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Neighbouring parts whose rows can be read together; one that is read already stands alone."""
    run: list[Part] = []
    for part in parts:
        if part.rows.read is not None:
            if run:
                yield run
            yield [part]
            run = []
        else:
            run.append(part)
    if run:
        yield run
