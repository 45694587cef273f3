"""A rolling restart of a RabbitMQ cluster under load: nothing is lost, and nobody waits for long.

Run it as ``python -m examples.rabbitmq_cluster.rolling_restart`` in a checkout, with ``--help`` for its
options.  It starts three nodes of its own, lets greenlets publish to quorum queues with confirms and
consumers handle the messages, and ends one node after the other: by maintenance mode and SIGTERM
(``drain``), by SIGTERM alone, and by SIGKILL.  The table at its end says what was sent, lost and
duplicated, and for how long a queue stood still.  The exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import expovariate, random
from time import monotonic
from typing import Final

import gevent
from rich.console import Console
from rich.live import Live
from rich.table import Table

import greenconn
from greenconn import Connection, Message, Queue
from greenconn.exceptions import OperationalError
from tests.brokers.cluster import RabbitMQCluster
from tests.brokers.descriptors import raise_limit
from tests.brokers.keeper import Keeper
from tests.brokers.rabbitmq import RabbitMQ

#: Seconds for a publish, with all the restarts that it meets, and for what must come at the end.
PUBLISH_TIMEOUT: Final = 30.0
END_TIMEOUT: Final = 120.0
#: Seconds that a node is away, and of load before the first restart and after each.
AWAY: Final = 2.0
CALM: Final = 3.0
QUORUM: Final = {
    "x-queue-type": "quorum",
    "x-queue-leader-locator": "balanced",
    # RabbitMQ 4.3 keeps what the consumers of a killed node have for so many milliseconds, 60,000 by
    # default.
    "x-consumer-disconnected-timeout": 1000,
}
ENDS: Final[dict[str, Callable[[RabbitMQ], None]]] = {
    "drain": RabbitMQ.drain,
    "SIGTERM": RabbitMQ.stop,
    "SIGKILL": RabbitMQ.kill,
}


@dataclass
class Ledger:
    """What was sent and handled, and how long a queue or a publisher had to wait.

    Attributes:
        sent: messages that the broker has confirmed, as a publisher and a number.
        failed: the errors of publishes.
        handled: how often each message was handled.
        begun: when the publish of each message that was not handled began.
        longest_pause: the longest time between two messages of a queue, in seconds, since
            :meth:`reset`, and when it began.
        longest_publish, longest_way: seconds that a publish took, and a message to its handler, since
            :meth:`reset`.
    """

    queues: list[str]
    sent: set[tuple[int, int]] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)
    handled: Counter[tuple[int, int]] = field(default_factory=Counter)
    begun: dict[tuple[int, int], float] = field(default_factory=dict)
    longest_pause: tuple[float, float] = (0.0, 0.0)
    longest_publish: float = 0.0
    longest_way: float = 0.0
    _last_at: dict[str, float] = field(default_factory=dict)

    def reset(self) -> None:
        """Begin to measure."""
        now = monotonic()
        self.longest_publish = self.longest_way = 0.0
        self.longest_pause = (0.0, now)
        for queue in self.queues:
            self._last_at.setdefault(queue, now)

    def handle(self, queue: str, key: tuple[int, int]) -> None:
        """Note that a message was handled."""
        now = monotonic()
        self.handled[key] += 1
        last_at, self._last_at[queue] = self._last_at[queue], now
        self.longest_pause = max(self.longest_pause, (now - last_at, last_at))
        self.longest_way = max(self.longest_way, now - self.begun.pop(key, now))

    def are_flowing(self, since: float) -> bool:
        """Return whether each queue has had a message since then."""
        return all(at > since for at in self._last_at.values())

    @property
    def lost(self) -> int:
        """Messages that were confirmed, and never handled."""
        return len(self.sent - self.handled.keys())

    @property
    def duplicates(self) -> int:
        """Messages that were handled again."""
        return self.handled.total() - len(self.handled)


@dataclass(frozen=True)
class Restart:
    """One restart of a node, as the table shows it; times are seconds.

    Attributes:
        pause, pause_at: the longest pause of a queue, and when it began, after the end of the node.
    """

    signal: str
    node: int
    back_after: float
    pause: float
    pause_at: float
    publish: float
    way: float


class Load:
    """Greenlets that publish, and consumers.

    Arguments:
        urls: the failover list of each client: each is a connection for its share of both.
        publishers: greenlets that publish.
        consumers: consumers.
        rate: messages a second, of all publishers.
    """

    def __init__(
        self, urls: list[str], queues: list[Queue], publishers: int, consumers: int, rate: float
    ) -> None:
        self.ledger = Ledger([queue.name for queue in queues])
        self._queues = queues
        # In the order of a list all connections would come to the same node, one restart after another.
        self._connections = [Connection(url, failover_strategy="shuffle") for url in urls]
        self._publishers, self._consumers = publishers, consumers
        self._interval = publishers / rate
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._is_over = False

    def begin(self) -> None:
        """Have all consumers ready, then publish.  May switch."""
        self.ledger.reset()
        consumers = [
            greenconn.spawn_consumer(
                self._queues[number % len(self._queues)],
                self._handler(self._queues[number % len(self._queues)].name),
                connection=self._connection(number),
            )
            for number in range(self._consumers)
        ]
        for consumer in consumers:
            if not consumer.wait_ready(END_TIMEOUT):
                raise SystemExit(f"{consumer!r} is not ready")
        self._greenlets = [
            gevent.spawn(self._publish, number) for number in range(self._publishers)
        ]

    def _connection(self, number: int) -> Connection:
        # Not by the number itself, or all consumers of a queue could have one connection.
        return self._connections[number // len(self._queues) % len(self._connections)]

    def _handler(self, queue: str) -> Callable[[list[int], Message], None]:
        def handle(body: list[int], message: Message) -> None:
            publisher, number = body
            self.ledger.handle(queue, (publisher, number))

        return handle

    def _publish(self, publisher: int) -> None:
        ledger = self.ledger
        queue = self._queues[publisher % len(self._queues)]
        connection = self._connection(publisher)
        next_at = monotonic() + self._interval * random()
        number = 0
        while True:
            gevent.sleep(max(next_at - monotonic(), 0.0))
            if self._is_over:
                return
            key = publisher, number
            began_at = ledger.begun[key] = monotonic()
            try:
                greenconn.publish(queue, key, connection=connection, timeout=PUBLISH_TIMEOUT)
                ledger.sent.add(key)
            except OperationalError as exc:
                ledger.failed[type(exc).__name__] += 1
            now = monotonic()
            ledger.longest_publish = max(ledger.longest_publish, now - began_at)
            number += 1
            # At random times: publishers in step would leave a queue without any for a while.
            next_at = max(next_at + expovariate(1 / self._interval), now)

    def end(self) -> None:
        """Stop publishing, and wait until all that was sent is handled.  May switch."""
        self._is_over = True
        gevent.joinall(self._greenlets, timeout=END_TIMEOUT, raise_error=True)
        end = monotonic() + END_TIMEOUT
        while self.ledger.lost and monotonic() < end:
            gevent.sleep(0.1)

    def close(self) -> None:
        """Stop the consumers and close the connections.  May switch."""
        greenconn.stop_consumers(timeout=10)
        for connection in self._connections:
            connection.close()


def rolling_restart(
    cluster: RabbitMQCluster, load: Load, signal: str, say: Callable[[str], None]
) -> Iterator[Restart]:
    """End one node after the other by a signal, and start it again.  May switch.

    Yields:
        what each restart cost.
    """
    ledger = load.ledger
    for number, node in enumerate(cluster, 1):
        say(f"waiting until all queues do without node {number}")
        cluster.await_quorum(node)
        ledger.reset()
        say(f"node {number}: {signal}")
        ended_at = monotonic()
        ENDS[signal](node)
        gevent.sleep(AWAY)
        say(f"node {number}: starting")
        node.start()
        back_after = monotonic() - ended_at
        while not ledger.are_flowing(ended_at):
            gevent.sleep(0.05)
        gevent.sleep(CALM)
        pause, began_at = ledger.longest_pause
        yield Restart(
            signal,
            number,
            back_after,
            pause,
            began_at - ended_at,
            ledger.longest_publish,
            ledger.longest_way,
        )


class Show:
    """The progress, as a line that is drawn again and again."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger = ledger
        self._console = console
        self._began_at = monotonic()
        self._step = ""

    def say(self, step: str) -> None:
        """Show a step."""
        self._step = step
        if not self._console.is_terminal:
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        ledger = self._ledger
        return (
            f"{monotonic() - self._began_at:6.1f} s  {len(ledger.sent)} sent  "
            f"{len(ledger.handled)} handled  {ledger.lost} under way  {self._step}"
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the progress during a block."""
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            drawing = gevent.spawn(self._draw, live)
            try:
                yield
            finally:
                drawing.kill()

    def _draw(self, live: Live) -> None:
        while self._console.is_terminal:
            live.update(self._line(), refresh=True)
            gevent.sleep(0.5)


def table_of(restarts: list[Restart]) -> Table:
    """Return the table of all restarts."""
    table = Table()
    for name in ("signal", "node", "back after", "pause", "began at", "publish", "way"):
        table.add_column(name, justify="left" if name == "signal" else "right")
    for each in restarts:
        times = (each.back_after, each.pause, each.pause_at, each.publish, each.way)
        table.add_row(each.signal, str(each.node), *(f"{time:.2f}" for time in times))
    table.caption = (
        "seconds: the longest pause of a queue, when it began after the end of the node, the longest "
        "publish, the longest way of a message to its handler"
    )
    return table


def run(options: argparse.Namespace, console: Console) -> int:
    """Start the cluster and the load, restart all nodes, and print the figures.  May switch."""
    with Keeper() as keeper:
        cluster = RabbitMQCluster(keeper)
        console.print("starting three nodes")
        cluster.start()
        queues = [
            Queue(f"orders-{number}", queue_arguments=QUORUM) for number in range(options.queues)
        ]
        nodes = [node.url for node in cluster]
        urls = [";".join(nodes[number:] + nodes[:number]) for number in range(len(nodes))]
        load = Load(urls, queues, options.publishers, options.consumers, options.rate)
        show = Show(load.ledger, console)
        restarts: list[Restart] = []
        try:
            with show.running():
                show.say("consumers begin")
                load.begin()
                gevent.sleep(CALM)
                for signal in options.signals:
                    for restart in rolling_restart(cluster, load, signal, show.say):
                        restarts.append(restart)
                show.say("waiting for the last messages")
                load.end()
        finally:
            load.close()
            cluster.close()
    ledger = load.ledger
    console.print(table_of(restarts))
    failed = ", ".join(f"{count} {name}" for name, count in ledger.failed.items()) or "none"
    console.print(
        f"{options.publishers} publishers, {options.consumers} consumers, {options.queues} quorum "
        f"queues: {len(ledger.sent)} sent, {ledger.lost} lost, {ledger.duplicates} duplicated; "
        f"publishes that raised: {failed}",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if ledger.lost or not ledger.sent else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="rolling_restart", description=__doc__)
    add = parser.add_argument
    add("--publishers", type=int, default=500, help="greenlets that publish (500)")
    add("--consumers", type=int, default=500, help="consumers (500)")
    add("--queues", type=int, default=10, help="quorum queues (10)")
    add("--rate", type=float, default=500.0, help="messages a second, all together (500)")
    add("--signals", nargs="+", choices=list(ENDS), default=list(ENDS), help="one round by each")
    options = parser.parse_args()
    raise_limit()
    # Losses are what this is about.
    logging.getLogger("greenconn").setLevel(logging.ERROR)
    return run(options, Console())


if __name__ == "__main__":
    sys.exit(main())
