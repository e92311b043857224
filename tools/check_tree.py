"""Checks what no linter looks at: links between our pages, what the locks name, sizes, ends of lines, merges left half done."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIGGEST = 1 << 20
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


def faults(root: Path, names: list[str]) -> Iterator[str]:
    """One line for each fault in the files of these names (relative to `root`)."""
    for name in names:
        content = (root / name).read_bytes()
        if len(content) > BIGGEST:
            yield f"{name}: {len(content):,} bytes; at most {BIGGEST:,}"
        if b"\0" in content:
            continue
        yield from (f"{name}:{line}" for line in _text(content.decode(errors="replace")))
        if name.endswith(".md"):
            yield from (f"{name}: {link}" for link in _dead_links(root / name, content.decode()))
        if name.startswith("tools/locked/") and b"://" in content:
            yield f"{name}: names an address; a lock holds versions and hashes only"


def _text(text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.endswith("\r"):
            yield f"{number}: ends in CR LF"
            return
        if line.startswith(("<<<<<<< ", ">>>>>>> ")):
            yield f"{number}: a merge left half done"


def _dead_links(page: Path, text: str) -> Iterator[str]:
    for link in LINK.findall(CODE.sub("", text)):
        target = link.partition("#")[0]
        if (
            target
            and "://" not in target
            and not target.startswith("mailto:")
            and not (page.parent / target).exists()
        ):
            yield f"links to {target}, which is not there"


def tracked(root: Path) -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (root / name).is_file()]


if __name__ == "__main__":
    found = list(faults(ROOT, tracked(ROOT)))
    for line in found:
        print(line)
    sys.exit(bool(found))
