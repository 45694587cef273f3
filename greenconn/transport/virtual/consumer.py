"""One consumer of a channel: what it may still be given, and how it gets it.

Its deliveries go to a sink, or become events of the connection that ``drain_events`` runs.  A
consumer that neither prefetch nor acknowledgements bound is given at most :data:`WINDOW` messages
ahead of what has been taken, so that the rest stays in the queue for others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.abc import Sink
from greenconn.exceptions import ConsumerCancelled, raise_error
from greenconn.transport.virtual.prefetch import Prefetch

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = ["STALE", "WINDOW", "Consumer", "Feed"]

#: Messages handed over to an unbounded consumer and not yet taken.
WINDOW = 256

#: What an event returns that turned out to belong to a consumer that is gone.
STALE: Final = object()


class Feed(Protocol):
    """The source of a consumer's messages."""

    def resume(self, consumer: Consumer) -> None:
        """A consumer that had no room has some again.  Never switches."""
        ...


class Consumer:
    """A consumer.

    Arguments:
        channel: has ``connection`` and ``prefetch``.
        feed: woken when a parked consumer has room again.
        limit: unanswered deliveries at once; 0 is no limit.

    Attributes:
        turn: the lower, the sooner it is served among the consumers of a channel whose limit has not
            room for all; see :meth:`~greenconn.transport.virtual.prefetch.Prefetch.next_turn`.
    """

    __slots__ = (
        "ahead",
        "arguments",
        "backlog",
        "callback",
        "channel",
        "exclusive",
        "feed",
        "is_active",
        "is_parked",
        "limit",
        "no_ack",
        "on_cancel",
        "prefetch",
        "priority",
        "queue",
        "sink",
        "stale",
        "tag",
        "turn",
        "unacked",
    )

    def __init__(
        self,
        channel: Any,
        feed: Feed,
        tag: str,
        queue: str,
        *,
        callback: Callable[[Any], Any] | None = None,
        sink: Sink | None = None,
        no_ack: bool = False,
        exclusive: bool = False,
        limit: int = 0,
        arguments: Mapping[str, Any] | None = None,
        on_cancel: Callable[[str], Any] | None = None,
    ) -> None:
        self.channel = channel
        self.prefetch: Prefetch = channel.prefetch
        self.feed = feed
        self.tag = tag
        self.queue = queue
        self.callback = callback
        self.sink = sink
        self.no_ack = no_ack
        self.exclusive = exclusive
        # What needs no answer cannot be limited by answers.
        self.limit = 0 if no_ack else limit
        self.arguments = arguments
        self.on_cancel = on_cancel
        self.priority = int((arguments or {}).get("x-priority") or 0)
        #: Deliveries that were not answered.
        self.unacked = 0
        self.turn = 0
        #: Handed to the sink of an unbounded consumer, and not yet taken from it.
        self.ahead = 0
        #: What became an event that nobody has drained yet, in order.
        self.backlog: deque[Any] = deque()
        #: How many of the events at the front are of no use any more.
        self.stale = 0
        self.is_active = True
        #: The feed does not know it as ready: it waits for room.
        self.is_parked = True
        if sink is not None and not self.limit:
            sink.taken = self._taken

    def __repr__(self) -> str:
        state = "active" if self.is_active else "gone"
        return f"<Consumer: {self.tag!r} of queue {self.queue!r}, {state}>"

    def has_room(self) -> bool:
        """Whether it may be given one more message now."""
        if not self.is_active:
            return False
        if self.limit:
            if self.unacked >= self.limit:
                return False
        elif self.ahead >= WINDOW or len(self.backlog) >= WINDOW:
            return False
        prefetch = self.prefetch
        limit = prefetch.limit
        return prefetch.is_flowing and (not limit or self.no_ack or prefetch.in_flight < limit)

    @property
    def room(self) -> int:
        """Return the number of messages that its own limit leaves room for."""
        if self.limit:
            return self.limit - self.unacked
        return WINDOW - max(self.ahead, len(self.backlog))

    def hand_over(self, item: Any, message: Message) -> None:
        """Give it *message*, whose record in the feed is *item*.  Never switches."""
        sink = self.sink
        if sink is None:
            self.backlog.append(item)
            self.channel.connection.events.put((self._handle, message))
        else:
            if not self.limit:
                self.ahead += 1
            sink.deliver(message)

    def wake(self) -> None:
        """Note that there may be room again.  Never switches."""
        if self.is_parked and self.has_room():
            self.feed.resume(self)

    def _handle(self, message: Message) -> Any:
        """The event of one delivery: runs in the greenlet that drains it."""
        if not self.is_active:
            return STALE
        if self.stale:
            self.stale -= 1
            return STALE
        self.backlog.popleft()
        if self.no_ack:
            self._answer(message)
        if self.is_parked and not self.limit:  # else only an answer makes room
            self.wake()
        if self.callback is not None:
            self.callback(message)
        return None

    def _taken(self, message: Message) -> None:
        if self.no_ack:
            self._answer(message)
        self.ahead -= 1
        if self.is_parked:
            self.wake()

    def _answer(self, message: Message) -> None:
        """Acknowledge a delivery that needs no answer of its program.  Never switches."""

    def forget_backlog(self) -> None:
        """Give back the deliveries that nobody has seen yet; their events do nothing."""
        self.stale += len(self.backlog)
        self.backlog.clear()

    def stop(self) -> list[Any]:
        """End it, and return the items that nobody has seen yet, in order."""
        self.is_active = False
        unseen = list(self.backlog)
        self.backlog.clear()
        if self.sink is not None and not self.no_ack:
            self.sink.taken = None  # else what it takes from now on is still answered with that
        return unseen

    def lose(self, exc: BaseException) -> None:
        """Tell its sink why it is gone.  Call after :meth:`stop`."""
        if self.sink is not None:
            self.sink.cancelled(exc)

    def cancelled_by_broker(self) -> None:
        """Tell its owner that the broker cancelled it.  Call after :meth:`stop`."""
        exc = ConsumerCancelled(self.tag, (60, 30))
        if self.sink is not None:
            self.sink.cancelled(exc)
        elif self.on_cancel is not None:
            self.channel.connection.events.put((self.on_cancel, self.tag))
        else:
            self.channel.connection.events.put((raise_error, exc))
