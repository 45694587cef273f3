"""The work of ``greenconn bench``: publish, consume, and both at a steady rate."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import floor, log2
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event

from greenconn.defaults import publishing_connection
from greenconn.entity import Queue
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.publishing import publish
from greenconn.worker import ConsumerGreenlet, spawn_consumer

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.message import Message

#: Seconds after which the queue is deleted, should this process be killed.
EXPIRES: Final = 300.0
#: Seconds of the part at a steady rate, at most.
STEADY: Final = 5.0
#: Percentiles that are reported.
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkPlan:
    """The amount of work."""

    messages: int = 10_000
    size: int = 256  #: bytes of padding in each body
    publishers: int = 10  #: greenlets that publish, and wait for the confirm of each message
    consumers: int = 1  #: greenlets made by ``spawn_consumer``
    prefetch: int = 100
    rate: float = 200.0  #: messages a second, of the part at a steady rate
    timeout: float = 10.0  #: seconds without progress after which it fails


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The result of one part."""

    part: str  #: publish, consume, latency
    messages: int
    seconds: float
    cpu: float  #: seconds of this process
    latencies: Sequence[float] = field(default=(), repr=False)  #: seconds, of each message

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds if self.seconds else 0.0

    def percentiles(self) -> dict[str, float | None]:
        """Return the percentiles of the latencies in milliseconds; None where they were not taken."""
        return {
            name: round(percentile(self.latencies, share) * 1e3, 3) if self.latencies else None
            for name, share in SHARES.items()
        }


class Benchmark:
    """One run over a queue of its own, which is deleted at the end.

    - *publish*: each publisher waits for the confirm of each message, whose time is the latency;
    - *consume*: the consumers handle and acknowledge what was published;
    - *latency*: published at a steady rate and consumed.  It is the time from when a message was due
      to its handler, so that a publisher that is held up does not hide what others would have seen.

    Arguments:
        plan: the amount of work.
        connection: an open one.
    """

    def __init__(self, plan: BenchmarkPlan, connection: Connection) -> None:
        self._plan = plan
        self._connection = connection
        name = f"greenconn-bench-{uuid()[:8]}"
        self._queue = Queue(name, routing_key=name, expires=EXPIRES)
        self._padding = "x" * plan.size
        self._consumers: list[ConsumerGreenlet] = []
        self._publishers: list[gevent.Greenlet[..., Any]] = []

    def run(self) -> Generator[Measurement, None, None]:
        """Do the parts, and yield each as it ends.  May switch.

        Raises:
            OperationalError: the broker refuses something.
            TimeoutError: nothing came for longer than the plan's ``timeout``.
        """
        try:
            self._queue(self._connection.default_channel).declare()
            publishing_connection(self._connection).connect()
            yield self._publish()
            yield self._consume()
            yield self._steady()
        finally:
            self._clean_up()

    def _publish(self) -> Measurement:
        latencies: list[float] = []

        def send(number: int) -> None:
            began = perf_counter()
            self._send(number)
            latencies.append(perf_counter() - began)

        began, cpu = perf_counter(), cpu_seconds()
        self._start(send, self._plan.messages)
        gevent.joinall(self._publishers, raise_error=True)
        return Measurement(
            part="publish",
            messages=len(latencies),
            seconds=perf_counter() - began,
            cpu=cpu_seconds() - cpu,
            latencies=latencies,
        )

    def _consume(self) -> Measurement:
        came = _Arrivals(self._plan.messages)
        began, cpu = perf_counter(), cpu_seconds()
        self._start_consumers(came.note)
        came.wait(self._plan.timeout, self._consumers)
        seconds, used = perf_counter() - began, cpu_seconds() - cpu
        self._stop_consumers()
        return Measurement(part="consume", messages=came.count, seconds=seconds, cpu=used)

    def _steady(self) -> Measurement:
        plan = self._plan
        count = max(1, min(plan.messages, int(plan.rate * STEADY)))
        due: list[float] = []
        latencies: list[float] = []
        came = _Arrivals(count)

        def handle(body: Any, message: Message) -> None:
            latencies.append(perf_counter() - due[body["number"]])
            came.note(body, message)

        def send(number: int) -> None:
            gevent.sleep(max(0.0, due[number] - perf_counter()))
            self._send(number)

        self._start_consumers(handle)
        for consumer in self._consumers:
            if not consumer.wait_ready(plan.timeout):
                raise TimeoutError(f"no consumer could be started within {plan.timeout:g} s")
        began, cpu = perf_counter(), cpu_seconds()
        due.extend(began + number / plan.rate for number in range(count))
        self._start(send, count)
        gevent.joinall(self._publishers, raise_error=True)
        came.wait(plan.timeout, self._consumers)
        return Measurement(
            part="latency",
            messages=came.count,
            seconds=perf_counter() - began,
            cpu=cpu_seconds() - cpu,
            latencies=latencies,
        )

    def _send(self, number: int) -> None:
        body = {"number": number, "padding": self._padding}
        publish(self._queue.name, body, connection=self._connection, timeout=self._plan.timeout)

    def _start(self, send: Callable[[int], None], count: int) -> None:
        """Start the publishers, each of which sends its share of *count* numbers."""
        step = min(self._plan.publishers, count)

        def work(numbers: range) -> None:
            for number in numbers:
                send(number)

        self._publishers = [
            spawn("bench-publisher", work, range(first, count, step)) for first in range(step)
        ]

    def _start_consumers(self, handle: Callable[[Any, Message], None]) -> None:
        self._consumers = [
            spawn_consumer(
                self._queue,
                handle,
                connection=self._connection,
                prefetch_count=self._plan.prefetch,
            )
            for _ in range(self._plan.consumers)
        ]

    def _stop_consumers(self) -> None:
        consumers, self._consumers = self._consumers, []
        gevent.joinall([spawn("bench-stop", each.stop, self._plan.timeout) for each in consumers])

    def _clean_up(self) -> None:
        gevent.killall(self._publishers)
        timeout = self._plan.timeout
        with suppress(Exception, gevent.Timeout), gevent.Timeout(timeout):
            self._stop_consumers()
            if self._connection.session.is_open:
                self._connection.default_channel.queue_delete(self._queue.name)


class _Arrivals:
    """The messages that have come, until there are enough."""

    def __init__(self, wanted: int) -> None:
        self.count = 0
        self._wanted = wanted
        self._enough = Event()

    def note(self, body: Any, message: Message) -> None:
        """Handle a message."""
        self.count += 1
        if self.count >= self._wanted:
            self._enough.set()

    def wait(self, timeout: float, consumers: Sequence[ConsumerGreenlet]) -> None:
        """Wait until enough have come.

        Raises:
            TimeoutError: none came for *timeout* seconds.
            Exception: why a consumer has ended.
        """
        before = -1
        while not self._enough.wait(timeout):
            for consumer in consumers:
                if consumer.ready():
                    consumer.get()
            if self.count == before:
                raise TimeoutError(
                    f"{self.count:,} of {self._wanted:,} messages came, and none for {timeout:g} s"
                )
            before = self.count


#: Columns of the histogram for each doubling of the latency.
STEPS: Final = 2
#: Lines of a histogram.
MOST_LINES: Final = 20
#: Characters of the longest bar.
LONGEST: Final = 40


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* of all are below; 0.0 without values.

    Arguments:
        values: in any order.
        share: from 0 to 1.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def histogram_lines(
    seconds: Sequence[float], bar: str, most: int = MOST_LINES, longest: int = LONGEST
) -> list[str]:
    """Return a histogram of latencies, a line each: from how many milliseconds on, a bar, how many.

    Arguments:
        bar: the character of the bars.
        most: lines at most; the last one counts what was slower, too.
        longest: characters of the longest bar.
    """
    if not seconds:
        return []
    counts: dict[int, int] = {}
    for each in seconds:
        step = floor(log2(max(each, 1e-6)) * STEPS)
        counts[step] = counts.get(step, 0) + 1
    first = min(counts)
    last = min(max(counts), first + most - 1)
    slower = sum(count for step, count in counts.items() if step > last)
    counts[last] = counts.get(last, 0) + slower
    highest = max(counts[step] for step in counts if step <= last)
    return [
        f"{_milliseconds(2 ** (step / STEPS))}  "
        f"{bar * -(-counts.get(step, 0) * longest // highest):{longest}}  "
        f"{counts.get(step, 0):,}{' (and slower)' * (step == last and bool(slower))}"
        for step in range(first, last + 1)
    ]


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:8.3f} ms" if value < 1 else f"{value:8,.1f} ms"


def sockets() -> int | None:
    """Sockets that are open; None where the system does not tell."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return None
    count = 0
    for name in names:
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue  # the descriptor of the listing itself
    return count


def threads() -> int:
    """Threads of the process; where the system does not tell, those that run Python code."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return len(sys._current_frames())


def cpu_seconds() -> float:
    """User and system time so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory() -> int:
    """Resident size now, in bytes; where the system does not tell, the largest so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory()


def peak_memory() -> int:
    """Largest resident size so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
