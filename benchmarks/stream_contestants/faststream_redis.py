"""FastStream over Redis Streams, `one` at a time or in batches with a pipeline. Acknowledged after the publish."""

import asyncio
import sys

from faststream import FastStream
from faststream.redis import Pipeline, RedisBroker, StreamSub
from plain import BATCH, GROUP, HOST, PORT, SINK, SOURCE, label, labels
from redis import Redis

broker = RedisBroker(f"redis://{HOST}:{PORT}", logger=None)
Redis(HOST, PORT).xgroup_create(SOURCE, GROUP, "0", mkstream=True)  # it would begin with what is new
words = {"group": GROUP, "consumer": "me", "polling_interval": 100}

if sys.argv[1] == "one":

    @broker.subscriber(stream=StreamSub(SOURCE, max_records=1, **words))
    @broker.publisher(stream=SINK)
    async def score(row: list[float]) -> dict[str, int]:
        return {"predict": label(row)}

else:

    @broker.subscriber(stream=StreamSub(SOURCE, batch=True, max_records=BATCH, **words))
    async def score(rows: list[list[float]], pipe: Pipeline) -> None:
        for one in labels(rows):
            await broker.publish({"predict": one}, stream=SINK, pipeline=pipe)
        await pipe.execute()


asyncio.run(FastStream(broker, logger=None).run())
