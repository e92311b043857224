"""Train a classifier of ground-sensor readings: safe or unsafe. Run: python train.py

scikit-learn's breast cancer table stands in for the sensors: thirty measures a reading. Bookkeeping fields and faults
are added, seeded, so that every run writes the same files.
"""

from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from clean import acquire, drop_fields, filter_faults
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
SEED = 7


def raw_readings() -> tuple[pd.DataFrame, np.ndarray]:
    """The table as a gateway would log it, and what each reading turned out to be."""
    table = load_breast_cancer(as_frame=True)
    random = np.random.default_rng(SEED)
    count = len(table.data)
    readings = table.data.rename(columns=lambda name: name.replace(" ", "_"))
    start = pd.Timestamp("2026-03-02T06:00:00")
    readings.insert(0, "sensor", [f"bolt-{n:03d}" for n in random.integers(1, 120, count)])
    readings.insert(1, "measured_at", [(start + pd.Timedelta(minutes=n)).isoformat() for n in range(count)])
    readings.insert(2, "firmware", random.choice(["2.1", "2.2-beta", "3.0"], count))
    readings.insert(3, "battery", random.uniform(2.9, 3.6, count).round(2))
    return with_faults(readings, random), np.where(table.target == 0, "unsafe", "safe")


def with_faults(readings: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """One reading in seven is faulty: no name, no time, a gap, or the -999 of a broken sensor."""
    readings = readings.copy()
    measures = readings.columns[4:]
    faulty = random.choice(len(readings), len(readings) // 7, replace=False)
    for row, fault in zip(faulty, random.integers(0, 4, len(faulty)), strict=True):
        measure = random.choice(measures)
        if fault == 0:
            readings.loc[row, "sensor"] = None
        elif fault == 1:
            readings.loc[row, "measured_at"] = random.choice(["", "1970-00-00T00:00:00", "no clock"])
        else:
            readings.loc[row, measure] = np.nan if fault == 2 else -999.0
    return readings


def cleaned(readings: pd.DataFrame) -> pd.DataFrame:
    kept = [
        row
        for row, reading in zip(readings.index, readings.to_dict("records"), strict=True)
        if acquire(reading)
    ]
    return filter_faults(drop_fields(readings.loc[kept]))


def main() -> None:
    readings, outcome = raw_readings()
    seen, fresh = train_test_split(readings, test_size=0.35, random_state=SEED)
    rows = cleaned(seen)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(rows, outcome[rows.index])
    joblib.dump(model, HERE / "classifier.joblib")

    sample, shift = fresh.iloc[:60], fresh.iloc[60:]
    sample.to_csv(HERE / "sample.csv", index=False)
    shift.to_csv(HERE / "shift.csv", index=False)
    shift.to_json(HERE / "shift.jsonl", orient="records", lines=True, double_precision=15)
    judged = cleaned(fresh)
    score = model.score(judged, outcome[judged.index])
    print(f"classifier.joblib: {score:.1%} right on {len(judged)} readings it has not seen")


if __name__ == "__main__":
    main()
