"""BentoML's own way: a service class, and the same with its batching on."""

import os
from pathlib import Path

import bentoml
import joblib
import numpy as np

MODEL = os.environ.get("BENCH_MODEL") or Path(__file__).parent / "model.joblib"


@bentoml.service(workers=1)
class Plain:
    def __init__(self) -> None:
        self.model = joblib.load(MODEL)

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict(rows)


@bentoml.service(workers=1)
class Batched:
    def __init__(self) -> None:
        self.model = joblib.load(MODEL)

    @bentoml.api(batchable=True, max_batch_size=256, max_latency_ms=1000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict(rows)
