"""The example of a stream: a reader that is killed counts each measurement once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.projects import project

pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]


@pytest.mark.full
def test_each_measurement_counts_once(own_rabbitmq: RabbitMQ, unique: str, tmp_path: Path) -> None:
    url = own_rabbitmq.add_vhost(unique)
    with project("stream_replay", tmp_path, GREENCONN_URL=url) as running:
        running.wait_for("^counted ")
        (reader,) = running.processes("greenconn run totals")
        running.kill(reader)
        running.start("greenconn run totals")
        running.wait_for("^published 1000 measurements$")
        own_rabbitmq.close_connections("a test")
        running.wait_for("^counted 1000 measurements")
        totals = [int(each) for each in running.find("^counted ([0-9]+) measurements")]
        assert totals == sorted({*totals})
        running.start("python replay.py")
        running.wait_for("^replayed 1000 measurements")
        running.stop()
    own_rabbitmq.delete_vhost(unique)
