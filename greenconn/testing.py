"""Test support for programs: an in-memory broker, and a clock that tests control.

With pytest, name this module in ``conftest.py`` and ask for the fixture::

    pytest_plugins = ["greenconn.testing"]

    def test_mail_is_sent(greenconn_broker):
        greenconn.spawn_consumer("mail", send_mail)
        greenconn.publish("mail", {"to": "ada@example.org"})
        ...

Without pytest, :class:`MemoryBroker` is a context manager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from greenconn import defaults
from greenconn.connection import Connection
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.transport import memory
from greenconn.transport.memory.message import Message as DeliveredMessage
from greenconn.worker import stop_consumers
from greenconn.worker.consumer import forget_failures

__all__ = ["ManualClock", "MemoryBroker"]

#: Seconds that handlers have to end when a broker is closed.
STOPPING: float = 10.0


class ManualClock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: dict[object, tuple[float, Callable[[], Any]]] = {}

    @property
    def armed(self) -> int:
        """Number of timers that run."""
        return len(self._timers)

    def now(self) -> float:
        """Return the time in seconds, from an arbitrary start."""
        return self._now

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* when the clock has moved by *delay* seconds; return what stops that."""
        key = object()
        self._timers[key] = (self._now + delay, function)
        return lambda: self._timers.pop(key, None)

    def move(self, seconds: float) -> None:
        """Advance by *seconds*: timers that are due run in order, before this returns.

        Raises:
            ValueError: back in time.
        """
        if seconds < 0:
            raise ValueError(f"seconds must be at least 0, got {seconds!r}")
        end = self._now + seconds
        while True:
            due = [(at, key) for key, (at, _) in self._timers.items() if at <= end]
            if not due:
                break
            at, key = min(due, key=lambda pair: pair[0])
            self._now = max(self._now, at)
            self._timers.pop(key)[1]()
        self._now = end


class MemoryBroker:
    """An empty broker in memory, private to a test, as the broker of the default connections.

    Messages and queues expire by its clock, so a test need not sleep.  When it is closed, consumers are
    stopped, and the default connections are those of the environment again.

    Arguments:
        declare_by_name: as for :func:`greenconn.configure`.  By default what a program publishes to a
            queue by its name can be looked at by :meth:`messages`, though its consumer is not there.

    Attributes:
        url: its address.
        clock: the clock by which messages and queues expire.
    """

    def __init__(self, *, declare_by_name: bool | None = True) -> None:
        self.clock = ManualClock()
        self._name = f"testing-{uuid()}"
        self.url = f"memory:///{self._name}"
        self._broker = memory.broker_of(self._name, clock=self.clock)
        defaults.configure(self.url, declare_by_name=declare_by_name)

    def __repr__(self) -> str:
        return f"<MemoryBroker: {self.url}>"

    def __enter__(self) -> MemoryBroker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all consumers, close the default connections, forget what was in the broker.  May switch.

        Raises:
            TimeoutError: handlers did not end within 10 s; they were interrupted.
        """
        ended = stop_consumers(timeout=STOPPING)
        forget_failures(self.connection().session.broker.addresses)
        defaults.reset()
        memory.reset(self._name)
        if not ended:
            raise TimeoutError(
                f"handlers of consumers of {self.url} did not end within {STOPPING:g} s"
            )

    def connection(self, **kwargs: Any) -> Connection:
        """Return a new connection to it."""
        return Connection(self.url, **kwargs)

    def count(self, queue: str) -> int:
        """Return the number of messages that wait in a queue; 0 if it does not exist."""
        found = self._broker.queues.get(queue)
        return 0 if found is None else len(found)

    def messages(self, queue: str) -> list[Message]:
        """Return what waits in a queue, the next one first; it stays there.

        Raises:
            KeyError: there is no such queue.
        """
        if queue not in self._broker.queues:
            known = sorted(self._broker.queues)
            raise KeyError(f"queue {queue!r} does not exist; known: {known}")
        return [DeliveredMessage(None, 0, entry) for entry in self._broker.queues[queue].store]

    def bodies(self, queue: str) -> list[Any]:
        """Return the decoded bodies of :meth:`messages`."""
        return [message.decode() for message in self.messages(queue)]

    def restart(self) -> None:
        """Do what a restart of a broker does: all connections are lost, and what is not durable."""
        memory.restart(self._name)


try:
    import pytest
except ImportError:  # pragma: no cover - programs may test with something else
    pass
else:

    @pytest.fixture
    def greenconn_broker() -> Iterator[MemoryBroker]:
        """Yield a broker in memory for one test."""
        with MemoryBroker() as broker:
            yield broker
