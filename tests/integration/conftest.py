"""The fixtures of the tests that need a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenconn.transport import memory
from tests.integration.contract import (
    Side,
    memory_side,
    mongodb_side,
    rabbitmq_side,
    redis_side,
)

_NO_TTL = "messages in a Redis list do not expire (as with kombu)"
_NO_BOUNDS = "Redis lists have no bounds (as with kombu)"
_NO_BOUNDS_THERE = "queues in MongoDB have no bounds (as with kombu)"
#: Rules of RabbitMQ's queues that a list in Redis does not keep.
NOT_ON_REDIS = {
    "test_message_that_dies_in_a_circle_is_dropped": _NO_TTL,
    "test_retry_by_expiry_goes_round": _NO_TTL,
    "test_old_messages_expire": _NO_TTL,
    "test_message_may_expire_by_itself": _NO_TTL,
    "test_message_without_time_needs_a_free_consumer": _NO_TTL,
    "test_full_queue_drops_its_head": _NO_BOUNDS,
    "test_bytes_count_too": _NO_BOUNDS,
    "test_full_queue_may_refuse": _NO_BOUNDS,
    "test_higher_priorities_come_first": "the lowest comes first, as kombu has it on Redis",
    "test_single_active_consumer": "nobody elects one of several processes",
}
#: The same of MongoDB.
NOT_ON_MONGODB = {
    "test_message_without_time_needs_a_free_consumer": "a message is stored before it is delivered",
    "test_full_queue_drops_its_head": _NO_BOUNDS_THERE,
    "test_bytes_count_too": _NO_BOUNDS_THERE,
    "test_full_queue_may_refuse": _NO_BOUNDS_THERE,
    "test_single_active_consumer": "nobody elects one of several processes",
}


@pytest.fixture(params=["memory", "amqp", "redis", "mongodb"])
def side(request: pytest.FixtureRequest, unique: str) -> Iterator[Side]:
    """Each transport in turn."""
    if request.param == "memory":
        made = memory_side(unique)
    elif request.param == "mongodb":
        if request.node.originalname in NOT_ON_MONGODB:
            pytest.skip(NOT_ON_MONGODB[request.node.originalname])
        made = mongodb_side(request.getfixturevalue("mongodb_url"), unique)
    elif request.param == "redis":
        if request.node.originalname in NOT_ON_REDIS:
            pytest.skip(NOT_ON_REDIS[request.node.originalname])
        made = redis_side(request.getfixturevalue("redis_url"), unique)
    else:
        made = rabbitmq_side(request.getfixturevalue("amqp_url"), unique)
    try:
        yield made
    finally:
        made.close()
        if request.param == "memory":
            memory.reset(unique)
