"""FastStream over Kafka (confluent), `one` at a time or in batches. Committed after the publish."""

import asyncio
import sys

from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker
from plain import BATCH, GROUP, HOST, PORT, SINK, SOURCE, label, labels

broker = KafkaBroker(f"{HOST}:{PORT}", logger=None)
words = {"group_id": GROUP, "auto_offset_reset": "earliest", "ack_policy": AckPolicy.ACK}

if sys.argv[1] == "one":

    @broker.subscriber(SOURCE, **words)
    @broker.publisher(SINK)
    async def score(row: list[float]) -> dict[str, int]:
        return {"predict": label(row)}

else:

    @broker.subscriber(SOURCE, batch=True, max_records=BATCH, **words)
    @broker.publisher(SINK, batch=True)
    async def score(rows: list[list[float]]) -> list[dict[str, int]]:
        return [{"predict": one} for one in labels(rows)]


asyncio.run(FastStream(broker, logger=None).run())
