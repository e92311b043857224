"""What all contestants share: where, and the model. The environment tells."""

import os

import joblib

HOST, PORT = "127.0.0.1", int(os.environ["BENCH_PORT"])
SOURCE, SINK = os.environ["BENCH_SOURCE"], os.environ["BENCH_SINK"]
BATCH = int(os.environ.get("BENCH_BATCH", "500"))
GROUP = "bench"
model = joblib.load(os.environ["BENCH_MODEL"])


def label(row: list[float]) -> int:
    return int(model.predict([row])[0])


def labels(rows: list[list[float]]) -> list[int]:
    return model.predict(rows).tolist()
