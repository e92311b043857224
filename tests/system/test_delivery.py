"""A ledger run over each real broker: all faults in turn, and nothing is lost. `make delivery` runs each fault by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mlpacker.testing.delivery.faults import Fault
from mlpacker.testing.delivery.servers import BROKERS, server
from mlpacker.testing.delivery.walk import World, walk


@pytest.mark.timeout(420)
@pytest.mark.parametrize("broker", BROKERS)
def test_nothing_is_lost_whatever_happens(broker: str, tmp_path: Path) -> None:
    real = server(broker)
    reason = real.missing()
    if reason:
        pytest.skip(reason)
    result = walk(real(tmp_path / "broker"), tmp_path)
    told = "\n".join(result.lines())
    print(told)
    assert result.kept, f"{told}\n{result.log[-5000:]}"
    assert result.whole.rows_in > 500, told
    assert result.whole.dead_letters >= 8, told


@pytest.mark.timeout(200)
def test_nothing_is_lost_when_the_disk_of_the_spool_is_full(tmp_path: Path) -> None:
    real = server("redis")
    reason = real.missing() or (
        "" if os.geteuid() == 0 and shutil.which("mount") else "mounting a small disk needs root"
    )
    if reason:
        pytest.skip(reason)
    state = tmp_path / "state"
    state.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3500k", "tmpfs", str(state)], check=False
    ).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        result = walk(
            real(tmp_path / "broker"),
            tmp_path,
            faults=[Fault("full", "", _until_full)],
            rate=500,
            spool=1 << 30,
        )
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)
    told = "\n".join(result.lines())
    assert result.kept, f"{told}\n{result.log[-5000:]}"
    assert "can't be written" in result.log or "full" in result.log, result.log[-3000:]


def _until_full(world: World) -> None:
    """The sink is away until the spool's disk has no place left; then it is back."""
    world.proxies["out"].cut()
    end = time.monotonic() + 60
    while shutil.disk_usage(world.folder / "state").free > 4096 * 20 and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(2)
    world.proxies["out"].mend()
