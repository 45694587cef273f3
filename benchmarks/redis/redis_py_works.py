"""redis-py by hand: lists, one command after the other, nothing that a crash would give back."""

from __future__ import annotations

import json
from base64 import b64decode
from time import monotonic_ns, perf_counter
from typing import Any

import redis

from benchmarks.clock import Clock, Figures, p50, p99
from benchmarks.redis.envelopes import envelope
from benchmarks.redis.kombu_api import PUBLISHERS
from benchmarks.redis.stage import Stage
from benchmarks.rivals.kombu_api import many
from benchmarks.rivals.shape import CONSUMERS, TIMEOUT
from benchmarks.stage import BODY

#: Connections that greenlets share.
POOL = 10


class Works:
    """The works of redis-py."""

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage
        pool = redis.BlockingConnectionPool.from_url(url, max_connections=POOL, timeout=TIMEOUT)
        self._client: Any = redis.Redis(connection_pool=pool)
        self._sink = ""

    def close(self) -> None:
        """End its connections."""
        self._client.connection_pool.disconnect()

    def publish(self, count: int) -> Figures:
        """LPUSH."""
        self._sink = self.stage.sink()
        self._push()
        with Clock() as clock:
            for _ in range(count):
                self._push()
        return clock.per(count)

    def publish_many(self, count: int) -> Figures:
        """The same: the client has no other way."""
        return self.publish_pool(count)

    def publish_pool(self, count: int) -> Figures:
        """1,000 greenlets and a pool of 10 connections."""
        self._sink = self.stage.sink()
        took: list[float] = []

        def push() -> None:
            began = perf_counter()
            self._push()
            took.append(perf_counter() - began)

        many(POOL, POOL, self._push)  # connects
        with Clock() as clock:
            count = many(PUBLISHERS, count, push)
        return clock.per(count, p99=p99(took))

    def consume(self, count: int) -> Figures:
        """RPOP, and nothing to answer."""
        source = self.stage.source(count)
        with Clock() as clock:
            for _ in range(count):
                _body(self._client.rpop(source))
        return clock.per(count)

    def queues(self, count: int) -> Figures:
        """One BRPOP for all queues."""
        sources = self.stage.sources(CONSUMERS)
        awaited = max(1, count // CONSUMERS) * CONSUMERS
        feeder = self.stage.peer("feed", str(awaited // CONSUMERS), *sources)
        with Clock() as clock:
            self.stage.go(feeder)
            for _ in range(awaited):
                _body(self._client.brpop(sources, TIMEOUT)[1])
        return clock.per(awaited)

    def latency(self, count: int) -> Figures:
        """BRPOP."""
        (source,) = self.stage.sources(1)
        ticker = self.stage.peer("tick", str(count), source)
        took = []
        with Clock() as clock:
            self.stage.go(ticker)
            for _ in range(count):
                body = _body(self._client.brpop(source, TIMEOUT)[1])
                took.append((monotonic_ns() - body["sent"]) / 1e9)
        return clock.per(count, p50=p50(took))

    def _push(self) -> None:
        self._client.lpush(self._sink, envelope(BODY, self._sink))


def _body(raw: bytes) -> Any:
    return json.loads(b64decode(json.loads(raw)["body"]))
