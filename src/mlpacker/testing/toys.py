"""Small stages that pass on, add, drop, expand, wait for their neighbours and fail, in place of mocks.

`toys.__file__` is packed or loaded as any user's code is: `FILE.py:NAME`. Rows have `depth` and `stress` (floats) and `rock`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


class Reading(TypedDict):
    depth: float
    stress: float
    rock: str


class Judged(TypedDict):
    risk: float
    grade: Literal["low", "high"]
    bolts: int | None


@dataclasses.dataclass
class Sensor:
    depth: float
    stress: float | None
    rock: str | None = None
    seen: datetime | None = None


# ---- one record at a time


def pass_on(reading: dict[str, Any]) -> dict[str, Any]:
    return reading


def judge(reading: Reading) -> Judged | None:
    """Drops what lies too deep, fails for a negative depth."""
    if reading["depth"] < 0:
        raise ValueError(f"a depth of {reading['depth']} is above ground")
    if reading["depth"] > 100:
        return None
    risk = reading["depth"] * reading["stress"]
    return {"risk": risk, "grade": "high" if risk > 10 else "low", "bolts": int(risk) if risk > 1 else None}


def twice(reading: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each row twice; a shallow one not at all."""
    if reading["depth"] >= 1:
        yield {"depth": reading["depth"], "half": 0}
        yield {"depth": reading["depth"], "half": 1}


def calibrate(sensor: Sensor) -> Sensor:
    return dataclasses.replace(sensor, stress=0.0 if sensor.stress is None else sensor.stress * 2)


def risk(depth: float, stress: float = 1.0) -> float:
    return depth * stress


def shout(rock: str) -> str:
    return rock.upper()


def sloppy(reading: Reading) -> Judged:
    """Gives a text where a number was promised, where the rock is slate."""
    risk_: Any = "high" if reading["rock"] == "slate" else 1.0
    return {"risk": risk_, "grade": "low", "bolts": None}


# ---- whole batches


def drop_deep(readings: pd.DataFrame) -> pd.DataFrame:
    return readings[readings["depth"] <= 100]


def drop_deep_and_renumber(readings: pd.DataFrame) -> pd.DataFrame:
    return readings[readings["depth"] <= 100].reset_index(drop=True)


def drop_below_mean_and_renumber(readings: pd.DataFrame) -> pd.DataFrame:
    """Nobody can tell which rows these are: they depend on their neighbours, and have new numbers."""
    return readings[readings["depth"] >= readings["depth"].mean()].reset_index(drop=True)


def deepest_first(readings: pd.DataFrame) -> pd.DataFrame:
    return readings.sort_values("depth", ascending=False)


def deepest_first_and_renumber(readings: pd.DataFrame) -> pd.DataFrame:
    """Nobody can tell which rows these are, though there are as many."""
    return readings.sort_values("depth", ascending=False).reset_index(drop=True)


def look_up(readings: pd.DataFrame) -> pd.DataFrame:
    """`merge` makes a new index."""
    import pandas as pd

    return readings.merge(
        pd.DataFrame({"rock": ["clay", "slate"], "hardness": [1, 3]}), on="rock", how="left"
    )


def expand(readings: pd.DataFrame) -> pd.DataFrame:
    return readings.loc[readings.index.repeat(2)]


def less_the_mean(readings: pd.DataFrame) -> pd.DataFrame:
    """Depends on its neighbours."""
    return readings.assign(depth=readings["depth"] - readings["depth"].mean())


def overwrite(readings: pd.DataFrame) -> pd.DataFrame:
    readings["depth"] = 0.0
    return readings


def forgetful(readings: pd.DataFrame) -> pd.DataFrame:  # type: ignore[return]
    """Lacks its return."""
    readings.dropna()


def fail_for_slate(readings: pd.DataFrame) -> pd.DataFrame:
    if (readings["rock"] == "slate").any():
        raise ValueError("no bolts for slate")
    return readings


def halve(values: np.ndarray) -> np.ndarray:
    return values / 2


def shorten(values: np.ndarray) -> np.ndarray:
    return values[1:]


def share(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"share": columns["depth"] / (columns["depth"] + columns["stress"])}


def quotient(depth: np.ndarray, stress: np.ndarray) -> np.ndarray:
    return depth / stress


def negate(depth: pd.Series) -> pd.Series:
    return -depth


def judge_all(readings: list[Reading]) -> list[Judged | None]:
    return [judge(r) for r in readings]


# ---- objects with state


class Scale:
    def __init__(self, by: float, name: str = "scaled") -> None:
        self.by = by
        self.name = name

    def __call__(self, readings: pd.DataFrame) -> pd.DataFrame:
        return readings[["depth"]].mul(self.by).rename(columns={"depth": self.name})


class Counter:
    """Numbers the rows it has seen."""

    def __init__(self) -> None:
        self.count = 0

    def predict(self, reading: dict[str, Any]) -> int:
        self.count += 1
        return self.count


class Threshold:
    """A classifier as libraries have it."""

    def __init__(self, at: float) -> None:
        self.at = at

    def predict(self, values: np.ndarray) -> np.ndarray:
        return (values[:, 0] > self.at).astype(np.int64)

    def predict_proba(self, values: np.ndarray) -> np.ndarray:
        high = 1 / (1 + np.exp(self.at - values[:, 0]))
        return np.column_stack([1 - high, high])


class Mute:
    """Neither predicts nor transforms."""


async def later(reading: dict[str, Any]) -> dict[str, Any]:
    return reading


def nothing() -> None: ...
