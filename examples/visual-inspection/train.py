"""Train the reading of numbers stamped on parts. Run: python train.py

scikit-learn's digits stand in for the camera: 8 × 8 pixels an image, from 0 to 16.
"""

from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from normalise import normalise
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

HERE = Path(__file__).parent
SEED = 3

digits = load_digits()
seen, fresh, seen_y, fresh_y = train_test_split(digits.data, digits.target, test_size=0.2, random_state=SEED)

pca = PCA(n_components=30, random_state=SEED).fit(normalise(seen))
reader = SVC(C=10).fit(pca.transform(normalise(seen)), seen_y)

joblib.dump(pca, HERE / "pca.joblib")
joblib.dump(reader, HERE / "reader.joblib")
pixels = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
sample = pd.DataFrame(fresh[:40], columns=pixels)
sample.to_csv(HERE / "sample.csv", index=False)
sample.to_json(HERE / "sample.jsonl", orient="records", lines=True)
np.save(HERE / "images.npy", fresh)
score = reader.score(pca.transform(normalise(fresh)), fresh_y)
print(f"pca.joblib, reader.joblib: {score:.1%} right on {len(fresh)} images they have not seen")
