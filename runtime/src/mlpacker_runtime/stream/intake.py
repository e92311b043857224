"""From messages to parts of lanes: is it a repeat, what rows are in it, and which lane keeps each row's order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from zlib import crc32

from ..batch import Batch
from ..brokers import Message
from ..errors import BadInput
from ..rest.rows import Read
from . import ids
from .letters import Letter
from .payloads import Decoder, Rows
from .repeats import Repeats
from .scoring import Done, Part
from .settings import Settings
from .tracking import Delivery, Tracker

NOTHING = Read(Batch({}), 0, {})


class Intake:
    """In the reader's thread, for one opening of the source."""

    def __init__(
        self,
        settings: Settings,
        incarnation: str,
        tracker: Tracker,
        repeats: Repeats,
        decoder: Decoder,
        *,
        lanes: int,
        stage: str,
        apart: bool,
    ) -> None:
        """apart: a message's rows are answered together and alone (they look at their neighbours)."""
        self.settings = settings
        self.incarnation = incarnation
        self.ids = ids.Ids(settings.ids_as or settings.name, incarnation)
        self.tracker = tracker
        self.repeats = repeats
        self.decoder = decoder
        self.lanes = lanes
        self.stage = stage
        self.apart = apart
        self.dropped = 0
        self._named = (settings.id_from or ids.ID).lower()

    def take(self, messages: Sequence[Message]) -> tuple[list[list[Part]], list[Done]]:
        """The parts for each lane, in order, and what is done already: messages that can't be read. Repeats are counted."""
        lanes: list[list[Part]] = [[] for _ in range(self.lanes)]
        done: list[Done] = []
        now = time.time()
        for message in messages:
            id = self._id(message)
            delivery = Delivery(message, id, now)
            self.tracker.add(delivery)
            if self.repeats.is_repeat(id, self.incarnation, message.partition, message.offset):
                delivery.left = 0
                self.dropped += 1
                continue
            try:
                rows = self._rows(message)
            except BadInput as error:
                letter = Letter(message, str(error), ids.answer(id, 0, self.stage, 0), stage="input")
                done.append(Done(delivery, [], [letter], 1))
                continue
            self._spread(delivery, rows, lanes)
        return lanes, done

    def _id(self, message: Message) -> bytes:
        if message.headers:
            named = self._named
            for name, value in message.headers:
                if name == named and value:
                    return self.ids.named(value)
        return self.ids.message(message.partition, message.offset)

    def _rows(self, message: Message) -> Rows:
        size = len(message.value)
        if size > self.settings.max_message:
            raise BadInput(f"The message has {size} bytes; this stream takes {self.settings.max_message}.")
        return self.decoder.decode(message)

    def _spread(self, delivery: Delivery, rows: Rows, lanes: list[list[Part]]) -> None:
        count = rows.count
        if count == 0:
            delivery.left = 0  # an empty list: nothing was asked
            return
        key = self.settings.key
        if self.lanes == 1 or self.apart or key is None or rows.read is not None or count == 1:
            lanes[self._lane(delivery.message, rows)].append(Part(delivery, rows, range(count)))
            return
        shares: dict[int, list[int]] = {}
        for number, record in enumerate(rows.records):
            shares.setdefault(self._lane_of(record, delivery.message), []).append(number)
        delivery.left = len(shares)
        for lane, numbers in shares.items():
            share = Rows([rows.records[n] for n in numbers], one=rows.one)
            lanes[lane].append(Part(delivery, share, numbers))

    def _lane(self, message: Message, rows: Rows) -> int:
        if self.lanes == 1:
            return 0
        if self.settings.key is not None and rows.read is None and len(rows.records) == 1:
            return self._lane_of(rows.records[0], message)
        return self._by(message.key, message)

    def _lane_of(self, record: object, message: Message) -> int:
        value = record.get(self.settings.key) if isinstance(record, dict) else None
        return self._by(message.key if value is None else str(value).encode(), message)

    def _by(self, key: bytes | None, message: Message) -> int:
        return crc32(key if key is not None else message.partition.encode()) % self.lanes
