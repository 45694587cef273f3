"""Claims: as many jobs of each tube as its consumers have room for, and all tubes in turn.

beanstalkd hands out the oldest job of all watched tubes, so one tube with many would keep all others
waiting, and how many come from each cannot be known beforehand.  So tubes that had more the last time
(*hot* ones) are each watched alone for a moment, in turn, over the command connection, with no more
``reserve`` than there is room.  All others are watched together by the connection that waits; the first
job of a tube makes it hot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from gevent.event import Event

from greenconn.transport.beanstalk.commands import CommandConnection, Taken
from greenconn.transport.beanstalk.reserving import ReserveConnection
from greenconn.wire.beanstalk import Reply

__all__ = ["Claiming"]

Reserved = tuple[Reply, Callable[..., None]]


class Claiming:
    """The claims of one link.

    Arguments:
        waiting: return the connection that waits; the same at each call.  May switch.
        limit: jobs that one claim takes.
    """

    def __init__(
        self, server: CommandConnection, waiting: Callable[[], ReserveConnection], limit: int
    ) -> None:
        self._server = server
        self._waiting = waiting
        self._limit = limit
        #: Tubes that may have more, those that were served longest ago first.
        self._hot: dict[bytes, None] = {}
        #: Something else is wanted than the claim that is under way knows.
        self._is_stale = False
        #: The claim that is under way is over.
        self._is_over = Event()
        self._is_over.set()

    def interrupt(self) -> None:
        """Make a claim that waits, or is about to, return.  Never switches."""
        self._is_stale = True

    def wait_over(self) -> None:
        """Wait for the end of a claim that is under way.  May switch."""
        self._is_over.wait()

    def claim(self, wanted: Mapping[bytes, int], seconds: float) -> Sequence[Taken]:
        """Reserve jobs; see :meth:`Store.claim`.  May switch."""
        server = self._server
        if seconds <= 0:
            server.pipeline.pass_gate()
            taken = server.take(wanted.items())
            return server.describe([(each, server.pipeline.post) for each in chain(*taken)])
        self._is_stale = False
        self._is_over = is_over = Event()
        try:
            return self._wait(wanted, seconds)
        finally:
            is_over.set()

    def _wait(self, wanted: Mapping[bytes, int], seconds: float) -> Sequence[Taken]:
        """Take from the hot tubes, look at the others, and wait where there was nothing."""
        server, waiting = self._server, self._waiting()
        server.pipeline.pass_gate()
        hot = [tube for tube in self._hot if tube in wanted]
        found = self._take_hot(hot, wanted)
        if hot:
            cold = wanted.keys() - self._hot.keys()
            if cold:
                waiting.watch(cold)
                self._add(found, waiting, 0)
        if not found and not self._is_stale:
            waiting.watch(wanted)
            self._add(found, waiting, seconds)
        described = server.describe(found)
        for each in described:
            if each.job.post == waiting.post:
                self._hot.setdefault(each.tube)
        return described

    def _take_hot(self, hot: list[bytes], wanted: Mapping[bytes, int]) -> list[Reserved]:
        """Take from the hot tubes, each its share; who gives less than was asked for is hot no more."""
        if not hot:
            return []
        share = max(self._limit // len(hot), 1)
        shares = [(tube, min(wanted[tube], share)) for tube in hot[: self._limit]]
        found: list[Reserved] = []
        for (tube, count), replies in zip(shares, self._server.take(shares), strict=True):
            self._hot.pop(tube, None)
            if len(replies) == count:
                self._hot[tube] = None
            found += [(each, self._server.pipeline.post) for each in replies]
        return found

    def _add(self, found: list[Reserved], waiting: ReserveConnection, seconds: float) -> None:
        reply = waiting.reserve(seconds)
        if reply is not None:
            found.append((reply, waiting.post))
