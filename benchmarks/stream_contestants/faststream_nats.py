"""FastStream over NATS JetStream, `one` at a time or in batches. Acknowledged after the publish."""

import asyncio
import sys

from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, PullSub
from plain import BATCH, GROUP, HOST, PORT, SINK, SOURCE, label, labels

broker = NatsBroker(f"nats://{HOST}:{PORT}", logger=None)
source, sink = JStream(SOURCE, declare=False), JStream(SINK, declare=False)
words = {"stream": source, "durable": GROUP, "ack_policy": AckPolicy.NACK_ON_ERROR}

if sys.argv[1] == "one":

    @broker.subscriber(SOURCE, pull_sub=PullSub(batch_size=1), **words)
    @broker.publisher(SINK, stream=sink)
    async def score(row: list[float]) -> dict[str, int]:
        return {"predict": label(row)}

else:

    @broker.subscriber(SOURCE, pull_sub=PullSub(batch_size=BATCH, timeout=0.2, batch=True), **words)
    async def score(rows: list[list[float]]) -> None:
        """It has no batch publisher for NATS, so all wait together."""
        await asyncio.gather(
            *(broker.publish({"predict": one}, SINK, stream=SINK, timeout=30) for one in labels(rows))
        )


asyncio.run(FastStream(broker, logger=None).run())
