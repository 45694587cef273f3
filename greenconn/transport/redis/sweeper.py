"""Giving back what dead consumers held, independent of what else goes on.

Every consuming link has a sweeper.  Each fifth of a lease (of the ``visibility_timeout`` where that is
shorter) one of them gets the lock, and looks at the entries of ``unacked_index`` that have had no sign
of life for that long:

- of an owner whose lease has ended: they go back to the heads of their queues.  The script asks once
  more whether the owner lives, so one that was slow and came back keeps what it has.
- of another kind of client (kombu): they go back after ``visibility_timeout``, as with kombu.

So what a consumer held that was killed is in its queue again after 0.7 to 1.2 leases.
"""

from __future__ import annotations

import logging
from random import uniform
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import Greenlet
from redis.exceptions import OutOfMemoryError

from greenconn.green.supervisor import spawn
from greenconn.transport.redis.clock import server_time
from greenconn.transport.redis.restoring import restore
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["Sweeper"]

logger = logging.getLogger("greenconn.transport.redis")

#: Looks in one lease.
LOOKS: Final = 5
#: Entries that are read at once.
PAGE: Final = 500


class Sweeper:
    """A greenlet that looks for messages that nobody holds any more.

    Attributes:
        restored: messages that it has given back.
        stuck: fields that stay where they are: nobody can read them, or their queue is no list.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._greenlet: Greenlet[..., Any] | None = None
        self.restored = 0
        self.stuck: set[str] = set()

    def start(self) -> None:
        """Begin.  Again: does nothing."""
        if self._greenlet is None:
            self._greenlet = spawn("redis-sweeper", self._run)

    def stop(self) -> None:
        """End.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    @property
    def interval(self) -> float:
        """Seconds between two looks of all sweepers together."""
        return self._patience / LOOKS

    @property
    def _patience(self) -> float:
        """Seconds without a sign of life after which an entry is looked at."""
        options = self._link.options
        return min(options.lease, options.visibility_timeout)

    def _run(self) -> None:
        has_failed = False
        while True:
            gevent.sleep(uniform(0.5, 1.0) * self.interval)
            try:
                if self._may_look():
                    self.look()
                has_failed = False
            except Exception as exc:
                if self._link.lost is not None:
                    return
                if not has_failed:
                    logger.error(
                        "%s: cannot look for messages of dead consumers: %s", self._link.where, exc
                    )
                has_failed = True

    def _may_look(self) -> bool:
        """Whether it is this one's turn."""
        link = self._link
        lasts_ms = max(1, int(self.interval * 900))
        lock = pack(b"SET", link.keys.sweep_lock, link.owner, b"NX", b"PX", lasts_ms)
        try:
            return bool(link.call(lock, what="sweeping") == b"OK")
        except OutOfMemoryError:
            # What it gives back is what makes room, and several may look as well as one.
            return True

    def look(self) -> int:
        """Give back what is due, and return how many messages that were.  May switch."""
        link = self._link
        limit = link.options.unacked_restore_limit
        now = server_time(link.call(pack(b"TIME"), what="sweeping"))
        oldest = now - self._patience
        skipped = count = 0
        while limit is None or count < limit:
            page = self._page(oldest, skipped, PAGE if limit is None else min(PAGE, limit - count))
            if not page:
                break
            done = self._restore_page(page, now)
            count += done
            skipped += len(page) - done  # what is not due, or cannot be given back, stays in front
        self._forget_dead(now)
        self.restored += count
        if count:
            logger.warning(
                "%s: %d messages of consumers that are gone were given back", link.where, count
            )
        return count

    def _page(self, oldest: float, start: int, size: int) -> list[tuple[str, float]]:
        index = self._link.keys.unacked_index
        flat = self._link.call(
            pack(b"ZRANGEBYSCORE", index, b"-inf", oldest, b"WITHSCORES", b"LIMIT", start, size),
            what="sweeping",
        )
        if flat and isinstance(flat[0], list):  # RESP3 has pairs
            pairs = flat
        else:
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
        return [(field.decode("utf-8", "replace"), float(score)) for field, score in pairs]

    def _restore_page(self, page: list[tuple[str, float]], now: float) -> int:
        """Give back what of *page* is due, and return how many messages that were."""
        link = self._link
        by_owner: dict[str, list[str]] = {}
        foreign = []
        for field, score in page:
            if field.startswith("gc."):
                by_owner.setdefault(field.split(".")[1], []).append(field)
            elif score <= now - link.options.visibility_timeout:
                foreign.append(field)
        done = restore(link, foreign)
        for owner in self.dead(list(by_owner), now):
            done += restore(link, by_owner[owner], owner)
        return done

    def dead(self, owners: list[str], now: float) -> list[str]:
        """Those of *owners* whose lease has ended.  May switch."""
        link = self._link
        expiries = link.call_all(
            [pack(b"ZSCORE", link.keys.owners, each) for each in owners], what="sweeping"
        )
        return [
            owner
            for owner, expiry in zip(owners, expiries, strict=True)
            if owner != link.owner and (expiry is None or float(expiry) <= now)
        ]

    def _forget_exclusive(self, name: str) -> None:
        """Delete a queue of a dead owner, unless another one was quicker to declare it."""
        link = self._link
        declared = link.directory.find(name)  # which deletes it where that owner is dead
        key = link.keys.exclusive
        if declared is None or declared.owner is None:
            link.call(pack(b"HDEL", key, name), what="sweeping")
        else:
            link.call(pack(b"HSET", key, name, declared.owner), what="sweeping")

    def _forget_dead(self, now: float) -> None:
        """Delete the exclusive queues of dead owners, then forget them."""
        link = self._link
        found = link.call(pack(b"HGETALL", link.keys.exclusive), what="sweeping")
        pairs = (
            found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        )
        queues = {
            name.decode("utf-8", "replace"): owner.decode("utf-8", "replace")
            for name, owner in pairs.items()
        }
        dead = set(self.dead(sorted(set(queues.values())), now))
        for name, owner in queues.items():
            if owner in dead:
                self._forget_exclusive(name)
        before = now - link.options.lease
        link.call(pack(b"ZREMRANGEBYSCORE", link.keys.owners, b"-inf", before), what="sweeping")
