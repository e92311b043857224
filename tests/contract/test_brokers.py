"""Every broker that needs no server keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpacker.testing.brokers import BrokerContract, Edge


class TestLocal(BrokerContract):
    @pytest.fixture
    def edge(self, tmp_path: Path) -> Edge:
        address = f"local:readings?path={tmp_path}/topics"

        def recreate() -> None:
            for file in (tmp_path / "topics").iterdir():
                file.unlink()

        return Edge(
            address,
            another=f"local:others?path={tmp_path}/topics",
            recreate=recreate,
            starts=("earliest", "latest", "offset", "time"),
            competing=True,
            session=2,
        )


class TestFile(BrokerContract):
    @pytest.fixture
    def edge(self, tmp_path: Path) -> Edge:
        for name in ("rows.jsonl", "others.jsonl"):
            (tmp_path / name).touch()

        def recreate() -> None:
            (tmp_path / "rows.jsonl").unlink()
            (tmp_path / "rows.jsonl").write_bytes(b'{"n": 7}\n')

        return Edge(
            f"file:{tmp_path}/rows.jsonl?follow=on",
            to=f"file:{tmp_path}/rows.jsonl",
            another=f"file:{tmp_path}/others.jsonl?follow=on",
            recreate=recreate,
            headers=False,
            keys=False,
            times=False,
            binary=False,
            lag=False,
            starts=("earliest", "latest", "offset"),
        )
