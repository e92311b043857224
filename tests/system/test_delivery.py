"""A ledger run over each real broker: all faults in turn, and nothing is lost. `make delivery` runs each fault by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpacker.testing.delivery.servers import BROKERS, server
from mlpacker.testing.delivery.walk import walk


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
