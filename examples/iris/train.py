"""Train the usual classifier of irises and save it. Run: python train.py"""

from pathlib import Path

import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent

iris = load_iris(as_frame=True)
species = iris.target_names[iris.target]
train_x, test_x, train_y, test_y = train_test_split(iris.data, species, random_state=0, stratify=species)

model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
model.fit(train_x, train_y)

joblib.dump(model, HERE / "model.joblib")
test_x.to_csv(HERE / "sample.csv", index=False)
print(f"model.joblib: {model.score(test_x, test_y):.1%} right on {len(test_x)} flowers it has not seen")
