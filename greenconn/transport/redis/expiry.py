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
from typing import Final

from gevent.event import Event
from redis.exceptions import ResponseError

from greenconn.green.supervisor import spawn
from greenconn.transport.redis.claims import Claims
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.restoring import Restorer
from greenconn.transport.redis.scripts import CLAIM_BYTES, CLAIM_COUNT, EXPIRE, entry_suffix, mark
from greenconn.wire.resp import pack

__all__ = ["Expiry"]

logger = logging.getLogger("greenconn.transport.redis")

#: Looks in one time to live, and seconds between two of them, at least.
LOOKS: Final = 20
LEAST_PAUSE: Final = 0.05


class Expiry:
    """Looks after the queues with a time to live that one link knows of.

    Arguments:
        commands: of the link.
        claims: take what has expired.
        restorer: makes dead letters of it.
    """

    def __init__(self, commands: Commands, claims: Claims, restorer: Restorer) -> None:
        self._commands = commands
        self._claims = claims
        self._restorer = restorer
        self._watched: dict[str, _Watch] = {}

    def watch(self, queue: str, seconds: float) -> None:
        """Messages of *queue* live so long.  Again: changes nothing.  Never switches."""
        known = self._watched.get(queue)
        if known is None or known.seconds != seconds:
            self.forget(queue)
            watch = _Watch(self._commands, self._claims, self._restorer, queue, seconds)
            self._watched[queue] = watch
            spawn("redis-expiry", self._run, watch)

    def watches(self, queue: str) -> bool:
        """Return whether it looks after a queue."""
        return queue in self._watched

    def forget(self, queue: str) -> None:
        """Forget a deleted queue.  Never switches."""
        watch = self._watched.pop(queue, None)
        if watch is not None:
            watch.is_over.set()

    def stop(self) -> None:
        """Stop, as the link has ended.  Never switches."""
        for queue in list(self._watched):
            self.forget(queue)

    def _run(self, watch: _Watch) -> None:
        commands = self._commands
        has_failed = False
        while not watch.is_over.is_set():
            try:
                watch.look()
                has_failed = False
            except ResponseError as exc:
                if not has_failed and commands.lost is None:
                    logger.error(
                        "%s: messages of queue %r do not expire: %s",
                        commands.where,
                        watch.queue,
                        exc,
                    )
                has_failed = True
            except Exception:
                if commands.lost is not None:
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

    def __init__(
        self,
        commands: Commands,
        claims: Claims,
        restorer: Restorer,
        queue: str,
        seconds: float,
    ) -> None:
        self._commands = commands
        self._claims = claims
        self._restorer = restorer
        self.queue = queue
        self.seconds = seconds
        self.is_over = Event()
        self._suffix = entry_suffix(queue)
        #: For each list when which message was the newest, the oldest note first.
        self._notes: dict[bytes, deque[tuple[float, bytes]]] = {
            key: deque() for key in commands.keys.lists(queue)
        }

    def look(self) -> None:
        """Note the newest messages, and give up those that have expired.  May switch."""
        self._claims.check(ENDLESS)
        newest = self._commands.call_all(
            [pack(b"LINDEX", key, 0) for key in self._notes], what="looking for expired messages"
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
        commands, claims = self._commands, self._claims
        first = claims.take_numbers(CLAIM_COUNT)
        numbers = range(first, first + CLAIM_COUNT)
        claims.under_way.update(numbers)  # the next life looks what they hold
        try:
            raws = commands.run(
                EXPIRE,
                (commands.keys.unacked, commands.keys.unacked_index, key),
                *(commands.prefix, first, CLAIM_COUNT, CLAIM_BYTES, self._suffix, mark(), last),
                what=f"looking for expired messages in queue {self.queue!r}",
            )
            moves = []
            for number, raw in zip(numbers, raws, strict=False):
                message = Delivery(None, f"{commands.prefix}{number}", number, raw, self.queue)
                moves.append(self._restorer.dead_letter_move(message, "expired"))
            self._restorer.carry_out(moves)
        finally:
            if commands.lost is None:
                claims.under_way.difference_update(numbers)
        return len(raws)
