"""The adapter that CONTRIBUTING.md writes keeps the contract, installed beside mlpacker as a plugin would be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_format_in_the_guide_keeps_the_contract(tmp_path: Path) -> None:
    files = dict(FILE.findall(GUIDE.read_text(encoding="utf-8")))
    assert set(files) == {"mlpacker_line.py", "test_line.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    info = tmp_path / "mlpacker_line-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlpacker-line\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mlpacker.formats]\nline = mlpacker_line\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_line.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)
