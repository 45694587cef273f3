"""The handler of a signal raises amid a call: later ones go on, and each gets its own answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import gevent
import pytest

import greenconn
from greenconn import Connection, Consumer, Message, Queue
from tests.fix_interrupts import Signal, SignalAt, signals
from tests.fix_wires import until

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


def test_a_consumer_is_served_behind_a_signal_amid_a_publish(
    kind_url: str, unique: str, long: bool
) -> None:
    step, seen = 1 if long else 15, set[str]()
    with Connection(kind_url) as connection:
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: seen.add(body), connection=connection, prefetch_count=1
        )

        def publish() -> None:
            greenconn.publish(unique, "amid", connection=connection)

        runs = signals(publish, first=random.randint(1, step), step=step, between_calls=False)
        for number, raised in enumerate(runs):
            assert raised is None or isinstance(raised, Signal)
            greenconn.publish(unique, f"behind-{number}", connection=connection)
            until(partial(seen.__contains__, f"behind-{number}"), SOON)
        consumer.stop(timeout=SOON)
        Queue(unique)(connection.channel()).delete()


def fail(message: Message) -> None:
    raise ValueError


#: What a handler does with its message.
OUTCOMES: dict[str, Callable[[Message], object]] = {
    "return": lambda message: None,
    "ack": lambda message: message.ack(),
    "requeue": lambda message: message.requeue(),
    "fail": fail,
}


class Armed:
    """A handler behind which a signal is raised: behind its first call for the message ``amid``."""

    def __init__(self, signal: SignalAt, outcome: Callable[[Message], object]) -> None:
        self.seen: set[str] = set()
        self._signal = signal
        self._outcome = outcome

    def __call__(self, body: str, message: Message) -> None:
        is_first = body == "amid" and body not in self.seen
        self.seen.add(body)
        if is_first:
            self._signal.begin()
            self._outcome(message)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_consumer_is_served_behind_a_signal_amid_its_worker(
    kind_url: str, unique: str, outcome: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one message, so that none is left behind one that is not settled."""
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: None)
    step = 7 if long else 40
    number = random.randint(1, step)
    has_struck = True
    while has_struck:
        signal = SignalAt(number, between_calls=False)
        handler = Armed(signal, OUTCOMES[outcome])
        with Connection(kind_url) as connection:
            retry = greenconn.Retry(tries=2, delay=0.001)
            consumer = greenconn.spawn_consumer(
                unique, handler, connection=connection, prefetch_count=1, retry=retry
            )
            try:
                for body in ("amid", "behind"):
                    greenconn.publish(unique, body, connection=connection)
                until(partial(handler.seen.__contains__, "behind"), SOON)
            finally:
                signal.end()
            has_struck = signal.left <= 0
            greenconn.publish(unique, "later", connection=connection)
            until(partial(handler.seen.__contains__, "later"), SOON)
            consumer.stop(timeout=SOON)
            Queue(unique)(connection.channel()).delete()
        number += step
