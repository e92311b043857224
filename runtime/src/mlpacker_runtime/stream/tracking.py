"""Which messages are out, and how far each partition is finished without a gap."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from ..brokers import Message


class Delivery:
    """A message that is out. left: parts of it that are not finished; written by the publisher's thread once it is out.

    buried: some of it became a dead letter, so that it may be sent again and is no repeat then. forgotten: its partition was
    given up, so nobody waits for it. id: see `ids`. at: when it was read, by the wall clock.
    """

    __slots__ = ("at", "buried", "forgotten", "id", "left", "message")

    def __init__(self, message: Message, id: bytes, at: float, left: int = 1) -> None:
        self.message = message
        self.id = id
        self.at = at
        self.left = left
        self.buried = False
        self.forgotten = False


class Tracker:
    """In the reader's thread, but for `Delivery.left`: a finished delivery is one whose `left` came to 0."""

    def __init__(self) -> None:
        self.out: dict[str, deque[Delivery]] = {}
        self.count = 0
        self.size = 0
        self.committable: dict[str, int] = {}

    def add(self, delivery: Delivery) -> None:
        message = delivery.message
        queue = self.out.get(message.partition)
        if queue is None:
            queue = self.out[message.partition] = deque()
        queue.append(delivery)
        self.count += 1
        self.size += len(message.value)

    def advance(self) -> int:
        """Take what is finished from the front of each partition; how many messages that were."""
        taken = 0
        for partition, queue in self.out.items():
            while queue and queue[0].left <= 0:
                message = queue.popleft().message
                self.committable[partition] = message.offset
                self.size -= len(message.value)
                taken += 1
        self.count -= taken
        return taken

    def take_commit(self) -> dict[str, int]:
        """Partition → the offset up to which all is finished, for those that moved since the last time."""
        taken, self.committable = self.committable, {}
        return taken

    def idle(self, partitions: Collection[str]) -> bool:
        """Whether nothing of these is out."""
        return not any(self.out.get(p) for p in partitions)

    def forget(self, partitions: Collection[str] | None = None) -> int:
        """Nobody waits for what is out of these (None: of all) any more; how many messages that were.

        The latest first: who looks meanwhile, from the front, finds a prefix still wanted and never a gap.
        """
        forgotten = 0
        for partition in tuple(self.out if partitions is None else partitions):
            for delivery in reversed(self.out.pop(partition, ())):
                delivery.forgotten = True
                self.count -= 1
                self.size -= len(delivery.message.value)
                forgotten += 1
            self.committable.pop(partition, None)
        return forgotten
