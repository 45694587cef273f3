"""Listeners: events of connections and messages, for metrics, traces and logs.

::

    import greenconn

    class Durations(greenconn.Listener):
        def on_handled(self, event):
            print(event.delivery.queue, event.duration, event.error)

    greenconn.add_listener(Durations())

A listener hears of the whole process: each transport, ``Producer`` and ``Consumer`` as well as
``publish`` and ``spawn_consumer``.  Only the methods that it overrides are called, and without a
listener no event is made: a publish, a delivery, an ack costs the look at one attribute of
:data:`LISTENERS` more than without this module.

Events of messages come in the greenlet that they belong to, those of a handler also in its
``contextvars`` context: what ``on_deliver`` sets there holds in the handler, until ``on_handled``.
Events of connections arise in the reader or the hub, so each comes in a greenlet of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar

from greenconn.checks import check_runs

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
    "remove_listener",
    "size_of",
    "tell",
    "url_of",
]

logger = logging.getLogger("greenconn.listeners")

E = TypeVar("E")

#: Methods of listeners for one kind of event; None: there are none.
Calls: TypeAlias = "tuple[Callable[[Any], object], ...] | None"


# Events are compared by identity, so that they can be keys of what a listener keeps of them.


@dataclass(frozen=True, slots=True, eq=False)
class ConnectEvent:
    """A connection that was opened, at first or again."""

    connection: str
    """The URL, password masked."""

    life: int
    """1 for the first link of a connection, 2 for that after the first reconnect, and so on."""

    duration: float
    """Seconds that connecting and logging in took."""


@dataclass(frozen=True, slots=True, eq=False)
class DisconnectEvent:
    """A connection that was lost or closed."""

    connection: str
    life: int
    error: BaseException | None
    """None: the program closed it."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockedEvent:
    """A broker that accepts no messages for now."""

    connection: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class UnblockedEvent:
    """A broker that accepts messages again, or whose connection has ended."""

    connection: str
    duration: float
    """Seconds for which it was blocked."""


@dataclass(frozen=True, slots=True, eq=False)
class PublishEvent:
    """A message that is about to be published."""

    connection: str
    exchange: str
    routing_key: str
    headers: dict[str, Any]
    """Of this message alone: a listener may add to them."""

    properties: Mapping[str, Any]
    """``message_id``, ``correlation_id``, ``expiration``...: those that were given."""

    size: int
    """Bytes of the body as it is sent."""


@dataclass(frozen=True, slots=True, eq=False)
class ConfirmEvent:
    """The end of a publish."""

    publish: PublishEvent
    duration: float
    """Seconds since :class:`PublishEvent`, with the wait for a connection or for the confirm."""

    error: BaseException | None
    """None: the broker has the message, or where no confirm is waited for, it is on its way."""


@dataclass(frozen=True, slots=True, eq=False)
class DeliverEvent:
    """Messages that a handler or the program gets: one, or several of a batch."""

    connection: str
    queue: str
    messages: tuple[Message[Any], ...]
    handler: str | None
    """Name of the handler, of which :class:`HandledEvent` tells the end.  None: the program has taken
    the message by itself (``Queue.get``, ``SimpleQueue.get``)."""

    @property
    def message(self) -> Message[Any]:
        """The first of them."""
        return self.messages[0]


@dataclass(frozen=True, slots=True, eq=False)
class HandledEvent:
    """The end of a handler's call."""

    delivery: DeliverEvent
    duration: float
    error: BaseException | None
    """What the handler raised, or why the body could not be decoded."""


@dataclass(frozen=True, slots=True, eq=False)
class SettleEvent:
    """A message that was acknowledged or refused, by the program or for it."""

    message: Message[Any]
    outcome: Literal["ack", "reject", "requeue"]


@dataclass(frozen=True, slots=True, eq=False)
class RetryEvent:
    """A message whose handler failed, and that is handled again."""

    connection: str
    queue: str
    message: Message[Any]
    error: BaseException
    attempts: int
    """How often the handler has failed."""

    delay: float
    """Seconds until it is handled again."""


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetterEvent:
    """A message that is not handled again, after its handler failed or its body could not be decoded."""

    connection: str
    queue: str
    message: Message[Any]
    error: BaseException
    attempts: int
    target: str | None
    """The queue of dead letters.  None: it was rejected, and goes to where its queue's arguments say."""


@dataclass(frozen=True, slots=True, eq=False)
class PoolWaitEvent:
    """The end of a wait for a connection or channel of a pool."""

    pool: str
    duration: float
    error: BaseException | None
    """None: it got one."""


@dataclass(frozen=True, slots=True, eq=False)
class HubBlockedEvent:
    """A hub that got no turn for a while, so that no other greenlet could run."""

    duration: float
    handlers: dict[str, float]
    """Name of each handler that was called meanwhile, and its seconds."""


class Listener:
    """A base class: override the methods for the events that you want to hear of.

    A listener is called between two steps of a message, so it must not switch: no network, no lock or
    queue that waits, no ``gevent.sleep``.  Other threads with a hub of their own call it, too.  What it
    raises is logged, once for each method, and changes nothing for the message.
    """

    def on_connect(self, event: ConnectEvent) -> None:
        """Hear of a connection that was opened."""

    def on_disconnect(self, event: DisconnectEvent) -> None:
        """Hear of a connection that was lost or closed."""

    def on_blocked(self, event: BlockedEvent) -> None:
        """Hear of a broker that accepts no messages (memory or disk alarm)."""

    def on_unblocked(self, event: UnblockedEvent) -> None:
        """Hear of a broker that accepts messages again."""

    def on_publish(self, event: PublishEvent) -> None:
        """Hear of a message before it is published; once, however many attempts that takes."""

    def on_confirm(self, event: ConfirmEvent) -> None:
        """Hear of the end of a publish; once for each that ``on_publish`` was called for."""

    def on_deliver(self, event: DeliverEvent) -> None:
        """Hear of a message before its handler is called."""

    def on_handled(self, event: HandledEvent) -> None:
        """Hear of the end of a handler; once for each delivery that has one."""

    def on_settle(self, event: SettleEvent) -> None:
        """Hear of a message that was acknowledged, rejected or requeued."""

    def on_retry(self, event: RetryEvent) -> None:
        """Hear of a message that is handled again, as its handler failed."""

    def on_dead_letter(self, event: DeadLetterEvent) -> None:
        """Hear of a message that is given up."""

    def on_pool_wait(self, event: PoolWaitEvent) -> None:
        """Hear of a greenlet that had to wait for a connection or channel of a pool."""

    def on_hub_blocked(self, event: HubBlockedEvent) -> None:
        """Hear of a hub that was blocked."""


class Observers(Generic[E]):
    """The methods that are called before and after something.

    Arguments:
        before: called with the event.
        after: called with the outcome, in the opposite order.
        outcome: makes that of the event, its seconds and its error.
    """

    __slots__ = ("after", "before", "outcome")

    def __init__(self, before: Calls, after: Calls, outcome: Callable[..., object]) -> None:
        self.before = before
        self.after = None if after is None else after[::-1]
        self.outcome = outcome

    def begin(self, event: E) -> Observation[E]:
        """Call the methods of the beginning; the same listeners hear of the end."""
        if self.before is not None:
            tell(self.before, event)
        return Observation(self, event)


class Observation(Generic[E]):
    """Something that has begun, and of whose end the same listeners hear once."""

    __slots__ = ("_began_at", "_observers", "event")

    def __init__(self, observers: Observers[E], event: E) -> None:
        self.event = event
        self._observers: Observers[E] | None = observers
        self._began_at = monotonic()

    def end(self, error: BaseException | None = None) -> None:
        """Tell the end; a second call does nothing."""
        observers, self._observers = self._observers, None
        if observers is not None and observers.after is not None:
            duration = monotonic() - self._began_at
            tell(observers.after, observers.outcome(self.event, duration, error))

    def forget(self) -> None:
        """Tell no end, as nothing will tell when that is."""
        self._observers = None

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what *function* returns, and tell the end of it.  May switch if it does."""
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
        publishing: of ``on_publish`` and ``on_confirm``; None: there are none.
        handling: of ``on_deliver`` and ``on_handled``.
        connect, disconnect, blocked, unblocked, settle, retry, dead_letter, pool_wait, hub_blocked: of
            the method with that name.
    """

    __slots__ = (
        "_all",
        "blocked",
        "connect",
        "dead_letter",
        "disconnect",
        "handling",
        "hub_blocked",
        "pool_wait",
        "publishing",
        "retry",
        "settle",
        "unblocked",
    )

    def __init__(self) -> None:
        self._all: tuple[Listener, ...] = ()
        self._prepare()

    def add(self, listener: Listener) -> None:
        """Call the methods of *listener* from now on."""
        if not any(each is listener for each in self._all):
            self._all = (*self._all, listener)
            self._prepare()

    def remove(self, listener: Listener) -> None:
        """Call the methods of *listener* no more, but for the end of what has begun."""
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


#: Those of this process.
LISTENERS: Final = ListenerRegistry()

#: The methods that have raised, by the class of their listener, and that was logged.
_logged: Final[set[str]] = set()


def tell(calls: tuple[Callable[[Any], object], ...], event: object) -> None:
    """Call each method with *event*.  An error of one is logged, once for each method."""
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
    """Return the URL of the broker of *channel*, password masked; empty if that is unknown."""
    client = getattr(getattr(channel, "connection", None), "client", None)
    as_uri = getattr(client, "as_uri", None)
    return "" if as_uri is None else str(as_uri())


def add_listener(listener: Listener) -> None:
    """Have *listener* hear of all that happens in this process from now on.  Never switches.

    Added before, it is called once all the same.

    Raises:
        TypeError: it is no ``Listener``, or one of its methods is ``async def`` or a generator.
    """
    if not isinstance(listener, Listener):
        raise TypeError(f"listener must be an instance of greenconn.Listener, got {listener!r}")
    for name in vars(Listener):
        if name.startswith("on_"):
            check_runs(name, getattr(listener, name))
    LISTENERS.add(listener)


def remove_listener(listener: Listener) -> None:
    """Have *listener* hear of nothing more, but the end of what has begun.  Never switches.

    One that was not added is ignored.
    """
    LISTENERS.remove(listener)
