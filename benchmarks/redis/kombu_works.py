"""kombu on Redis, in a process that gevent has patched."""

from __future__ import annotations

from typing import Any

import kombu
import kombu.pools

from benchmarks.clock import Clock, Figures, p50
from benchmarks.redis.kombu_api import RedisApi
from benchmarks.redis.stage import Stage
from benchmarks.rivals.kombu_api import drain, latencies
from benchmarks.rivals.shape import CONSUMERS, TIMEOUT


class Works(RedisApi):
    """The works of kombu, where a connection is one greenlet's at a time."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(kombu, url, stage)

    def publish_many(self, count: int) -> Figures:
        """A pool of 10: greenlets cannot share a connection."""
        return self.publish_pool(count)

    def idle(self, count: int) -> Figures:
        """The same, and nothing comes for *count* seconds."""

        def work(connection: Any) -> Clock:
            with Clock() as clock:
                drain(connection, count)
            return clock

        sources = self.stage.sources(CONSUMERS)
        figures = self._consuming(sources, print, work).per(1)
        return {**figures, "core": 100 * figures["cpu"] / figures["wall"]}

    def latency(self, count: int) -> Figures:
        """A consumer that drains."""
        (source,) = self.stage.sources(1)
        took, callback = latencies()
        ticker = self.stage.peer("tick", str(count), source)

        def work(connection: Any) -> Clock:
            with Clock() as clock:
                self.stage.go(ticker)
                while len(took) < count:
                    connection.drain_events(timeout=TIMEOUT)
            return clock

        return self._consuming([source], callback, work).per(count, p50=p50(took))
