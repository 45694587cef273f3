"""Brokers for Dramatiq in the memory of the process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("dramatiq")

import dramatiq

from greenconn.contrib.dramatiq import GreenconnBroker
from greenconn.transport import memory

make_actor: Any = dramatiq.actor


@pytest.fixture
def virtual_host() -> Iterator[str]:
    """A virtual host in memory, of this test."""
    virtual_host = uuid.uuid4().hex
    yield virtual_host
    memory.reset(virtual_host)


@pytest.fixture
def broker(virtual_host: str) -> Iterator[GreenconnBroker]:
    """A broker there."""
    broker = GreenconnBroker(f"memory://localhost/{virtual_host}")
    yield broker
    broker.close()


@pytest.fixture
def actor(broker: GreenconnBroker) -> Any:
    """An actor of the queue "work", which nobody runs."""

    def work() -> None:
        raise AssertionError("it is done elsewhere")

    return make_actor(work, queue_name="work", broker=broker)
