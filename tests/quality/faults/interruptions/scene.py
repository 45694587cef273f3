"""Where a call is made: connections, names, and what must be whole afterwards."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.green.hub import yield_to_hub
from greenconn.messaging import Producer
from tests.fix_interrupts import OwnTimeout, Run
from tests.fix_wires import until
from tests.quality.faults.interruptions.targets import Target

#: Seconds that anything may take.
SOON = 30.0
#: Who works after each interruption, and what each of them does: a hundred operations together.
CROWD, EACH = 10, 10

#: A call under test: it gives the function that is to be run, is sent the run, looks whether all is as
#: it should be, and gives the function for the next run.
Interruptible = Generator[Callable[[], Any], Run, None]
Make = Callable[["Scene"], Interruptible]
M = TypeVar("M", bound=Make)


@dataclass(frozen=True)
class Call:
    """A public call under test."""

    group: str
    name: str
    make: Make
    #: Whether it is possible in a target.
    fits: Callable[[Target], bool]

    def __str__(self) -> str:
        return self.name


#: All of them.
CALLS: list[Call] = []


def call(
    group: str, name: str, fits: Callable[[Target], bool] = lambda target: True
) -> Callable[[M], M]:
    """Enter the decorated generator as the call *name*."""

    def enter(make: M) -> M:
        CALLS.append(Call(group, name, make, fits))
        return make

    return enter


def enter(
    group: str,
    name: str,
    moments: Callable[..., Interruptible],
    *arguments: Any,
    fits: Callable[[Target], bool] = lambda target: True,
    **options: Any,
) -> None:
    """Enter *moments*, with its *arguments* after the scene, as the call *name*."""
    call(group, name, fits)(lambda scene: moments(scene, *arguments, **options))


def drain_for(connection: Connection, seconds: float) -> None:
    """Drain once, or until the time is over, which is not raised.  May switch."""
    try:
        connection.drain_events(timeout=seconds)
    except TimeoutError as exc:
        if isinstance(exc, OwnTimeout):
            raise


def ended(run: Run) -> bool:
    """Whether *run* came to its end; one that was interrupted must have raised what was thrown in."""
    if run.raised is not run.error and (run.raised is not None or run.was_interrupted):
        raise AssertionError(f"it raised {run.raised!r}") from run.raised
    return not run.was_interrupted


def ignore(*message: Any) -> None:
    """A callback that does nothing."""


class Scene:
    """One call's surroundings: closed when all its runs are over.

    Arguments:
        target: the broker.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.name = f"moments-{uuid4().hex[:8]}"
        self._connections: list[Connection] = []
        self._queues: list[str] = []

    # What calls take.

    def connection(self, *, opened: bool = True, **options: Any) -> Connection:
        """A connection, confirmed unless *options* say otherwise.  May switch."""
        options = {"confirm_publish": True, **options}
        made = self.keep(Connection(self.target.url, transport_options=options))
        if opened:
            made.connect()
        return made

    def keep(self, connection: Connection) -> Connection:
        """Close *connection* in the end."""
        self._connections.append(connection)
        return connection

    def queue(self, connection: Connection, suffix: str = "", **options: Any) -> Queue:
        """A declared queue, bound to the default channel of *connection*.  May switch."""
        name = self.name + suffix
        self.delete_in_the_end(name)
        made: Queue = Queue(name, **options)(connection.default_channel)
        made.declare()
        return made

    def delete_in_the_end(self, queue: str) -> None:
        """Delete a queue when the scene is closed."""
        self._queues.append(queue)

    def close(self) -> None:
        """End all of it.  May switch."""
        while self._connections:
            self._connections.pop().close()
        if self._queues:
            with Connection(self.target.url) as connection:
                for name in dict.fromkeys(self._queues):
                    connection.default_channel.queue_delete(name)

    def abandon(self) -> None:
        """End all of it somehow: something went wrong.  May switch."""
        for connection in self._connections:
            connection.collect()
        if self.target.can_cut:
            self.target.cut()

    # What they look at.

    def count(self, connection: Connection, queue: str) -> int:
        """How many messages wait in a queue.  May switch."""
        declared = connection.default_channel.queue_declare(queue, passive=True)
        return int(declared.message_count)

    def consumers(self, connection: Connection, queue: str) -> int:
        """How many consumers a queue has.  May switch."""
        declared = connection.default_channel.queue_declare(queue, passive=True)
        return int(declared.consumer_count)

    def channels(self, connection: Connection) -> int:
        """How many channels are open; -1 where nobody counts them."""
        found = getattr(connection.session.life.link, "channels", None)
        return -1 if found is None else len(found)

    def take(self, connection: Connection, queue: str, count: int = 1) -> list[Any]:
        """Take *count* messages; there must be no more.  May switch."""
        channel = connection.default_channel
        bodies: list[Any] = []

        def came() -> bool:
            message = channel.basic_get(queue)
            if message is not None:
                bodies.append(message.decode())
                message.ack()
            return len(bodies) >= count

        if count:
            until(came, SOON)
        message = channel.basic_get(queue)
        assert message is None, f"one too many: {message.decode()!r}"
        return bodies

    def take_all(self, connection: Connection, queue: str, last: Any) -> list[Any]:
        """Take all up to *last*; there must be no more.  May switch."""
        channel = connection.default_channel
        bodies: list[Any] = []

        def came() -> bool:
            message = channel.basic_get(queue, no_ack=True)
            if message is not None:
                bodies.append(message.decode())
            return bool(bodies) and bodies[-1] == last

        until(came, SOON)
        message = channel.basic_get(queue)
        assert message is None, f"one too many: {message.decode()!r}"
        return bodies

    def whole(self, connection: Connection) -> None:
        """A hundred operations over *connection*, each of which must do what it says.  May switch."""
        greenlets: list[gevent.Greenlet[..., None]] = [
            gevent.spawn(self._work, connection, number) for number in range(CROWD)
        ]
        try:
            with gevent.Timeout(SOON, AssertionError("the others are stuck")):
                gevent.joinall(greenlets, raise_error=True)
        finally:
            gevent.killall(greenlets)

    def _work(self, connection: Connection, number: int) -> None:
        channel = connection.default_channel
        name = f"{self.name}-{number}"
        declared = channel.queue_declare(name, durable=True, auto_delete=False)
        assert declared.queue == name
        producer = Producer(connection)
        for part in range(3):
            producer.publish([number, part], name)
        declared = channel.queue_declare(name, passive=True)
        assert (declared.queue, declared.consumer_count) == (name, 0)
        for part in range(2):
            message = channel.basic_get(name)
            while message is None:  # an unconfirmed one may be on its way
                yield_to_hub()
                message = channel.basic_get(name)
            assert message.decode() == [number, part]
            message.ack()
        if number < 2:
            with pytest.raises(connection.channel_errors, match=f"{name}-none"):
                self._fail(connection, f"{name}-none")
        assert channel.queue_delete(name) == 1

    def _fail(self, connection: Connection, name: str) -> None:
        with connection.channel() as other:
            other.queue_declare(name, passive=True)
