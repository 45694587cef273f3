"""Celery, which imports kombu, with greenconn in kombu's stead: clients, a worker, Redis for results."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from greenconn.identity import uuid
from tests.integration.processes import Running, run, start
from tests.integration.test_contrib_celery import EXPECTED as OF_CELERY

pytest.importorskip("celery")

pytestmark = [pytest.mark.full, pytest.mark.programs, pytest.mark.timeout(180)]

AS_KOMBU = ("-W", "ignore", "-m", "tests.integration.celery.as_kombu")
WORKER = (
    *(*AS_KOMBU, "celery", "-A", "tests.integration.celery.app:app", "worker", "-P", "gevent"),
    *("-c", "50", "-l", "error", "--without-mingle"),
)

EXPECTED = {**OF_CELERY, "many_greenlets": [100, 101]}


@pytest.fixture(scope="module", params=["amqp", "redis"])
def worker(
    request: pytest.FixtureRequest, amqp_url: str, redis_url: str
) -> Iterator[tuple[Running, dict[str, str]]]:
    """A worker on each broker in turn, and the environment of its clients."""
    env = {
        "BROKER": amqp_url if request.param == "amqp" else redis_url,
        "RESULTS": redis_url,
        "QUEUE": f"greenconn-celery-{uuid()}",
    }
    running = start(*WORKER, env=env)
    try:
        while running.line() != "ready":
            pass
        yield running, env
    finally:
        running.end()


def test_a_worker_and_a_client(worker: tuple[Running, dict[str, str]]) -> None:
    running, env = worker
    outcome = run(*AS_KOMBU, "tests.integration.celery.client", "100", env=env)
    assert outcome.output, outcome.errors
    assert json.loads(outcome.output.splitlines()[-1]) == EXPECTED
    running.signal(signal.SIGTERM)
    while running.line() != "shut down":
        pass
    assert running.outcome().code == 0
