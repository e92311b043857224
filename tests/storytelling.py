"""A person at a terminal, and what such a person trains: what the stories are told with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MLPACKER = Path(sys.executable).with_name("mlpacker")
SECONDS = 280
TRAINED_WITH = ("scikit-learn>=1.4", "pandas>=2", "cloudpickle")


@dataclass(frozen=True)
class Person:
    """Somebody at a terminal, with a home and a folder. Each call is one command."""

    home: Path
    folder: Path
    python: Path
    """The training interpreter."""
    environ: dict[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLPACKER_", "VIRTUAL_ENV"))}
        return {**kept, "MLPACKER_HOME": str(self.home), **self.environ}

    def says(self, *words: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `mlpacker words…`. code: the exit code it must have; None for any."""
        argv = [str(MLPACKER), *(str(w) for w in words)]
        done = subprocess.run(
            argv, cwd=self.folder, env=self.variables(), capture_output=True, text=True, timeout=SECONDS
        )
        assert code is None or done.returncode == code, f"{argv}\n{done.stdout}\n{done.stderr}"
        return done

    def told(self, *words: str | Path) -> Any:
        """The one object that a command with --json prints."""
        return json.loads(self.says(*words, "--json").stdout)

    def trains(self, script: str) -> None:
        """Run a training script in the folder. It must not know mlpacker."""
        (self.folder / "train.py").write_text(script)
        subprocess.run([str(self.python), "train.py"], cwd=self.folder, check=True, timeout=SECONDS)

    @contextmanager
    def serving(self, *words: str | Path) -> Iterator[str]:
        """`mlpacker run words… --port 0`; gives the address, and sees it end well on SIGTERM."""
        argv = [str(MLPACKER), "run", *(str(w) for w in words), "--port", "0"]
        log = self.folder / "server.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                argv, cwd=self.folder, env=self.variables(), stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line[:1] == ["ready"], log.read_text()
            yield line[1]
        finally:
            process.terminate()
            code = process.wait(60)
            process.stdout.close()  # type: ignore[union-attr]
        assert code == 0, log.read_text()


TRAIN = """
import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
X, y = load_iris(return_X_y=True, as_frame=True)
model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, y)
joblib.dump(model, "model.joblib")
X.assign(target=y).to_csv("rows.csv", index=False)
import pandas
pandas.DataFrame({"predict": model.predict(X)}).to_csv("labels.csv", index=False)
pandas.DataFrame({"predict": 2 - model.predict(X)}).to_csv("wrong.csv", index=False)
"""

CLEAN = """
import pandas as pd

def drop_gaps(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.dropna()

def centred(rows: pd.DataFrame) -> pd.DataFrame:
    return rows - rows.median()
"""
