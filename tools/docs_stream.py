"""Writes docs/reference/stream.md and stream.schema.json from what reads a stream.yaml.

`make docs` runs it; a test compares both with the code, so they can't go stale.
"""

from __future__ import annotations

from pathlib import Path

from mlpacker import streaming

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def pages() -> dict[Path, str]:
    """What each file is to hold."""
    return {
        REFERENCE / "stream.md": streaming.reference_page(),
        REFERENCE / "stream.schema.json": streaming.json_schema(),
    }


if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(REFERENCE.parent.parent))
