"""``greenconn demo``: a thousand consumers, a few hundred publishers, and their use of resources.

Greenlets publish through a bounded pool, and consumers handle what comes.  Its progress is bars in a
terminal, plain lines elsewhere.
"""

from __future__ import annotations

import os
import resource
import sys
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any, Final

import click
import gevent
from gevent.event import Event
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from greenconn.cli import number_option
from greenconn.cli.broker import connection_to, interruptible
from greenconn.cli.terminal import (
    ACCENT,
    STEPS,
    histogram_lines,
    percentile,
    sparkline,
    writable_bars,
)
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import OperationalError
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.pools import ProducerPool
from greenconn.url import maybe_sanitize_url
from greenconn.worker import ConsumerGreenlet, spawn_consumer

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.message import Message


#: Seconds between two cuts.
CUT_INTERVAL: Final = 2.0
#: Every so many messages the latency is taken.
SAMPLE: Final = 8
SAMPLES: Final = 20_000
#: Latencies and rates that a snapshot has.
SHOWN_LATENCIES: Final = 1000
SHOWN_RATES: Final = 30
#: Seconds for the consumers to end, and for the queues to be deleted.
STOP_TIMEOUT: Final = 10.0
#: Seconds after which unused queues vanish, should this process be killed.
EXPIRES: Final = 300.0
#: Seconds between plain lines.
PLAIN_INTERVAL: Final = 1.0
#: Columns of a terminal from which on there are pictures beside the figures.
WIDE: Final = 78
#: The style of bars and graphs.
GRAPH: Final = f"color({ACCENT})"
#: Lines and longest bar of the histogram of latencies.
HISTOGRAM: Final = (8, 12)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The amount of work."""

    url: str = "memory://"
    messages: int = 400_000
    consumers: int = 1_000  #: greenlets made by ``spawn_consumer``
    queues: int = 100  #: shared evenly by the consumers
    publishers: int = 200  #: greenlets that publish
    connections: int = 10  #: in the pool that the publishers share
    burst: int = 20  #: messages that a publisher sends each time it has a connection
    window: int = 10_000  #: messages under way at most, so that latency means something
    size: int = 128  #: bytes of padding in each body
    stall_timeout: float = 30.0  #: seconds without progress after which the rest counts as lost
    #: Seconds between two cuts of a connection; None: they are left alone, and a lost one ends the work.
    cut_interval: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The progress of the work."""

    elapsed: float  #: seconds since the first publish; since the start while consumers start
    published: int
    handled: int
    rate: float  #: messages handled a second, over the last second or so
    latency: float  #: median of the latest messages, publish to handler, in seconds
    ready: int  #: consumers that the broker has confirmed
    sockets: int | None
    threads: int
    memory: int  #: bytes
    latencies: Sequence[float]  #: of the latest messages, in seconds
    rates: Sequence[int]  #: messages handled a second at the latest snapshots, this one at the end
    outages: int  #: connections that were lost
    duplicates: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The result of the work.  Messages in flight when the demo ended early are not counted as lost."""

    elapsed: float
    published: int
    handled: int  #: different messages
    lost: int
    in_flight: int  #: published and not handled when the demo ended early
    outages: int
    duplicates: int
    cpu: float  #: seconds of this process
    latencies: tuple[float, float]  #: median and 99th percentile, in seconds
    sockets: int | None
    threads: int
    peak_memory: int  #: bytes


_DEFAULT: Final = Plan()


@click.command("demo")
@click.option(
    "-u",
    "--url",
    default=_DEFAULT.url,
    show_default=True,
    help="URL of the broker, of any transport.",
)
@number_option("--messages", "Number of messages to publish and handle.", _DEFAULT.messages)
@number_option("--consumers", "Number of consumers (spawn_consumer).", _DEFAULT.consumers)
@number_option("--queues", "Number of queues that the consumers share.", _DEFAULT.queues)
@number_option("--publishers", "Number of greenlets that publish.", _DEFAULT.publishers)
@number_option("--pool", "Size of the connection pool of the publishers.", _DEFAULT.connections)
@number_option(
    "--burst", "Messages that a publisher sends each time it acquires a connection.", _DEFAULT.burst
)
@number_option("--size", "Bytes of padding in each body.", _DEFAULT.size, 0)
@click.option(
    "--chaos",
    is_flag=True,
    help="Cut connections all the time, and survive a restart of the broker; publishes are confirmed.",
)
@click.option("--plain", is_flag=True, help="Print plain lines, even in a terminal.")
def demo(
    url: str,
    messages: int,
    consumers: int,
    queues: int,
    publishers: int,
    pool: int,
    burst: int,
    size: int,
    chaos: bool,
    plain: bool,
) -> int:
    """Run consumers and publishers, show live what happens, and count every message.

    The exit code is 1 if a message was lost, or if the broker went away (with
    --chaos: for longer than 30 seconds).

    \b
    Example:
      greenconn demo
      greenconn demo --chaos
      greenconn demo --url amqp://guest:guest@localhost:5672//
    """
    plan = Plan(
        url=url,
        messages=messages,
        consumers=consumers,
        queues=min(queues, consumers),
        publishers=min(publishers, messages),
        connections=pool,
        burst=burst,
        size=size,
        cut_interval=CUT_INTERVAL if chaos else None,
    )
    console = Console(highlight=False)
    connection = connection_to(url)
    if chaos and connection.get_transport_cls().driver_type == "amqp":
        connection.transport_options["confirm_publish"] = True
    workload = Workload(plan, connection)
    console.print(
        f"{consumers:,} consumers on {plan.queues:,} queues of {maybe_sanitize_url(url)}, "
        f"{plan.publishers:,} publishers through a pool of {pool}",
        soft_wrap=True,
    )
    try:
        is_plain = plain or not console.is_terminal or console.is_dumb_terminal
        with interruptible(), Display(console, plan, plain=is_plain) as display:
            workload.run(display.show)
    finally:
        summary = workload.summary()
        if summary.published:
            console.print(summary_table(plan, summary))
    if summary.lost or summary.handled < plan.messages:
        missing = summary.lost + plan.messages - summary.published
        console.print(f"[red]{missing:,} messages were lost or could not be published[/red]")
        return 1
    return 0


class Workload:
    """One run of a plan.

    Every message has a number, and a ledger counts how often each number was handled.  Messages that
    were published and not handled are counted at the end.  The publishers do not wait for confirms,
    unless connections are cut: then each publish is repeated until the broker has the message.

    Arguments:
        connection: of the consumers; its clones publish.  If connections are cut it must have
            ``confirm_publish``, on AMQP.

    Attributes:
        names: of the queues.
        outages: connections that were lost.
    """

    def __init__(self, plan: Plan, connection: Connection) -> None:
        self.plan = plan
        self.published = 0
        #: Different messages, and how often one came again.
        self.handled = 0
        self.duplicates = 0
        self.outages = 0
        self._ledger = array("B", bytes(plan.messages))
        self._latencies: deque[float] = deque(maxlen=SAMPLES)
        self._room = Event()
        self._over = Event()
        self._error: BaseException | None = None
        self._connection = connection
        #: The connection that a publisher used last.
        self._publishing = connection
        prefix = f"greenconn-demo-{uuid()[:8]}"
        self.names = [f"{prefix}-{number}" for number in range(plan.queues)]
        self._consumers: list[ConsumerGreenlet] = []
        self._publishers: list[gevent.Greenlet[..., Any]] = []
        self._ready = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=6)
        self._rates: deque[int] = deque(maxlen=SHOWN_RATES)
        self._began = monotonic()
        self._cpu = 0.0
        #: The work came to its end by itself, even if messages were lost.
        self._is_whole = False
        #: Elapsed seconds, CPU seconds, sockets, threads at the end of the work.
        self._at_end: tuple[float, float, int | None, int] | None = None

    def run(self, watch: Callable[[Snapshot], None], interval: float = 0.2) -> None:
        """Do the work.  May switch.  How far it came, :meth:`summary` tells in any case.

        Arguments:
            watch: called each *interval* seconds.

        Raises:
            OperationalError: the broker went away, or refuses something.
            TimeoutError: the consumers did not start.
        """
        pool = ProducerPool(
            self._connection.Pool(self.plan.connections), limit=self.plan.connections
        )
        try:
            self._connection.connect()
            if self.plan.cut_interval is None:
                self._connection.session.on_connection_lost.append(self._fail)
            self._start_consumers(watch, interval)
            self._began, self._cpu = monotonic(), process_time()
            self._start_publishers(pool)
            if self.plan.cut_interval is not None:
                self._publishers.append(spawn("demo-cuts", self._cut, self.plan.cut_interval))
            self._watch(watch, interval)
            self._is_whole = True
        finally:
            self._note_end()
            gevent.killall(self._publishers)
            pool.connections.force_close_all()
            self._clean_up()

    def snapshot(self) -> Snapshot:
        """Return the progress of the work."""
        now = monotonic()
        self._marks.append((now, self.handled))
        then, handled = self._marks[0]
        rate = (self.handled - handled) / (now - then) if now > then else 0.0
        self._rates.append(int(rate))
        latencies = list(self._latencies)[-SHOWN_LATENCIES:]
        return Snapshot(
            elapsed=now - self._began,
            published=self.published,
            handled=self.handled,
            rate=rate,
            latency=percentile(latencies, 0.5),
            ready=self._ready,
            sockets=_sockets(),
            threads=_threads(),
            memory=_memory(),
            latencies=latencies,
            rates=tuple(self._rates),
            outages=self.outages,
            duplicates=self.duplicates,
        )

    def summary(self) -> Summary:
        """Return the result of the work, after :meth:`run`."""
        elapsed, cpu, open_sockets, running = self._at_end or (0.0, 0.0, None, 1)
        latencies = list(self._latencies)
        # A publish that failed in the end may have arrived.
        missing = max(0, self.published - self.handled)
        return Summary(
            elapsed=elapsed,
            published=self.published,
            handled=self.handled,
            lost=missing if self._is_whole else 0,
            in_flight=0 if self._is_whole else missing,
            outages=self.outages,
            duplicates=self.duplicates,
            cpu=cpu,
            latencies=(percentile(latencies, 0.5), percentile(latencies, 0.99)),
            sockets=open_sockets,
            threads=running,
            peak_memory=_peak_memory(),
        )

    def _start_consumers(self, watch: Callable[[Snapshot], None], interval: float) -> None:
        plan = self.plan
        # Durable, as RabbitMQ wants it.
        queues = [Queue(name, routing_key=name, expires=EXPIRES) for name in self.names]
        for number in range(plan.consumers):
            queue = queues[number % plan.queues]
            self._consumers.append(
                spawn_consumer(queue, self._handle, connection=self._connection, prefetch_count=50)
            )
        deadline = monotonic() + plan.stall_timeout
        for consumer in self._consumers:
            while not consumer.wait_ready(interval):
                self._check()
                if monotonic() > deadline:
                    raise TimeoutError(
                        f"{self._connection.as_uri()}: {self._ready} of {plan.consumers} consumers "
                        f"started within {plan.stall_timeout:g} s"
                    )
                watch(self.snapshot())
            self._ready += 1
        watch(self.snapshot())

    def _handle(self, body: Any, message: Message) -> None:
        number = body["number"]
        if not number % SAMPLE:
            self._latencies.append(monotonic() - body["sent_at"])
        if self._ledger[number]:
            self.duplicates += 1
            return
        self._ledger[number] = 1
        self.handled = handled = self.handled + 1
        if not handled % 100:
            self._room.set()
        self._end_if_done()

    def _end_if_done(self) -> None:
        # A message may be handled before its publisher hears of the confirm.
        if self.handled == self.published == self.plan.messages:
            self._over.set()

    def _start_publishers(self, pool: ProducerPool) -> None:
        total, count = self.plan.messages, self.plan.publishers
        self._publishers = [
            spawn("demo-publisher", self._publish, pool, range(first, total, count))
            for first in range(count)
        ]

    def _publish(self, pool: ProducerPool, numbers: range) -> None:
        plan, names, padding = self.plan, self.names, "x" * self.plan.size
        timeout = None if plan.cut_interval is None else plan.stall_timeout
        try:
            for start in range(0, len(numbers), plan.burst):
                self._wait_for_room()
                with pool.acquire(block=True) as producer:
                    self._publishing = producer.connection
                    for number in numbers[start : start + plan.burst]:
                        body = {"number": number, "sent_at": monotonic(), "padding": padding}
                        producer.publish(
                            body,
                            routing_key=names[number % plan.queues],
                            retry=timeout is not None,
                            timeout=timeout,
                        )
                        self.published += 1
                        self._end_if_done()
        except Exception as exc:
            self._fail(exc)

    def _cut(self, interval: float) -> None:
        """Cut the connection of the consumers, and one of the publishers, in turn."""
        while True:
            for is_publishing in (False, True):
                gevent.sleep(interval)
                session = (self._publishing if is_publishing else self._connection).session
                if session.is_open:
                    self.outages += 1
                    session.life.link.end(ConnectionResetError("cut by the demo"))

    def _wait_for_room(self) -> None:
        while self.published - self.handled >= self.plan.window:
            self._room.clear()
            self._room.wait()

    def _watch(self, watch: Callable[[Snapshot], None], interval: float) -> None:
        """Show how far it is until all is handled, or nothing happens any more."""
        progress, since = -1, 0.0
        while True:
            self._over.wait(interval)
            snapshot = self.snapshot()
            watch(snapshot)
            self._check()
            if self._over.is_set():
                return
            if snapshot.published + snapshot.handled != progress:
                progress, since = snapshot.published + snapshot.handled, monotonic()
            elif monotonic() - since > self.plan.stall_timeout:
                return

    def _fail(self, exc: BaseException) -> None:
        """Something went wrong: the first to say so is heard."""
        if self._error is None:
            self._error = exc
            self._over.set()

    def _check(self) -> None:
        for consumer in self._consumers:
            if consumer.ready() and self._error is None:
                self._error = consumer.exception or OperationalError(f"{consumer.name} ended")
        if self._error is not None:
            raise OperationalError(f"the demo ended early: {self._error}") from self._error

    def _note_end(self) -> None:
        elapsed = monotonic() - self._began
        self._at_end = elapsed, process_time() - self._cpu, _sockets(), _threads()

    def _clean_up(self) -> None:
        connection = self._connection
        listeners = connection.session.on_connection_lost
        if self._fail in listeners:
            listeners.remove(self._fail)
        try:
            if connection.session.is_open:
                with suppress(Exception, gevent.Timeout), gevent.Timeout(STOP_TIMEOUT):
                    self._stop(STOP_TIMEOUT / 2 if self._is_whole else 0.0)
        finally:
            connection.close()

    def _stop(self, timeout: float) -> None:
        stops = [spawn("demo-stop", consumer.stop, timeout) for consumer in self._consumers]
        gevent.joinall(stops)
        channel = self._connection.default_channel
        for name in self.names:
            channel.queue_delete(name)


class Display:
    """Shows snapshots as they come.

    Arguments:
        plain: a line each second instead of a picture that moves.
    """

    def __init__(self, console: Console, plan: Plan, *, plain: bool) -> None:
        self._console = console
        self._plan = plan
        self._next_line = 0.0
        # Before rich takes the place of the standard output.
        self._bars = writable_bars()
        # Without auto-refresh rich needs no thread: each snapshot draws.
        self._live = None if plain else Live(console=console, auto_refresh=False, transient=True)

    def show(self, snapshot: Snapshot) -> None:
        """Draw *snapshot*."""
        if self._live is not None:
            bars = self._bars if self._console.width >= WIDE else None
            self._live.update(_picture(self._plan, snapshot, bars), refresh=True)
        elif snapshot.elapsed >= self._next_line or self._is_at_end(snapshot):
            self._next_line = snapshot.elapsed + PLAIN_INTERVAL
            self._console.print(_line(self._plan, snapshot), soft_wrap=True)
        if snapshot.ready == self._plan.consumers and not snapshot.published:
            self._next_line = 0.0  # the clock begins anew with the first publish

    def _is_at_end(self, snapshot: Snapshot) -> bool:
        return snapshot.handled >= self._plan.messages

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._live.stop()


def _figures(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return each figure and its label, as text."""
    in_flight = max(0, snapshot.published - snapshot.handled)
    count = "?" if snapshot.sockets is None else f"{snapshot.sockets:,}"
    return [
        (f"{snapshot.rate:,.0f}", "messages/s"),
        (f"{in_flight:,}", "in flight"),
        (f"{snapshot.latency * 1e3:,.1f}", "ms latency"),
        (f"{snapshot.ready:,}", "consumers"),
        (count, "sockets"),
        (f"{snapshot.threads:,}", "thread" if snapshot.threads == 1 else "threads"),
    ]


def _line(plan: Plan, snapshot: Snapshot) -> str:
    if not snapshot.published:
        return (
            f"{snapshot.elapsed:6.1f} s  {snapshot.ready:,} of {plan.consumers:,} consumers ready"
        )
    share = 100 * snapshot.handled // plan.messages
    figures = (
        f"{value:>{width}} {name}"
        for (value, name), width in zip(_figures(snapshot), (7, 6, 7, 5, 3, 2), strict=True)
    )
    return f"{snapshot.elapsed:6.1f} s  {share:3d}%  {'  '.join(figures)}"


def _picture(plan: Plan, snapshot: Snapshot, bars: str | None) -> Table:
    """Return a bar, the figures below it, and, with *bars*, rates and latencies beside them."""
    starting = not snapshot.published
    done, total = (
        (snapshot.ready, plan.consumers) if starting else (snapshot.handled, plan.messages)
    )
    what = "consumers start" if starting else "messages handled"
    table = Table.grid(padding=(0, 1))
    head = Table.grid(padding=(0, 1))
    head.add_row(
        ProgressBar(
            total=total,
            completed=done,
            width=32,
            # The colours of rich are for dark grounds only.
            style="bright_black",
            complete_style=GRAPH,
            finished_style=GRAPH,
        ),
        f"{100 * done // total:3d}%",
        f"{snapshot.elapsed:.1f} s",
    )
    table.add_row(head)
    figures = Table.grid(padding=(0, 1))
    figures.add_column(justify="right", min_width=9)
    figures.add_column()
    rows = [(f"{done:,}", f"of {total:,} {what}"), *_figures(snapshot)]
    rows.append((f"{snapshot.memory / 2**20:,.0f}", "MiB of memory"))
    if plan.cut_interval is not None:
        rows.append((f"[red]{snapshot.outages:,}[/red]", "connections cut"))
        rows.append((f"{snapshot.duplicates:,}", "handled twice"))
    for value, name in rows:
        figures.add_row(f"[bold]{value}[/bold]", name)
    if bars is None or starting:
        table.add_row(figures)
    else:
        both = Table.grid(padding=(0, 2))
        both.add_row(figures, _graphs(snapshot, bars))
        table.add_row(both)
    return table


def _graphs(snapshot: Snapshot, bars: str) -> Table:
    """Return the latest rates and latencies as pictures."""
    graphs = Table.grid()
    graphs.add_column(no_wrap=True)
    graphs.add_row(f"[dim]messages/s[/dim]  [{GRAPH}]{sparkline(snapshot.rates, bars)}[/]")
    graphs.add_row("[dim]latency of 99 % of the latest messages[/dim]")
    for line in histogram_lines(_range(snapshot.latencies), bars[-1], *HISTOGRAM):
        graphs.add_row(f"[{GRAPH}]{line}[/]")
    return graphs


def _range(latencies: Sequence[float]) -> list[float]:
    """Return what a histogram has room for: not the slowest, and the fastest in its first line."""
    slowest = percentile(latencies, 0.99)
    fastest = slowest / 2 ** ((HISTOGRAM[0] - 1) / STEPS)
    return [max(each, fastest) for each in latencies if each <= slowest]


def summary_table(plan: Plan, summary: Summary) -> Table:
    """Return the summary as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    median, worst = summary.latencies
    rate = summary.handled / summary.elapsed if summary.elapsed else 0.0
    rows = [
        ("published", f"{summary.published:,} of {plan.messages:,}"),
        ("handled", f"{summary.handled:,}"),
        ("lost", f"{summary.lost:,}"),
        ("duplicates", f"{summary.duplicates:,}"),
        ("time", f"{summary.elapsed:.2f} s"),
        ("rate", f"{rate:,.0f} messages/s"),
        ("CPU time", f"{summary.cpu / max(1, summary.handled) * 1e6:.1f} us a message"),
        ("latency", f"{median * 1e3:,.1f} ms median, {worst * 1e3:,.1f} ms 99th percentile"),
        ("sockets", "unknown" if summary.sockets is None else f"{summary.sockets:,}"),
        ("threads", f"{summary.threads:,}"),
        ("peak memory", f"{summary.peak_memory / 2**20:.0f} MiB"),
    ]
    if plan.cut_interval is not None:
        rows.insert(4, ("cut", f"{summary.outages:,} connections"))
    if summary.in_flight:
        rows.insert(3, ("in flight", f"{summary.in_flight:,} when it ended"))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _sockets() -> int | None:
    """Return the number of open sockets; None where the system does not tell."""
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


def _threads() -> int:
    """Return the number of threads; where the system does not tell, those that run Python code."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return len(sys._current_frames())


def _memory() -> int:
    """Return the resident size in bytes; where the system does not tell, the largest so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak_memory()


def _peak_memory() -> int:
    """Return the largest resident size so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
