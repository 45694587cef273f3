"""What one life of a connection leaves to the next.

A connection may be lost between an answer and the server's reply to it, and with messages in the
hands of handlers.  What was answered is answered again in the next life, which changes nothing where
it had arrived; what was not goes back to its queue at once, as a broker of AMQP does it, instead of
waiting for the end of the lease.  Until then an answer may still come.

Nothing here switches but ``settle``.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from greenconn.transport.redis.answers import ACKS, parted
from greenconn.transport.redis.restoring import carry_out, restore
from greenconn.transport.redis.returning import Move
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Handover"]

logger = logging.getLogger("greenconn.transport.redis")


class Handover:
    """Held messages of former lives, and what was answered."""

    def __init__(self) -> None:
        self._held: dict[str, None] = {}
        self._acks: dict[str, None] = {}
        self._moves: list[Move] = []
        #: Those of them that the server may still take for living.
        self._leased: list[str] = []
        #: Queues that listened to fan-out exchanges, and when that ended.
        self._listened: dict[str, float] = {}

    def gap(self, queue: str) -> float | None:
        """Seconds since a queue last listened in a former life; None: it did not.  Once."""
        since = self._listened.pop(queue, None)
        return None if since is None else monotonic() - since

    def take(self, link: RedisLink) -> None:
        """The life of *link* is over."""
        acks, moves = link.answers.unsettled()
        self._acks.update(dict.fromkeys(acks))
        self._moves += moves
        answered = self._acks.keys() | {move.field for move in moves}
        fields = [each.delivery_tag for each in link.held() if each.is_held]
        for feed in link.feeds.values():
            fields += [f"{link.prefix}{number}" for number in feed.claim_under_way()]
        fields += [f"{link.prefix}{number}" for number in link.gets]
        if link.lease.canary is not None:
            self._acks[link.lease.canary] = None
        self._held.update((each, None) for each in fields if each not in answered)
        self._listened.update(dict.fromkeys(link.fanout.queues, monotonic()))
        if link.lease.is_known:
            self._leased.append(link.owner)

    def ack(self, field: str) -> None:
        """A message of a former life is done after all."""
        if field in self._held:
            del self._held[field]
            self._acks[field] = None

    def settle(self, link: RedisLink) -> None:
        """Answer and give back everything over *link*.  May switch.

        What was not done when the link is lost stays for the next one.
        """
        self._settle(link)
        if self._leased:
            # Only now: who has no lease is nobody's consumer, and others give back what he holds.
            link.call(pack(b"ZREM", link.keys.owners, *self._leased), what="ending leases")
            self._leased.clear()

    def _settle(self, link: RedisLink) -> None:
        if not (self._held or self._acks or self._moves):
            return
        keys = link.keys
        acks = list(self._acks)
        for start in range(0, len(acks), ACKS):
            page = acks[start : start + ACKS]
            link.call_all(
                [pack(b"HDEL", keys.unacked, *page), pack(b"ZREM", keys.unacked_index, *page)],
                what="answering",
            )
            for field in page:
                self._acks.pop(field, None)
        moves = self._moves
        moves.sort(key=lambda move: move.number, reverse=True)
        for part in parted(moves):
            carry_out(link, part)
            del moves[: len(part)]
        fields = list(self._held)
        count = restore(link, fields)
        for field in fields:
            self._held.pop(field, None)
        if count:
            logger.info(
                "%s: %d messages that the lost connection held were given back", link.where, count
            )
