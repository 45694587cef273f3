"""Test support for programs: an in-memory broker, and a clock that the test controls.

With pytest, load this module as a plugin in ``conftest.py`` and request the fixture::

    pytest_plugins = ["greenconn.testing"]

    def test_mail_is_sent(greenconn_broker):
        greenconn.spawn_consumer("mail", send_mail)
        greenconn.publish("mail", {"to": "ada@example.org"})
        ...

Without pytest, use :class:`MemoryBroker` as a context manager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from greenconn import defaults
from greenconn.checks import Seconds, in_seconds
from greenconn.connection import Connection
from greenconn.identity import uuid
from greenconn.message import Message
from greenconn.transport import memory
from greenconn.transport.memory.queue import Message as DeliveredMessage
from greenconn.worker import stop_consumers
from greenconn.worker.consumer import forget_failures

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.connection import ConnectionArguments

__all__ = ["ManualClock", "MemoryBroker"]

#: Maximum seconds for handlers to finish when a broker is closed.
STOPPING: float = 10.0


class ManualClock:
    """A clock that advances only when the test calls :meth:`move`."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: dict[object, tuple[float, Callable[[], Any]]] = {}

    @property
    def armed(self) -> int:
        """The number of pending timers."""
        return len(self._timers)

    def now(self) -> float:
        """Return the time in seconds since an arbitrary start."""
        return self._now

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* when the clock has advanced by *delay* seconds.

        Returns:
            A function that cancels the call.
        """
        key = object()
        self._timers[key] = (self._now + delay, function)
        return lambda: self._timers.pop(key, None)

    def move(self, seconds: Seconds) -> None:
        """Advance the clock, and run the timers that become due, in order, before returning.

        Arguments:
            seconds: the seconds to advance by, at least 0, or a timedelta.

        Raises:
            ValueError: *seconds* is negative.
        """
        seconds = in_seconds(seconds)
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
    """An empty in-memory broker, private to a test, which the default connections use.

    Messages and queues expire according to the broker's clock, so a test does not have to sleep.
    Closing the broker stops all consumers, and the default connections use the environment's broker
    again.

    Arguments:
        declare_by_name: as in :func:`greenconn.configure`.  The default True declares the queue when a
            program publishes to a queue by its name, so that :meth:`messages` returns the message even
            if no consumer has declared the queue.

    Attributes:
        url: the URL of the broker.
        clock: the :class:`ManualClock` that controls the expiry of messages and queues.
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
        """Stop all consumers, close the default connections and drop the broker's contents.  May switch.

        Raises:
            TimeoutError: handlers did not finish within 10 seconds and were interrupted.
        """
        ended = stop_consumers(timeout=STOPPING)
        forget_failures(self.connection().session.broker.addresses)
        defaults.reset()
        memory.reset(self._name)
        if not ended:
            raise TimeoutError(
                f"handlers of consumers of {self.url} did not end within {STOPPING:g} s"
            )

    def connection(self, **kwargs: Unpack[ConnectionArguments]) -> Connection:
        """Return a new connection to this broker.

        Arguments:
            kwargs: the arguments of :class:`greenconn.Connection` except the URL.
        """
        return Connection(self.url, **kwargs)

    def count(self, queue: str) -> int:
        """Return the number of messages that are ready in a queue; 0 if the queue does not exist."""
        found = self._broker.queues.get(queue)
        return 0 if found is None else len(found)

    def messages(self, queue: str) -> list[Message]:
        """Return the messages that are ready in a queue, the next one first, without consuming them.

        Raises:
            KeyError: the queue does not exist.
        """
        if queue not in self._broker.queues:
            known = sorted(self._broker.queues)
            raise KeyError(f"queue {queue!r} does not exist; known: {known}")
        return [DeliveredMessage(None, 0, entry) for entry in self._broker.queues[queue].store]

    def bodies(self, queue: str) -> list[Any]:
        """Return the decoded bodies of the messages that :meth:`messages` returns."""
        return [message.decode() for message in self.messages(queue)]

    def restart(self) -> None:
        """Simulate a restart of the broker: drop all connections and everything that is not durable."""
        memory.restart(self._name)


try:
    import pytest
except ImportError:  # pragma: no cover - programs may test with something else
    pass
else:

    @pytest.fixture
    def greenconn_broker() -> Iterator[MemoryBroker]:
        """Yield an in-memory broker for one test."""
        with MemoryBroker() as broker:
            yield broker
