"""Listeners: events of connections and messages, for metrics, traces and logs.

::

    import greenconn

    class Durations(greenconn.Listener):
        def on_handled(self, event):
            print(event.delivery.queue, event.duration, event.error)

    greenconn.add_listener(Durations())

A listener receives the events of the whole process: from all transports, and from ``Producer`` and
``Consumer`` as well as ``publish`` and ``spawn_consumer``.  Only the methods that the listener overrides
are called.  Without a listener, no event objects are created: a publish, a delivery or an ack costs one
additional attribute access on :data:`LISTENERS`.

Message events are emitted in the greenlet that publishes or handles the message.  The events of a
handler are also emitted in the handler's ``contextvars`` context: a variable that ``on_deliver`` sets is
visible in the handler until ``on_handled``.  Connection events originate in the reader or the hub, so
each of them is emitted in a greenlet of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar

from greenconn.checks import Event, check_runs

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = [
    "LISTENERS",
    "BlockedEvent",
    "ConfirmEvent",
    "ConnectEvent",
    "DeadLetterEvent",
    "DeliverEvent",
    "DisconnectEvent",
    "HandledEvent",
    "HubBlockedEvent",
    "Listener",
    "Observation",
    "Observers",
    "PoolWaitEvent",
    "PublishEvent",
    "RetryEvent",
    "SettleEvent",
    "UnblockedEvent",
    "add_listener",
    "notify",
    "remove_listener",
    "size_of",
    "url_of",
]

logger = logging.getLogger("greenconn.listeners")

E = TypeVar("E")

#: Methods of listeners for one kind of event; None: there are none.
Calls: TypeAlias = "tuple[Callable[[Any], object], ...] | None"


class ConnectEvent(Event):
    """A connection was opened, for the first time or by a reconnect."""

    connection: str
    """The URL of the connection, with the password masked."""

    life: int
    """1 after the first connect, 2 after the first reconnect, and so on."""

    duration: float
    """The seconds that connecting and logging in took."""


class DisconnectEvent(Event):
    """A connection was lost or closed."""

    connection: str
    life: int
    error: BaseException | None
    """The error that ended the connection; None if the program closed it."""


class BlockedEvent(Event):
    """The broker temporarily accepts no messages (memory or disk alarm)."""

    connection: str
    reason: str


class UnblockedEvent(Event):
    """The broker accepts messages again, or its connection has ended."""

    connection: str
    duration: float
    """The seconds for which the connection was blocked."""


class PublishEvent(Event):
    """A message is about to be published."""

    connection: str
    exchange: str
    routing_key: str
    headers: dict[str, Any]
    """The headers of this message only; a listener may add headers."""

    properties: Mapping[str, Any]
    """The properties that were passed, such as ``message_id``, ``correlation_id`` or ``expiration``."""

    size: int
    """The size of the encoded body, in bytes."""


class ConfirmEvent(Event):
    """A publish has ended."""

    publish: PublishEvent
    duration: float
    """The seconds since :class:`PublishEvent`, including waits for a connection and for the confirm."""

    error: BaseException | None
    """The error of the publish.  None if the broker confirmed the message or, without publisher
    confirms, if the message is being sent."""


class DeliverEvent(Event):
    """A message, or a batch of messages, is about to be passed to a handler or to the program."""

    connection: str
    queue: str
    messages: tuple[Message[Any], ...]
    handler: str | None
    """The name of the handler; a :class:`HandledEvent` follows when it ends.  None if the program
    fetched the message itself (``Queue.get``, ``SimpleQueue.get``)."""

    @property
    def message(self) -> Message[Any]:
        """The first of the messages."""
        return self.messages[0]


class HandledEvent(Event):
    """The call of a handler has ended."""

    delivery: DeliverEvent
    duration: float
    error: BaseException | None
    """The exception that the handler raised, or the error of decoding the body; None if it succeeded."""


class SettleEvent(Event):
    """A message was acknowledged, rejected or requeued, by the program or on its behalf."""

    message: Message[Any]
    outcome: Literal["ack", "reject", "requeue"]


class RetryEvent(Event):
    """A handler failed, and its message is retried."""

    connection: str
    queue: str
    message: Message[Any]
    error: BaseException
    attempts: int
    """The number of times that the handler has failed for this message."""

    delay: float
    """The seconds until the next attempt."""


class DeadLetterEvent(Event):
    """A message was given up because its handler failed or its body could not be decoded."""

    connection: str
    queue: str
    message: Message[Any]
    error: BaseException
    attempts: int
    target: str | None
    """The dead-letter queue.  None if the message was rejected, so that the arguments of its queue
    determine the dead-letter target."""


class PoolWaitEvent(Event):
    """A wait for a connection or channel of a pool has ended."""

    pool: str
    duration: float
    error: BaseException | None
    """The error of the wait; None if a connection or channel was acquired."""


class HubBlockedEvent(Event):
    """The hub was blocked for some time, so that no other greenlet could run."""

    duration: float
    handlers: dict[str, float]
    """The handlers that were called in that time: a mapping of their names to the seconds they took."""


class Listener:
    """A base class for listeners: override the methods for the events that you want to receive.

    The methods must not switch: do not use the network, wait for a lock or a queue, or call
    ``gevent.sleep``.  They are also called by other threads, which have their own hub.  An exception
    that a method raises is logged, once for each method, and does not affect the message.
    """

    def on_connect(self, event: ConnectEvent) -> None:
        """Handle the opening of a connection, by the first connect or a reconnect."""

    def on_disconnect(self, event: DisconnectEvent) -> None:
        """Handle the loss or the closing of a connection."""

    def on_blocked(self, event: BlockedEvent) -> None:
        """Handle a block: the broker accepts no messages (memory or disk alarm)."""

    def on_unblocked(self, event: UnblockedEvent) -> None:
        """Handle the end of a block: the broker accepts messages again."""

    def on_publish(self, event: PublishEvent) -> None:
        """Handle a message before it is published.

        Called once, however many attempts the publish takes.
        """

    def on_confirm(self, event: ConfirmEvent) -> None:
        """Handle the end of a publish.  Called once after each ``on_publish``."""

    def on_deliver(self, event: DeliverEvent) -> None:
        """Handle a message before its handler is called, or before the program receives it."""

    def on_handled(self, event: HandledEvent) -> None:
        """Handle the end of a handler.  Called once for each delivery that has a handler."""

    def on_settle(self, event: SettleEvent) -> None:
        """Handle the acknowledgement, rejection or requeueing of a message."""

    def on_retry(self, event: RetryEvent) -> None:
        """Handle a retry: the handler of a message failed and is to be called again."""

    def on_dead_letter(self, event: DeadLetterEvent) -> None:
        """Handle a message that was given up and rejected or moved to a dead-letter queue."""

    def on_pool_wait(self, event: PoolWaitEvent) -> None:
        """Handle the end of a greenlet's wait for a connection or channel of a pool."""

    def on_hub_blocked(self, event: HubBlockedEvent) -> None:
        """Handle a hub that was blocked."""


class Observers(Generic[E]):
    """The methods of listeners that are called before and after an operation.

    Arguments:
        before: the methods that are called with the event.
        after: the methods that are called with the outcome, in reverse order.
        outcome: a function that creates the outcome from the event, the duration in seconds and the
            error.
    """

    __slots__ = ("after", "before", "outcome")

    def __init__(self, before: Calls, after: Calls, outcome: Callable[..., object]) -> None:
        self.before = before
        self.after = None if after is None else after[::-1]
        self.outcome = outcome

    def begin(self, event: E) -> Observation[E]:
        """Call the methods for the beginning of an operation, and return an object to report its end."""
        if self.before is not None:
            notify(self.before, event)
        return Observation(self, event)


class Observation(Generic[E]):
    """An operation that has begun, and whose end is reported once to the same listeners."""

    __slots__ = ("_began_at", "_observers", "event")

    def __init__(self, observers: Observers[E], event: E) -> None:
        self.event = event
        self._observers: Observers[E] | None = observers
        self._began_at = monotonic()

    def end(self, error: BaseException | None = None) -> None:
        """Report the end of the operation; a second call does nothing."""
        observers, self._observers = self._observers, None
        if observers is not None and observers.after is not None:
            duration = monotonic() - self._began_at
            notify(observers.after, observers.outcome(self.event, duration, error))

    def forget(self) -> None:
        """Report no end, because the end of the operation cannot be observed."""
        self._observers = None

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call *function*, report its end and return its result.  May switch if *function* does."""
        try:
            result = function(*args)
        except BaseException as exc:
            self.end(exc)
            raise
        self.end()
        return result


class ListenerRegistry:
    """The listeners of this process, and the methods to call for each kind of event.

    Attributes:
        publishing: the methods ``on_publish`` and ``on_confirm``.  None if no listener has them.
        handling: the methods ``on_deliver`` and ``on_handled``.  None if no listener has them.
        connect, disconnect, blocked, unblocked, settle, retry, dead_letter, pool_wait, hub_blocked: the
            methods with the corresponding name, such as ``on_connect``.  None if no listener has them.
    """

    def __init__(self) -> None:
        self._all: tuple[Listener, ...] = ()
        self._prepare()

    def add(self, listener: Listener) -> None:
        """Add *listener*; adding it again does nothing."""
        if not any(each is listener for each in self._all):
            self._all = (*self._all, listener)
            self._prepare()

    def remove(self, listener: Listener) -> None:
        """Remove *listener*.  It is still called for the end of operations that have begun."""
        self._all = tuple(each for each in self._all if each is not listener)
        self._prepare()

    def _prepare(self) -> None:
        calls = self._calls
        self.connect = calls("on_connect")
        self.disconnect = calls("on_disconnect")
        self.blocked = calls("on_blocked")
        self.unblocked = calls("on_unblocked")
        self.publishing = _observers(calls("on_publish"), calls("on_confirm"), ConfirmEvent)
        self.handling = _observers(calls("on_deliver"), calls("on_handled"), HandledEvent)
        self.settle = calls("on_settle")
        self.retry = calls("on_retry")
        self.dead_letter = calls("on_dead_letter")
        self.pool_wait = calls("on_pool_wait")
        self.hub_blocked = calls("on_hub_blocked")

    def _calls(self, name: str) -> Calls:
        base = getattr(Listener, name)
        methods = [getattr(each, name) for each in self._all]
        return (
            tuple(each for each in methods if getattr(each, "__func__", None) is not base) or None
        )


def _observers(
    before: Calls, after: Calls, outcome: Callable[..., object]
) -> Observers[Any] | None:
    return None if before is after is None else Observers(before, after, outcome)


#: The listeners of this process.
LISTENERS: Final = ListenerRegistry()

#: The methods that have raised, by the class of their listener, and that was logged.
_logged: Final[set[str]] = set()


def notify(calls: tuple[Callable[[Any], object], ...], event: object) -> None:
    """Call each method with *event*.  Exceptions are logged, once for each method."""
    for method in calls:
        try:
            method(event)
        except Exception:
            name = f"{method.__module__}.{getattr(method, '__qualname__', method)}"
            if name not in _logged:
                _logged.add(name)
                logger.exception("listener %s failed (logged once)", name)


def size_of(body: object) -> int:
    """Return the bytes of a body as it is sent; 0 for what only its channel can encode."""
    if isinstance(body, str):
        return len(body) if body.isascii() else len(body.encode("utf-8", "surrogatepass"))
    return len(body) if isinstance(body, (bytes, bytearray, memoryview)) else 0


def url_of(channel: object) -> str:
    """Return the URL of the broker of *channel*, with the password masked; empty if it is unknown."""
    client = getattr(getattr(channel, "connection", None), "client", None)
    as_uri = getattr(client, "as_uri", None)
    return "" if as_uri is None else str(as_uri())


def add_listener(listener: Listener) -> None:
    """Add *listener*, which receives all further events of this process.  Never switches.

    A listener that is added more than once is called once for each event.

    Raises:
        TypeError: *listener* is not a ``Listener``, or one of its methods is ``async def`` or a
            generator.
    """
    if not isinstance(listener, Listener):
        raise TypeError(f"listener must be an instance of greenconn.Listener, got {listener!r}")
    for name in vars(Listener):
        if name.startswith("on_"):
            check_runs(name, getattr(listener, name))
    LISTENERS.add(listener)


def remove_listener(listener: Listener) -> None:
    """Remove *listener*.  Never switches.

    The listener still receives the events for the end of operations that have begun.  A listener that
    was not added is ignored.
    """
    LISTENERS.remove(listener)
