"""What the pipeline answers where it was trained. Run: python reference.py sample.csv"""

import json
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from normalise import normalise

HERE = Path(__file__).parent


def answers(path):
    images = np.load(path) if path.endswith(".npy") else pd.read_csv(path).to_numpy()
    reduced = joblib.load(HERE / "pca.joblib").transform(normalise(images))
    return [{"predict": label} for label in joblib.load(HERE / "reader.joblib").predict(reduced).tolist()]


if __name__ == "__main__":
    json.dump(answers(sys.argv[1]), sys.stdout)
