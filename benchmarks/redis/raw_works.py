"""The limit on Redis: blocking loops by hand on commands that were encoded before."""

from __future__ import annotations

import json
from base64 import b64decode
from time import monotonic_ns

from benchmarks.clock import Clock, Figures, p50
from benchmarks.redis.envelopes import envelope
from benchmarks.redis.line import Line, command
from benchmarks.redis.stage import Stage
from benchmarks.rivals.shape import CONSUMERS, PREFETCH
from benchmarks.stage import BODY


class Works:
    """The works of the raw loop: 100 commands in one send, replies that are counted."""

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage
        self._line = Line(url)

    def close(self) -> None:
        """End the connection."""
        self._line.close()

    def publish(self, count: int) -> Figures:
        """LPUSH."""
        sink = self.stage.sink()
        return self._repeat(count, command("LPUSH", sink, envelope(BODY, sink)), 1)

    def publish_many(self, count: int) -> Figures:
        """The same: it has no greenlets."""
        return self.publish(count)

    def publish_pool(self, count: int) -> Figures:
        """The same: it needs no pool."""
        return self.publish(count)

    def consume(self, count: int) -> Figures:
        """RPOP."""
        return self._repeat(count, command("RPOP", self.stage.source(count + PREFETCH)), 2)

    def _repeat(self, count: int, request: bytes, lines: int) -> Figures:
        line, batch = self._line, request * PREFETCH
        turns = max(1, count // PREFETCH)
        with Clock() as clock:
            for _ in range(turns):
                line.send(batch)
                line.lines(lines * PREFETCH)
        figures = clock.per(turns * PREFETCH)
        return {**figures, "p99": figures["wall"] * PREFETCH / 1e3}

    def queues(self, count: int) -> Figures:
        """RPOP from each queue in turn, when all have been filled."""
        sources = self.stage.sources(CONSUMERS)
        each = max(1, count // CONSUMERS)
        for source in sources:
            self.stage.client.lpush(source, *[envelope(BODY, source) for _ in range(each)])
        batches = [
            b"".join(command("RPOP", source) for source in sources[at : at + PREFETCH])
            for at in range(0, CONSUMERS, PREFETCH)
        ]
        with Clock() as clock:
            for _ in range(each):
                for batch in batches:
                    self._line.send(batch)
                    self._line.lines(2 * PREFETCH)
        return clock.per(each * CONSUMERS)

    def latency(self, count: int) -> Figures:
        """BRPOP."""
        (source,) = self.stage.sources(1)
        ticker = self.stage.peer("tick", str(count), source)
        request = command("BRPOP", source, 60)
        took = []
        with Clock() as clock:
            self.stage.go(ticker)
            for _ in range(count):
                self._line.send(request)
                raw = self._line.lines(5).splitlines()[4]
                body = json.loads(b64decode(json.loads(raw)["body"]))
                took.append((monotonic_ns() - body["sent"]) / 1e9)
        return clock.per(count, p50=p50(took))
