"""What the model answers where it was trained. Run: python reference.py sample.csv"""

import json
import sys
from pathlib import Path

import joblib
import pandas as pd

HERE = Path(__file__).parent


def answers(path):
    flowers = pd.read_csv(path)
    model = joblib.load(HERE / "model.joblib")
    labels, probabilities = model.predict(flowers), model.predict_proba(flowers)
    return [
        {"predict": label, "predict_proba": row}
        for label, row in zip(labels.tolist(), probabilities.tolist(), strict=True)
    ]


if __name__ == "__main__":
    json.dump(answers(sys.argv[1]), sys.stdout)
