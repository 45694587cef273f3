"""The handler of a signal raises amid a call: later ones go on, and each gets its own answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import gevent
import pytest

import greenconn
from greenconn import Connection, Consumer, Message, Queue
from tests.fix_interrupts import Signal, signals

SOON = 30.0

Call = Callable[[Connection, Queue], object]


def get(connection: Connection, queue: Queue) -> None:
    """Take a message, and give it back."""
    message = queue(connection.default_channel).get()
    if message is not None:
        message.requeue()


def get_and_ack(connection: Connection, queue: Queue) -> None:
    """Take a message for good."""
    message = queue(connection.default_channel).get()
    if message is not None:
        message.ack()


CALLS: dict[str, Call] = {
    "publish": lambda connection, queue: greenconn.publish(queue, "amid", connection=connection),
    "publish_many": lambda connection, queue: greenconn.publish_many(
        queue, ["amid"] * 3, connection=connection
    ),
    "get": get,
    "get and ack": get_and_ack,
    "declare": lambda connection, queue: queue(connection.default_channel).declare(),
    "channel": lambda connection, queue: connection.channel().close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_later_calls_go_on_behind_a_signal(
    kind_url: str, unique: str, name: str, long: bool
) -> None:
    amid, behind = Queue(unique), Queue(f"{unique}-behind")
    step = 1 if long else 25

    with Connection(kind_url) as connection:
        for number in range(3):
            greenconn.publish(amid, number, connection=connection)
        for queue in (amid, behind):
            queue(connection.channel()).declare()
        runs = signals(
            lambda: CALLS[name](connection, amid),
            first=random.randint(1, step),
            step=step,
            between_calls=False,
        )
        for number, raised in enumerate(runs):
            assert raised is None or isinstance(raised, Signal)
            sending = [
                gevent.spawn(greenconn.publish, behind, [number, each], connection=connection)
                for each in range(2)
            ]
            gevent.joinall(sending, SOON, raise_error=True)
            found: set[tuple[int, int]] = set()
            with gevent.Timeout(SOON), connection.channel() as channel:
                while len(found) < len(sending):
                    message = behind(channel).get(no_ack=True)
                    if message is not None:
                        found.add((message.payload[0], message.payload[1]))
                amid(channel).get(no_ack=True)
            assert found == {(number, 0), (number, 1)}
            greenconn.publish(amid, number, connection=connection)
        for queue in (amid, behind):
            queue(connection.channel()).delete()


def test_a_consumer_is_served_behind_a_signal_amid_another(
    kind_url: str, unique: str, long: bool
) -> None:
    queue, step = Queue(unique), 5 if long else 25

    def consume() -> None:
        greenconn.publish(queue, "amid", connection=connection)
        with connection.channel() as channel:
            handled: list[object] = []

            def handle(body: object, message: Message) -> None:
                message.ack()
                handled.append(body)

            with Consumer(channel, [queue], callbacks=[handle], prefetch_count=3):
                while not handled:
                    connection.drain_events()

    with Connection(kind_url) as connection:
        told = connection.recoverable_connection_errors + connection.recoverable_channel_errors
        runs = signals(consume, first=random.randint(1, step), step=step, between_calls=False)
        for raised in runs:
            assert raised is None or isinstance(raised, (Signal, *told))
            with gevent.Timeout(SOON):
                while True:
                    # What the signal has ended may be told once.
                    with suppress(*told):
                        consume()
                        break
        queue(connection.channel()).delete()
