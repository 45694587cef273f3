"""All worlds by name, and what is asked of a broker without a storm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from greenconn.connection import Connection
from tests.torture.worlds.amqp import rabbitmq_world
from tests.torture.worlds.base import World
from tests.torture.worlds.memory import memory_world
from tests.torture.worlds.redis import redis_world
from tests.torture.worlds.sqlite import sqlite_world
from tests.torture.worlds.stores import beanstalk_world, couchdb_world, mongodb_world, sqs_world

__all__ = ["STEADY", "WORLDS", "declare", "depths"]

#: Each starts a broker, which ends with the block; raises :class:`NoBroker` where it is not to be had.
WORLDS: dict[str, Callable[[], AbstractContextManager[World]]] = {
    "classic": partial(rabbitmq_world, "classic", "classic"),
    "quorum": partial(rabbitmq_world, "quorum", "quorum"),
    "redis": redis_world,
    "memory": memory_world,
    "sqlite": sqlite_world,
    "beanstalk": beanstalk_world,
    "sqs": sqs_world,
    "mongodb": mongodb_world,
    "couchdb": couchdb_world,
}
#: All but pouchdb-server, which takes its time: a storm that is worth it takes minutes.
STEADY = tuple(name for name in WORLDS if name != "couchdb")


def declare(world: World, for_good: bool) -> None:
    """Declare its queues.  May switch.

    Arguments:
        for_good: they shall be there after a kill.
    """
    with Connection(world.url, transport_options=world.options) as connection:
        for place in world.places():
            place.queue(connection.default_channel).declare()
    if for_good:
        world.settle()


def depths(world: World) -> dict[str, int]:
    """How many messages wait in each of its queues.  May switch."""
    names = [place.queue.name for place in world.places()]
    with Connection(world.url, transport_options=world.options) as connection:
        return {name: _depth(connection, name) for name in names}


def _depth(connection: Connection, name: str) -> int:
    try:
        declared = connection.default_channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return 0  # it was deleted, and nobody has wanted it back
    return int(declared.message_count)
