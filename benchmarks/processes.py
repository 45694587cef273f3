"""``python -m benchmarks.processes``: throughput, cost and fair shares of processes on one queue.

Each number of processes is measured on a broker of its own, in three ways:

- ``filled``: the messages wait before the consumers start, all at once.
- ``burst``: the consumers are idle, and the messages come as fast as one process publishes them.
- ``steady``: the consumers are idle, and the messages come at ``--rate``.

With ``--waiting``, so many more messages than those that are measured are in the queue, and stay there.
"""

from __future__ import annotations

import argparse
import json
import mmap
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product, repeat
from pathlib import Path
from struct import Struct
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from typing import Any, Final

import gevent

import greenconn
from benchmarks.boards import RABBITMQ, SQLITE
from benchmarks.scale import Server, aligned
from benchmarks.servers import SERVERS, broker
from benchmarks.stage import BODY
from greenconn import Connection, Queue, spawn_consumer, stop_consumers

ARRIVALS: Final = ("filled", "burst", "steady")
#: Seconds that each step may take.
TIMEOUT: Final = 600.0
#: Seconds without messages before a burst: the consumers wait as they do in an idle system.
IDLE: Final = 1.0
QUEUE: Final = "greenconn-benchmark-shared"
#: What is shown of each row, and how.
HEADINGS: Final = {
    "arrivals": ("messages", "s"),
    "waiting": ("waiting", ",.0f"),
    "processes": ("processes", ",.0f"),
    "rate": ("messages/s", ",.0f"),
    "cpu": ("client CPU us", ".1f"),
    "broker_cpu": ("broker CPU us", ".1f"),
    "least": ("smallest share", ",.0f"),
    "most": ("largest share", ",.0f"),
    "fairness": ("smallest/largest", ".2f"),
}
#: What one consumer has handled, in the file that all of them share.
_COUNT: Final = Struct("=Q")


def main() -> int:
    """Measure what the command line names, and print a table."""
    options = _arguments()
    if options.counts is not None:
        _consume(options)
        return 0
    rows = []
    for arrivals, waiting, processes in product(
        options.arrivals, options.waiting, options.processes
    ):
        with broker(options.broker, options.url) as url:
            rows.append(_measure(url, arrivals, waiting, processes, options))
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps(rows) if options.json else "\n".join(aligned(rows, HEADINGS)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--broker", choices=sorted(SERVERS), default=RABBITMQ.name)
    add("--url", help="a broker to use; without it private ones are started")
    add("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--arrivals", choices=ARRIVALS, nargs="+", default=list(ARRIVALS))
    add("--messages", type=int, default=20000)
    add("--rate", type=int, default=1000, help="messages a second of steady arrivals")
    add("--waiting", type=int, nargs="+", default=[0], help="messages that stay in the queue")
    add("--prefetch", type=int, default=100)
    add("--handling", type=float, default=0.0, help="milliseconds that a handler sleeps")
    add("--json", action="store_true", help="print the rows as JSON")
    # A consumer: the file of counts, and its place there.
    add("--counts", type=Path, help=argparse.SUPPRESS)
    add("--place", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if any(options.waiting) and options.arrivals != ["filled"]:
        parser.error("--waiting must be given with --arrivals filled")
    return options


# -- the measuring process


def _measure(
    url: str, arrivals: str, waiting: int, processes: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the row of one number of processes.  May switch."""
    server = None if options.broker == SQLITE.name else Server(url)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="greenconn-benchmark-")))
        counts = stack.enter_context(_counts(folder / "counts", processes))
        connection = stack.enter_context(Connection(url))
        queue = Queue(QUEUE)(connection.default_channel)
        queue.declare()
        stack.callback(queue.delete)
        queue.purge()
        consumers = [
            stack.enter_context(_consumer(url, folder / "counts", place, options))
            for place in range(processes)
        ]
        if arrivals == "filled":
            greenconn.publish_many(
                QUEUE,
                repeat(BODY, options.messages + waiting),
                connection=connection,
                timeout=TIMEOUT,
                delivery_mode="transient",
            )
            began, cpu = monotonic(), server.cpu_seconds if server else 0.0
            _tell(consumers)
        else:
            _tell(consumers)
            _expect(consumers, "consuming")
            gevent.sleep(IDLE)
            began, cpu = monotonic(), server.cpu_seconds if server else 0.0
            _publish(connection, options.messages, options.rate if arrivals == "steady" else 0)
        while sum(_all(counts, processes)) < options.messages:
            if monotonic() - began > TIMEOUT:
                raise TimeoutError(f"{_all(counts, processes)} of {options.messages} were handled")
            gevent.sleep(0.005)
        took = monotonic() - began
        broker_cpu = (server.cpu_seconds if server else 0.0) - cpu
        shares = _all(counts, processes)
        handled = sum(shares)
        if arrivals == "filled":
            _expect(consumers, "consuming")
        _tell(consumers)
        used = [_line(consumer).split() for consumer in consumers]
    return {
        "arrivals": arrivals,
        "waiting": waiting,
        "processes": processes,
        "rate": handled / took,
        # Where messages stay, consumers went on until they were told to stop.
        "cpu": sum(float(cpu) for cpu, _ in used) / sum(int(count) for _, count in used) * 1e6,
        "broker_cpu": broker_cpu / handled * 1e6,
        "least": min(shares),
        "most": max(shares),
        "fairness": min(shares) / max(shares),
        "shares": shares,
    }


@contextmanager
def _counts(path: Path, processes: int) -> Iterator[mmap.mmap]:
    """Yield the memory in which each process counts what it has handled."""
    path.write_bytes(bytes(processes * _COUNT.size))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def _all(counts: mmap.mmap, processes: int) -> list[int]:
    return [_COUNT.unpack_from(counts, place * _COUNT.size)[0] for place in range(processes)]


def _publish(connection: Connection, count: int, rate: int) -> None:
    """Publish *count* messages, *rate* a second; 0: as fast as possible.  May switch."""
    producer = connection.Producer()
    began = monotonic()
    for number in range(count):
        if rate:
            gevent.sleep(max(0.0, began + number / rate - monotonic()))
        producer.publish(BODY, routing_key=QUEUE, delivery_mode=1)
    connection.default_channel.queue_declare(QUEUE, passive=True)  # all have arrived


@contextmanager
def _consumer(
    url: str, counts: Path, place: int, options: argparse.Namespace
) -> Iterator[subprocess.Popen[str]]:
    """Yield a consumer that is connected, and waits to be told to start."""
    command = [sys.executable, "-m", "benchmarks.processes", "--url", url]
    command += ["--counts", str(counts), "--place", str(place)]
    command += ["--prefetch", str(options.prefetch), "--handling", str(options.handling)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            _expect([process], "connected")
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def _tell(consumers: list[subprocess.Popen[str]]) -> None:
    """Have the consumers take their next step."""
    for consumer in consumers:
        assert consumer.stdin is not None
        consumer.stdin.write("go\n")
        consumer.stdin.flush()


def _line(consumer: subprocess.Popen[str]) -> str:
    assert consumer.stdout is not None
    return consumer.stdout.readline()


def _expect(consumers: list[subprocess.Popen[str]], word: str) -> None:
    for consumer in consumers:
        line = _line(consumer)
        if line != f"{word}\n":
            raise ConnectionError(f"a consumer must say {word!r}, got {line!r}")


# -- a consuming process


def _consume(options: argparse.Namespace) -> None:
    """Consume until told to stop; each step begins with a line of the measuring process."""
    handled, at = 0, options.place * _COUNT.size
    seconds = options.handling / 1000
    with options.counts.open("r+b") as file, mmap.mmap(file.fileno(), 0) as counts:

        def handle(body: object, message: object) -> None:
            nonlocal handled
            if seconds:
                gevent.sleep(seconds)
            handled += 1
            _COUNT.pack_into(counts, at, handled)

        with Connection(options.url) as connection:
            connection.connect()
            print("connected", flush=True)
            told = gevent.get_hub().threadpool.apply
            told(sys.stdin.readline)
            began = process_time()
            consumer = spawn_consumer(
                QUEUE, handle, connection=connection, prefetch_count=options.prefetch
            )
            consumer.wait_ready(TIMEOUT)
            print("consuming", flush=True)
            told(sys.stdin.readline)
            print(process_time() - began, handled, flush=True)
            stop_consumers(TIMEOUT)


if __name__ == "__main__":
    sys.exit(main())
