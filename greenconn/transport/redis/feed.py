"""What gives the messages of one queue to its consumers on one link.

Theory
------
A feed takes messages by *claims* (see ``scripts``): one at a time, for as many as its consumers have
room for, so that what is on its way always has a place.  When a claim found less than it asked for,
the queue is empty, and the feed asks the server to tell it when that changes: ``EXISTS`` of the
queue's lists registers it with client tracking, for one push.  If they exist by then it claims again.

::

    RESTING   nobody has room, and there may be messages       (room: claim)
    CLAIMING  a claim is on its way
    ASKING    EXISTS is on its way
    ARMED     the queue was empty; the server will push        (push, own publish: claim)
    WAITING   backing off before a claim, not registered       (timer: claim)

Many processes may wait for one queue, and a push wakes them all.  Each claim that finds nothing makes
a feed wait longer before its next one, each that finds something less long, so a few of them settle
on taking most of what comes and the others stay out of the way.  Nobody leads.

Pushes count only when ARMED: what was pushed earlier was caused before the claim or the EXISTS that
is on its way, which will see it.

Where the server cannot push, a feed that found nothing waits for an interval, and claims again.

Nothing here switches; it runs in the reader, in the hub, and in greenlets of users.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum
from random import uniform
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub

from greenconn.green.state import moved
from greenconn.transport.redis.clock import packed_mark
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.scripts import CLAIM, CLAIM_BYTES, CLAIM_COUNT, Scripts, entry_suffix
from greenconn.transport.virtual.consumer import WINDOW, Consumer
from greenconn.transport.virtual.turns import Turns
from greenconn.wire.resp import ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["FEED_MOVES", "Feed", "FeedState"]

#: Seconds of back-off after the first claim that found nothing; doubled by each, up to the limit.
FIRST_WAIT: Final = 0.001
LONGEST_WAIT: Final = 0.1
#: Claims without a message that count.
MOST_MISSES: Final = 8
#: Messages of fan-out that wait for a consumer of one queue; then the oldest are dropped.
FANNED: Final = 10_000
#: Seconds between two looks where the server cannot push.
FIRST_POLL: Final = 0.01
LONGEST_POLL: Final = 1.0


class FeedState(Enum):
    """See the module's theory."""

    RESTING = "resting"
    CLAIMING = "claiming"
    ASKING = "asking"
    ARMED = "armed"
    WAITING = "waiting"


_RESTING, _CLAIMING, _ASKING, _ARMED, _WAITING = FeedState

FEED_MOVES: Final[Mapping[FeedState, frozenset[FeedState]]] = {
    FeedState.RESTING: frozenset({FeedState.CLAIMING}),
    FeedState.CLAIMING: frozenset({FeedState.RESTING, FeedState.ASKING, FeedState.WAITING}),
    FeedState.ASKING: frozenset({FeedState.RESTING, FeedState.ARMED}),
    FeedState.ARMED: frozenset(
        {FeedState.RESTING, FeedState.CLAIMING, FeedState.ASKING, FeedState.WAITING}
    ),
    FeedState.WAITING: frozenset({FeedState.RESTING, FeedState.CLAIMING}),
}


class Feed:
    """One queue and its consumers.

    Arguments:
        link: sends the commands.
        queue: its name.

    Attributes:
        coming: consumers that are about to be.
        consumers: in the order in which they came.
        lists: the keys of its lists, the one that is served first in front.
    """

    __slots__ = (
        "_again",
        "_asked",
        "_exists",
        "_fanned",
        "_front",
        "_link",
        "_misses",
        "_number",
        "_poll",
        "_reserved_for",
        "_rest",
        "_timer",
        "_turns",
        "coming",
        "consumers",
        "lists",
        "queue",
        "state",
    )

    def __init__(self, link: RedisLink, queue: str) -> None:
        self._link = link
        self.queue = queue
        self.coming = 0
        self.consumers: dict[Consumer, None] = {}
        self.lists = link.commands.keys.lists(queue)
        self.state: FeedState = _RESTING
        self._turns = Turns()
        self._misses = 0
        #: Something came while a command was on its way: do not believe that there is nothing.
        self._again = False
        self._asked = self._number = 0
        self._reserved_for: Any = None
        self._poll = FIRST_POLL
        self._timer: Any = None
        #: Messages of fan-out that nobody has room for.
        self._fanned: deque[Delivery] = deque()
        suffix = entry_suffix(queue)
        keys = (link.commands.keys.unacked, link.commands.keys.unacked_index, *self.lists)
        self._front, self._rest = Scripts.claim_frame(keys, link.commands.prefix.encode(), suffix)
        self._exists = pack(b"EXISTS", *self.lists)

    def __repr__(self) -> str:
        return f"<Feed {self.queue!r}: {self.state.value}, {len(self.consumers)} consumers>"

    def _move(self, state: FeedState) -> None:
        self.state = moved(self.state, state, FEED_MOVES, "a feed")

    # -- consumers

    def join(self, consumer: Consumer) -> None:
        """Add a consumer."""
        self.consumers[consumer] = None
        consumer.wake()

    def leave(self, consumer: Consumer) -> None:
        """Remove a consumer."""
        self.consumers.pop(consumer, None)
        self._turns.discard(consumer)
        self.retire()

    @property
    def is_used(self) -> bool:
        """Whether somebody consumes, or is about to."""
        return bool(self.consumers or self.coming)

    def retire(self) -> None:
        """If nobody consumes any more: forget that the queue was empty, since nobody is told now."""
        if self.is_used or self.state in (_CLAIMING, _ASKING):
            return
        self._cancel_timer()
        self._move(_RESTING)
        if self._link.feeds.get(self.queue) is self:
            del self._link.feeds[self.queue]

    def resume(self, consumer: Consumer) -> None:
        """A consumer that had no room has some again."""
        if consumer in self.consumers:
            self._turns.add(consumer)
            if self._fanned:
                self._serve_fanned()
            if self.state is _RESTING:
                self._claim()

    def serve(self) -> None:
        """There may be room again for consumers that are in, under the limit of a channel."""
        if self.state is _RESTING:
            self._claim()

    def stop(self) -> None:
        """The link is gone."""
        self._cancel_timer()
        self.consumers.clear()

    # -- waking

    def pushed(self) -> None:
        """The server says that something happened to the queue."""
        if self.state is _ARMED:
            if self._misses and self._turns:
                self._wait(min(LONGEST_WAIT, FIRST_WAIT * (1 << self._misses)))
            else:
                self._claim()

    def hint(self) -> None:
        """This connection has just sent a message to the queue."""
        state = self.state
        if state is _ARMED:
            self._claim()
        elif state is _CLAIMING:
            self._again = True
        elif state is _WAITING:
            self._cancel_timer()
            self._claim()

    def look(self) -> None:
        """Ask whether there is something, although nothing was pushed."""
        if self.state is _ARMED:
            self._ask()

    def _wait(self, seconds: float) -> None:
        self._move(_WAITING)
        self._timer = get_hub().loop.timer(uniform(seconds / 2, seconds), ref=False)
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        # In the hub.
        self._cancel_timer()
        if self._link.lost is None:
            self._claim()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    # -- claiming

    def _room(self) -> int:
        """How many messages may be asked for now."""
        room = 0
        for consumer in self._turns.ready():
            limit = consumer.limit
            if limit:
                room += limit - consumer.unacked
            else:
                room += WINDOW - max(consumer.ahead, len(consumer.backlog))
            if room >= CLAIM_COUNT:
                room = CLAIM_COUNT
                break
        return room

    def _claim(self) -> None:
        consumer = self._turns.first()
        if consumer is None or self._link.lost is not None:
            self._move(_RESTING)
            return
        count = consumer.prefetch.reserve(self._room())
        if count <= 0:
            self._move(_RESTING)
            return
        self._move(_CLAIMING)
        self._reserved_for = consumer.channel
        self._again = False
        self._asked = count
        self._number = number = self._link.claims.take_numbers(count)
        self._link.commands.pipeline.post(
            b"%b$%d\r\n%d\r\n$%d\r\n%d\r\n%b%b"
            % (
                self._front,
                len(b"%d" % number),
                number,
                len(b"%d" % count),
                count,
                self._rest,
                packed_mark(),
            ),
            self._claimed,
        )

    def claim_under_way(self) -> range:
        """Numbers of the fields that a claim may have filled whose reply has not come."""
        if self.state is not _CLAIMING:
            return range(0)
        return range(self._number, self._number + self._asked)

    def _claimed(self, reply: Any) -> None:
        # In the reader.
        if self._link.commands.pipeline.lost is not None:
            return  # it stays under way: the next life looks what it has taken
        channel, self._reserved_for = self._reserved_for, None
        if isinstance(reply, Exception):
            channel.prefetch.release(self._asked)
            self._failed(reply)
            return
        number, size = self._number, 0
        for raw in reply:
            size += len(raw)
            self._deliver(raw, number)
            number += 1
        found = len(reply)
        if found:
            self._misses = max(0, self._misses - 2)
            self._poll = FIRST_POLL
        else:
            self._misses = min(self._misses + 1, MOST_MISSES)
        channel.prefetch.release(self._asked)
        if not self.is_used:
            self._move(_RESTING)
            self.retire()
        elif found == self._asked or size >= CLAIM_BYTES or self._again:
            if channel.prefetch.limit:
                self._move(_RESTING)
                channel.serve()
            else:
                self._claim()
        elif not self._link.commands.is_tracking:
            self._wait_for_poll()
        else:
            self._ask()
        if channel.prefetch.limit:
            channel.serve()

    def _deliver(self, raw: bytes, number: int) -> None:
        link = self._link
        consumer = self._turns.take()
        field = f"{link.commands.prefix}{number}"
        if consumer is None:
            # It was cancelled meanwhile: back to where it was, and nobody has seen it.
            link.answers.return_unseen(Delivery(None, field, number, raw, self.queue))
            return
        self._hand_over(
            consumer, Delivery(consumer.channel, field, number, raw, self.queue, consumer)
        )

    def _hand_over(self, consumer: Consumer, delivery: Delivery) -> None:
        consumer.channel.deliveries.hold(consumer, delivery)
        if self._link.forgets:
            self._link.answers.forget(delivery)
        consumer.hand_over(delivery, delivery)
        if consumer.is_parked and consumer.has_room():
            self._turns.add(consumer)

    # -- fan-out

    def broadcast(self, raw: bytes, number: int) -> None:
        """A message of fan-out came for this queue.  In the reader."""
        field = f"fanout.{self._link.commands.owner}.{number}"
        message = Delivery(None, field, number, raw, self.queue, is_broadcast=True)
        self._fanned.append(message)
        self._serve_fanned()
        if len(self._fanned) > FANNED:
            self._fanned.popleft()
            self._link.waking.overflowed(self.queue)

    def broadcast_again(self, message: Delivery) -> None:
        """A message of fan-out was given back: it is next again."""
        message.is_repeated = True
        self._fanned.appendleft(message)
        self._serve_fanned()

    def _serve_fanned(self) -> None:
        while self._fanned:
            consumer = self._turns.take()
            if consumer is None:
                return
            message = self._fanned.popleft().given_to(consumer)
            self._hand_over(consumer, message)

    # -- asking

    def _ask(self) -> None:
        self._move(_ASKING)
        self._link.commands.pipeline.post(self._exists, self._told)

    def _told(self, reply: Any) -> None:
        # In the reader.
        if isinstance(reply, Exception):
            self._failed(reply)
            return
        if not self.is_used:
            self._move(_RESTING)
            self.retire()
            return
        self._move(_ARMED)
        if reply:
            self._link.waking.found += 1
            self.pushed()

    def _wait_for_poll(self) -> None:
        interval = self._link.commands.options.polling_interval
        if interval is None:
            interval = self._poll
            self._poll = min(2 * self._poll, LONGEST_POLL)
        self._wait(interval)

    def _failed(self, reply: Exception) -> None:
        """A command failed: the link is gone, or the server refuses."""
        link = self._link
        if link.commands.pipeline.lost is not None:
            return
        self._move(_RESTING)
        if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
            # Somebody has flushed the scripts: send this one again, with its text.
            link.commands.scripts.forget()
            link.commands.pipeline.post(pack("SCRIPT", "LOAD", CLAIM.text), self._loaded)
            return
        error = link.commands.pipeline.error(reply, f"consuming from queue {self.queue!r}")
        if link.lost is None:
            link.waking.refused(self, error)

    def _loaded(self, reply: Any) -> None:
        # In the reader.
        if isinstance(reply, Exception):
            self._failed(reply)
        elif self.state is _RESTING:
            self._claim()
