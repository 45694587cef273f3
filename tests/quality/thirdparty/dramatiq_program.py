"""pytest for the tests of Dramatiq's brokers, in a process that is patched for gevent.

``dramatiq_program.py WAY RESULTS ARGUMENTS``: each test that passed or failed is a line in the file
RESULTS; the other arguments are pytest's.  The tests come without their fixtures, which are here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from greenconn.contrib import dramatiq as contrib
from tests.quality.thirdparty.results import Results

RABBITMQ, REDIS = "DRAMATIQ_TEST_AMQP_URL", "DRAMATIQ_TEST_REDIS_URL"
USERNAME = PASSWORD = "guest"
CREDENTIALS = dramatiq.brokers.rabbitmq.pika.PlainCredentials(USERNAME, PASSWORD)


@contextmanager
def worker(*arguments: Any, **options: Any) -> Iterator[dramatiq.Worker]:
    """Run a worker of Dramatiq's in this process."""
    running = dramatiq.Worker(*arguments, **options)
    running.start()
    try:
        yield running
    finally:
        running.stop()


class Fixtures:
    """The fixtures of the tests, by their names.

    Arguments:
        way: whose brokers they are.
    """

    def __init__(self, way: str) -> None:
        self._is_own = way == "own"

    def _lend(self, broker: dramatiq.Broker) -> Iterator[dramatiq.Broker]:
        broker.emit_after("process_boot")
        dramatiq.set_broker(broker)
        yield broker
        broker.flush_all()
        broker.emit_before("process_stop")
        broker.close()

    @pytest.fixture
    def rabbitmq_broker(self) -> Iterator[dramatiq.Broker]:
        """A broker on RabbitMQ."""
        kind: Any = RabbitmqBroker if self._is_own else contrib.RabbitmqBroker
        yield from self._lend(kind(url=os.environ[RABBITMQ], max_priority=10))

    @pytest.fixture
    def redis_broker(self) -> Iterator[dramatiq.Broker]:
        """A broker on Redis."""
        kind: Any = RedisBroker if self._is_own else contrib.RedisBroker
        yield from self._lend(kind(url=os.environ[REDIS]))

    @pytest.fixture
    def rabbitmq_worker(self, rabbitmq_broker: dramatiq.Broker) -> Iterator[dramatiq.Worker]:
        """A worker on it."""
        with worker(rabbitmq_broker, worker_timeout=100, worker_threads=32) as running:
            yield running

    @pytest.fixture
    def redis_worker(self, redis_broker: dramatiq.Broker) -> Iterator[dramatiq.Worker]:
        """A worker on it."""
        with worker(redis_broker, worker_timeout=100, worker_threads=32) as running:
            yield running


if __name__ == "__main__":
    way, results = sys.argv[1:3]
    sys.exit(pytest.main(sys.argv[3:], plugins=[Results(results), Fixtures(way)]))
