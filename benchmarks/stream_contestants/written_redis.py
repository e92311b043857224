"""redis-py by hand: `one` entry at a time, or batches, `through` or scored (`batch`). A group; acknowledged after the answers are there."""

import sys

import redis
from plain import BATCH, GROUP, HOST, PORT, SINK, SOURCE
from scoring import BATCHED, answer

client = redis.Redis(HOST, PORT)


def read(count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found = client.xreadgroup(GROUP, "me", {SOURCE: ">"}, count=count, block=1000)
    return found[0][1] if found else []


def one() -> None:
    while True:
        for ident, fields in read(1):
            client.xadd(SINK, {"value": answer(fields[b"value"])})
            client.xack(SOURCE, GROUP, ident)


def batched(mode: str) -> None:
    score = BATCHED[mode]
    while True:
        entries = read(BATCH)
        if not entries:
            continue
        with client.pipeline(transaction=False) as pipe:
            for body in score([fields[b"value"] for _, fields in entries]):
                pipe.xadd(SINK, {"value": body})
            pipe.execute()
        client.xack(SOURCE, GROUP, *(ident for ident, _ in entries))


client.xgroup_create(SOURCE, GROUP, "0", mkstream=True)
if sys.argv[1] == "one":
    one()
else:
    batched("through" if sys.argv[1] == "paced" else sys.argv[1])
