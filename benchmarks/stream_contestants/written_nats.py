"""nats-py by hand: `one` message at a time, or batches, `through` or scored (`batch`). A pull consumer, acknowledged after the publish."""

import asyncio
import sys

import nats
from plain import BATCH, GROUP, HOST, PORT, SINK, SOURCE
from scoring import BATCHED, answer


async def one(js, pull) -> None:
    while True:
        try:
            (message,) = await pull.fetch(1, timeout=60)
        except asyncio.TimeoutError:
            continue
        await js.publish(SINK, answer(message.data))
        await message.ack()


async def batched(js, pull, score) -> None:
    while True:
        try:
            messages = await pull.fetch(BATCH, timeout=0.2)
        except asyncio.TimeoutError:
            continue
        confirmed = [await js.publish_async(SINK, body) for body in score([m.data for m in messages])]
        await asyncio.gather(*confirmed)
        for message in messages:
            await message.ack()


async def paced(js, pull) -> None:
    """For the age at a given rate: a batch would wait until it is full or its time is over."""
    while True:
        try:
            (message,) = await pull.fetch(1, timeout=60)
        except asyncio.TimeoutError:
            continue
        await js.publish(SINK, message.data)
        await message.ack()


async def main(mode: str) -> None:
    client = await nats.connect(f"nats://{HOST}:{PORT}")
    js = client.jetstream()
    pull = await js.pull_subscribe(SOURCE, durable=GROUP)
    if mode == "one":
        await one(js, pull)
    elif mode == "paced":
        await paced(js, pull)
    else:
        await batched(js, pull, BATCHED[mode])


asyncio.run(main(sys.argv[1]))
