"""greenconn: kombu's API, and what it has of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from gevent.event import Event

import greenconn
import greenconn.pools
from benchmarks.clock import Clock, Figures, p50
from benchmarks.memory import Growth
from benchmarks.rivals.kombu_api import KombuApi, latencies, many
from benchmarks.rivals.shape import CALLERS, CONSUMERS, PREFETCH, TIMEOUT
from benchmarks.stage import BODY, Stage
from greenconn import spawn_consumer

#: Measurements of each handler that ``typed`` compares.
TURNS: Final = 5


@dataclass
class Body:
    """The body of the stage."""

    number: int
    name: str
    tags: list[str]
    padding: str


class Works(KombuApi):
    """The works of greenconn, in a process that is not patched."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(greenconn, url, stage)

    def confirmed_shared(self, count: int) -> Figures:
        """100 greenlets share one producer."""
        sink = self.stage.sink()
        with self._confirming() as connection:
            producer = connection.Producer()
            with Clock() as clock:
                count = many(CALLERS, count, lambda: producer.publish(BODY, routing_key=sink))
        return clock.per(count)

    def consumers(self, count: int) -> Figures:
        """1,000 times ``spawn_consumer`` on one connection."""
        sources = self.stage.sources(CONSUMERS)
        counter = Counter(max(1, count // CONSUMERS) * CONSUMERS)
        feeder = self.stage.peer("feed", str(counter.awaited // CONSUMERS), *sources)
        with greenconn.Connection(self.url) as connection:

            def consume(queue: str) -> None:
                consumer = spawn_consumer(queue, counter.handler, connection=connection)
                consumer.wait_ready(TIMEOUT)

            consume(sources[0])  # what the first one loads is not counted
            with Growth() as growth:
                for source in sources[1:]:
                    consume(source)
            with Clock() as clock:
                self.stage.go(feeder)
                counter.wait()
            greenconn.stop_consumers(TIMEOUT)
        return clock.per(counter.awaited, memory=growth.per(CONSUMERS - 1))

    def spawned(self, count: int) -> Figures:
        """Handlers in 100 greenlets."""
        source, counter = self.stage.source(count), Counter(count)
        with greenconn.Connection(self.url) as connection:
            with Clock() as clock:
                spawn_consumer(
                    source,
                    counter.handler,
                    connection=connection,
                    concurrency=CALLERS,
                    prefetch_count=PREFETCH,
                )
                counter.wait()
            greenconn.stop_consumers(TIMEOUT)
        return clock.per(count)

    def typed(self, count: int) -> Figures:
        """A handler that gets a dataclass, in turn with one that makes it by hand."""
        typed: list[float] = []
        by_hand: list[float] = []
        with greenconn.Connection(self.url) as connection:
            for turn in range(2 * TURNS):
                source, counter = self.stage.source(count), Counter(count)
                took, handler = (by_hand, counter.by_hand) if turn % 2 else (typed, counter.typed)
                with Clock() as clock:
                    spawn_consumer(source, handler, connection=connection, prefetch_count=PREFETCH)
                    counter.wait()
                greenconn.stop_consumers(TIMEOUT)
                took.append(clock.per(count)["cpu"])
        return {"cpu": median(typed), "ratio": median(typed) / median(by_hand)}

    def rpc(self, count: int, greenlets: int = 1) -> Figures:
        """``greenconn.rpc.call``."""
        requests = self.stage.server()
        with greenconn.Connection(self.url) as connection:

            def call() -> None:
                greenconn.rpc.call(requests, BODY, connection=connection)

            call()
            with Clock() as clock:
                count = many(greenlets, count, call)
        return clock.per(count)

    def rpc_shared(self, count: int) -> Figures:
        """100 callers."""
        return self.rpc(count, greenlets=CALLERS)

    @contextmanager
    def _publishing(self) -> Iterator[Callable[[str], None]]:
        with self._confirming() as connection:
            producer = connection.Producer()
            yield lambda queue: producer.publish(BODY, routing_key=queue)

    def latency(self, count: int) -> Figures:
        """``spawn_consumer``."""
        clock, took = self._listen(count, "tick")
        return clock.per(count, p50=p50(took))

    def _listen(self, count: int, role: str, *arguments: str) -> tuple[Clock, list[float]]:
        (source,) = self.stage.sources(1)
        took, callback = latencies()
        counter = Counter(count)

        def handler(body: Any, message: Any) -> None:
            callback(body, message)
            counter.handler(body, message)

        ticker = self.stage.peer(role, str(count), source, *arguments)
        with greenconn.Connection(self.url) as connection:
            spawn_consumer(
                source, handler, connection=connection, prefetch_count=PREFETCH
            ).wait_ready(TIMEOUT)
            with Clock() as clock:
                self.stage.go(ticker)
                counter.wait()
            greenconn.stop_consumers(TIMEOUT)
        return clock, took


class Counter:
    """A handler that counts."""

    def __init__(self, awaited: int) -> None:
        self.awaited = awaited
        self._seen = 0
        self._done = Event()

    def handler(self, body: Any, message: Any) -> None:
        """Count one."""
        self._seen += 1
        if self._seen == self.awaited:
            self._done.set()

    def typed(self, body: Body, message: Any) -> None:
        """Count one, which is a dataclass."""
        self.handler(body, message)

    def by_hand(self, body: Any, message: Any) -> None:
        """Count one, after making it a dataclass."""
        self.handler(Body(**body), message)

    def wait(self) -> None:
        """Wait until all came.  May switch."""
        if not self._done.wait(TIMEOUT):
            raise TimeoutError(f"{self._seen} of {self.awaited} messages came")
