"""The lease of one link on what it holds.

Each life of a connection is an *owner*.  Every third of the lease it tells the server that it lives:
``greenconn.owners`` gets the time at which the lease ends (the time that the sweepers count, see
``sweeper``), and what is held gets a new mark in ``unacked_index``, so that it looks fresh to kombu's
consumers too.  Nothing else keeps a message from being given back to its queue, so a handler may run
for as long as it likes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.blocking_monitor import tell_blocked
from greenconn.green.deadline import Deadline
from greenconn.green.single import SingleFlight
from greenconn.green.supervisor import spawn
from greenconn.green.ticker import Ticker
from greenconn.transport.redis.clock import mark
from greenconn.transport.redis.scripts import CANARY, CLAIM, MOVE, RENEW
from greenconn.wire.resp import ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Lease"]

logger = logging.getLogger("greenconn.transport.redis")

#: Fields that one call renews.
RENEWALS: Final = 500


class Lease:
    """Renews what one link holds.

    Attributes:
        is_held: messages may be taken.
        lost: answers that came too late: the message had been given back before.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self.is_held = False
        self.lost = 0
        #: The field of the message that tries the permissions, while it may be there.
        self.canary: str | None = None
        self._flight = SingleFlight("redis-lease")
        self._ticker: Ticker | None = None

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self._link.options.lease

    @property
    def interval(self) -> float:
        """Seconds between renewals."""
        return min(self.seconds / 3, self._link.options.visibility_timeout / 4)

    def begin(self, deadline: Deadline) -> None:
        """See that messages may be taken: all scripts and permissions are tried once.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses; names what.
        """
        if not self.is_held:
            self._flight.run("begin", self._begin, deadline)

    def _begin(self) -> None:
        link = self._link
        keys, scripts = link.keys, link.scripts
        canary = f"{link.keys.prefix}greenconn.canary.{link.owner}".encode()
        held = (keys.unacked, keys.unacked_index)
        field = self.canary = f"{link.prefix}0"
        scripts.forget()  # what failed before was not remembered by the server
        commands = [
            scripts.call(CANARY, (canary,)),
            self._renewal([]),
            scripts.call(CLAIM, (*held, canary), link.prefix, 0, 1, 1, ', "", ""]', mark()),
            scripts.call(MOVE, (*held, keys.owners), "", 0),
            pack("HDEL", keys.unacked, field),
            pack("ZREM", keys.unacked_index, field),
            pack("HMGET", keys.unacked, field),
            pack("EXISTS", canary),
            pack("RPOP", canary),  # to a script a refusal looks like an empty list
        ]
        try:
            link.call_all(commands, what="consuming")
            link.check_open()  # it may have ended behind the replies
        finally:
            if link.lost is None:
                self.canary = None
        self.is_held = True
        self.begin_alive()

    def begin_alive(self) -> None:
        """See that others know this owner as living, though it takes no messages.  Never switches."""
        if self._ticker is None:
            self._link.pipeline.post(self._renewal([]), self._on_renewed)
            self._ticker = Ticker(self.interval, self._tick, "redis-lease")
            self._ticker.start()
            self._link.sweeper.start()

    @property
    def is_known(self) -> bool:
        """Whether others may know this owner as living."""
        return self._ticker is not None

    def end(self) -> None:
        """Tell the server that this owner holds nothing any more.  Never switches."""
        if self._ticker is not None:
            self.stop()
            self._link.pipeline.post(pack("ZREM", self._link.keys.owners, self._link.owner))

    def stop(self) -> None:
        """Renew no more.  Never switches."""
        self.is_held = False
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def note_answer(self, reply: Any, sent: int) -> None:
        """The server's reply to *sent* answers was not as it should be.  In the reader."""
        link = self._link
        if isinstance(reply, ErrorReply):
            error = link.pipeline.error(reply, "answering")
            if link.lost is None:
                spawn("log", logger.error, "%s: %d answers must wait: %s", link.where, sent, error)
        elif not isinstance(reply, Exception):
            late = sent - max(int(reply), 0)
            self.lost += late
            spawn("lease-lost", self._tell, late)

    def _tell(self, late: int) -> None:
        logger.warning(
            "%s: %d answers came too late: the lease of %g s had ended, and the messages were given "
            "back to their queues, so they are or will be handled once more (lease_lost)",
            self._link.where,
            late,
            self.seconds,
        )
        for channel in list(self._link.channels.values()):
            for handler in list(channel.events.get("lease_lost", ())):
                handler(late)

    def _renewal(self, fields: list[str]) -> bytes:
        link = self._link
        keys = (link.keys.owners, link.keys.unacked_index)
        # The time that is counted may be behind by what lies between two looks of the sweepers.
        lasts_ms = int((self.seconds + link.sweeper.interval) * 1000)
        return link.scripts.call(RENEW, keys, link.owner, lasts_ms, mark(), *fields)

    def _tick(self, lag: float) -> None:
        # In the hub.
        if lag > self.interval:
            tell_blocked(logger, self._link.where, lag, self.interval)
        fields = [each.delivery_tag for each in self._link.held() if each.is_held]
        for start in range(0, max(len(fields), 1), RENEWALS):
            self._link.pipeline.post(
                self._renewal(fields[start : start + RENEWALS]), self._on_renewed
            )
        self._link.answers.repeat()
        self._link.directory.renew()

    def _on_renewed(self, reply: Any) -> None:
        if isinstance(reply, ErrorReply):
            if reply.code == "NOSCRIPT":
                self._link.scripts.forget()  # somebody has flushed them
                self._tick(0.0)
                return
            error = self._link.pipeline.error(reply, "renewing leases")
            if self._link.lost is None:
                spawn("log", logger.error, "%s", error)
