"""What one link tells the server of the messages that it holds.

Each life of a connection is an *owner*.  With each renewal it tells the server that it lives:
``greenconn.owners`` gets the time at which its lease ends (the time that the sweepers count, see
``sweeper``), and what is held gets a new mark in ``unacked_index``, so that it looks fresh to kombu's
consumers too.

What goes back in one turn goes back in the order in which it was taken, so that the oldest is next
again, whatever the order of the calls was.

What the server refuses (it cannot write to its disk, a right was taken away) stays held, though nobody
has it any more: it is told again whenever the lease is renewed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from greenconn.broker.holding import Disposition, Done, HeldMessage
from greenconn.broker.port import Claimed, Settlement
from greenconn.transport.redis.clock import mark
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.moves import (
    move_arguments,
    move_of,
    number_of,
    parted,
)
from greenconn.transport.redis.permissions import CANARY_NUMBER
from greenconn.transport.redis.restoring import restore
from greenconn.transport.redis.scripts import MOVE, RENEW
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["RedisHolding"]

logger = logging.getLogger("greenconn.transport.redis")


class RedisHolding:
    """See :class:`~greenconn.broker.holding.Holding`."""

    __slots__ = ("_link",)

    ack_limit = 500
    keeps_unreadable = True
    outlives_link = True

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    @property
    def lease(self) -> float:
        """Seconds that a message is held without renewal."""
        return self._link.options.lease

    @property
    def renewal_interval(self) -> float:
        """Seconds between two renewals."""
        options = self._link.options
        return min(options.lease / 3, options.visibility_timeout / 4)

    def ack(self, handles: Sequence[Any], done: Done) -> None:
        """Tell that messages were handled.  Never switches."""
        pipeline, keys = self._link.pipeline, self._link.keys
        removed: list[Any] = []
        count = len(handles)

        def unlisted(reply: Any) -> None:
            # In the reader.  Only now: else a cut between the two would leave an entry.
            if pipeline.lost is None:
                done(None if removed[0] == count else _outcome(removed[0], count))

        pipeline.post(pack(b"HDEL", keys.unacked, *handles), removed.append)
        pipeline.post(pack(b"ZREM", keys.unacked_index, *handles), unlisted)

    def parts(self, dispositions: Sequence[Disposition]) -> Iterable[Sequence[Disposition]]:
        """Cut what one turn has brought into what one call of the script takes.

        The newest come first: each goes to the head, before those that were put there already.
        """
        sized = sorted(map(_Sized, dispositions), key=_number, reverse=True)
        return [[each.disposition for each in part] for part in parted(sized)]

    def settle(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them.  Never switches."""
        link = self._link
        moves = [move_of(link, each) for each in dispositions]

        def moved(reply: Any) -> None:
            # In the reader.
            if link.pipeline.lost is None:
                done(_outcome(reply, len(moves)))

        keys, *args = move_arguments(link, moves)
        link.post_script(MOVE, keys, *args, done=moved)
        # What goes back may come here again, where there is room.
        for queue in {each.message.queue for each in dispositions if _goes_back(each)}:
            feed = link.feeds.get(queue)
            if feed is not None:
                feed.hint()

    def return_unheld(self, delivery: Delivery) -> None:
        """Put back a delivery that nobody holds.  Never switches."""
        link = self._link
        if delivery.is_broadcast:
            feed = link.feeds.get(delivery.queue)
            if feed is not None and feed.consumers:
                feed.broadcast_again(delivery)
            return
        for key, raw in move_of(link, Disposition(delivery, Settlement.BACK)).copies:
            link.pipeline.post(pack(b"RPUSH", key, raw))

    def put_off(self, message: HeldMessage) -> None:
        """Leave a message held, until the lease is renewed."""

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        link = self._link

        def renewed(reply: Any) -> None:
            # In the reader.
            if link.pipeline.lost is None:
                done(reply if isinstance(reply, Exception) else None)

        keys, *args = self._renewal(handles)
        link.post_script(RENEW, keys, *args, done=renewed)
        link.directory.renew()

    def renewal(self) -> bytes:
        """Return the command that says that this owner lives."""
        keys, *args = self._renewal(())
        return self._link.scripts.call(RENEW, keys, *args)

    def _renewal(self, handles: Sequence[Any]) -> tuple[Any, ...]:
        """Return keys and arguments of the script that says that this owner lives, and holds these."""
        link = self._link
        keys = (link.keys.owners, link.keys.unacked_index)
        # The time that is counted may be behind by what lies between two looks of the sweepers.
        lasts_ms = int((link.options.lease + link.sweeper.interval) * 1000)
        return keys, link.owner, lasts_ms, mark(), *handles

    def doubtful(self) -> Iterable[HeldMessage]:
        """Return what claims may have taken whose answers never came.  Never switches."""
        link = self._link
        numbers = [*link.gets, *(n for feed in link.feeds.values() for n in feed.claim_under_way())]
        if link.permissions.is_trying:
            numbers.append(CANARY_NUMBER)
        return [Claimed("", None, f"{link.prefix}{number}") for number in numbers]

    def reclaim(self, held: Sequence[HeldMessage], doubtful: Sequence[HeldMessage]) -> None:
        """Give back what former lives held, and what they may have.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses.
        """
        link = self._link
        count = restore(link, [each.handle for each in (*held, *doubtful)])
        if count:
            logger.info(
                "%s: %d messages that the lost connection held were given back", link.where, count
            )

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run.  Never switches."""
        self._link.pipeline.writer.before_flush(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception for a reply that is one; what ends the link ends it.  Never switches."""
        return self._link.pipeline.error(outcome, what)

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since nobody can tell what it was told.  Never switches."""
        self._link.pipeline.interrupted(exc)


class _Sized:
    """A disposition and about how many bytes it moves."""

    __slots__ = ("disposition", "number", "size")

    def __init__(self, disposition: Disposition) -> None:
        message, settlement, _, entries, _ = disposition
        copies = 1 if settlement is Settlement.BACK else len(entries)
        self.disposition = disposition
        self.number = number_of(message.handle)
        self.size = len(message.raw) * copies


def _number(sized: _Sized) -> int:
    return sized.number


def _goes_back(disposition: Disposition) -> bool:
    return disposition.settlement is Settlement.BACK


def _outcome(reply: Any, told: int) -> Any:
    """Return None, how many of the messages were not held any more, or the server's error."""
    if reply == told:
        return None
    return reply if isinstance(reply, Exception) else told - max(int(reply), 0)
