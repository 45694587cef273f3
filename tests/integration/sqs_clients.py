"""What tests do with queues of SQS."""

from __future__ import annotations

from typing import Any

from greenconn import Connection, Queue
from greenconn.entity import Queue as EntityQueue
from greenconn.transport.SQS.store import SqsStore


def store_of(connection: Connection) -> SqsStore:
    """What talks to SQS for it."""
    store = connection.connection.store
    assert isinstance(store, SqsStore)
    return store


def attributes_of(connection: Connection, name: str) -> dict[str, str]:
    """All that SQS says of a queue."""
    return store_of(connection).queues.get(name).attributes("All")


def declared(connection: Connection, name: str, **options: Any) -> EntityQueue:
    """A queue that is there."""
    queue = Queue(name, **options)(connection.default_channel)
    queue.declare()
    return queue
