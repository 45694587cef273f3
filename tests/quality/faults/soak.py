"""A program that runs for long, on a link that is cut again and again.

It publishes with confirms and without, consumes in both ways, calls procedures and borrows from pools,
and its connections are cut every few seconds.  Once it is warm nothing may grow: the memory of the
process, the number of objects of each type, descriptors, greenlets.  Ends with 1 if something does, or
if a message that was confirmed was not handled.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any
from uuid import uuid4

import gevent
from gevent.event import Event
from rich.console import Console
from rich.table import Table

from greenconn import pools, rpc
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import OperationalError
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from greenconn.worker import spawn_consumer
from tests.brokers.packages import NoBroker
from tests.quality.faults.interruptions.targets import TARGETS, Target

SOON = 60.0
#: How much of the time is for caches to fill, and for the holes between what malloc has given out.
WARM = 0.5
#: Seconds from which on it is said what grows, and between two rests at which that is looked at.
LONG, REST = 300.0, 30.0
#: Objects of one type that come and go.
OBJECTS = 60
#: By how much the resident memory may grow, in KiB a minute, and the number of Python's memory blocks.
SLOPE, BLOCKS = 256.0, 1.01
#: Messages a second, of each kind.
RATE = 40.0
#: Publishes that may be under way at a time, and that a message may be handled before.
EARLY = 200
#: Descriptors and greenlets of connections that are there at one moment and not at another.
COMING_AND_GOING = 20
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Figures:
    """What a soak measured."""

    target: str
    seconds: float = 0.0
    cuts: int = 0
    published: int = 0
    handled: int = 0
    lost: int = 0
    calls: int = 0
    #: Errors that callers got while the link was away.
    errors: int = 0
    #: Of the resident memory once it was warm, in KiB a minute.
    slope: float = 0.0
    #: The resident memory at each rest once it was warm, in MiB.
    memory: list[float] = field(default_factory=list)
    #: Types of which there are more at the end than when it was warm.
    grown: dict[str, int] = field(default_factory=dict)
    #: When it was warm, and at the end: what the collector knows, and what Python has allocated.
    objects: tuple[int, int] = (0, 0)
    blocks: tuple[int, int] = (0, 0)
    descriptors: tuple[int, int] = (0, 0)
    greenlets: tuple[int, int] = (0, 0)

    def problems(self) -> list[str]:
        """What is not as it should be; what grows shows after some minutes only."""
        found = []
        if self.lost:
            found.append(f"{self.lost} of {self.published} messages lost")
        if self.seconds < LONG:
            return found
        if self.slope > SLOPE:
            found.append(f"memory grows: {self.memory} MiB, {self.slope:.0f} KiB a minute")
        if self.blocks[1] > BLOCKS * self.blocks[0]:
            found.append(f"blocks: {self.blocks[0]}, then {self.blocks[1]}")
        if self.grown:
            found.append(f"objects grow: {self.grown}")
        for name in ("descriptors", "greenlets"):
            warm, last = getattr(self, name)
            if last > warm + COMING_AND_GOING:
                found.append(f"{name}: {warm}, then {last}")
        return found


class Load:
    """What the program does, for ever."""

    def __init__(self, target: Target, figures: Figures) -> None:
        self.name = f"soak-{uuid4().hex[:8]}"
        self.figures = figures
        self.sent: set[int] = set()
        #: Handled before the publish had returned.
        self._early: set[int] = set()
        self._url = target.url
        self._options: dict[str, Any] = {"confirm_publish": True}
        self._number = 0
        self.connection = Connection(self._url, transport_options=self._options)
        self.template = Connection(self._url)
        #: What is told to callers while the link is away.
        self._errors: tuple[type[BaseException], ...] = (
            *(OperationalError, OSError),
            *self.connection.connection_errors,
            *self.connection.channel_errors,
        )
        channel = self.connection.default_channel
        for suffix in ("a", "b", "rpc", "plain"):
            channel.queue_declare(f"{self.name}-{suffix}", durable=True, auto_delete=False)
        self.spawned = spawn_consumer(
            f"{self.name}-a", self._handle, connection=self.connection, concurrency=4
        )
        self.server = rpc.spawn_server(
            f"{self.name}-rpc", lambda body: body, connection=self.connection
        )
        plain = spawn_consumer(f"{self.name}-plain", self._ignore, connection=self.connection)
        self._consumers = [self.spawned, self.server, plain]
        for each in self._consumers:
            assert each.wait_ready(SOON)
        self._may_work = Event()
        self._may_work.set()
        works = (self._publish, self._produce, self._pooled, self._drain, self._call, self._probe)
        self._greenlets = [gevent.spawn(self._on_and_on, work) for work in works]

    def _on_and_on(self, work: Callable[[], Any]) -> None:
        while True:
            self._may_work.wait()
            try:
                work()
            except self._errors:
                self.figures.errors += 1
            gevent.sleep(1 / RATE)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _publish(self) -> None:
        number = self._next()
        publish(f"{self.name}-a", number, connection=self.connection, timeout=SOON, declare=True)
        self._noted(number)

    def _produce(self) -> None:
        number = self._next()
        Producer(self.connection).publish(number, f"{self.name}-b", retry=True, timeout=SOON)
        self._noted(number)

    def _noted(self, number: int) -> None:
        self.figures.published += 1
        if number in self._early:
            self._early.discard(number)
            self.figures.handled += 1
        else:
            self.sent.add(number)

    def _pooled(self) -> None:
        with pools.producers[self.template].acquire(block=True) as producer:
            producer.publish("x", f"{self.name}-plain", retry=True)

    def _drain(self) -> None:
        with Consumer(self.connection, Queue(f"{self.name}-b"), callbacks=[self._handle_and_ack]):
            end = monotonic() + 2.0
            while monotonic() < end and self._may_work.is_set():
                with suppress(TimeoutError):
                    self.connection.drain_events(timeout=0.2)

    def _call(self) -> None:
        number = self._next()
        reply = rpc.call(f"{self.name}-rpc", number, connection=self.connection, timeout=SOON)
        assert reply == number, f"the reply to {number} is {reply}"
        self.figures.calls += 1

    def _probe(self) -> None:
        """A connection that lives for a moment."""
        with Connection(self._url, transport_options=self._options) as connection:
            connection.default_channel.queue_declare(f"{self.name}-a", passive=True)
        gevent.sleep(0.5)

    def _handle(self, body: Any, message: Any) -> None:
        if body in self.sent:
            self.sent.discard(body)
            self.figures.handled += 1
        elif body > self._number - EARLY:
            self._early.add(body)  # before its publisher heard of it; or once more, long ago
            self._early = {each for each in self._early if each > self._number - EARLY}

    def _handle_and_ack(self, body: Any, message: Any) -> None:
        self._handle(body, message)
        message.ack()

    def _ignore(self, body: Any, message: Any) -> None:
        pass

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is under way meanwhile, and all connections are there.  May switch."""
        self._may_work.clear()
        try:
            gevent.sleep(1.0)
            self.connection.ensure_connection()
            for each in self._consumers:
                each.wait_ready(SOON)
            gevent.sleep(0.5)
            yield
        finally:
            self._may_work.set()

    def settle(self) -> None:
        """Publish no more, and wait until all was handled.  May switch."""
        gevent.killall(self._greenlets)
        draining = gevent.spawn(self._on_and_on, self._drain)
        end = monotonic() + SOON
        while self.sent and monotonic() < end:
            gevent.sleep(0.05)
        draining.kill()
        self.figures.lost = len(self.sent)

    def close(self) -> None:
        """End it.  May switch."""
        gevent.killall(self._greenlets)
        for each in self._consumers:
            each.stop(SOON)
        pools.reset()
        self.connection.close()
        with Connection(self._url) as connection:
            for suffix in ("a", "b", "rpc", "plain"):
                connection.default_channel.queue_delete(f"{self.name}-{suffix}")


@dataclass
class Rest:
    """What there is while nothing is under way, and what is garbage is gone."""

    #: How many objects there are of each type.
    objects: Counter[str]
    blocks: int
    descriptors: int

    @classmethod
    def look(cls) -> Rest:
        """Count all of it."""
        gc.collect()
        blocks = sys.getallocatedblocks()
        names = (f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
        return cls(Counter(names), blocks, len(os.listdir("/proc/self/fd")))

    @property
    def greenlets(self) -> int:
        """How many greenlets there are."""
        return sum(number for name, number in self.objects.items() if "reenlet" in name)


class Memory:
    """The memory of this process over time."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._sizes: list[float] = []

    def take(self) -> None:
        """Note what is resident now; without files, whose pages come and go."""
        with open("/proc/self/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        self.note(monotonic(), (resident - shared) * PAGE / 1024)

    def note(self, at: float, size: float) -> None:
        """So many KiB at that time."""
        self._times.append(at)
        self._sizes.append(size)

    def slope(self) -> float:
        """KiB a minute, by least squares."""
        count = len(self._times)
        mean_time, mean_size = sum(self._times) / count, sum(self._sizes) / count
        points = zip(self._times, self._sizes, strict=True)
        over = sum((time - mean_time) * (size - mean_size) for time, size in points)
        return 60.0 * over / sum((time - mean_time) ** 2 for time in self._times)

    def course(self) -> list[float]:
        """All of it, in MiB."""
        return [round(size / 1024, 1) for size in self._sizes]


def soak(
    target: Target, seconds: float, interval: float, tell: Callable[[str], Any] = lambda text: None
) -> Figures:
    """Run for so long, with a cut every *interval* seconds.  May switch."""
    figures = Figures(target.name)
    load = Load(target, figures)
    began_at = monotonic()
    memory = Memory()

    def rest() -> Rest:
        with load.resting():
            found = Rest.look()
            memory.take()
        return found

    def cut_until(end: float) -> None:
        while (passed := monotonic() - began_at) < end:
            tell(f"{target}: {passed:6.1f} s, {figures.published} sent, {figures.cuts} cuts")
            gevent.sleep(min(interval, end - passed))
            if target.can_cut:
                target.cut()
                figures.cuts += 1

    try:
        end = seconds * WARM
        cut_until(end)
        first = last = rest()
        while end < seconds:
            end = min(end + REST, seconds)
            cut_until(end)
            last = rest()
        load.settle()
    finally:
        load.close()
    figures.seconds = round(monotonic() - began_at, 1)
    figures.slope, figures.memory = round(memory.slope(), 1), memory.course()
    grown = last.objects - first.objects
    figures.grown = {name: number for name, number in grown.items() if number > OBJECTS}
    figures.objects = (first.objects.total(), last.objects.total())
    figures.blocks = (first.blocks, last.blocks)
    figures.descriptors = (first.descriptors, last.descriptors)
    figures.greenlets = (first.greenlets, last.greenlets)
    return figures


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.quality.faults.soak", description=__doc__
    )
    add = parser.add_argument
    add("--target", choices=["rabbitmq", "redis", "memory", "amqp"], default="rabbitmq")
    add("--seconds", type=float, default=600.0, help="(600)")
    add("--interval", type=float, default=5.0, help="seconds between two cuts (5)")
    add("--json", action="store_true", help="print all figures as JSON")
    add("--verbose", action="store_true", help="tell how it goes")
    options = parser.parse_args()
    logging.getLogger("greenconn").setLevel(logging.CRITICAL)  # what goes wrong does so on purpose
    console = Console(stderr=True)
    gc.collect()
    gc.freeze()
    try:
        with TARGETS[options.target]() as target:
            tell = console.print if options.verbose else lambda text: None
            figures = soak(target, options.seconds, options.interval, tell)
    except NoBroker as error:
        console.print(str(error), markup=False)
        return 1
    if options.json:
        print(json.dumps(asdict(figures)))
    else:
        table = Table("", figures.target)
        for name, value in asdict(figures).items():
            table.add_row(name, str(value))
        Console().print(table)
    problems = figures.problems()
    for problem in problems:
        console.print(problem, markup=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
