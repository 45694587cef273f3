"""A checker of order, limits and unique keys, over processes that are killed, suspended and cut.

``python -m tests.quality.history URL --check order --messages 100000 --keys 1000 --processes 8``

Each process consumes one queue, and writes what it begins and ends into one file, a line each, with the
time of the clock that all processes share.  Some handlers fail the first time, so that retries are a
part of the history.  What is published and consumed goes through a relay that cuts connections; a SQLite
file is locked by another program instead.

``order``: a message in a sharded queue may begin when all earlier ones of its key have ended, here or in
another process; one that has ended may come again.

``limit``: no more handlers of a key run at a time than its limit, and no more begin than its rate.  The
place of a process that was suspended for longer than its lease does not count from then on.

``unique``: a message is published when the one before of its key has ended, or has begun.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar, Final, NamedTuple, TextIO

#: Messages that are published at once.
PORTION: Final = 500
#: Portions that wait at most.
AHEAD: Final = 20
#: Seconds of a lease, where there are leases.
LEASE: Final = 2.0
#: Seconds that a process may take to start or to stop.
SOON: Final = 60.0
#: Seconds after which a fault comes although nothing was handled since the one before.
RECOVERY: Final = 10.0
#: Handlers of a key that may run at the same time, and how many may begin in a second and at once.
PLACES: Final = 2
RATE: Final = 25.0
BURST: Final = 5
#: Seconds by which a handler may begin later than its token: on a busy machine, after a suspension.
LAG: Final = 0.5
LONG: Final = 2 * LEASE
#: Seconds after which a key that is still taken has outlived its message.
OUTLIVED: Final = 3.0

_processes = multiprocessing.get_context("forkserver")


@dataclass
class Task:
    """What all processes do.

    Attributes:
        url, limits: of the broker, and of the store of limits.
        name: of the queue.
        path: of the history.
    """

    check: str
    url: str
    limits: str | None
    name: str
    shards: int
    path: str
    log: str | None

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Connect to the broker."""
        import greenconn

        greenconn.configure(limits=self.limits)
        options = {} if self.url.startswith("amqp") else {"lease": LEASE}
        with greenconn.Connection(self.url, transport_options=options) as connection:
            yield connection

    def queue(self) -> Any:
        """Return the queue."""
        from greenconn import Queue

        if self.check == "order":
            return Queue.sharded(self.name, self.shards, key=lambda body: body["key"])
        return Queue(self.name, durable=True)


def consume(task: Task, number: int) -> None:
    """Consume until SIGTERM, and write the history.  The main function of a process."""
    import gevent

    import greenconn
    from greenconn import Limit, Message, Rate, Retry
    from greenconn.worker import subscriptions as sharing

    sharing.BALANCE_INTERVAL = 0.5  # type: ignore[misc]
    logging.basicConfig(
        filename=task.log or os.devnull,
        level=logging.INFO,
        format=f"%(asctime)s process {number} %(message)s",
    )
    history = os.open(task.path, os.O_WRONLY | os.O_APPEND)
    failed: set[tuple[str, int]] = set()
    longest = {"order": 0.004, "limit": 0.1, "unique": 0.01}[task.check]

    def note(what: str, key: str, place: int, message_id: object) -> None:
        line = f"{what} {monotonic():.6f} {number} {key} {place} {message_id}\n"
        os.write(history, line.encode())

    def work(body: Any, message: Message) -> None:
        key, place = body["key"], body["n"]
        what = key, place, message.properties.get("message_id")
        note("begin", *what)
        try:
            gevent.sleep(random.random() * longest)
            if place % 23 == 7 and (key, place) not in failed:
                failed.add((key, place))
                raise TimeoutError("the first time")
        except BaseException:
            note("fail", *what)
            raise
        note("end", *what)

    options: dict[str, Any] = {"concurrency": 200 if task.check == "order" else 20}
    if task.check == "limit":
        options["limit"] = Limit(PLACES, key=lambda body, message: body["key"], lease=LEASE)
        options["rate"] = Rate(RATE, burst=BURST, key=lambda body, message: body["key"])
    with task.connection() as connection:
        consumer = greenconn.spawn_consumer(
            task.queue(), work, connection=connection, retry=Retry(tries=50, delay=0.05), **options
        )
        gevent.signal_handler(signal.SIGTERM, lambda: gevent.spawn(consumer.stop, 10))
        if consumer.wait_ready(SOON):
            note("ready", "-", 0, "-")
        consumer.join()


def relay(urls: list[str], pipe: Pipe) -> None:
    """Relay to the brokers of *urls*; cut a connection at SIGUSR1, all at SIGUSR2."""
    import gevent
    from gevent import socket

    from tests.fix_peer import Peer
    from tests.fix_relay import Relay

    relays = [Relay(Peer, url) for url in urls]

    def cut() -> None:
        open_now = [each for one in relays for each in one.server.sockets]
        with suppress(OSError):  # it ends by itself
            if open_now:
                random.choice(open_now).shutdown(socket.SHUT_RDWR)

    gevent.signal_handler(signal.SIGUSR1, lambda: gevent.spawn(cut))
    gevent.signal_handler(signal.SIGUSR2, lambda: [gevent.spawn(one.cut) for one in relays])
    pipe.send([one.url for one in relays])
    gevent.get_hub().join()
    while True:
        gevent.sleep(SOON)


def lock(path: str) -> None:
    """Keep the SQLite file from being written for a while."""
    with closing(sqlite3.connect(path, timeout=SOON, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        sleep(LEASE / 2)
        database.execute("ROLLBACK")


class Event(NamedTuple):
    """A line of the history."""

    what: str
    at: float
    process: int
    key: str
    number: int
    message_id: str

    @classmethod
    def of(cls, line: str) -> Event:
        """Read a line."""
        what, at, process, key, number, message_id = line.split()
        return cls(what, float(at), int(process), key, int(number), message_id)


class Processes:
    """The consuming processes, and what is done to them.

    Attributes:
        counts: of what was done, by kind.
        ready: numbers of those that have begun to consume.
        killed: number of a process -> when.
        suspended: number of a process -> from when to when, each time.
    """

    def __init__(self, task: Task, most: int, choice: random.Random, relayed: bool) -> None:
        self._task, self._most, self._choice = task, most, choice
        self._running: dict[int, Any] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._ending: list[tuple[float, Any]] = []
        self._last = 0
        self._is_sqlite = task.url.startswith("sqlite")
        self._relay: Any = None
        if relayed and not self._is_sqlite:
            self._start_relay()
        self.counts: dict[str, int] = defaultdict(int)
        self.killed: dict[int, float] = {}
        self.suspended: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self.ready: set[int] = set()
        self.stuck = 0

    def _start_relay(self) -> None:
        task = self._task
        here, there = _processes.Pipe()
        urls = [task.url] if task.limits is None else [task.url, task.limits]
        self._relay = _processes.Process(target=relay, args=(urls, there))
        self._relay.start()
        task.url, *others = here.recv()
        task.limits = others[0] if others else None

    def start(self) -> None:
        """Start one more."""
        if len(self._running) >= self._most:
            return
        self._last += 1
        process = _processes.Process(target=consume, args=(self._task, self._last))
        process.start()
        self._running[self._last] = process

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._last += 1
        heappush(self._later, (monotonic() + seconds, self._last, call))

    def disturb(self) -> None:
        """Kill, stop or suspend a process, or cut connections."""
        what = self._choice.choice(["kill", "stop", "suspend", "cut"])
        ready = sorted(self.ready.intersection(self._running))
        if not ready:
            return
        number = self._choice.choice(ready)
        if what == "cut":
            self._cut()
            return
        self.counts[what] += 1
        process = self._running.pop(number)
        if what == "suspend":
            os.kill(process.pid, signal.SIGSTOP)
            seconds = self._choice.choice([0.3, LONG])
            began = monotonic()
            self._after(seconds, lambda: self._resume(number, process, began))
            return
        os.kill(process.pid, signal.SIGKILL if what == "kill" else signal.SIGTERM)
        if what == "kill":
            self.killed[number] = monotonic()
        self._ending.append((monotonic() + SOON, process))
        self._after(self._choice.random() * 2.0, self.start)

    def _resume(self, number: int, process: Any, began: float) -> None:
        os.kill(process.pid, signal.SIGCONT)
        self.suspended[number].append((began, monotonic()))
        self._running[number] = process

    def _cut(self) -> None:
        if self._is_sqlite:
            self.counts["lock"] += 1
            path = "/" + self._task.url.partition("?")[0].partition(":///")[2].lstrip("/")
            process = _processes.Process(target=lock, args=(path,))
            process.start()
            self._ending.append((monotonic() + SOON, process))
        elif self._relay is not None:
            is_one = self._choice.random() < 0.8
            self.counts["cut one" if is_one else "cut all"] += 1
            os.kill(self._relay.pid, signal.SIGUSR1 if is_one else signal.SIGUSR2)

    def tick(self) -> None:
        """Do what is due."""
        now = monotonic()
        while self._later and self._later[0][0] <= now:
            heappop(self._later)[2]()
        for until, process in list(self._ending):
            if process.exitcode is not None:
                self._ending.remove((until, process))
            elif until <= now:
                self.stuck += 1
                process.kill()

    def end(self) -> None:
        """End all."""
        while self._later:
            heappop(self._later)[2]()
        processes = [*self._running.values(), *(each for _, each in self._ending)]
        if self._relay is not None:
            processes.append(self._relay)
        for process in processes:
            process.kill()
            process.join()


class Checker:
    """What is published, and what must hold for what is handled.

    Arguments:
        messages: how many.
        keys: how many.
        group: the processes.
    """

    name: ClassVar[str]

    def __init__(self, messages: int, keys: int, choice: random.Random, group: Processes) -> None:
        self.messages, self.keys, self.choice, self.group = messages, keys, choice, group
        self.sent = 0
        #: Those that have ended, and how often.
        self.ended: dict[tuple[str, int], int] = defaultdict(int)
        self._rest = ""

    def publish(self, task: Task, connection: Any) -> None:
        """Publish a portion.  May switch."""
        from greenconn import publish_many

        numbers = range(self.sent, min(self.sent + PORTION, self.messages))
        bodies = [self.body(each) for each in numbers]
        self.sent += publish_many(task.queue(), bodies, connection=connection)

    def body(self, number: int) -> dict[str, Any]:
        """Return the body of a message."""
        return {"key": f"k{number % self.keys}", "n": number // self.keys}

    def follow(self, file: TextIO) -> None:
        """Take what has been written meanwhile."""
        *lines, self._rest = (self._rest + file.read()).split("\n")
        for line in lines:
            event = Event.of(line)
            if event.what == "ready":
                self.group.ready.add(event.process)
            else:
                self.read(event)

    def read(self, event: Event) -> None:
        """Take the next event."""
        if event.what == "end":
            self.ended[event.key, event.number] += 1

    @property
    def handled(self) -> int:
        """How many messages have ended."""
        return len(self.ended)

    def result(self) -> dict[str, Any]:
        """Return what was found; the value of what must not be is a list that is not empty."""
        missing = [self.body(each) for each in range(self.messages)]
        lost = [each for each in missing if (each["key"], each["n"]) not in self.ended]
        return {
            "lost": lost,
            "stuck keys": sorted({each["key"] for each in lost}),
            "handled again": sum(self.ended.values()) - len(self.ended),
        }


class Order(Checker):
    """The order by key."""

    name = "order"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: Key -> the number of messages that have ended, all earlier ones included.
        self._done: dict[str, int] = defaultdict(int)
        self._broken: list[str] = []

    def read(self, event: Event) -> None:
        """Take the next event."""
        super().read(event)
        done = self._done[event.key]
        if event.what == "end" and event.number == done:
            self._done[event.key] += 1
        elif event.what == "begin" and event.number > done:
            self._broken.append(
                f"{event.key} {event.number} began in {event.process} after {done - 1}"
            )

    def result(self) -> dict[str, Any]:
        """Return what was found."""
        return {"broken": self._broken, **super().result()}


class Limits(Checker):
    """Limits and rates; some keys have many more messages than others."""

    name = "limit"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bodies: list[dict[str, Any]] = []
        numbers: dict[str, int] = defaultdict(int)
        for _ in range(self.messages):
            key = f"k{int(self.keys * self.choice.random() ** 2)}"
            self._bodies.append({"key": key, "n": numbers[key]})
            numbers[key] += 1
        self._begun: dict[tuple[int, str, int], list[float]] = defaultdict(list)
        #: Key -> from when to when in which process.
        self._runs: dict[str, list[tuple[float, float, int]]] = defaultdict(list)

    def body(self, number: int) -> dict[str, Any]:
        """Return the body of a message."""
        return self._bodies[number]

    def read(self, event: Event) -> None:
        """Take the next event."""
        super().read(event)
        which = event.process, event.key, event.number
        if event.what == "begin":
            self._begun[which].append(event.at)
        elif event.what in ("end", "fail"):
            began = self._begun[which].pop(0)
            self._runs[event.key].append((began, event.at, event.process))

    def _held(self, began: float, ended: float, process: int) -> float:
        """Return until when a run has its place for certain."""
        for since, until in self.group.suspended.get(process, ()):
            # A place that was taken just before may be used just after.
            if until - since > LEASE / 2 and since < ended and began < until + 2 * LAG:
                return since
        return ended

    def result(self) -> dict[str, Any]:
        """Return what was found."""
        for (process, key, _), times in self._begun.items():
            if process in self.group.killed:
                ended = self.group.killed[process]
                self._runs[key] += [(began, ended, process) for began in times]
        exceeded: list[str] = []
        overlaps = runs = 0
        too_many: list[str] = []
        most_early = 0.0
        for key, found in self._runs.items():
            runs += len(found)
            overlaps += len(_overlaps([(began, ended) for began, ended, _ in found]))
            held = [(began, self._held(began, ended, process)) for began, ended, process in found]
            exceeded += [f"{key} at {at:.3f}" for at in _overlaps(held)]
            early = _early(sorted(began for began, _, _ in found))
            most_early = max(most_early, early)
            if early > LAG + LONG:
                too_many.append(f"{key} began {early:.3f} s early")
        return {
            "exceeded": exceeded,
            "rate exceeded": too_many,
            "runs": runs,
            "overlaps after a lease": overlaps - len(exceeded),
            "begun early at most": round(most_early, 3),
            **super().result(),
        }


def _overlaps(runs: list[tuple[float, float]]) -> list[float]:
    """Return when more handlers began than there are places."""
    changes = sorted(
        change for began, ended in runs if ended > began for change in ((began, 1), (ended, -1))
    )
    found, running = [], 0
    for at, change in changes:
        running += change
        if change > 0 and running > PLACES:
            found.append(at)
    return found


def _early(begun: list[float]) -> float:
    """Return by how many seconds, at most, a handler began before the bucket had a token for it."""
    full, most = float("-inf"), 0.0
    for at in begun:
        full = max(full, at) + 1 / RATE
        most = max(most, full - at - BURST / RATE)
    return most


class Unique(Checker):
    """Unique keys: those of even numbers until they are handled, the others until they are started."""

    name = "unique"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        names = [f"k{each}" for each in range(self.keys)]
        self._next = dict.fromkeys(names, 0)
        #: A key that outlived its message is replaced by another one.
        self._replaced: dict[str, int] = dict.fromkeys(names, 0)
        self._accepted: dict[tuple[str, int], float] = {}
        self._refused = self._outlived = self._failed = 0
        self._freed: dict[tuple[str, int], float] = {}
        self._ids: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)

    def _until(self, key: str) -> str:
        return "handled" if int(key[1:]) % 2 == 0 else "started"

    def publish(self, task: Task, connection: Any) -> None:
        """Publish the next message of some keys, most of which are free."""
        from greenconn import AlreadyQueued, publish_many
        from greenconn.exceptions import BatchPublishError

        for until in ("handled", "started"):
            keys = [
                key
                for key, number in self._next.items()
                if number < self.messages // self.keys
                and self._until(key) == until
                and (not number or (key, number - 1) in self._freed or self.choice.random() < 0.05)
            ]
            keys = self.choice.sample(keys, min(len(keys), PORTION))
            if not keys:
                continue
            bodies = [
                {"key": key, "n": self._next[key], "unique": f"{key}.{self._replaced[key]}"}
                for key in keys
            ]
            failed: dict[int, Exception] = {}
            taken, began = len(bodies), monotonic()
            try:
                publish_many(
                    task.queue(),
                    bodies,
                    connection=connection,
                    unique=lambda body: body["unique"],
                    until=until,
                )
            except BatchPublishError as exc:
                failed, taken = dict(exc.failed), exc.taken
            except OSError:
                taken = 0  # of the store: nothing was published
            now = monotonic()
            for position, key in enumerate(keys[:taken]):
                error = failed.get(position)
                if error is None:
                    self._accepted[key, self._next[key]] = now
                    self._next[key] += 1
                elif isinstance(error, AlreadyQueued):
                    self._refused += 1
                    freed = self._freed.get((key, self._next[key] - 1), now)
                    if began - freed > OUTLIVED:
                        self._outlived += 1
                        self._replaced[key] += 1
                else:
                    self._failed += 1

    def read(self, event: Event) -> None:
        """Take the next event."""
        super().read(event)
        which = event.key, event.number
        if event.what == ("end" if self._until(event.key) == "handled" else "begin"):
            self._freed.setdefault(which, event.at)
        if event.what == "begin":
            self._ids[which].setdefault(event.message_id, [event.at, float("inf")])
            if event.number == self._next[event.key]:
                self._next[event.key] += 1  # its publish failed, and yet it is there
        elif event.what == "end":
            times = self._ids[which][event.message_id]
            times[1] = min(times[1], event.at)
        self.sent = sum(self._next.values())

    def result(self) -> dict[str, Any]:
        """Return what was found."""
        twice: list[str] = []
        for (key, number), at in self._accepted.items():
            if number and self._freed.get((key, number - 1), float("inf")) > at:
                twice.append(f"{key} {number} was published beside the one before")
        for (key, number), ids in self._ids.items():
            times = sorted(ids.values())
            if any(later[0] < earlier[1] for earlier, later in pairwise(times)):
                twice.append(f"{key} {number} was published twice")
        return {
            "twice": twice,
            "refused": self._refused,
            "keys that outlived their message": self._outlived,
            "failed publishes": self._failed,
            **super().result(),
        }


CHECKERS: Final[dict[str, type[Checker]]] = {each.name: each for each in (Order, Limits, Unique)}


@contextmanager
def _declared(task: Task) -> Iterator[None]:
    """Declare the queue, and delete it at the end."""
    with task.connection() as connection, connection.channel() as channel:
        queue = task.queue()
        if task.check != "order":
            queue = queue(channel)
            queue.declare()
        else:
            queue.declare(channel)
    yield
    with task.connection() as connection, connection.channel() as channel:
        if task.check != "order":
            queue(channel).delete()
        else:
            queue.delete(channel)


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Publish, disturb, and return what was seen."""
    import gevent

    choice, began = random.Random(options.seed), monotonic()
    with ExitStack() as stack:
        path = options.history or stack.enter_context(tempfile.NamedTemporaryFile()).name
        file = stack.enter_context(open(path, "w+"))
        task = Task(
            options.check,
            options.url,
            options.limits,
            f"history-{os.urandom(6).hex()}",
            options.shards,
            file.name,
            options.log,
        )
        stack.enter_context(_declared(replace(task)))
        group = Processes(task, options.processes, choice, not options.uncut)
        stack.callback(group.end)
        connection = stack.enter_context(task.connection())
        checker = CHECKERS[options.check](options.messages, options.keys, choice, group)
        for _ in range(options.processes):
            group.start()
        next_at = changed_at = monotonic() + options.interval
        before = at_fault = 0
        while checker.handled < options.messages:
            if checker.sent < options.messages and checker.sent - checker.handled < AHEAD * PORTION:
                checker.publish(task, connection)
            # Where faults come faster than processes recover from them, nothing would ever be handled.
            has_recovered = checker.handled > at_fault or monotonic() - next_at > RECOVERY
            if (
                monotonic() >= next_at
                and has_recovered
                and checker.handled < 0.95 * options.messages
            ):
                group.disturb()
                next_at, at_fault = monotonic() + options.interval, checker.handled
            group.tick()
            checker.follow(file)
            if checker.handled != before:
                before, changed_at = checker.handled, monotonic()
            elif monotonic() - changed_at > SOON:
                break  # something is stuck
            gevent.sleep(0.01)
        group.end()
        checker.follow(file)
    return {
        "check": options.check,
        "url": options.url.partition("@")[2] or options.url,
        "messages": options.messages,
        "handled": checker.handled,
        **checker.result(),
        "processes that did not stop": group.stuck,
        "seconds": round(monotonic() - began, 1),
        "faults": dict(group.counts),
    }


def main() -> None:
    """Check what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality.history")
    parser.add_argument("url")
    parser.add_argument("--check", choices=list(CHECKERS), default="order")
    parser.add_argument("--limits", help="the URL of the store of limits, if not the broker's")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--uncut", action="store_true", help="cut no connection")
    parser.add_argument("--history", type=Path, help="keep the history in this file")
    parser.add_argument("--log", help="log into this file")
    seen = check(parser.parse_args())
    failed = any(isinstance(each, list) and each for each in seen.values())
    for name, each in seen.items():
        if isinstance(each, list):
            seen[name] = len(each)
            if each:
                print(f"{name}, the first: {each[:5]}", file=sys.stderr)
    print(json.dumps(seen, indent=1))
    if failed or seen["handled"] < seen["messages"] or seen["processes that did not stop"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
