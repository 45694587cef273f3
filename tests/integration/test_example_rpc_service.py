"""The example of an RPC service: each call is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.projects import project

pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]

CALLS = 200


@pytest.mark.full
def test_each_call_is_answered(own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path) -> None:
    """Also when a process of the service is killed, and when connections are lost."""
    url = own_rabbitmq.add_vhost(unique)
    with project("rpc_service", tmp_path, GREENCONN_URL=url, CALLS=str(CALLS)) as running:
        running.wait_for("^[0-9]+ EUR = ")
        manager, victim, _ = running.processes("greenconn run service")
        assert manager == min(manager, victim)
        running.kill(victim)
        running.wait_for("^[0-9]+ EUR = ", CALLS // 2)
        own_rabbitmq.close_connections("a test")
        assert running.wait() == 0
        replies = {*running.find("^[0-9]+ EUR = .*$")}
        assert replies == {f"{n} EUR = {n * 1.09:.2f} USD" for n in range(1, CALLS + 1)}
        assert running.find("^the service refused: KeyError: 'XXX'$")
        assert running.processes("greenconn run service") == []
    own_rabbitmq.delete_vhost(unique)
