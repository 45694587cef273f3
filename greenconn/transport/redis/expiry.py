"""Messages that have waited for the time to live of their queue (``x-message-ttl``).

A list of Redis does not tell how long an element is in it, and programs of kombu send messages without
a time.  But lists are first in, first out: which message is the newest is noted a few times in a time to
live, and when that note is as old as the time to live, this message has expired, and with it all that
are in front of it.  The notes are of this link, by its own monotonic clock: a message that was there
before the link counts from the link's first look.  So none expires early, whatever becomes of links and
clocks.

What has expired is claimed, as a consumer claims it, and becomes a dead letter; a link that is lost in
between leaves it to the lease.  Publishing and consuming do nothing for all this.
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

from gevent.event import Event
from redis.exceptions import ResponseError

from greenconn.green.supervisor import spawn
from greenconn.transport.redis.clock import mark
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.restoring import carry_out, dead_letter_move
from greenconn.transport.redis.scripts import CLAIM_BYTES, CLAIM_COUNT, EXPIRE, entry_suffix
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Expiry"]

logger = logging.getLogger("greenconn.transport.redis")

#: Looks in one time to live, and seconds between two of them, at least.
LOOKS: Final = 20
LEAST_PAUSE: Final = 0.05


class Expiry:
    """Looks after the queues with a time to live that one link knows of."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._watched: dict[str, _Watch] = {}

    def watch(self, queue: str, seconds: float) -> None:
        """Messages of *queue* live so long.  Again: changes nothing.  Never switches."""
        known = self._watched.get(queue)
        if known is None or known.seconds != seconds:
            self.forget(queue)
            watch = self._watched[queue] = _Watch(self._link, queue, seconds)
            spawn("redis-expiry", self._run, watch)

    def watches(self, queue: str) -> bool:
        """Whether it looks after a queue."""
        return queue in self._watched

    def forget(self, queue: str) -> None:
        """The queue is gone.  Never switches."""
        watch = self._watched.pop(queue, None)
        if watch is not None:
            watch.is_over.set()

    def stop(self) -> None:
        """The link is gone.  Never switches."""
        for queue in list(self._watched):
            self.forget(queue)

    def _run(self, watch: _Watch) -> None:
        link = self._link
        has_failed = False
        while not watch.is_over.is_set():
            try:
                watch.look()
                has_failed = False
            except ResponseError as exc:
                if not has_failed and link.lost is None:
                    logger.error(
                        "%s: messages of queue %r do not expire: %s", link.where, watch.queue, exc
                    )
                has_failed = True
            except Exception:
                if link.lost is not None:
                    return
                raise
            watch.is_over.wait(max(watch.seconds / LOOKS, LEAST_PAUSE))


class _Watch:
    """One queue.

    Arguments:
        seconds: the time to live.

    Attributes:
        is_over: set when nobody looks after it any more.
    """

    def __init__(self, link: RedisLink, queue: str, seconds: float) -> None:
        self._link = link
        self.queue = queue
        self.seconds = seconds
        self.is_over = Event()
        self._suffix = entry_suffix(queue)
        #: For each list when which message was the newest, the oldest note first.
        self._notes: dict[bytes, deque[tuple[float, bytes]]] = {
            key: deque() for key in link.keys.lists(queue)
        }

    def look(self) -> None:
        """Note the newest messages, and give up those that have expired.  May switch."""
        link = self._link
        link.permissions.check(ENDLESS)
        newest = link.call_all(
            [pack(b"LINDEX", key, 0) for key in self._notes], what="looking for old messages"
        )
        now = monotonic()
        for (key, notes), raw in zip(self._notes.items(), newest, strict=True):
            if raw is not None and (not notes or notes[-1][1] != raw):
                notes.append((now, raw))
            while notes and notes[0][0] + self.seconds <= now:
                _, last = notes.popleft()
                while self._give_up(key, last):
                    pass

    def _give_up(self, key: bytes, last: bytes) -> int:
        """Give up messages in a list up to *last*, and return how many that were.  May switch."""
        link = self._link
        first = link.take_numbers(CLAIM_COUNT)
        numbers = range(first, first + CLAIM_COUNT)
        link.gets.update(numbers)  # the next life looks what they hold
        try:
            raws = link.run(
                EXPIRE,
                (link.keys.unacked, link.keys.unacked_index, key),
                *(link.prefix, first, CLAIM_COUNT, CLAIM_BYTES, self._suffix, mark(), last),
                what=f"looking for old messages in queue {self.queue!r}",
            )
            moves = []
            for number, raw in zip(numbers, raws, strict=False):
                message = Delivery(None, f"{link.prefix}{number}", number, raw, self.queue)
                moves.append(dead_letter_move(link, message, "expired"))
            carry_out(link, moves)
        finally:
            if link.lost is None:
                link.gets.difference_update(numbers)
        return len(raws)
