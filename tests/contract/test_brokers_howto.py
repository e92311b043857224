"""The broker that docs/howto/brokers/write-your-own.md writes keeps the contract, installed as a plugin would be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "brokers" / "write-your-own.md"
FILE = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ENTRY = re.compile(r'^\[project\.entry-points\."(.+)"\]\n(\w+) = "(\w+)"$', re.MULTILINE)


def install(folder: Path) -> dict[str, str]:
    """Writes the page's files as an installed distribution; gives what Python must know to see it."""
    files = dict(FILE.findall(PAGE.read_text(encoding="utf-8")))
    assert set(files) == {"mlpacker_folder.py", "test_folder.py"}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    ((group, scheme, module),) = ENTRY.findall(PAGE.read_text(encoding="utf-8"))
    info = folder / "mlpacker_folder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlpacker-folder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{scheme} = {module}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def run_suite(folder: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_folder.py"]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.timeout(120)
def test_the_broker_on_the_page_keeps_the_contract(tmp_path: Path) -> None:
    done = run_suite(tmp_path, install(tmp_path))
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


FAULTS = {
    "what_was_committed": ('        if "0" in finished:', "        if False:"),
    "keeps_the_order_of_its_list": ("enumerate(messages, last + 1)", "enumerate(messages[::-1], last + 1)"),
    "lag": ("sum(n > self._sent for", "sum(n > 0 for"),
}
"""Part of a rule's name → what is turned wrong on the page, and how."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rule", FAULTS)
def test_a_broker_that_breaks_a_rule_is_seen_by_it(rule: str, tmp_path: Path) -> None:
    environment = install(tmp_path)
    adapter, (right, wrong) = tmp_path / "mlpacker_folder.py", FAULTS[rule]
    text = adapter.read_text(encoding="utf-8")
    assert right in text
    adapter.write_text(text.replace(right, wrong), encoding="utf-8")
    suite = tmp_path / "test_folder.py"
    suite.write_text(
        suite.read_text().replace(
            "            keys=False,\n", "            keys=False,\n            patience=2,\n"
        )
    )
    done = run_suite(tmp_path, environment, "-x", "-k", rule)
    assert done.returncode == 1, done.stdout
    assert " failed" in done.stdout
