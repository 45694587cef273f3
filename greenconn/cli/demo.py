"""``greenconn demo``: a thousand consumers, a few hundred publishers, and their use of resources."""

from __future__ import annotations

from typing import Final

import click

from greenconn.cli.options import Decorator
from greenconn.cli.plan import Plan
from greenconn.url import maybe_sanitize_url

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
