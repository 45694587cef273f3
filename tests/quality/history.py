"""A checker of the order by key, over processes that are killed, suspended and replaced.

``python -m tests.quality.history URL --messages 100000 --keys 1000 --processes 8``

Each process consumes one sharded queue, and writes what it begins and ends into one file, a line each,
in the order of the time.  A message may begin when all earlier ones of its key have ended, here or in
another process; one that has ended may come again.  Some handlers fail the first time, so that retries
are a part of the history.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Final
from uuid import uuid4

#: Messages that are published at once.
PORTION: Final = 500
#: Seconds of a lease, where there are leases.
LEASE: Final = 2.0
#: Seconds that a process may take to start or to stop.
SOON: Final = 60.0


def _options(url: str) -> dict[str, Any]:
    return {} if url.startswith("amqp") else {"lease": LEASE}


def consume(url: str, name: str, shards: int, path: str) -> None:
    """Consume until SIGTERM, and write the history.  The main function of a process."""
    import gevent

    import greenconn
    from greenconn import Connection, Message, Queue, Retry
    from greenconn.worker import shards as sharing

    sharing.BALANCE_INTERVAL = 0.5  # type: ignore[misc]
    logging.disable(logging.ERROR)  # of the handlers that fail
    history = os.open(path, os.O_WRONLY | os.O_APPEND)
    failed: set[tuple[str, int]] = set()

    def work(body: Any, message: Message) -> None:
        key, number = body["key"], body["n"]
        os.write(history, f"b {key} {number} {os.getpid()}\n".encode())
        gevent.sleep(random.random() * 0.004)
        if number % 23 == 7 and (key, number) not in failed:
            failed.add((key, number))
            raise TimeoutError("the first time")
        os.write(history, f"e {key} {number} {os.getpid()}\n".encode())

    with Connection(url, transport_options=_options(url)) as connection:
        consumer = greenconn.spawn_consumer(
            Queue.sharded(name, shards, key=lambda body: body["key"]),
            work,
            connection=connection,
            concurrency=200,
            retry=Retry(tries=5, delay=0.05),
        )
        gevent.signal_handler(signal.SIGTERM, lambda: gevent.spawn(consumer.stop, 10))
        if consumer.wait_ready(SOON):
            print("ready", flush=True)
        consumer.join()


@dataclass
class History:
    """What was begun and ended.

    Attributes:
        handled: key -> the number of messages that have ended, all earlier ones included.
        broken: what began too early.
        repeated: messages that began again after their end.
    """

    handled: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    broken: list[str] = field(default_factory=list)
    repeated: int = 0

    def read(self, line: str) -> None:
        """Take the next line."""
        what, key, text, process = line.split()
        number, done = int(text), self.handled[key]
        if what == "e":
            if number == done:
                self.handled[key] += 1
        elif number > done:
            self.broken.append(f"{key} {number} began in {process} after {done - 1}")
        elif number < done:
            self.repeated += 1


class Processes:
    """The consuming processes."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self.running: list[subprocess.Popen[str]] = []
        self.counts: dict[str, int] = defaultdict(int)

    def start(self) -> None:
        """Start one more."""
        command = [sys.executable, "-m", "tests.quality.history", "consume", *self._arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        self.running.append(process)

    def disturb(self, choice: random.Random, most: int) -> None:
        """Kill, stop or suspend one, or start another one."""
        what = choice.choice(["kill", "stop", "suspend", "start"])
        if len(self.running) < 2:
            what = "start"
        elif what == "start" and len(self.running) >= most:
            what = "kill"
        self.counts[what] += 1
        if what == "start":
            self.start()
            return
        process = choice.choice(self.running)
        if what == "suspend":
            process.send_signal(signal.SIGSTOP)
            sleep(choice.choice([0.3, 2 * LEASE]))
            process.send_signal(signal.SIGCONT)
            return
        self.running.remove(process)
        process.send_signal(signal.SIGKILL if what == "kill" else signal.SIGTERM)
        process.wait(SOON)

    def end(self) -> None:
        """End all."""
        for process in self.running:
            process.kill()
            process.wait()


def check(
    url: str, messages: int, keys: int, processes: int, shards: int, interval: float, seed: int
) -> dict[str, Any]:
    """Publish, disturb, and return what was seen."""
    from greenconn import Connection, Queue, publish_many

    choice = random.Random(seed)
    name = f"history-{uuid4().hex[:12]}"
    history, began = History(), monotonic()
    with (
        tempfile.NamedTemporaryFile("r") as file,
        Connection(url, transport_options=_options(url)) as connection,
    ):
        queue = Queue.sharded(name, shards, key=lambda body: body["key"])
        group = Processes([url, name, str(shards), file.name])
        try:
            for _ in range(processes):
                group.start()
            sent = handled = 0
            next_at, changed_at = monotonic() + interval, monotonic()
            while handled < messages:
                if sent < messages and sent - handled < 20 * PORTION:
                    numbers = range(sent, min(sent + PORTION, messages))
                    bodies = [{"key": f"k{each % keys}", "n": each // keys} for each in numbers]
                    sent += publish_many(queue, bodies, connection=connection)
                if monotonic() >= next_at and sent < messages:
                    group.disturb(choice, processes)
                    next_at = monotonic() + interval
                before = handled
                for line in file:
                    history.read(line)
                handled = sum(history.handled.values())
                if handled != before:
                    changed_at = monotonic()
                elif monotonic() - changed_at > SOON:
                    break  # something is stuck
                sleep(0.01)
        finally:
            group.end()
            with connection.channel() as channel:
                queue.delete(channel)
    return {
        "url": url.partition("@")[2] or url,
        "messages": messages,
        "handled": handled,
        "broken": len(history.broken),
        "first broken": history.broken[:5],
        "handled again": history.repeated,
        "seconds": round(monotonic() - began, 1),
        **group.counts,
    }


def main() -> None:
    """Check what the command line names."""
    if sys.argv[1:2] == ["consume"]:
        url, name, shards, path = sys.argv[2:]
        consume(url, name, int(shards), path)
        return
    parser = argparse.ArgumentParser(prog="python -m tests.quality.history")
    parser.add_argument("url")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seen = check(**vars(options))
    print(json.dumps(seen, indent=1))
    if seen["broken"] or seen["handled"] < seen["messages"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
