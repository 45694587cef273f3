"""Messages that a consumer has taken and its program does not drain: others may get them."""

from __future__ import annotations

from typing import Any

import pytest

import greenconn
from greenconn import Connection, Queue
from tests.fix_wires import until
from tests.integration.capabilities import KINDS, Kind


def test_get_finds_what_a_consumer_of_this_process_does_not_drain(
    broker_kind: Kind, kind_url: str, unique: str
) -> None:
    if broker_kind is KINDS["amqp"]:
        pytest.skip("RabbitMQ sends a consumer what comes, whoever asks for it; with kombu, too")
    options = dict(broker_kind.options)
    drained: list[Any] = []
    with (
        Connection(kind_url, transport_options=options) as consuming,
        Connection(kind_url, transport_options=options) as other,
    ):
        queue = Queue(unique)
        for no_ack in (True, False):
            # As Celery's client does with the results of RPC.
            consumer = consuming.Consumer(
                [queue],
                channel=consuming.channel(),
                callbacks=[lambda body, message: drained.append(body)],
                no_ack=no_ack,
            )
            consumer.consume()
            for number in range(2):
                bodies = [f"{number}{each}" for each in "abc"]
                greenconn.publish(unique, bodies[0], connection=other)
                until(lambda: drain(consuming))
                assert drained.pop() == bodies[0]
                greenconn.publish(unique, bodies[1], connection=other)
                greenconn.publish(unique, bodies[2], connection=other)
                assert sorted(taken(other, unique, 2)) == bodies[1:]
            consumer.cancel()


def drain(connection: Connection) -> bool:
    """Return whether a message came."""
    try:
        connection.drain_events(timeout=0.1)
    except TimeoutError:
        return False
    return True


def taken(connection: Connection, queue: str, count: int) -> list[Any]:
    """Get so many messages, with the time that they may need to be visible."""
    got: list[Any] = []

    def take() -> bool:
        message = connection.default_channel.basic_get(queue, no_ack=True)
        if message is not None:
            got.append(message.decode())
        return len(got) == count

    until(take)
    return got
