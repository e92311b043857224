"""Save a model the MLflow way. Run: python mlflow_save.py MODEL SAMPLE.npy FOLDER tensor|dataframe"""

import sys

import joblib
import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.models import infer_signature

model_file, sample_file, folder, kind = sys.argv[1:]
model, sample = joblib.load(model_file), np.load(sample_file)
if kind == "dataframe":
    sample = pd.DataFrame(sample, columns=[f"x{i}" for i in range(sample.shape[1])])
mlflow.sklearn.save_model(
    model,
    folder,
    signature=infer_signature(sample, model.predict(sample)),
    input_example=sample,
    serialization_format="cloudpickle",
)
