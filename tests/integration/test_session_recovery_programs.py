"""Programs that rebuild themselves, while the broker is killed again and again.

The broker is asked each time: never two consumers of one program, never none, and messages flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import monotonic
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.messaging import Consumer
from greenconn.mixins import ConsumerMixin, ConsumerProducerMixin, TokenBucket
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.integration.recovering import (
    SOON,
    consumer_counts,
    consumers_of,
    kill,
    restart_app,
    send,
)

pytestmark = pytest.mark.full

POLICY: dict[str, Any] = {"interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.5}


class Program:
    """A program in greenlets of its own that consumes from a queue of its own, until it is ended."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.queue = Queue(name)
        self.got: set[Any] = set()
        self.is_over = False
        self.greenlets: list[gevent.Greenlet[..., Any]] = []

    @property
    def name(self) -> str:
        """The name of its queue."""
        return self.queue.name

    def begin(self) -> None:
        """Run."""
        self.greenlets = [gevent.spawn(self.run)]

    def run(self) -> None:
        """What it does."""
        raise NotImplementedError

    def receive(self, body: Any, message: Any) -> None:
        """The callback of its consumer."""
        self.got.add(body)
        message.ack()

    def has_got(self, body: Any) -> bool:
        """Whether *body* has arrived."""
        self.check()
        return body in self.got

    def check(self) -> None:
        """Raise what has ended it."""
        for greenlet in self.greenlets:
            if greenlet.dead:
                greenlet.get()
                raise AssertionError(f"{type(self).__name__} has ended")

    def end(self) -> None:
        """Stop."""
        self.is_over = True
        gevent.killall(self.greenlets, timeout=SOON)


class Mixin(ConsumerMixin, Program):
    """kombu's ``ConsumerMixin``."""

    restart_limit = TokenBucket(20)

    def begin(self) -> None:
        self.connection = Connection(self.url, heartbeat=5)
        super().begin()

    def get_consumers(self, Consumer: Callable[..., Any], channel: Any) -> list[Any]:  # noqa: N803
        return [Consumer(queues=[self.queue], callbacks=[self.receive], prefetch_count=10)]


class AnsweringMixin(ConsumerProducerMixin, Mixin):
    """``ConsumerProducerMixin``: it goes on when its answer was published."""

    def receive(self, body: Any, message: Any) -> None:
        self.producer.publish(body, f"{self.name}-answers", retry=True, declare=[self.answers])
        super().receive(body, message)

    @property
    def answers(self) -> Queue:
        """Where they go."""
        return Queue(f"{self.name}-answers", expires=60)


class Reviving(Program):
    """``ensure_connection`` and ``revive``, with a new channel each time."""

    def run(self) -> None:
        with Connection(self.url, heartbeat=5) as connection:
            connection.ensure_connection(**POLICY)
            consumer = Consumer(connection.channel(), self.queue, callbacks=[self.receive])
            consumer.consume()
            while not self.is_over:
                try:
                    connection.drain_events(timeout=1.0)
                except TimeoutError:
                    connection.heartbeat_check()
                except connection.connection_errors:
                    connection.ensure_connection(**POLICY)
                    consumer.revive(connection.channel())
                    consumer.consume()


class RevivingDefault(Program):
    """The same on the default channel."""

    def run(self) -> None:
        with Connection(self.url, heartbeat=5) as connection:
            consumer = Consumer(connection, self.queue, callbacks=[self.receive])
            consumer.consume()
            while not self.is_over:
                try:
                    connection.drain_events()
                except connection.connection_errors:
                    connection.ensure_connection(**POLICY)
                    consumer.revive(connection.default_channel)
                    consumer.consume()


class Draining(Program):
    """A loop that leaves everything to the connection."""

    def run(self) -> None:
        with Connection(self.url, heartbeat=5) as connection:
            Consumer(connection, self.queue, callbacks=[self.receive]).consume()
            while not self.is_over:
                try:
                    connection.drain_events()
                except connection.connection_errors:
                    pass


class Rebuilding(Program):
    """A loop that makes everything anew."""

    def run(self) -> None:
        while not self.is_over:
            with Connection(self.url, heartbeat=5) as connection:
                try:
                    connection.ensure_connection(**POLICY)
                    with Consumer(connection, self.queue, callbacks=[self.receive]):
                        while not self.is_over:
                            connection.drain_events()
                except connection.connection_errors:
                    pass


class Renewing(Program):
    """A loop that makes its consumer anew, but keeps the connection."""

    def run(self) -> None:
        with Connection(self.url, heartbeat=5) as connection:
            while not self.is_over:
                try:
                    connection.ensure_connection(**POLICY)
                    with (
                        connection.channel() as channel,
                        Consumer(channel, self.queue, callbacks=[self.receive]),
                    ):
                        while not self.is_over:
                            connection.drain_events()
                except connection.connection_errors:
                    pass


class Ensuring(Program):
    """``Connection.ensure`` around a function that consumes."""

    def run(self) -> None:
        with Connection(self.url, heartbeat=5) as connection:
            consumer = Consumer(connection, self.queue, callbacks=[self.receive])

            def work() -> None:
                consumer.consume()
                while not self.is_over:
                    connection.drain_events()

            connection.ensure(consumer, work, **POLICY)()


class Spawned(Program):
    """``spawn_consumer``, which needs nobody's care."""

    def begin(self) -> None:
        self.connection = Connection(self.url, heartbeat=5)
        self.consumer: ConsumerGreenlet = spawn_consumer(
            self.queue, lambda body, message: self.got.add(body), connection=self.connection
        )
        self.greenlets = [self.consumer]

    def end(self) -> None:
        assert self.consumer.stop(timeout=SOON)
        self.connection.close()


KINDS: list[type[Program]] = [
    Mixin,
    AnsweringMixin,
    Reviving,
    RevivingDefault,
    Draining,
    Rebuilding,
    Renewing,
    Ensuring,
    Spawned,
]


@contextmanager
def at_work(broker: RabbitMQ, name: str) -> Iterator[list[Program]]:
    """All programs at once, each consuming."""
    programs = [kind(broker.url, f"{name}-{kind.__name__}") for kind in KINDS]
    with ExitStack() as stack:
        stack.callback(tidy_up, broker, programs)
        for program in programs:
            program.begin()
            stack.callback(program.end)
        stack.callback(broker.mend)
        yield programs


def tidy_up(broker: RabbitMQ, programs: list[Program]) -> None:
    """Delete what they have declared."""
    with Connection(broker.url) as connection:
        for program in programs:
            connection.default_channel.queue_delete(program.name)


def check(broker: RabbitMQ, programs: list[Program], number: int) -> None:
    """Each has one consumer, and never had two since the broker is back; messages flow."""
    most: dict[str, int] = {}
    with Connection(broker.url) as connection:
        waiting = {program.name: program for program in programs}
        end = monotonic() + SOON
        while waiting:
            assert monotonic() < end, f"no consumer of {list(waiting)}"
            for name in list(most) + list(waiting):
                count = consumers_of(connection, name)
                if count:
                    waiting.pop(name, None)
                most[name] = max(most.get(name, 0), count)
            gevent.sleep(0.01)
        for program in programs:
            send(connection, program.name, str(number))
        for program in programs:
            until(partial(program.has_got, str(number)), SOON)
            most[program.name] = max(most[program.name], consumers_of(connection, program.name))
    names = {program.name for program in programs}
    counts = {name: count for name, count in consumer_counts(broker).items() if name in names}
    assert counts == dict.fromkeys(names, 1)
    assert most == dict.fromkeys(names, 1)


@pytest.mark.timeout(900)
def test_the_broker_goes_away_again_and_again(
    own_rabbitmq: RabbitMQ, unique: str, long: bool
) -> None:
    faults = [kill, restart_app]
    with at_work(own_rabbitmq, unique) as programs:
        check(own_rabbitmq, programs, 0)
        for number in range(1, 21 if long else 3):
            faults[number % 2](own_rabbitmq)
            check(own_rabbitmq, programs, number)
