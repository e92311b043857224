"""What the pipeline answers where it was trained; null for a sample that was dropped. Run: python reference.py sample.csv"""

import json
import sys
from pathlib import Path

import joblib
import pandas as pd
from clean import clean

HERE = Path(__file__).parent


def answers(path):
    samples = pd.read_csv(path)
    rows = clean(samples)
    scaled = joblib.load(HERE / "scaler.joblib").transform(rows)
    forest = joblib.load(HERE / "forest.joblib")
    labels, probabilities = forest.predict(scaled), forest.predict_proba(scaled)
    answered = {
        row: {"predict": label, "predict_proba": chances}
        for row, label, chances in zip(rows.index, labels.tolist(), probabilities.tolist(), strict=True)
    }
    return [answered.get(row) for row in samples.index]


if __name__ == "__main__":
    json.dump(answers(sys.argv[1]), sys.stdout)
