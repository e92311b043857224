"""From a raw reading to a row the classifier can judge. Training and serving use the same functions."""

from __future__ import annotations

from datetime import datetime

import pandas as pd

BOOKKEEPING = ["sensor", "measured_at", "firmware", "battery"]


def acquire(reading: dict) -> dict | None:
    """Keep a reading only if it says where and when it was taken."""
    if pd.isna(reading["sensor"]):
        return None
    try:
        datetime.fromisoformat(reading["measured_at"])
    except (TypeError, ValueError):
        return None
    return reading


def drop_fields(readings: pd.DataFrame) -> pd.DataFrame:
    """What the classifier was never shown."""
    return readings.drop(columns=BOOKKEEPING)


def filter_faults(readings: pd.DataFrame) -> pd.DataFrame:
    """Leave out readings with a gap, and those of a broken sensor, which reports -999."""
    complete = readings.dropna()
    return complete[(complete >= 0).all(axis=1)]
