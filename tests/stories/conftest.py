"""What the stories share: a person with a home, and environments that are made once for all of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storytelling import TRAINED_WITH, Person


@pytest.fixture(scope="session")
def environments() -> Path:
    """Where environments are kept from run to run: they are named by what they hold, so sharing them is safe."""
    cache = os.environ.get("MLPACKER_TEST_CACHE") or Path(__file__).resolve().parents[2] / ".cache" / "test"
    folder = Path(cache).absolute() / "envs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def new_home(tmp_path: Path, environments: Path) -> Any:
    """Makes homes of their own that share the environments."""

    def make(name: str = "home") -> Path:
        home = tmp_path / name
        home.mkdir(mode=0o700)
        (home / "envs").symlink_to(environments)
        return home

    return make


@pytest.fixture
def person(tmp_path: Path, new_home: Any, interpreter: Any) -> Person:
    """Somebody with a fresh home, an empty folder and a training environment."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Person(new_home(), folder, interpreter("3.11", *TRAINED_WITH))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a real registry on this machine, open to all."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (make test installs it, as root on Debian)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
