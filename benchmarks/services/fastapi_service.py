"""The service people write by hand: FastAPI, async, pydantic."""

import os

import joblib
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

model = joblib.load(os.environ["BENCH_MODEL"])
app = FastAPI()


class Rows(BaseModel):
    rows: list[list[float]]


class Answer(BaseModel):
    labels: list[int]


@app.post("/predict")
async def predict(body: Rows) -> Answer:
    return Answer(labels=model.predict(np.array(body.rows)).tolist())
