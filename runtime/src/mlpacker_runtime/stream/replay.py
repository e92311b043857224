"""A replay's process: that of a stream whose source ends where its past does.

`python -m mlpacker_runtime.stream.replay`, started by the supervisor where the settings say `until`. What was done is left as
`replayed.json` in the state folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .. import brokers
from ..brokers import Source
from ..errors import MlpackerError, Unusable
from . import past, worker
from . import settings as settings_of
from .job import Job

SUMMARY = "replayed.json"


class Replay(worker.Stream):
    """A stream whose source is a past."""

    def _job(self, *given: object) -> Job:
        address = settings_of.placed(self.settings.source, self.settings)
        if address.scheme == "-" or brokers.get(address.scheme).journalled:
            raise Unusable(
                f"{address} can't be replayed: it hands a message out once and keeps no past.",
                "Replay from a broker that keeps it: Kafka, NATS, Redis, local: or file:.",
            )
        return super()._job(*given)  # type: ignore[arg-type]

    def _source(self, job: Job) -> Source:
        self.past = past.Past(super()._source(job), self.settings.until)
        return self.past

    async def serve(self) -> int:
        code = await super().serve()
        self.numbers.gauges()
        told = {"ended": self.job.ended, "left_out": self._left_out(), **self.state()}
        Path(self.settings.state).with_name(SUMMARY).write_text(json.dumps(told))
        if self.job.ended:
            self._forget()
        return code

    def _left_out(self) -> int:
        return self.past.left_out if hasattr(self, "past") else 0

    def _forget(self) -> None:
        """Its place is of no more use, and would hold back what a broker may delete."""
        address = settings_of.placed(self.settings.source, self.settings)
        try:
            past.forget(address, self.settings.reads_as)
        except MlpackerError as error:
            self.log("kept", level="warning", group=self.settings.reads_as, reason=error.sentence)


if __name__ == "__main__":
    sys.exit(worker.main(Replay))
