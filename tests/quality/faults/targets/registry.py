"""All targets by name, and what is asked of a broker without a storm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from greenconn.connection import Connection
from tests.quality.faults.targets.amqp import rabbitmq_target
from tests.quality.faults.targets.base import Target
from tests.quality.faults.targets.clusters import rabbitmq_cluster_target, redis_cluster_target
from tests.quality.faults.targets.memory import memory_target
from tests.quality.faults.targets.redis import redis_target
from tests.quality.faults.targets.sqlite import sqlite_target
from tests.quality.faults.targets.stores import (
    beanstalk_target,
    couchdb_target,
    mongodb_target,
    postgresql_target,
    sqs_target,
)

#: Each starts a broker, which ends with the block; raises :class:`NoBroker` where it is not to be had.
TARGETS: dict[str, Callable[[], AbstractContextManager[Target]]] = {
    "classic": partial(rabbitmq_target, "classic", "classic"),
    "quorum": partial(rabbitmq_target, "quorum", "quorum"),
    "rabbitmq-tls": partial(rabbitmq_target, "rabbitmq-tls", "classic", "quorum", is_tls=True),
    "redis": redis_target,
    "redis-tls": partial(redis_target, is_tls=True),
    "memory": memory_target,
    "sqlite": sqlite_target,
    "beanstalk": beanstalk_target,
    "sqs": sqs_target,
    "mongodb": mongodb_target,
    "postgresql": postgresql_target,
    "couchdb": couchdb_target,
    "rabbitmq-cluster": rabbitmq_cluster_target,
    "redis-cluster": redis_cluster_target,
}
#: Those whose nodes end one at a time.
CLUSTERS = ("rabbitmq-cluster", "redis-cluster")
#: All but pouchdb-server and clusters, which take their time: a storm that is worth it takes minutes.
STEADY = tuple(name for name in TARGETS if name not in ("couchdb", *CLUSTERS))


def declare(target: Target, for_good: bool) -> None:
    """Declare its queues.  May switch.

    Arguments:
        for_good: they shall be there after a kill.
    """
    with Connection(target.url, transport_options=target.options) as connection:
        for place in target.places():
            place.queue(connection.default_channel).declare()
    if for_good:
        target.settle()


def depths(target: Target) -> dict[str, int]:
    """How many messages wait in each of its queues.  May switch."""
    names = [place.queue.name for place in target.places()]
    with Connection(target.url, transport_options=target.options) as connection:
        return {name: _depth(connection, name) for name in names}


def _depth(connection: Connection, name: str) -> int:
    try:
        declared = connection.default_channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return 0  # it was deleted, and nobody has wanted it back
    return int(declared.message_count)
