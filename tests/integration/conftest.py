"""The fixtures of the tests that need a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenconn.transport import memory
from tests.integration.contract import Side, memory_side, rabbitmq_side


@pytest.fixture(params=["memory", "amqp"])
def side(request: pytest.FixtureRequest, unique: str) -> Iterator[Side]:
    """Each transport in turn."""
    if request.param == "memory":
        made = memory_side(unique)
    else:
        made = rabbitmq_side(request.getfixturevalue("amqp_url"), unique)
    try:
        yield made
    finally:
        made.close()
        if request.param == "memory":
            memory.reset(unique)
