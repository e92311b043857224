from __future__ import annotations

import itertools

import pytest

from mlpacker.testing.brokers import BrokerContract, Edge
from mlpacker.testing.delivery.servers.mosquitto import Mosquitto

pytestmark = [
    pytest.mark.skipif(Mosquitto.missing() is not None, reason=str(Mosquitto.missing())),
    pytest.mark.timeout(60),
]
topics = (f"plant/{n}/readings" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as server:
        yield server


class TestMqtt5(BrokerContract):
    @pytest.fixture
    def edge(self, server):
        return Edge(
            server.address(next(topics)), another=server.address(next(topics)),
            times=False, lag=False, starts=("latest",), standby=False, competing=False,
        )  # fmt: skip


class TestMqtt3(BrokerContract):
    @pytest.fixture
    def edge(self, server):
        return Edge(
            server.address(next(topics), version="3", keys="none"), another=server.address(next(topics), version="3"),
            headers=False, keys=False, times=False, lag=False, starts=("latest",), standby=False, competing=False,
        )  # fmt: skip
