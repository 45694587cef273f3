"""The fixtures of the tests of consumers: a memory broker, a connection, what handlers saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from gevent.event import Event

from greenconn import defaults
from greenconn.connection import Connection
from greenconn.transport import memory
from greenconn.worker import ConsumerGreenlet, spawn_consumer, stop_consumers
from tests.fix_wires import until

__all__ = ["CAME", "Broker", "Recorder", "Spawn", "until"]

Spawn = Callable[..., ConsumerGreenlet]

#: Seconds in which what must come comes.
CAME = 30.0


class Broker:
    """The broker as another program sees it, through a connection of its own."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)

    @property
    def channel(self) -> Any:
        """A channel; another one after an error."""
        return self.connection.default_channel

    def declare(self, queue: str, **arguments: Any) -> None:
        """Declare a durable queue."""
        self.channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)

    def publish(self, queue: str, *bodies: Any) -> None:
        """Publish messages to a queue."""
        producer = self.connection.Producer()
        for body in bodies:
            producer.publish(body, routing_key=queue)

    def fill(self, queue: str, *bodies: Any) -> None:
        """Declare a durable queue, and publish messages to it."""
        self.declare(queue)
        self.publish(queue, *bodies)

    def ready(self, queue: str) -> int:
        """Return the number of ready messages of a queue."""
        return int(self.channel.queue_declare(queue, passive=True).message_count)

    def consumers(self, queue: str) -> int:
        """Return the number of consumers of a queue."""
        return int(self.channel.queue_declare(queue, passive=True).consumer_count)

    def get(self, queue: str) -> Any:
        """Take the next message and return its body; None if there is none."""
        message = self.channel.basic_get(queue, no_ack=True)
        return None if message is None else message.payload


class Recorder:
    """A handler that records its messages, and can be made to wait or fail.

    Attributes:
        bodies: in the order in which handlers began.
        done: of handlers that returned.
        running, peak: handlers now, and at most so far.
        gate: handlers wait for it; set at first.
        error: raised by the handler, if not None.
    """

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.messages: list[Any] = []
        self.done: list[Any] = []
        self.running = self.peak = 0
        self.gate = Event()
        self.gate.set()
        self.error: BaseException | None = None

    def __call__(self, body: Any, message: Any) -> None:
        self.bodies.append(body)
        self.messages.append(message)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            self.gate.wait()
            if self.error is not None:
                raise self.error
            self.done.append(body)
        finally:
            self.running -= 1

    def wait(self, count: int) -> None:
        """Wait until so many handlers have begun."""
        until(lambda: len(self.bodies) >= count)


@pytest.fixture
def url(unique: str) -> Iterator[str]:
    """The URL of a broker that no other test uses."""
    yield f"memory:///{unique}"
    stop_consumers(0)
    defaults.reset()
    memory.reset(unique)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """The connection of the program."""
    with Connection(url) as connection:
        yield connection


@pytest.fixture
def spawn(connection: Connection) -> Spawn:
    """Spawn a consumer of that connection."""
    return partial(spawn_consumer, connection=connection)


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    """The broker, over a connection of its own."""
    broker = Broker(url)
    yield broker
    broker.connection.close()


@pytest.fixture
def seen() -> Recorder:
    """A handler."""
    return Recorder()
