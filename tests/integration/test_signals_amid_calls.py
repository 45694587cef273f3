"""The handler of a signal raises amid a call: later ones go on, and each gets its own answer."""

from __future__ import annotations

import random
from collections.abc import Callable

import gevent
import pytest

import greenconn
from greenconn import Connection, Queue
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
