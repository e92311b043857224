"""Bytewax over Kafka, `one` at a time or its batches. It keeps its place in a recovery store, which is off: nothing is acknowledged."""

import json
import os

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from plain import BATCH, HOST, PORT, SINK, SOURCE, label, labels

brokers = [f"{HOST}:{PORT}"]
flow = Dataflow("bench")
read = kop.input("in", flow, brokers=brokers, topics=[SOURCE], batch_size=BATCH)


def told(value: int) -> KafkaSinkMessage:
    return KafkaSinkMessage(None, json.dumps({"predict": value}).encode())


if os.environ["BENCH_MODE"] == "one":
    scored = op.map("score", read.oks, lambda m: told(label(json.loads(m.value))))
else:
    scored = op.flat_map_batch(
        "score", read.oks, lambda ms: map(told, labels([json.loads(m.value) for m in ms]))
    )
kop.output("out", scored, brokers=brokers, topic=SINK)
