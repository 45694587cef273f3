"""``greenconn demo``: a thousand consumers, a few hundred publishers, and their use of resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import click

from greenconn.cli.options import Decorator
from greenconn.url import maybe_sanitize_url


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
#: Seconds between two cuts.
CUT_INTERVAL: Final = 2.0


def _number(name: str, help_text: str, default: int, least: int = 1) -> Decorator:
    return click.option(
        name, type=click.IntRange(min=least), default=default, show_default=True, help=help_text
    )


@click.command("demo")
@click.option(
    "-u",
    "--url",
    default=_DEFAULT.url,
    show_default=True,
    help="URL of the broker, of any transport.",
)
@_number("--messages", "Number of messages to publish and handle.", _DEFAULT.messages)
@_number("--consumers", "Number of consumers (spawn_consumer).", _DEFAULT.consumers)
@_number("--queues", "Number of queues that the consumers share.", _DEFAULT.queues)
@_number("--publishers", "Number of greenlets that publish.", _DEFAULT.publishers)
@_number("--pool", "Size of the connection pool of the publishers.", _DEFAULT.connections)
@_number(
    "--burst", "Messages that a publisher sends each time it acquires a connection.", _DEFAULT.burst
)
@_number("--size", "Bytes of padding in each body.", _DEFAULT.size, 0)
@click.option(
    "--chaos",
    is_flag=True,
    help="Cut connections all the time, and survive a restart of the broker; publishes are confirmed.",
)
@click.option("--plain", is_flag=True, help="Print plain lines, even in a terminal.")
def command(
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
    from rich.console import Console

    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.cli.workload import Display, Workload, summary_table

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
