"""Train the grading of a plant's product samples. Run: python train.py

scikit-learn's wine table stands in for the laboratory's: thirteen measurements a sample, three grades.
"""

from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from clean import clean
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
SEED = 11


def laboratory_export() -> tuple[pd.DataFrame, np.ndarray]:
    """The table as the laboratory exports it, and the grade each sample was given in the end."""
    table = load_wine(as_frame=True)
    random = np.random.default_rng(SEED)
    samples = table.data.rename(columns={"od280/od315_of_diluted_wines": "dilution"})
    count = len(samples)
    samples.insert(0, "batch", np.arange(5000, 5000 + count))
    samples.insert(1, "line", random.choice(["north", "south"], count))
    fractions = random.random(count) < 0.2
    samples.loc[fractions, "alcohol"] /= 100
    samples.loc[random.random(count) < 0.08, "proline"] = np.nan
    return samples, np.array(["A", "B", "C"])[table.target]


def main() -> None:
    samples, grades = laboratory_export()
    seen, fresh = train_test_split(samples, test_size=0.35, random_state=SEED)
    rows = clean(seen)
    scaler = StandardScaler().fit(rows)
    forest = RandomForestClassifier(n_estimators=100, random_state=SEED).fit(
        scaler.transform(rows), grades[rows.index]
    )

    joblib.dump(scaler, HERE / "scaler.joblib")
    joblib.dump(forest, HERE / "forest.joblib")
    fresh.to_csv(HERE / "sample.csv", index=False)
    fresh.to_json(HERE / "sample.jsonl", orient="records", lines=True, double_precision=15)
    judged = clean(fresh)
    score = forest.score(scaler.transform(judged), grades[judged.index])
    print(f"scaler.joblib, forest.joblib: {score:.1%} right on {len(judged)} samples they have not seen")


if __name__ == "__main__":
    main()
