"""``greenconn bench``: rates and latencies of a broker, as this client sees them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, Final

import click
import gevent
from gevent.event import Event

from greenconn.cli import json_option, number_option, timeout_option, url_option
from greenconn.cli.broker import connected, product_of
from greenconn.cli.terminal import folded, histogram_lines, percentile, writable_bars
from greenconn.defaults import publishing_connection
from greenconn.entity import Queue
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.publishing import publish
from greenconn.url import maybe_sanitize_url
from greenconn.worker import ConsumerGreenlet, spawn_consumer

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.message import Message


#: Measured part -> what it is.
PARTS: Final = {
    "publish": "published, each confirmed",
    "consume": "consumed and acknowledged",
    "latency": "at a steady rate, until the handler",
}
#: Seconds after which the queue is deleted, should this process be killed.
EXPIRES: Final = 300.0
#: Seconds of the part at a steady rate, at most.
STEADY: Final = 5.0
#: Percentiles that are reported.
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@click.command("bench")
@url_option
@number_option("--messages", "Number of messages to publish and consume.", 10_000)
@number_option("--size", "Bytes of padding in each body.", 256, 0)
@number_option("--publishers", "Number of greenlets that publish.", 10)
@number_option("--consumers", "Number of consumers.", 1)
@number_option("--prefetch", "Messages that are sent ahead to each consumer.", 100)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1),
    default=200.0,
    show_default=True,
    help="Messages a second, for the latency.",
)
@json_option
@timeout_option
def bench(
    url: str,
    messages: int,
    size: int,
    publishers: int,
    consumers: int,
    prefetch: int,
    rate: float,
    is_json: bool,
    timeout: float,
) -> None:
    """Measure how fast messages are published and consumed, and how long one is on its way.

    First all are published, then all are consumed; then some are published at a steady rate (--rate, for
    5 seconds at most) while they are consumed.  It uses a queue of its own, which it deletes.

    \b
    Example:
      greenconn bench -u amqp://guest:guest@localhost:5672//
      greenconn bench --messages 100000 --publishers 100 --json
    """
    plan = BenchmarkPlan(
        messages=messages,
        size=size,
        publishers=publishers,
        consumers=consumers,
        prefetch=prefetch,
        rate=rate,
        timeout=timeout,
    )
    with connected(url, timeout) as connection:
        if not is_json:
            title = (
                f"{maybe_sanitize_url(url)}: {product_of(connection)}, {messages:,} messages of "
                f"{size:,} bytes, {publishers:,} publisher{'s' * (publishers != 1)}, "
                f"{consumers:,} consumer{'s' * (consumers != 1)}"
            )
            click.echo(folded(title, sys.stdout))
        with closing(Benchmark(plan, connection).run()) as parts:
            for each in parts:
                if is_json:
                    click.echo(json.dumps(_as_dict(each)))
                else:
                    _show(each)


def _as_dict(measured: Measurement) -> dict[str, object]:
    return {
        "part": measured.part,
        "messages": measured.messages,
        "seconds": round(measured.seconds, 6),
        "rate": round(measured.rate, 1),
        "cpu_us": round(measured.cpu / measured.messages * 1e6, 2),
        **{f"{name}_ms": value for name, value in measured.percentiles().items()},
    }


def _show(measured: Measurement) -> None:
    click.echo()
    click.secho(f"{measured.part}: {PARTS[measured.part]}", bold=True)
    click.echo(
        f"  {measured.messages:,} messages in {measured.seconds:.2f} s: {measured.rate:,.0f} a second, "
        f"{measured.cpu / measured.messages * 1e6:.1f} us of CPU each"
    )
    if not measured.latencies:
        return
    texts = (f"{name} {value:,.2f} ms" for name, value in measured.percentiles().items())
    click.echo(f"  {', '.join(texts)}")
    bar = writable_bars()[-1]
    for line in histogram_lines(measured.latencies, bar):
        click.echo(f"  {line}")


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

        began, cpu = perf_counter(), process_time()
        self._start(send, self._plan.messages)
        gevent.joinall(self._publishers, raise_error=True)
        return Measurement(
            part="publish",
            messages=len(latencies),
            seconds=perf_counter() - began,
            cpu=process_time() - cpu,
            latencies=latencies,
        )

    def _consume(self) -> Measurement:
        came = _Arrivals(self._plan.messages)
        began, cpu = perf_counter(), process_time()
        self._start_consumers(came.note)
        came.wait(self._plan.timeout, self._consumers)
        seconds, used = perf_counter() - began, process_time() - cpu
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
        began, cpu = perf_counter(), process_time()
        due.extend(began + number / plan.rate for number in range(count))
        self._start(send, count)
        gevent.joinall(self._publishers, raise_error=True)
        came.wait(plan.timeout, self._consumers)
        return Measurement(
            part="latency",
            messages=came.count,
            seconds=perf_counter() - began,
            cpu=process_time() - cpu,
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
