"""``python -m benchmarks.on_redis``: what greenconn costs on a Redis, beside kombu and redis-py.

Each round measures every rival once, in turn, each in a process of its own; the table has the median of
the rounds.  kombu runs monkey-patched, as its users under gevent run it.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "kombu" in sys.argv[1:2]:
    from gevent import monkey

    monkey.patch_all()

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import gevent
import redis
from gevent.event import Event

from benchmarks.clock import Clock, Figures, p50
from benchmarks.table import machine, number
from tests.brokers.descriptors import raise_limit
from tests.brokers.keeper import Keeper
from tests.brokers.redis_server import RedisServer

BODY = "x" * 256
TIMEOUT = 300
#: Title of a row -> its figure, and what greenconn may cost at most.
ROWS = {
    "publish": ("publish that awaits its reply, one greenlet", "cpu", 36.0),
    "window": ("publish, a window of 16", "cpu", 14.0),
    "many": ("publish, 1,000 greenlets", "cpu", 12.0),
    "consume": ("consume, prefetch 100, ack each", "cpu", 15.0),
    "queues": ("1,000 queues consumed in one process", "cpu", 18.0),
    "latency": ("idle consumer, sender to handler, p50", "p50", 450.0),
}
RIVALS = ("greenconn", "kombu", "redis-py")


class KombuApi:
    """What is the same program on kombu and on greenconn."""

    def __init__(self, api: Any, url: str) -> None:
        self.api = api
        self.url = url

    def publish(self, count: int) -> Figures:
        with self.api.Connection(self.url) as connection:
            return self._published(connection.Producer(), count)

    def _published(self, producer: Any, count: int) -> Figures:
        producer.publish(BODY, routing_key="sink")
        with Clock() as clock:
            for _ in range(count):
                producer.publish(BODY, routing_key="sink")
        return clock.per(count)

    def many(self, count: int) -> Figures:
        each = max(1, count // 1000)
        pool = self.api.Connection(self.url).Pool(10)

        def publish() -> None:
            for _ in range(each):
                with pool.acquire(block=True) as connection:
                    connection.Producer().publish(BODY, routing_key="sink")

        return self._together(publish, each)

    def _together(self, publish: Callable[[], None], each: int) -> Figures:
        with Clock() as clock:
            gevent.joinall([gevent.spawn(publish) for _ in range(1000)], raise_error=True)
        return clock.per(1000 * each)

    def consume(self, count: int) -> Figures:
        fill(self.url, ["source"], count)
        return self._consumed(["source"], count, 100)

    def queues(self, count: int) -> Figures:
        names = [f"source{each}" for each in range(1000)]
        each = max(2, count // 1000)
        # By another process, when all is consumed: to begin a thousand times is another matter.
        return self._consumed(names, each * 1000, 1000, lambda: filling(self.url, each))

    def _consumed(
        self, names: list[str], count: int, prefetch: int, begin: Callable[[], Any] | None = None
    ) -> Figures:
        got = 0

        def take(body: Any, message: Any) -> None:
            nonlocal got
            message.ack()
            got += 1

        with self.api.Connection(self.url) as connection:
            consumer = self.api.Consumer(
                connection,
                [self.api.Queue(name) for name in names],
                callbacks=[take],
                prefetch_count=prefetch,
                accept=["text/plain"],
            )
            with Clock() as clock, consumer:
                if begin is not None:
                    begin()
                while got < count:
                    connection.drain_events(timeout=TIMEOUT)
        return clock.per(count)

    def latency(self, count: int) -> Figures:
        took: list[float] = []

        def take(body: str, message: Any) -> None:
            message.ack()
            took.append(perf_counter() - float(body))

        with self.api.Connection(self.url) as connection, self.api.Connection(self.url) as sending:
            producer = sending.Producer()

            def send() -> None:
                for _ in range(count):
                    gevent.sleep(0.003)
                    producer.publish(repr(perf_counter()), routing_key="source")

            queue = self.api.Queue("source")
            with self.api.Consumer(connection, [queue], callbacks=[take], accept=["text/plain"]):
                sender = gevent.spawn(send)
                while len(took) < count:
                    connection.drain_events(timeout=TIMEOUT)
                sender.get()
        return {"p50": p50(took)}


class Greenconn(KombuApi):
    """Ours, as it is meant to be used: one connection for all greenlets."""

    def __init__(self, url: str) -> None:
        import greenconn  # only in the process that measures it

        super().__init__(greenconn, url)

    def window(self, count: int) -> Figures:
        options = {"publish_window": 16}
        with self.api.Connection(self.url, transport_options=options) as connection:
            channel = connection.channel()
            return self._published(self.api.Producer(channel), count)

    def many(self, count: int) -> Figures:
        each = max(1, count // 1000)
        with self.api.Connection(self.url) as connection:
            producer = connection.Producer()
            producer.publish(BODY, routing_key="sink")

            def publish() -> None:
                for _ in range(each):
                    producer.publish(BODY, routing_key="sink")

            return self._together(publish, each)

    def _consumed(
        self, names: list[str], count: int, prefetch: int, begin: Callable[[], Any] | None = None
    ) -> Figures:
        got = 0
        done = Event()

        def take(body: Any, message: Any) -> None:
            nonlocal got
            got += 1
            if got == count:
                done.set()

        each = max(10, prefetch // len(names))
        with self.api.Connection(self.url) as connection:
            connection.connect()
            options = {"connection": connection, "prefetch_count": each}
            with Clock() as clock:
                consumers = [self.api.spawn_consumer(name, take, **options) for name in names]
                if begin is not None:
                    assert all(consumer.wait_ready(TIMEOUT) for consumer in consumers)
                    clock.__enter__()
                    begin()
                assert done.wait(TIMEOUT)
            for consumer in consumers:
                consumer.stop(TIMEOUT)
        return clock.per(count)


class Kombu(KombuApi):
    """kombu under gevent."""

    def __init__(self, url: str) -> None:
        import kombu  # only in the process that measures it

        super().__init__(kombu, url)


class RedisPy:
    """redis-py by hand, one command after the other: what a program would write without a library."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def publish(self, count: int) -> Figures:
        with Clock() as clock:
            for _ in range(count):
                self._client.lpush("sink", BODY)
        return clock.per(count)

    def consume(self, count: int) -> Figures:
        for _ in range(count):
            self._client.lpush("source", BODY)
        with Clock() as clock:
            for _ in range(count):
                self._client.rpop("source")
        return clock.per(count)


def filling(url: str, each: int) -> Any:
    """Put messages into a thousand queues, by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.on_redis", "fill", str(each), url]
    return subprocess.Popen(command)


def fill(url: str, names: list[str], each: int) -> None:
    """Put messages into queues, by our own means and unmeasured."""
    import greenconn

    with greenconn.Connection(url, transport_options={"publish_window": 500}) as connection:
        channel = connection.channel()
        message = channel.prepare_message(BODY, 0, "text/plain", "utf-8", {}, {})
        for name in names:
            for _ in range(each):
                channel.basic_publish(message, routing_key=name)
        channel.flush()


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """The Redis at *url*, or a private one."""
    if url:
        yield url
        return
    raise_limit()
    with Keeper() as keeper:
        made = RedisServer(keeper)
        made.start()
        yield made.url


def measured(rival: str, work: str, count: int, url: str) -> Figures | None:
    """The figures of one rival; None: it does not do that."""
    made: Any = {"greenconn": Greenconn, "kombu": Kombu, "redis-py": RedisPy}[rival](url)
    function = getattr(made, work, None)
    return None if function is None else function(count)


def table(url: str, rounds: int, count: int) -> Iterator[str]:
    """The lines of the table, measured as they come."""
    for work, (title, key, limit) in ROWS.items():
        found: dict[str, list[float]] = {rival: [] for rival in RIVALS}
        for _ in range(rounds):
            for rival in RIVALS:
                redis.Redis.from_url(url).flushdb()
                share = count // 20 if work == "latency" or rival != "greenconn" else count
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.on_redis",
                    rival,
                    work,
                    str(share),
                    url,
                ]
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=TIMEOUT, check=False
                )
                if done.returncode:
                    print(f"{rival}, {work}: {done.stderr.strip()}", file=sys.stderr)
                elif (figures := json.loads(done.stdout)) is not None:
                    found[rival].append(figures[key])
        cells = [number(median(each)) if each else "--" for each in found.values()]
        yield f"{title:45}" + "".join(f"{cell:>12}" for cell in cells) + f"{limit:>12g}"


def main() -> None:
    """Measure one work for the table, or make the table."""
    if sys.argv[1:2] == ["fill"]:
        fill(sys.argv[3], [f"source{each}" for each in range(1000)], int(sys.argv[2]))
        return
    if sys.argv[1:2] and sys.argv[1] in RIVALS:
        rival, work, count, url = sys.argv[1:]
        print(json.dumps(measured(rival, work, int(count), url)))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_redis", description=__doc__)
    parser.add_argument("--url", help="a Redis whose database may be emptied; else a private one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000, help="messages (rivals: a twentieth)")
    options = parser.parse_args()
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    print(f"{'us of client CPU a message; latency in us':45}", end="")
    print("".join(f"{rival:>12}" for rival in (*RIVALS, "at most")))
    with server(options.url) as url:
        for line in table(url, options.rounds, options.count):
            print(line, flush=True)


if __name__ == "__main__":
    main()
