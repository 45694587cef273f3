"""The consumers of a link, the feeds of their queues, and the claims of messages from a store.

A consumer's deliveries go to a sink, or become events of the connection that ``drain_events`` runs.  One
that neither prefetch nor acknowledgements bound is given at most :data:`WINDOW` messages ahead of what
has been taken, so that the rest stays in the queue for others.

A feed knows the consumers of one queue and whose turn it is.  Each kind of broker derives one that knows
how its messages are taken: by *claims*, one at a time, for as many as the consumers have room for, so
that what is on its way always has a place::

    IDLE      no consumer has room, or the broker refused     (room: a claim is due)
    DUE       a claim leaves when this turn ends
    CLAIMING  a claim is on its way
    DRY       the last claim found less than it asked for      (the feed wakes when there is more)

A claim leaves when all that can run now has run: the acks of one turn make room for one claim.  It
reserves room by ``begin``, gives each message that came to ``offer``, and calls ``free`` and ``ended``
when it is over.  ``wake`` is called when there may be messages; a call while a claim is on its way
counts when it is over, since the claim may have looked before.  Where a limit holds for a whole
channel, each claim reserves its places under it.  Nothing of a feed switches; it runs in readers, in
the hub, in greenlets of links and of users.

A store whose calls block is asked by a :class:`Claimer`, for one or for many queues in one call, in a
greenlet that lives as long as there is something to ask for.  A store that cannot wait is asked for
queues that are not dry.  A store that can wait is asked for all queues whose consumers have room, and is
interrupted when a queue comes that it was not asked for.

No queue starves (see :class:`DueFeeds`).  Where a claim waits, each queue may have as much as a claim
may take, or those left out would wait for its end; and where the limit of a channel is less than one
each, it does not wait long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

from gevent import get_hub

from greenconn.abc import Sink
from greenconn.broker.envelope import Contents, Delivery, Envelope, contents_in, contents_of_head
from greenconn.broker.errors import Method, in_exclusive_use
from greenconn.broker.port import Claimed
from greenconn.broker.settlements import DELIVERY_COUNT
from greenconn.exceptions import ConsumerCancelled, raise_error
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.green.slot import Condition
from greenconn.green.supervisor import OnDemand, State, moved, spawn
from greenconn.message import Message

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.deliveries import DeliveredMessage
    from greenconn.broker.link import StoreLink


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


class ConsumedFeed(Protocol):
    """The consumers of one queue on one link, and the source of their messages."""

    @property
    def consumers(self) -> Collection[Consumer]: ...

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
            room for all; see :meth:`~greenconn.broker.consuming.Prefetch.next_turn`.
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
        feed: ConsumedFeed,
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

    A consumer without room is *parked* by the next look at it: it is not in here any more, and comes
    back by :meth:`add` when it has room again.

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

    def ready(self) -> Iterable[Consumer]:
        """Return the consumers that are in, in no certain order."""
        return chain.from_iterable(self._order) if self._alone is None else (self._alone,)

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


class FeedState(State):
    """See the module's theory."""

    IDLE = "idle"
    DUE = "due"
    CLAIMING = "claiming"
    DRY = "dry"


_IDLE, _DUE, _CLAIMING, _DRY = FeedState
FEED_MOVES: Final[Mapping[FeedState, frozenset[FeedState]]] = {
    FeedState.IDLE: frozenset({FeedState.DUE}),
    FeedState.DUE: frozenset({FeedState.IDLE, FeedState.CLAIMING}),
    FeedState.CLAIMING: frozenset({FeedState.IDLE, FeedState.DUE, FeedState.DRY}),
    FeedState.DRY: frozenset({FeedState.IDLE, FeedState.DUE}),
}

#: What has arrived at a feed to which nothing comes without a claim: an empty deque of its own takes
#: 760 bytes, and a process may have tens of thousands of feeds.
_NOTHING: Final[deque[Any]] = deque(maxlen=0)
M = TypeVar("M")


class Feed(ABC, Generic[M]):
    """One queue, its consumers, and the claims of its messages.

    *M* is what a claim brings.  Each kind of broker derives one, which knows how messages are taken.

    Arguments:
        queue: its name.

    Attributes:
        arrived: messages that came without a claim, and wait until a consumer has room.
        coming: consumers that are about to be.
        consumers: in the order in which they came.
        delivery: returns what a consumer is given for a message that was offered.  Never switches.
    """

    delivery: Callable[[M, Consumer], Message]

    __slots__ = (
        "_again",
        "_reserved",
        "_turns",
        "arrived",
        "coming",
        "consumers",
        "queue",
        "state",
    )

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.coming = 0
        self.consumers: dict[Consumer, None] = {}
        self.arrived: deque[M] = _NOTHING
        self.state: FeedState = _IDLE
        self._turns = Turns()
        #: Something came while a claim was on its way: do not believe that there is nothing.
        self._again = False
        #: Places under the limits of channels that a claim under way may fill.
        self._reserved: list[tuple[Any, int]] = []

    # -- what a kind of broker writes; nothing of it switches

    @property
    @abstractmethod
    def is_single_active(self) -> bool:
        """Whether only the oldest consumer is served."""

    @abstractmethod
    def schedule(self) -> None:
        """Call :meth:`begin` when all that can run now has run, and claim as many as it says."""

    @abstractmethod
    def watch(self) -> None:
        """Call :meth:`wake` when there may be messages: the last claim found too few.

        Until :meth:`schedule` or :meth:`retire` is called.
        """

    @abstractmethod
    def retire(self) -> None:
        """Forget the feed, unless a claim is on its way whose messages it must take."""

    def __repr__(self) -> str:
        return f"<Feed {self.queue!r}: {self.state.value}, {len(self.consumers)} consumers>"

    def _move(self, state: FeedState) -> None:
        # Looked up here: each message moves its feed three times.
        if state not in FEED_MOVES[self.state]:
            moved(self.state, state, FEED_MOVES, "a feed")
        self.state = state

    # -- consumers

    @property
    def is_used(self) -> bool:
        """Whether there is a consumer, or one is being started."""
        return bool(self.consumers or self.coming)

    @property
    def has_room(self) -> bool:
        """Whether a consumer waits for messages."""
        return bool(self._turns)

    def join(self, consumer: Consumer) -> None:
        """Add a consumer."""
        if self.state is _DRY and not self.consumers:
            self._move(_IDLE)  # its state without consumers is out of date
        self.consumers[consumer] = None
        consumer.wake()

    def leave(self, consumer: Consumer) -> None:
        """Remove a consumer: the next one may become the single active one."""
        self.consumers.pop(consumer, None)
        self._turns.discard(consumer)
        if self.consumers:
            next(iter(self.consumers)).wake()

    def resume(self, consumer: Consumer) -> None:
        """Serve a consumer that has room again."""
        consumers = self.consumers
        if consumer not in consumers:
            return
        if self.is_single_active and next(iter(consumers)) is not consumer:
            return
        self._turns.add(consumer)
        if self.arrived:
            self._serve_arrived()
        if self.state is _IDLE:
            self._due()

    def serve(self) -> None:
        """There may be room again for consumers that are in, under the limit of a channel."""
        if self.state is _IDLE:
            self._due()

    def wake(self) -> None:
        """There may be messages."""
        state = self.state
        if state is _DRY:
            self._due()
        elif state is _CLAIMING:
            self._again = True

    # -- claims

    def _due(self) -> None:
        self._move(_DUE)
        try:
            self.schedule()
        except BaseException:
            self._move(_IDLE)  # from a signal
            get_hub().loop.run_callback(self.serve)
            raise

    @property
    def has_rivals(self) -> bool:
        """Whether the room reserved here may be missing elsewhere."""
        return any(len(channel.consumers) > 1 for channel, _ in self._reserved)

    def begin(self, most: int, others: int = 0) -> int:
        """Begin a claim: reserve room, and return for how many messages; 0: there is no claim.

        Arguments:
            most: messages that one claim may take.
            others: queues that are still to come, and may need room on the same channels.
        """
        if self.state is _IDLE:
            self._move(_DUE)  # a signal came behind its schedule
        room = 0
        for consumer in self._turns.ready() if self._turns.first() is not None else ():
            own = min(consumer.room, most - room)
            prefetch = consumer.prefetch
            if prefetch.limit and not consumer.no_ack:
                channel = consumer.channel
                behind = min(others, len(channel.consumers) - 1)
                own = prefetch.reserve(min(own, prefetch.share(behind)))
                self._reserved.append((channel, own))
            room += own
            if room >= most:
                break
        if room > 0:
            self._again = False
        else:
            self._reserved.clear()
        self._move(_CLAIMING if room > 0 else _IDLE)
        return room

    def free(self) -> None:
        """Release the room that the claim had reserved; others are served first."""
        reserved, self._reserved = self._reserved, []
        for channel, count in reserved:
            channel.prefetch.release(count)
        for channel in {channel for channel, count in reserved if count}:
            channel.serve()

    def ended(self, is_dry: bool) -> None:
        """Note that the claim is over.

        Arguments:
            is_dry: it found less than it asked for.
        """
        if self._reserved:
            self.free()
        if not (self.consumers or self.coming):
            self._move(_IDLE)
            self.retire()
        elif is_dry and not self._again:
            self._move(_DRY)
            self.watch()
        elif self._turns:
            self._due()
        else:
            self._move(_IDLE)

    def refuse(self, error: BaseException) -> None:
        """End the channels of the consumers, since the broker refuses."""
        self.free()
        self._move(_IDLE)
        for consumer in list(self.consumers):
            spawn("refused", consumer.channel.refuse, consumer, error)

    # -- messages

    def offer(self, message: M) -> bool:
        """Hand over what was claimed; False: no consumer has room."""
        consumer = self._turns.first()
        if consumer is None:
            return False
        if len(self.consumers) > 1:
            self._turns.put_behind(consumer)
        delivery = self.delivery(message, consumer)
        consumer.channel.deliveries.hold(consumer, delivery)
        consumer.hand_over(delivery, delivery)
        return True

    def arrive(self, message: M) -> None:
        """Hand over a message that came without a claim as soon as a consumer has room."""
        self._own_arrived().append(message)
        self._serve_arrived()

    def arrive_again(self, message: M) -> None:
        """Make a requeued message that came without a claim the next again."""
        self._own_arrived().appendleft(message)
        self._serve_arrived()

    def _own_arrived(self) -> deque[M]:
        if self.arrived is _NOTHING:
            self.arrived = deque()
        return self.arrived

    def _serve_arrived(self) -> None:
        arrived = self.arrived
        while arrived:
            message = arrived.popleft()
            if not self.offer(message):
                arrived.appendleft(message)
                return


class DueFeeds:
    """The feeds whose claims are due, the next in front.  Nothing here switches.

    No queue starves: a feed that was asked for goes behind the others.  What a claim may take is divided
    among them, since many may have one message each, after a fan-out.  A queue that filled its share has
    twice as much of the next claim: a few large shares take fewer statements than many small ones.  A
    limit of a whole channel is divided among the queues that its consumers wait for; where it is less
    than one each, those that were left out come first when there is room again.

    Attributes:
        feeds: those that are due.
        is_left_out: some have no room, because others had it.
    """

    def __init__(self) -> None:
        self.feeds: dict[StoreFeed, None] = {}
        self.is_left_out = False

    def add(self, feed: StoreFeed) -> None:
        """Put a feed behind the others, unless it is in."""
        self.feeds[feed] = None

    def begin(self, most: int, *, together: bool) -> list[tuple[StoreFeed, int]]:
        """Reserve room for claims; return the feeds that have some, and for how many messages.

        Arguments:
            most: messages that one claim may take.
            together: all are one claim; what it has no place for stays due.
        """
        begun: list[tuple[StoreFeed, int]] = []
        self.is_left_out = False
        others = len(self.feeds)
        for feed in list(self.feeds):
            del self.feeds[feed]
            others -= 1
            share = most
            if together and others:
                share = min(most, max(-(-most // (others + 1)), feed.expected))
            count = feed.begin(share, others)
            if not count:
                self.is_left_out = True
                continue  # it comes back when there is room
            begun.append((feed, count))
            if together:
                most -= count
                if most <= 0:
                    break
        return begun


class StoreConsumer(Consumer):
    """A consumer; with ``no_ack`` a message is acked as soon as it is taken."""

    __slots__ = ()

    def _answer(self, message: Message) -> None:
        self.channel.deliveries.taken(message.delivery_tag)


class Subscriptions(Protocol):
    """The queues that are consumed from over one link."""

    def feed(self, queue: str, method: Method) -> ConsumedFeed:
        """Return what gives the messages of a queue to consumers.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.  May switch.

        Raises:
            AccessRefused: it may not consume beside another one.
        """

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more.  Never switches."""

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone.  Never switches."""

    def serve(self, consumer: Consumer) -> None:
        """Look for messages for a consumer that has room under its channel's limit.  Never switches."""

    def get(self, channel: StoreChannel[Any], queue: str) -> DeliveredMessage | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """


F = TypeVar("F", bound=Feed[Any])


class Consuming(Protocol[F]):
    """The commands of one link about the queues that it consumes."""

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """

    def feed(self, queue: str) -> F:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""

    def set_consumers(self, feed: F, *, exclusive: bool) -> bool:
        """Tell the broker how many consumers there are, with those that are about to be.  May switch.

        Returns:
            whether they may consume; False: others consume exclusively, or they do and this one wants
            to be the only one.
        """

    def left(self, feed: F) -> None:
        """Tell the broker that a consumer has left, or did not come.  Never switches."""

    def ended(self, feed: F) -> None:
        """Tell the broker that a consumer has left a queue that is gone.  Never switches."""

    def take(self, channel: StoreChannel[Any], queue: str) -> DeliveredMessage | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """


class StoreSubscriptions(Generic[F]):
    """The subscriptions to a store; see :class:`Subscriptions`.

    Arguments:
        consuming: asks the broker.
    """

    def __init__(self, consuming: Consuming[F]) -> None:
        self._consuming = consuming

    def feed(self, queue: str, method: Method) -> F:
        """Return what gives the messages of a queue to consumers.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        self._consuming.check(queue, method)
        return self._consuming.feed(queue)

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.  May switch.

        Raises:
            AccessRefused: it may not consume beside another one.
        """
        feed = consumer.feed = self._consuming.feed(consumer.queue)
        try:
            self._join(consumer, feed)
        except BaseException:
            self.left(consumer)  # a signal came behind its arrival, and it would never be cancelled
            raise

    def _join(self, consumer: Consumer, feed: F) -> None:
        channel = consumer.channel
        # From now on the feed stays, even if its consumers leave during the call of the broker.
        feed.coming += 1
        has_asked = False
        try:
            others = feed.consumers
            if any(each.exclusive for each in others) or (
                consumer.exclusive and (others or feed.is_single_active)
            ):
                raise in_exclusive_use(feed.queue, channel.virtual_host)
            has_asked = True
            if not self._consuming.set_consumers(feed, exclusive=consumer.exclusive):
                raise in_exclusive_use(feed.queue, channel.virtual_host)
            channel.check_open()  # it may have been closed meanwhile
            feed.join(consumer)
        finally:
            feed.coming -= 1
            if not feed.is_used:
                feed.retire()
                self._consuming.left(feed)
            elif has_asked and consumer not in feed.consumers:
                self._consuming.left(feed)  # the broker may count it beside the others

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more.  Never switches."""
        feed = self._feed_of(consumer)
        if consumer in feed.consumers:
            _leave_feed(feed, consumer)
            self._consuming.left(feed)

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone.  Never switches."""
        feed = self._feed_of(consumer)
        if consumer in feed.consumers:
            _leave_feed(feed, consumer)
            self._consuming.ended(feed)

    def serve(self, consumer: Consumer) -> None:
        """Look for messages for a consumer that has room under its channel's limit.  Never switches."""
        self._feed_of(consumer).serve()

    def get(self, channel: StoreChannel[Any], queue: str) -> DeliveredMessage | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        return self._consuming.take(channel, queue)

    @staticmethod
    def _feed_of(consumer: Consumer) -> F:
        assert isinstance(consumer.feed, Feed)
        return cast("F", consumer.feed)


def _leave_feed(feed: Feed[Any], consumer: Consumer) -> None:
    feed.leave(consumer)
    if not feed.is_used:
        feed.retire()


#: Seconds that a claim waits while others may need the room that is reserved for it.
SHORT_WAIT: Final = 0.5


class StoreDelivery(Delivery):
    """A delivery of what was *claimed*.

    Attributes:
        envelope: as it was stored; None where it cannot be read.
        deliveries: how often it was delivered before, as far as the store can tell.
    """

    __slots__ = ("_claimed",)

    def __init__(
        self,
        channel: StoreChannel[Any],
        tag: str,
        number: int,
        claimed: Claimed,
        consumer: Any = None,
    ) -> None:
        super().__init__(
            channel, tag, number, claimed.raw, claimed.queue, consumer, claimed.waiting
        )
        self._claimed = claimed
        self.handle = claimed.handle

    @property
    def claimed(self) -> Claimed:
        return self._claimed

    @property
    def envelope(self) -> Envelope | None:
        return self._claimed.envelope

    @property
    def deliveries(self) -> int:
        return self._claimed.deliveries

    def _contents(self) -> Contents:
        stored = self._claimed.stored
        properties, headers, *others = (
            contents_of_head(stored, self._claimed.raw)
            if isinstance(stored, str)
            else contents_in(stored)
        )
        if self._claimed.deliveries:
            headers = {**headers, DELIVERY_COUNT: self._claimed.deliveries}
        return properties, headers, *others

    @property
    def redelivered(self) -> bool:
        return self._claimed.deliveries > 0 or super().redelivered


class StoreFeed(Feed[Claimed]):
    """The consumers of one queue of a store.

    Arguments:
        claimer: asks for its queue.

    Attributes:
        expected: messages for which the next claim has room, however many queues are due.
    """

    __slots__ = ("_claimer", "_link", "delivery", "expected")

    def __init__(self, queue: str, link: StoreLink, claimer: Claimer) -> None:
        super().__init__(queue)
        self.expected = 0
        self._link = link
        self._claimer = claimer
        self.delivery = link.delivery

    @property
    def is_single_active(self) -> bool:
        return self._link.directory.is_single_active(self.queue)

    def schedule(self) -> None:
        self._claimer.want(self)

    def watch(self) -> None:
        """Do nothing: the store calls ``wake``."""

    def retire(self) -> None:
        """Forget the feed: what a claim brings is given to its successor, or back."""
        self._link.retire(self)


class Claimer:
    """Takes the messages of some queues, all together.

    Attributes:
        claiming: the greenlet that claims.
    """

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._wait = link.store.claim_wait
        self._due = DueFeeds()
        #: What the claim that is on its way asked for.
        self._asked: dict[str, int] = {}
        #: Wakes the greenlets that wait for its end; None: there are none.
        self._ended: Condition | None = None
        self.claiming = OnDemand("claim", self._claim_all)
        self._is_stopped = False

    def want(self, feed: StoreFeed) -> None:
        """Note that a claim is due.  Never switches."""
        if self._is_stopped:
            return
        self._due.add(feed)
        if self._wait and self._asked and feed.queue not in self._asked:
            self._link.store.interrupt()
        self.claiming.start()

    def wait_unwanted(self, deadline: Deadline) -> None:
        """Wait for the end of a claim that asks for a queue without consumers.  May switch.

        Raises:
            TimeoutError: it was not over before the deadline.
        """
        claim = self._asked
        if any(queue not in self._link.feeds for queue in claim):
            if self._wait:
                self._link.store.interrupt()
            while self._asked is claim and self.claiming.greenlet is not None:
                if self._ended is None:
                    self._ended = Condition()
                self._ended.wait(deadline)

    def stop(self) -> None:
        """Ask no more.  Never switches."""
        self._is_stopped = True
        self._due.feeds.clear()
        store = self._link.store
        if not (self._asked and self._wait):
            return
        if not store.claims_each_queue:
            store.interrupt()
            return
        for queue in self._asked:
            store.abandon(queue)

    def _claim_all(self) -> None:
        try:
            while self._due.feeds:
                feeds = self._begin()
                if feeds:
                    self._claim(feeds)
        except BaseException as exc:
            # Without this greenlet no claim is made: the consumers begin anew on the next link.
            if self._link.lost is None:
                self._link.end_unexpectedly(exc, "passing on claimed messages")
            if not isinstance(exc, Exception):
                raise

    def _begin(self) -> list[StoreFeed]:
        """Reserve room for the next claim, and return the queues that it is for."""
        limit = self._link.store.claim_limit
        feeds = []
        for feed, count in self._due.begin(limit, together=not self._wait):
            self._asked[feed.queue] = count
            feeds.append(feed)
        return feeds

    def _claim(self, feeds: list[StoreFeed]) -> None:
        """Claim messages for *feeds* in one call of the store, and hand them out."""
        link = self._link
        is_shared = False
        for feed in feeds:
            is_shared = is_shared or feed.has_rivals
        # Claimers of other queues cannot say that they were left out.
        is_short = is_shared and (self._due.is_left_out or link.store.claims_each_queue)
        wait = min(self._wait, SHORT_WAIT) if is_short else self._wait
        asked = self._asked
        try:
            claimed = link.store.claim(dict(asked), wait)
        except BaseException as exc:
            self._end_claim()
            self._failed(exc, feeds)
            if not isinstance(exc, Exception):
                raise
            return
        self._end_claim()
        if link.lost is not None:
            for each in claimed:
                link.settlements.requeue_unseen(each)
            return
        rest = iter(claimed)
        try:
            self._hand_over(rest)
        finally:
            for each in rest:  # none, unless it failed
                link.settlements.requeue_unseen(each)
        if is_shared:
            for feed in feeds:
                feed.free()
            yield_to_hub()  # those that were left out are served before those that ask again
        missing = dict(asked)
        for each in claimed:
            if each.dead is None:
                missing[each.queue] -= 1
        if len(feeds) > 1:
            feeds.sort(key=lambda each: asked[each.queue])  # those that had least come first
        for feed in feeds:
            is_dry = missing[feed.queue] > 0
            feed.expected = 0 if is_dry else 2 * asked[feed.queue]
            feed.ended(not self._wait and is_dry)

    def _end_claim(self) -> None:
        # Who waits runs behind this turn, in which the messages are handed out.
        self._asked = {}
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.wake_all()

    def _hand_over(self, claimed: Iterator[Claimed]) -> None:
        link = self._link
        for each in claimed:
            if (each.deliveries or each.dead is not None) and not link.is_alive(each):
                continue
            feed = link.feeds.get(each.queue)
            if feed is None or not feed.offer(each):
                # Its consumer was cancelled during the claim: no handler has seen this message.
                link.settlements.requeue_unseen(each)

    def _failed(self, exc: BaseException, feeds: list[StoreFeed]) -> None:
        link = self._link
        error = link.failed(exc, "claiming messages")
        if link.lost is None and isinstance(exc, Exception):
            # The broker refuses: so it tells those who asked.
            for feed in feeds:
                feed.refuse(error)


class StoreConsuming:
    """See :class:`~greenconn.broker.consuming.Consuming`."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        link = self._link
        link.catch_up()
        link.directory.check(queue, method)
        link.directory.rules(queue)

    def feed(self, queue: str) -> StoreFeed:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""
        return self._link.feed(queue)

    def set_consumers(self, feed: StoreFeed, *, exclusive: bool) -> bool:
        """Tell the store how many consumers there are; False: others consume.  May switch."""
        link = self._link
        count = len(feed.consumers) + feed.coming
        return link.ask(
            "consuming", partial(link.store.set_consumers, feed.queue, count, exclusive=exclusive)
        )

    def left(self, feed: StoreFeed) -> None:
        """Tell the store that a consumer has left.  Never switches."""
        link = self._link
        if link.lost is not None:
            return
        if feed.is_used:
            leave: Callable[[], object] = partial(
                link.store.set_consumers, feed.queue, len(feed.consumers) + feed.coming
            )
        else:
            leave = partial(_leave, link, feed.queue)
        link.later("cancelling a consumer", partial(_leave_behind, link, feed.queue, leave))

    def ended(self, feed: StoreFeed) -> None:
        """Tell the store that a consumer has left a queue that is gone.  Never switches."""
        self.left(feed)

    def take(self, channel: StoreChannel[Any], queue: str) -> StoreDelivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        link = self._link
        link.catch_up()
        if link.directory.declaration(queue).owner not in (None, link.owner):
            link.directory.check(queue, Method.BASIC_GET)  # it may be another one by now
        while True:
            found = link.ask(
                "getting a message",
                link.store.claim,
                {queue: 1},
                0.0,
                on_abandoned=self._requeue_unseen,
            )
            alive = [each for each in found if link.is_alive(each)]
            if alive:
                break
            if not found:
                link.directory.check(queue, Method.BASIC_GET)
                return None
        self._requeue_unseen(alive[1:])
        return StoreDelivery(channel, *link.take_tag(), alive[0])

    def _requeue_unseen(self, found: Sequence[Claimed]) -> None:
        for each in found:
            self._link.settlements.requeue_unseen(each)


def _leave_behind(link: StoreLink, queue: str, leave: Callable[[], object]) -> None:
    """Leave a queue.

    The next single active consumer begins with what this one held: it must be back before.
    """
    if link.directory.declaration(queue).policy.is_single_active:
        deadline = Deadline(link.options.reply_timeout)
        link.wait_claims(deadline)  # what they bring goes back, too
        link.settlements.wait(deadline)
    leave()


def _leave(link: StoreLink, queue: str) -> None:
    """Leave *queue*, which has no consumer on this link any more: it may be deleted (auto-delete)."""
    link.store.set_consumers(queue, 0)
    declared = link.directory.declaration(queue)
    if declared.auto_delete and queue not in link.feeds and not link.store.other_consumers(queue):
        link.directory.drop(queue)
