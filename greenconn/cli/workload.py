"""The demo's work: many greenlets publish through a bounded pool, many consumers take, all is counted."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import Semaphore

from greenconn.cli.figures import cpu_seconds, peak_memory, sockets, threads
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.pools import ProducerPool
from greenconn.worker import ConsumerGreenlet, spawn_consumer

__all__ = ["Plan", "Snapshot", "Summary", "Workload"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much work there is."""

    url: str
    messages: int = 200_000
    consumers: int = 1_000  #: greenlets made by ``spawn_consumer``
    queues: int = 100  #: shared evenly by the consumers
    publishers: int = 200  #: greenlets that publish
    connections: int = 10  #: in the pool that the publishers share
    window: int = 10_000  #: messages under way at most, so that latency means something
    size: int = 128  #: bytes of padding in each body
    patience: float = 30.0  #: seconds without progress after which the rest counts as lost


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """How far the work is."""

    elapsed: float  #: seconds since the first publish
    published: int
    handled: int
    rate: float  #: messages handled a second, since the last snapshot
    latency: float  #: median of the latest messages, publish to handler, in seconds
    ready: int  #: consumers that the broker has confirmed
    sockets: int | None
    threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What came of it."""

    broker: str
    plan: Plan
    elapsed: float
    published: int
    handled: int
    lost: int
    duplicates: int
    cpu: float  #: seconds of this process
    latencies: tuple[float, float]  #: median and 99th percentile, in seconds
    sockets: int | None
    threads: int
    peak_memory: int  #: bytes


class Workload:
    """One run of a plan.

    Every message has a number, and a ledger counts how often each number was handled.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.handled = 0
        self.published = 0
        self._ledger = array("H", bytes(2 * plan.messages))
        self._latencies: deque[float] = deque(maxlen=20_000)
        self._window = Semaphore(plan.window)
        self._done = Event()
        self._connection = Connection(plan.url)
        prefix = f"greenconn-demo-{uuid()[:8]}"
        # Durable, as RabbitMQ wants it; if this process is killed they expire by themselves.
        self._queues = [
            Queue(f"{prefix}-{number}", routing_key=f"{prefix}-{number}", expires=300.0)
            for number in range(plan.queues)
        ]
        self._consumers: list[ConsumerGreenlet] = []
        self._last = (monotonic(), 0)
        self._began = monotonic()

    @property
    def broker(self) -> str:
        """Where the work is done, password masked."""
        return self._connection.as_uri()

    def run(self, watch: Callable[[Snapshot], None], interval: float = 0.2) -> Summary:
        """Do the work.  May switch.

        Arguments:
            watch: called each *interval* seconds, in a greenlet.
        """
        watcher = None
        try:
            self._start_consumers()
            watcher = spawn("demo-watch", self._watch, watch, interval)
            cpu = cpu_seconds()
            self._began = monotonic()
            self._publish_all()
            self._wait_for_the_rest()
            elapsed, cpu = monotonic() - self._began, cpu_seconds() - cpu
            used = sockets(), threads()
            watch(self.snapshot())
        finally:
            if watcher is not None:
                watcher.kill()
            self._clean_up()
        return self._summary(elapsed, cpu, *used)

    def snapshot(self) -> Snapshot:
        """How far the work is now."""
        now = monotonic()
        then, handled = self._last
        self._last = (now, self.handled)
        return Snapshot(
            elapsed=now - self._began,
            published=self.published,
            handled=self.handled,
            rate=(self.handled - handled) / (now - then) if now > then else 0.0,
            latency=_percentile(list(self._latencies)[-1000:], 0.5),
            ready=sum(not consumer.dead for consumer in self._consumers),
            sockets=sockets(),
            threads=threads(),
        )

    def _start_consumers(self) -> None:
        plan = self.plan
        self._connection.connect()
        for number in range(plan.consumers):
            queue = self._queues[number % plan.queues]
            self._consumers.append(
                spawn_consumer(queue, self._handle, connection=self._connection, prefetch_count=20)
            )
        for consumer in self._consumers:
            if not consumer.wait_ready(plan.patience):
                raise TimeoutError(f"{self.broker}: consumers did not start")

    def _handle(self, body: Any, message: Any) -> None:
        number = body["number"]
        self._ledger[number] += 1
        self._latencies.append(monotonic() - body["sent_at"])
        self.handled += 1
        self._window.release()
        if self.handled >= self.plan.messages:
            self._done.set()

    def _publish_all(self) -> None:
        plan = self.plan
        pool = ProducerPool(self._connection.Pool(plan.connections), limit=plan.connections)
        publishers = [
            spawn(
                "demo-publisher", self._publish, pool, range(first, plan.messages, plan.publishers)
            )
            for first in range(plan.publishers)
        ]
        try:
            gevent.joinall(publishers)
            for publisher in publishers:
                publisher.get()
        finally:
            gevent.killall(publishers)
            pool.connections.force_close_all()

    def _publish(self, pool: ProducerPool, numbers: range) -> None:
        queues, count, padding = self._queues, self.plan.queues, "x" * self.plan.size
        for number in numbers:
            self._window.acquire()
            body = {"number": number, "sent_at": monotonic(), "padding": padding}
            with pool.acquire(block=True) as producer:
                producer.publish(body, routing_key=queues[number % count].name)
            self.published += 1

    def _wait_for_the_rest(self) -> None:
        handled = -1
        while not self._done.is_set() and self.handled != handled:
            handled = self.handled
            self._done.wait(self.plan.patience)

    def _watch(self, watch: Callable[[Snapshot], None], interval: float) -> None:
        while True:
            gevent.sleep(interval)
            watch(self.snapshot())

    def _clean_up(self) -> None:
        stops = [spawn("demo-stop", consumer.stop, 5.0) for consumer in self._consumers]
        gevent.joinall(stops)
        if self._connection.connected:
            channel = self._connection.default_channel
            for queue in self._queues:
                channel.queue_delete(queue.name)
        self._connection.close()

    def _summary(
        self, elapsed: float, cpu: float, open_sockets: int | None, running: int
    ) -> Summary:
        latencies = list(self._latencies)
        return Summary(
            broker=self.broker,
            plan=self.plan,
            elapsed=elapsed,
            published=self.published,
            handled=self.handled,
            lost=self._ledger.count(0),
            duplicates=sum(count - 1 for count in self._ledger if count > 1),
            cpu=cpu,
            latencies=(_percentile(latencies, 0.5), _percentile(latencies, 0.99)),
            sockets=open_sockets,
            threads=running,
            peak_memory=peak_memory(),
        )


def _percentile(values: list[float], share: float) -> float:
    if not values:
        return 0.0
    values.sort()
    return values[min(len(values) - 1, int(share * len(values)))]
