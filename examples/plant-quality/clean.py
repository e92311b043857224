"""Make the laboratory's export fit for the model. Training and serving use the same function."""

from __future__ import annotations

import pandas as pd


def clean(samples: pd.DataFrame) -> pd.DataFrame:
    """Leave out incomplete samples and the laboratory's own fields; some probes give alcohol as a fraction, not in percent."""
    complete = samples.drop(columns=["batch", "line"]).dropna()
    alcohol = complete["alcohol"]
    return complete.assign(alcohol=alcohol.where(alcohol > 1, alcohol * 100))
