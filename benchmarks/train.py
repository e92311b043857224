"""Train the workloads' models with scikit-learn alone, and answer their rows. Run: python train.py FOLDER"""

import json
import sys
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS = 1000

data, target = load_breast_cancer(return_X_y=True)
rows = data[np.arange(ROWS) % len(data)]
models = {
    "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    "forest": RandomForestClassifier(n_estimators=100, random_state=0),
}
for name, model in models.items():
    folder = Path(sys.argv[1]) / name
    folder.mkdir(parents=True, exist_ok=True)
    model.fit(data, target)
    joblib.dump(model, folder / "model.joblib")
    np.savetxt(
        folder / "sample.csv",
        data[:20],
        delimiter=",",
        fmt="%.17g",
        header=",".join(f"x{i}" for i in range(30)),
        comments="",
    )
    np.save(folder / "sample.npy", data[:20])
    (folder / "rows.json").write_text(
        json.dumps({"rows": rows.tolist(), "labels": model.predict(rows).tolist()})
    )
