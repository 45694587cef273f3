"""kombu in a process that gevent has patched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import gevent
import kombu
import kombu.pools
from gevent.event import AsyncResult

from benchmarks.clock import Clock, Figures, p50
from benchmarks.rivals.kombu_api import KombuApi, listen, many
from benchmarks.rivals.shape import CALLERS, TIMEOUT
from benchmarks.stage import BODY, Stage


class Works(KombuApi):
    """The works of kombu, where a connection is one greenlet's at a time."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(kombu, url, stage)

    def confirmed_shared(self, count: int) -> Figures:
        """100 greenlets and a pool of 20."""
        options = {"confirm_publish": True}
        return self._pooled(count, greenlets=CALLERS, limit=20, transport_options=options)

    def rpc(self, count: int) -> Figures:
        """Publish, then drain until the reply is there."""
        requests = self.stage.server()
        with self.api.Connection(self.url) as connection:
            producer = connection.Producer()
            awaited, answered = "", False

            def callback(body: Any, message: Any) -> None:
                nonlocal answered
                answered = message.properties["correlation_id"] == awaited

            replies = self._replies(connection, callback)
            with Clock() as clock:
                for _ in range(count):
                    awaited, answered = str(uuid4()), False
                    producer.publish(
                        BODY, routing_key=requests, reply_to=replies, correlation_id=awaited
                    )
                    while not answered:
                        connection.drain_events(timeout=TIMEOUT)
        return clock.per(count)

    def rpc_shared(self, count: int) -> Figures:
        """100 callers: a pool of 10 for the requests, a connection for the replies."""
        requests = self.stage.server()
        self.api.pools.set_limit(10)
        waiting: dict[str, AsyncResult[Any]] = {}

        def callback(body: Any, message: Any) -> None:
            waiting.pop(message.properties["correlation_id"]).set(body)

        with self.api.Connection(self.url) as connection:
            replies = self._replies(connection, callback)
            producers = self.api.pools.producers[self.api.Connection(self.url)]

            def call() -> None:
                correlation_id = str(uuid4())
                reply = waiting[correlation_id] = AsyncResult()
                with producers.acquire(block=True) as producer:
                    producer.publish(
                        BODY,
                        routing_key=requests,
                        reply_to=replies,
                        correlation_id=correlation_id,
                    )
                reply.get(timeout=TIMEOUT)

            def drain() -> None:
                while True:
                    connection.drain_events()

            reader = gevent.spawn(drain)
            many(CALLERS, CALLERS, call)  # connects
            with Clock() as clock:
                count = many(CALLERS, count, call)
            reader.kill()
        return clock.per(count)

    def _replies(self, connection: Any, callback: Any) -> str:
        """Consume replies; returns the name of their queue."""
        queue = self.api.Queue(f"greenconn-benchmark-{uuid4()}", exclusive=True, durable=False)
        consumer = connection.Consumer([queue], callbacks=[callback], no_ack=True)
        consumer.consume()
        return str(queue.name)

    @contextmanager
    def _publishing(self) -> Iterator[Callable[[str], None]]:
        self.api.pools.set_limit(20)
        connection = self.api.Connection(self.url, transport_options={"confirm_publish": True})
        producers = self.api.pools.producers[connection]

        def publish(queue: str) -> None:
            with producers.acquire(block=True) as producer:
                producer.publish(BODY, routing_key=queue)

        yield publish

    def latency(self, count: int) -> Figures:
        """A consumer that drains."""
        clock, took = self._listen(count, "tick")
        return clock.per(count, p50=p50(took))

    def _listen(self, count: int, role: str, *arguments: str) -> tuple[Clock, list[float]]:
        (source,) = self.stage.sources(1)
        ticker = self.stage.peer(role, str(count), source, *arguments)
        return listen(kombu, self.url, source, count, lambda: self.stage.go(ticker))
