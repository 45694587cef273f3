"""One consumer of a channel: its room for deliveries, and how they reach it.

Its deliveries go to a sink, or become events of the connection that ``drain_events`` runs.  A
consumer that neither prefetch nor acknowledgements bound is given at most :data:`WINDOW` messages
ahead of what has been taken, so that the rest stays in the queue for others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.abc import Sink
from greenconn.exceptions import ConsumerCancelled, raise_error

if TYPE_CHECKING:
    from greenconn.message import Message


class Prefetch:
    """The bounds of a channel's deliveries, and how much of them is in use.

    Attributes:
        count: unacked deliveries for each consumer started from now on; 0 is no limit.
        limit: unacked deliveries for all consumers of the channel; 0 is no limit.
        in_flight: unacked deliveries of all its consumers now.
        reserved: places under ``limit`` that claims under way may fill.
        is_divided: a claim leaves places under ``limit`` to the other queues of the channel.
        is_flowing: deliveries have not been stopped by ``flow(False)``.
    """

    __slots__ = (
        "_last_turn",
        "count",
        "in_flight",
        "is_divided",
        "is_flowing",
        "limit",
        "reserved",
    )

    def __init__(self) -> None:
        #: The highest turn of its consumers.
        self._last_turn = 0
        self.is_divided = True
        self.count = self.limit = self.in_flight = self.reserved = 0
        self.is_flowing = True

    def reserve(self, count: int) -> int:
        """Reserve places for *count* messages; return how many there are.  Never switches."""
        if self.limit:
            count = max(0, min(count, self.limit - self.in_flight - self.reserved))
            self.reserved += count
        return count

    def share(self, others: int) -> int:
        """Return the places for one consumer where *others* of its channel come behind it."""
        free = self.limit - self.in_flight - self.reserved
        return max(-(-free // (others + 1)) if self.is_divided else free, 0)

    def next_turn(self, turn: int) -> int:
        """Return the turn of a consumer that is given one more message under the limit.

        The consumer with the lowest turn is served next.  A turn counts messages, so that all get as
        many; but one whose queue was empty for long is at most a whole limit behind, or it would have
        all places until it has caught up.
        """
        turn = max(turn, self._last_turn - self.limit) + 1
        self._last_turn = max(self._last_turn, turn)
        return turn

    def release(self, count: int) -> None:
        """End a claim for *count* messages.  Never switches."""
        if self.reserved:
            self.reserved = max(0, self.reserved - count)


class PrefetchView:
    """A view of a channel's deliveries under the name of kombu's ``QoS``.

    Arguments:
        prefetch: of the channel.
    """

    def __init__(self, prefetch: Prefetch) -> None:
        self._prefetch = prefetch

    @property
    def prefetch_count(self) -> int:
        """Deliveries that may be unacked at once; 0 is no limit."""
        return self._prefetch.limit or self._prefetch.count

    def can_consume(self) -> bool:
        """Return whether one more may be delivered."""
        return self.can_consume_max_estimate() != 0

    def can_consume_max_estimate(self) -> int | None:
        """Return the number of deliveries that there is room for; None: no limit."""
        limit = self.prefetch_count
        return max(limit - len(self), 0) if limit else None

    def __len__(self) -> int:
        return self._prefetch.in_flight

    def __bool__(self) -> bool:
        return True

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Give back what dead consumers left, where the broker needs clients for that."""


#: Messages handed over to an unbounded consumer and not yet taken.
WINDOW = 256

#: What an event returns that turned out to belong to a consumer that is gone.
STALE: Final = object()
#: The backlog of consumers with a sink: their deliveries are no events.
_NO_BACKLOG: Final[deque[Any]] = deque(maxlen=0)


class Feed(Protocol):
    """The source of a consumer's messages."""

    def resume(self, consumer: Consumer) -> None:
        """Serve a consumer that has room again.  Never switches."""
        ...


class Consumer:
    """A consumer.

    Arguments:
        channel: has ``connection`` and ``prefetch``.
        feed: woken when a parked consumer has room again.
        limit: unacked deliveries at once; 0 is no limit.

    Attributes:
        turn: the lower, the sooner it is served among the consumers of a channel whose limit has not
            room for all; see :meth:`~greenconn.transport.virtual.consumer.Prefetch.next_turn`.
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
        # Messages without an ack cannot be limited by acks.
        self.limit = 0 if no_ack else limit
        self.arguments = arguments
        self.on_cancel = on_cancel
        self.priority = int((arguments or {}).get("x-priority") or 0)
        #: Unacknowledged deliveries.
        self.unacked = 0
        self.turn = 0
        #: Handed to the sink of an unbounded consumer, and not yet taken from it.
        self.ahead = 0
        #: Items that became events and were not drained yet, in order.
        self.backlog: deque[Any] = deque() if sink is None else _NO_BACKLOG
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
        """Return whether it may be given one more message now."""
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
        """Handle one delivery, in the greenlet that drains its event."""
        if not self.is_active:
            return STALE
        if self.stale:
            self.stale -= 1
            return STALE
        self.backlog.popleft()
        if self.no_ack:
            self._answer(message)
        if self.is_parked and not self.limit:  # else only an ack makes room
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
        """Acknowledge a delivery with ``no_ack``.  Never switches."""

    def forget_backlog(self) -> None:
        """Forget the deliveries that no handler has seen; their events do nothing."""
        self.stale += len(self.backlog)
        self.backlog.clear()

    def stop(self) -> list[Any]:
        """Stop, and return the items that no handler has seen, in order."""
        self.is_active = False
        unseen = list(self.backlog)
        self.backlog.clear()
        if self.sink is not None and not self.no_ack:
            self.sink.taken = None  # else it would be called for what is taken from now on
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


class Turns:
    """The consumers that have room: by priority, and in turn among those of one priority.

    A consumer without room is *parked*: it is not in here, and comes back by :meth:`add` when it
    has room again.

    Most queues have one consumer, and a process may consume from tens of thousands.  So the first one
    stands alone, and the levels, which take 850 bytes, are made for the second.
    """

    __slots__ = ("_alone", "_levels", "_order")

    def __init__(self) -> None:
        #: The only one that is in; always None from the second consumer on.
        self._alone: Consumer | None = None
        self._levels: dict[int, deque[Consumer]] | None = None
        #: The queues of ``_levels``, the highest priority first.
        self._order: Sequence[deque[Consumer]] = ()

    def __bool__(self) -> bool:
        return self._alone is not None or any(self._order)

    def add(self, consumer: Consumer) -> None:
        """Put *consumer* behind those of its priority."""
        consumer.is_parked = False
        if self._levels is None:
            first = self._alone
            if first is None:
                self._alone = consumer
                return
            self._alone, self._levels = None, {}
            self.add(first)
        level = self._levels.get(consumer.priority)
        if level is None:
            level = self._levels[consumer.priority] = deque()
            self._order = [self._levels[each] for each in sorted(self._levels, reverse=True)]
        level.append(consumer)

    def discard(self, consumer: Consumer) -> None:
        """Take *consumer* out, if it is in."""
        if not consumer.is_parked:
            consumer.is_parked = True
            if self._levels is None:
                self._alone = None
            else:
                self._levels[consumer.priority].remove(consumer)

    def ready(self) -> Iterator[Consumer]:
        """Yield the consumers that are in, in no certain order."""
        if self._alone is not None:
            yield self._alone
        for level in self._order:
            yield from level

    def first(self) -> Consumer | None:
        """Return the consumer that is served next, without removing it; None if none has room."""
        alone = self._alone
        if alone is not None:
            if alone.has_room():
                return alone
            self.discard(alone)
            return None
        for level in self._order:
            while level:
                consumer = level[0]
                if consumer.has_room():
                    return consumer
                consumer.is_parked = True
                level.popleft()
        return None

    def put_behind(self, consumer: Consumer) -> None:
        """Put :meth:`first`, if it is *consumer*, behind the others of its priority."""
        if self._levels is not None:
            level = self._levels.get(consumer.priority)
            if level and level[0] is consumer:
                level.rotate(-1)

    def take(self) -> Consumer | None:
        """Remove and return the consumer that is served next; None if none has room."""
        alone = self._alone
        if alone is not None:
            self._alone = None
            alone.is_parked = True
            return alone if alone.has_room() else None
        for level in self._order:
            while level:
                consumer = level.popleft()
                consumer.is_parked = True
                # What bounds a whole channel may have been used up by its other consumers.
                if consumer.has_room():
                    return consumer
        return None
