"""The feed of one queue to its consumers on one link.

Theory
------
A feed knows the consumers of a queue and whose turn it is, and has a *source*, which knows how messages
are taken out of one broker.  Messages are taken by *claims*, one at a time, for as many as the consumers
have room for, so that what is on its way always has a place::

    IDLE      no consumer has room, or the broker refused     (room: a claim is due)
    DUE       a claim leaves when this turn ends
    CLAIMING  a claim is on its way
    DRY       the last claim found less than it asked for      (the source tells when there is more)

A claim leaves when all that can run now has run: the acks of one turn make room for one claim.  The
source calls ``begin`` then, ``offer`` for each message that came, and ``free`` and ``ended`` when the
claim is over.  It calls ``wake`` when there may be messages; what is said while a
claim is on its way counts when it is over, since the claim may have looked before.

Where a limit holds for a whole channel, each claim reserves its places under it.

Nothing here switches; it runs in readers, in the hub, in greenlets of links and of users.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from greenconn.green.state import State, moved
from greenconn.green.supervisor import spawn
from greenconn.message import Message
from greenconn.transport.virtual.consumer import Consumer, Turns

F = TypeVar("F", bound="Feed[Any, Any]")


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
T_contra = TypeVar("T_contra", contravariant=True)


class Source(Protocol[T_contra]):
    """The source of one queue's messages in a broker.  Nothing here switches.

    Attributes:
        is_single_active: only the oldest consumer is served.
    """

    @property
    def is_single_active(self) -> bool: ...

    def schedule(self) -> None:
        """Call the feed's ``begin`` when all that can run now has run, and claim as many as it says."""

    def watch(self) -> None:
        """Call the feed's ``wake`` when there may be messages: the last claim found too few.

        Until :meth:`schedule` or :meth:`retire` is called.
        """

    def retire(self) -> None:
        """Forget the feed, unless a claim is on its way whose messages it must take."""

    def delivery(self, message: T_contra, consumer: Consumer) -> Message:
        """Return what *consumer* is given for a message that was offered."""


S = TypeVar("S", bound=Source[Any], covariant=True)


class Feed(Generic[M, S]):
    """One queue and its consumers.

    *M* is what its source offers, *S* the source.

    Arguments:
        queue: its name.
        make_source: returns the source of a feed.

    Attributes:
        arrived: messages that came without a claim, and wait until a consumer has room.
        coming: consumers that are about to be.
        consumers: in the order in which they came.
    """

    __slots__ = (
        "_again",
        "_reserved",
        "_turns",
        "arrived",
        "coming",
        "consumers",
        "queue",
        "source",
        "state",
    )

    def __init__(self, queue: str, make_source: Callable[[Feed[M, S]], S]) -> None:
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
        self.source = make_source(self)

    def __repr__(self) -> str:
        return f"<Feed {self.queue!r}: {self.state.value}, {len(self.consumers)} consumers>"

    def _move(self, state: FeedState) -> None:
        self.state = moved(self.state, state, FEED_MOVES, "a feed")

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
        if self.source.is_single_active and next(iter(consumers)) is not consumer:
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
        self.source.schedule()

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
        count = self._reserve(most, others)
        if count > 0:
            self._again = False
            self._move(_CLAIMING)
        else:
            self._reserved.clear()
            self._move(_IDLE)
        return count

    def _reserve(self, most: int, others: int) -> int:
        if self._turns.first() is None:
            return 0
        room = 0
        for consumer in self._turns.ready():
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
        return room

    def free(self) -> None:
        """Release the room that the claim had reserved; others are served first."""
        if self._reserved:
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
        if not self.is_used:
            self._move(_IDLE)
            self.source.retire()
        elif is_dry and not self._again:
            self._move(_DRY)
            self.source.watch()
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
        consumer = self._turns.take()
        if consumer is None:
            return False
        delivery = self.source.delivery(message, consumer)
        consumer.channel.deliveries.hold(consumer, delivery)
        consumer.hand_over(delivery, delivery)
        if consumer.is_parked and consumer.has_room():
            self._turns.add(consumer)
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


class DueFeeds(Generic[F]):
    """The feeds whose claims are due, the next in front.  Nothing here switches.

    No queue starves: a feed that was asked for goes behind the others, and what a claim may take goes to
    those in front first.  A limit of a whole channel is divided among the queues that its consumers wait
    for; where it is less than one each, those that were left out come first when there is room again.

    Attributes:
        feeds: those that are due.
        is_left_out: some have no room, because others had it.
    """

    def __init__(self) -> None:
        self.feeds: dict[F, None] = {}
        self.is_left_out = False

    def add(self, feed: F) -> None:
        """Put a feed behind the others, unless it is in."""
        self.feeds[feed] = None

    def begin(self, most: int, *, together: bool) -> list[tuple[F, int]]:
        """Reserve room for claims; return the feeds that have some, and for how many messages.

        Arguments:
            most: messages that one claim may take.
            together: all are one claim; what it has no place for stays due.
        """
        begun: list[tuple[F, int]] = []
        self.is_left_out = False
        others = len(self.feeds)
        for feed in list(self.feeds):
            del self.feeds[feed]
            others -= 1
            count = feed.begin(most, others)
            if not count:
                self.is_left_out = True
                continue  # it comes back when there is room
            begun.append((feed, count))
            if together:
                most -= count
                if most <= 0:
                    break
        return begun
