"""``python -m benchmarks.scale``: the cost of many consumers of one process, and whether it is even.

Each number of consumers is measured in a process of its own, over a few connections to a broker of its
own.  A consumer has a queue of its own, unless ``--queues`` says how many they share.  While no message
comes, it counts how often the process wakes up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic, process_time
from typing import Any, Final
from urllib.parse import urlsplit

import gevent

from benchmarks.boards import RABBITMQ
from benchmarks.memory import Growth
from benchmarks.servers import BROKERS, broker
from greenconn import Connection, Queue, spawn_consumer
from greenconn.worker import ConsumerGreenlet

#: Seconds that each step may take.
TIMEOUT: Final = 1800.0
#: Seconds until what has started is at rest.
SETTLE: Final = 5.0
#: Messages that are under way at once while throughput is measured.
WINDOW: Final = 2000
#: What is shown of each row, and how.
HEADINGS: Final = {
    "consumers": ("consumers", ",.0f"),
    "queue_ms": ("a queue: ms", ".2f"),
    "queue_kib": ("broker KiB", ".1f"),
    "start_ms": ("started: ms", ".2f"),
    "start_cpu": ("client CPU ms", ".2f"),
    "start_broker": ("broker CPU ms", ".2f"),
    "client_kib": ("client KiB", ".1f"),
    "broker_kib": ("broker KiB", ".1f"),
    "idle_wakes": ("idle: wake-ups/s", ".1f"),
    "idle_cpu": ("client CPU %", ".3f"),
    "idle_broker": ("broker CPU %", ".2f"),
    "message_rate": ("messages/s", ",.0f"),
    "message_cpu": ("client CPU us", ".0f"),
    "recover_ms": ("recovered: ms", ".2f"),
    "recover_cpu": ("client CPU ms", ".2f"),
    "recover_broker": ("broker CPU ms", ".2f"),
    "stop_ms": ("stopped: ms", ".2f"),
    "stop_cpu": ("client CPU ms", ".2f"),
}


def main() -> int:
    """Measure what the command line names, and print a table."""
    options = _arguments()
    if options.url:
        figures = measure(options.url, options.consumers[0], options.connections, options)
        print(json.dumps(figures))
        return 0
    rows = []
    for count in options.consumers:
        with broker(options.broker) as url:
            command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:]]
            done = subprocess.run(
                [*command, "--url", url, "--consumers", str(count)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        rows.append(json.loads(done.stdout))
        print(json.dumps(rows[-1]), file=sys.stderr)
    print("\n".join(aligned(rows, HEADINGS)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--broker", choices=BROKERS, default=RABBITMQ.name)
    parser.add_argument("--consumers", type=int, nargs="+", default=[5000, 10000, 20000, 50000])
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--queues", type=int, default=0, help="0: as many as consumers")
    parser.add_argument("--idle", type=float, default=60, help="seconds without a message")
    parser.add_argument("--messages", type=int, default=20000, help="for the throughput")
    parser.add_argument("--url", help="a broker; measures the first number of consumers only")
    return parser.parse_args()


def measure(
    url: str, count: int, connection_count: int, options: argparse.Namespace
) -> dict[str, float]:
    """Return the figures of *count* consumers, each divided by their number.  May switch."""
    names = [f"scale-{number}" for number in range(options.queues or count)]
    connections = [Connection(url) for _ in range(connection_count)]
    for connection in connections:
        connection.connect()
    server = Server(url)
    figures: dict[str, float] = {"consumers": count}
    handled = [0]

    def handle(body: object, message: object) -> None:
        handled[0] += 1

    before = server.kib
    with Step(server, "queue", len(names), figures):
        _on_each(connections, names, _declare)
    figures["queue_kib"] = (server.kib - before) / len(names)
    # Consumers come on top of their queues.
    before = server.kib
    with Growth() as growth, Step(server, "start", count, figures):
        consumers = [
            spawn_consumer(
                names[number % len(names)],
                handle,
                connection=connections[number % connection_count],
                passive=True,
            )
            for number in range(count)
        ]
        _wait_ready(consumers)
    figures["client_kib"] = growth.per(count)
    figures["broker_kib"] = (server.kib - before) / count
    _idle(options.idle, server, figures)
    _throughput(connections[0], names, handled, options.messages, server, figures)
    with Step(server, "recover", count, figures):
        for connection in connections:
            connection.session.life.link.end(ConnectionResetError("cut by the benchmark"))
        gevent.sleep(0)  # now none is ready
        _wait_ready(consumers)
    with Step(server, "stop", count, figures):
        for consumer in consumers:
            gevent.spawn(consumer.stop)
        gevent.joinall(consumers, timeout=TIMEOUT)
    for connection in connections:
        connection.close()
    return figures


class Step:
    """One part of a measurement: its time, and the CPU time of this process and of the broker.

    Arguments:
        server: the broker.
        name: beginning of the keys in *figures*, of milliseconds.
        count: what the times are divided by.
    """

    def __init__(self, server: Server, name: str, count: int, figures: dict[str, float]) -> None:
        self._server = server
        self._name = name
        self._count = count
        self._figures = figures

    def __enter__(self) -> None:
        self._began = (monotonic(), process_time(), self._server.cpu_seconds)

    def __exit__(self, *error: object) -> None:
        ended = (monotonic(), process_time(), self._server.cpu_seconds)
        for key, began, end in zip(("ms", "cpu", "broker"), self._began, ended, strict=True):
            self._figures[f"{self._name}_{key}"] = (end - began) / self._count * 1e3


class Server:
    """The process of a broker on this machine.

    Arguments:
        url: where it listens.

    Attributes:
        process: its folder below ``/proc``; None if it is not found.
    """

    def __init__(self, url: str) -> None:
        port = urlsplit(url).port
        inode = next((inode for inode, each in _listeners() if each == port), "")
        found = (each for each in Path("/proc").iterdir() if each.name.isdigit())
        self.process = next((each for each in found if inode and _holds(each, inode)), None)

    @property
    def kib(self) -> float:
        """Its memory."""
        if self.process is None:
            return 0.0
        pages = int((self.process / "statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1024

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that it and its children have taken, of which PostgreSQL has one a connection."""
        if self.process is None:
            return 0.0
        own = _stat(self.process)
        children = (_stat(each) for each in Path("/proc").iterdir() if each.name.isdigit())
        living = [each for each in children if each[1:2] == [self.process.name]]
        ticks = sum(map(int, own[11:15])) + sum(
            int(time) for each in living for time in each[11:13]
        )
        return ticks / os.sysconf("SC_CLK_TCK")


def _stat(process: Path) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state on; none for a process that has ended."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _on_each(
    connections: list[Connection],
    names: list[str],
    function: Callable[[Connection, list[str]], None],
) -> None:
    """Call *function* with a share of the names for each connection, all at once."""
    shares = [names[number :: len(connections)] for number in range(len(connections))]
    calls = [gevent.spawn(function, *pair) for pair in zip(connections, shares, strict=True)]
    gevent.joinall(calls, raise_error=True)


def _declare(connection: Connection, names: list[str]) -> None:
    with connection.channel() as channel:
        for name in names:
            Queue(name)(channel).declare()


def _wait_ready(consumers: list[ConsumerGreenlet]) -> None:
    end = monotonic() + TIMEOUT
    for consumer in consumers:
        assert consumer.wait_ready(end - monotonic()), f"{consumer!r} was not ready"


def _idle(seconds: float, server: Server, figures: dict[str, float]) -> None:
    """Count how often this process wakes up while no message comes, and what that takes."""
    gevent.sleep(min(SETTLE, seconds))
    used, broker_used = resource.getrusage(resource.RUSAGE_SELF), server.cpu_seconds
    gevent.sleep(seconds)
    now, broker_now = resource.getrusage(resource.RUSAGE_SELF), server.cpu_seconds
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    figures["idle_wakes"] = (now.ru_nvcsw - used.ru_nvcsw) / seconds
    figures["idle_cpu"] = cpu / seconds * 100
    figures["idle_broker"] = (broker_now - broker_used) / seconds * 100


def _throughput(
    connection: Connection,
    names: list[str],
    handled: list[int],
    count: int,
    server: Server,
    figures: dict[str, float],
) -> None:
    """Publish *count* messages over all queues, and wait until all are handled."""
    with connection.clone() as publishing, Step(server, "message", count, figures):
        producer = publishing.Producer()
        for number in range(count):
            producer.publish("x" * 100, routing_key=names[number * 7919 % len(names)])
            while number - handled[0] > WINDOW:
                gevent.sleep(0.001)
        began = monotonic()
        while handled[0] < count:
            assert monotonic() - began < TIMEOUT, f"{handled[0]} of {count} were handled"
            gevent.sleep(0.001)
    figures["message_rate"] = 1e3 / figures["message_ms"]
    figures["message_cpu"] *= 1e3


def _listeners() -> Iterator[tuple[str, int]]:
    """Yield inode and port of each listening socket."""
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                yield fields[9], int(fields[1].rpartition(":")[2], 16)


def _holds(process: Path, inode: str) -> bool:
    try:
        links = [os.readlink(each) for each in (process / "fd").iterdir()]
    except OSError:
        return False  # another user's, or gone
    return f"socket:[{inode}]" in links


def aligned(rows: list[dict[str, Any]], headings: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a table; *headings* has the title and the format of each key of a row."""
    cells = [[heading for heading, _ in headings.values()]]
    cells += [[format(row[key], form) for key, (_, form) in headings.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))


if __name__ == "__main__":
    sys.exit(main())
