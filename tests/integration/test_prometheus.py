"""Metrics at real brokers, and of gunicorn's workers, one of which answers for all."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.green.deadline import Deadline
from greenconn.publishing import publish
from tests.fix_wires import until
from tests.integration.gunicorn import ROOT, SOON, serving
from tests.receiving import consuming

prometheus_client = pytest.importorskip("prometheus_client")

from greenconn.contrib.prometheus import Metrics, instrument  # noqa: E402

APPS = ROOT / "tests" / "integration" / "prometheus_apps"


@pytest.fixture
def registry() -> Any:
    """One that holds nothing else."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def metrics(registry: Any) -> Iterator[Metrics]:
    """What is exported."""
    metrics = instrument(registry)
    yield metrics
    metrics.remove()


@pytest.mark.parametrize("broker", ["amqp", "redis"])
def test_a_message_at_work_is_seen(
    broker: str, registry: Any, metrics: Metrics, unique: str, request: pytest.FixtureRequest
) -> None:
    entered, go_on = Event(), Event()

    def handle(body: Any, message: Any) -> None:
        entered.set()
        go_on.wait(SOON)

    def value(name: str, **labels: str) -> float:
        return float(registry.get_sample_value(f"greenconn_{name}", labels) or 0.0)

    with Connection(request.getfixturevalue(f"{broker}_url")) as connection:
        where = connection.as_uri()
        consumer = consuming(Queue(unique, expires=120), handle, connection=connection, name=unique)
        publish(unique, 1, connection=connection)
        assert entered.wait(SOON)
        assert value("unacked", broker=where) == 1
        assert value("consumers", consumer=unique, state="running") == 1
        assert value("connections", broker=where, state="open") == (2 if broker == "amqp" else 1)
        assert value("published_total", broker=where, destination=unique) == 1
        go_on.set()
        until(lambda: value("unacked", broker=where) == 0, SOON)
        until(lambda: value("handled_total", broker=where, queue=unique) == 1, SOON)
        assert consumer.stop(SOON)
        connection.default_channel.queue_delete(unique)


def test_unconfirmed_publishes_and_bytes_that_wait_are_seen(
    amqp_url: str, registry: Any, metrics: Metrics, unique: str
) -> None:
    def value(name: str, **labels: str) -> float:
        return float(registry.get_sample_value(f"greenconn_{name}", labels) or 0.0)

    entered, go_on = Event(), Event()

    def handle(body: Any, message: Any) -> None:
        entered.set()
        go_on.wait(SOON)

    with Connection(amqp_url) as connection:
        where = connection.as_uri()
        Queue(unique, expires=120)(connection.default_channel).declare()
        consumer = consuming(unique, handle, connection=connection, no_ack=True)
        channel = connection.channel()
        message = channel.prepare_message(b"x" * 1000)
        pending = [channel.begin_publish(message, "", unique) for _ in range(5)]
        assert channel.unconfirmed_count  # the last one at least: a begin may let others run before
        for each in pending:
            each.wait(Deadline(SOON))
        assert entered.wait(SOON)
        until(lambda: 4000 <= value("inbox_bytes", broker=where) < 8000, SOON)  # with properties
        until(lambda: value("unconfirmed", broker=where) == 0, SOON)
        go_on.set()
        until(lambda: value("inbox_bytes", broker=where) == 0, SOON)
        assert consumer.stop(SOON)
        connection.default_channel.queue_delete(unique)


@pytest.mark.full
@pytest.mark.programs
def test_a_worker_of_gunicorn_answers_for_all(amqp_url: str, unique: str, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    env = {
        "GREENCONN_URL": amqp_url,
        "QUEUE": unique,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, APPS))),
    }
    arguments = ("-c", str(APPS / "gunicorn.conf.py"), "metered:application")
    with serving(*arguments, env=env) as server:
        server.wait_ready()

        def total(name: str, labels: str) -> float:
            text = server.request("/metrics").body.decode()
            pattern = rf"^greenconn_{name}\{{([^}}]*)\}} (\S+)$"
            found = re.findall(pattern, text, re.MULTILINE)
            return sum(float(number) for given, number in found if labels in given)

        # Both have a consumer, whoever is asked.
        running = f'consumer="{unique}",state="running"'
        until(lambda: total("consumers", running) == 2, SOON)
        for _ in range(20):
            assert server.request("/publish").status == 200
        queue = f'queue="{unique}"'
        until(lambda: total("handled_total", queue) == 20, SOON)
        assert total("published_total", f'destination="{unique}"') == 20
        assert total("handle_seconds_count", queue) == 20
        workers = {server.request("/publish").json["worker"] for _ in range(20)}
        # The gauges of a worker that was killed go, its counts stay.
        server.signal(signal.SIGKILL, workers.pop())
        until(lambda: len(server.living()) == 2, SOON)
        until(lambda: total("consumers", running) == 2, SOON)
        until(lambda: total("handled_total", queue) >= 40, SOON)
        server.signal(signal.SIGTERM)
        server.wait()
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(unique)
