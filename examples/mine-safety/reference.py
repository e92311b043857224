"""What the pipeline answers where it was trained; null for a reading that was dropped. Run: python reference.py sample.csv"""

import json
import sys
from pathlib import Path

import joblib
import pandas as pd
from train import cleaned

HERE = Path(__file__).parent


def answers(path):
    readings = pd.read_csv(path)
    rows = cleaned(readings)
    model = joblib.load(HERE / "classifier.joblib")
    labels, probabilities = model.predict(rows), model.predict_proba(rows)
    answered = {
        row: {"predict": label, "predict_proba": chances}
        for row, label, chances in zip(rows.index, labels.tolist(), probabilities.tolist(), strict=True)
    }
    return [answered.get(row) for row in readings.index]


if __name__ == "__main__":
    json.dump(answers(sys.argv[1]), sys.stdout)
