from __future__ import annotations

from pathlib import Path

import check_tree
import pytest


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.md", "see [there](gone.md)", "a.md: links to gone.md, which is not there"),
        ("a.md", "see [there](gone.md#part)", "a.md: links to gone.md, which is not there"),
        ("a.py", "x = 1\r\n", "a.py:1: ends in CR LF"),
        ("a.py", "x = 1\n<<<<<<< ours\n", "a.py:2: a merge left half done"),
        ("tools/locked/dev.txt", "a @ https://index/a.whl\n", "tools/locked/dev.txt: names an address"),
        ("data.csv", "1" * (check_tree.BIGGEST + 1), "data.csv: 1,048,577 bytes"),
    ],
)
def test_each_fault_is_told_with_its_place(tmp_path: Path, name: str, content: str, fault: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content.encode())
    (line,) = check_tree.faults(tmp_path, [name])
    assert line.startswith(fault)


def test_what_is_right_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("")
    (tmp_path / "a.md").write_text(
        "[b](b.md#x) [web](https://example.org) `[code](gone.md)`\n```\n[c](gone.md)\n```\n"
    )
    assert list(check_tree.faults(tmp_path, ["a.md", "b.md"])) == []
