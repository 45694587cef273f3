"""What tests of consumers do with messages and ask of queues."""

from __future__ import annotations

from typing import Any

from greenconn.connection import Connection
from greenconn.worker import ConsumerGreenlet, spawn_consumer


class Receiver(list[Any]):
    """Acknowledges messages and keeps their bodies."""

    def __call__(self, body: Any, message: Any) -> None:
        self.append(body)
        message.ack()


def consuming(
    queue: Any, handler: Any, *, connection: Connection, **options: Any
) -> ConsumerGreenlet:
    """Spawn a consumer, and wait until the broker has confirmed it."""
    consumer = spawn_consumer(queue, handler, connection=connection, **options)
    assert consumer.wait_ready(90.0)
    return consumer


def consumer_count(connection: Connection, queue: str) -> int:
    """How many consumers the broker knows for *queue*."""
    with connection.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).consumer_count)


def taken(connection: Connection, queue: str) -> list[Any]:
    """Take all messages of a queue, which need no ack."""
    found = []
    with connection.channel() as channel:
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message)
    return found


def bodies_in(connection: Connection, queue: str) -> list[Any]:
    """Take all messages of a queue, and return their bodies."""
    return [message.decode() for message in taken(connection, queue)]


def delete(connection: Connection, *queues: str) -> None:
    """Delete the queues of a test."""
    with connection.channel() as channel:
        for name in queues:
            channel.queue_delete(name)
