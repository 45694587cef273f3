"""Programs that fill and empty a queue with a maximum length at the same time."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial

import gevent

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import BatchPublishError, PublishNacked

SOON = 30.0


def storm(url: str, rounds: int, *, purges: bool) -> None:
    """Publish to the queue ``q``, claim, requeue, delay, expire and purge, over six connections."""
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(url)) for _ in range(6)]
        bounded = Queue("q", max_length=20, queue_arguments={"x-overflow": "reject-publish"})
        bounded(connections[0].default_channel).declare()
        work = [partial(_publish, each, rounds) for each in connections[:3]]
        work += [partial(_consume, each, rounds, purges) for each in connections[3:]]
        greenlets = [gevent.spawn(each) for each in work]
        gevent.joinall(greenlets, timeout=SOON, raise_error=True)
        for each in connections:
            each.default_channel.flush_acks()
        with suppress(PublishNacked):
            greenconn.publish("q", "last", connection=connections[0])


def _publish(connection: Connection, rounds: int) -> None:
    for number in range(rounds):
        delay, expires = (0.01 if number % 7 == at else None for at in range(2))
        with suppress(PublishNacked):
            body = "x" * (number % 9)
            greenconn.publish("q", body, connection=connection, delay=delay, expires=expires)
        if number % 5 == 0:
            with suppress(BatchPublishError):
                greenconn.publish_many("q", iter(["y" * number] * 3), connection=connection)


def _consume(connection: Connection, rounds: int, purges: bool) -> None:
    queue = Queue("q")(connection.channel())
    for number in range(rounds):
        message = queue.get()
        if message is None:
            gevent.sleep(0.001)
        elif number % 3:
            message.ack()
        else:
            message.requeue()
        if purges and number % 11 == 0:
            queue.purge()
