"""Invalidation messages of the server, and the safety poll.

An invalidation message names a key that was changed after we had read it (Redis, *Client-side
caching*).  For the lists of a queue that is a hint to its source; for the declaration of a queue, to
what is known of it.  Keys have no database in them, and other causes exist (expiry, a foreign pop): a
hint is only a hint, the claim decides.

A push may get lost (a server's limit of tracked keys, a proxy in between), but nothing waits for ever:
sources of empty queues also look every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from random import uniform
from typing import Any, Final

from greenconn.green.supervisor import spawn
from greenconn.green.ticker import Ticker
from greenconn.transport.redis.claiming import RedisSource, WatchState
from greenconn.transport.redis.commands import Commands
from greenconn.wire.resp import pack

logger = logging.getLogger("greenconn.transport.redis")

#: Seconds between two safety looks.
SAFETY: Final = (5.0, 10.0)
#: Queues that one EXISTS asks for.
PAGE: Final = 250


class Invalidations:
    """The receiver of the invalidation messages of one connection.

    Arguments:
        commands: of the link.
        changed: called with a key that is no list of a feed and has changed; None: all may have.

    Attributes:
        found: how often an empty queue turned out not to be empty without a push.
    """

    def __init__(self, commands: Commands, changed: Callable[[bytes | None], None]) -> None:
        self._commands = commands
        self._changed = changed
        self.found = 0
        self._sources: dict[bytes, RedisSource] = {}
        self._ticker: Ticker | None = None
        self._has_warned = False
        self._overflowed: set[str] = set()

    def add(self, source: RedisSource) -> None:
        """Pass hints on to *source*."""
        for key in source.lists:
            self._sources[key] = source
        if self._ticker is None and self._commands.is_tracking:
            self._ticker = Ticker(uniform(*SAFETY), self._check_armed, "redis-safety")
            self._ticker.start()
        if not self._commands.is_tracking and not self._has_warned:
            self._has_warned = True
            spawn(
                "log",
                logger.warning,
                "%s cannot notify of new messages (this needs Redis 6 and RESP3): polling",
                self._commands.where,
                extra={"connection": self._commands.where},
            )

    def discard(self, source: RedisSource) -> None:
        """Pass on no more; those of the queue's next source stay."""
        for key in source.lists:
            if self._sources.get(key) is source:
                del self._sources[key]

    def stop(self) -> None:
        """Stop, as the link has ended."""
        self._sources.clear()
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def take(self, keys: list[bytes] | None) -> None:
        """Handle that *keys* have changed; None: all may have.  In the reader."""
        if keys is None:
            for source in list(self._sources.values()):
                source.pushed()
            self._changed(None)
            return
        for key in keys:
            found = self._sources.get(key)
            if found is not None:
                found.pushed()
            else:
                self._changed(key)

    def overflowed(self, queue: str) -> None:
        """Note that a fan-out message was dropped, as nothing took it.  In the reader."""
        if queue not in self._overflowed:
            self._overflowed.add(queue)
            spawn(
                "log",
                logger.error,
                "%s: queue %r gets more fan-out messages than its consumers handle: the oldest "
                "are dropped",
                self._commands.where,
                queue,
                extra={"connection": self._commands.where, "queue": queue},
            )

    def _check_armed(self, lag: float) -> None:
        # In the hub.
        armed = {each for each in self._sources.values() if each.state is WatchState.ARMED}
        rest = iter(armed)
        while page := list(islice(rest, PAGE)):
            keys = [key for each in page for key in each.lists]
            self._commands.pipeline.post(
                pack(b"EXISTS", *keys),
                lambda reply, page=page: _checked(reply, page),  # type: ignore[misc]
            )


def _checked(reply: Any, page: list[RedisSource]) -> None:
    # In the reader.
    if isinstance(reply, int) and reply:
        for source in page:
            source.check()
