"""``greenconn demo``: a thousand consumers, a few hundred publishers, and what it takes."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from greenconn.cli.display import Display, summary_table
from greenconn.cli.workload import Plan, Workload

__all__ = ["command"]

_DEFAULT = Plan(url="memory://")


def _number(name: str, help_text: str, default: int) -> Any:
    return click.option(
        name, type=click.IntRange(min=1), default=default, show_default=True, help=help_text
    )


@click.command("demo")
@click.option(
    "-u",
    "--url",
    default=_DEFAULT.url,
    show_default=True,
    help="Where the broker is; any transport.",
)
@_number("--messages", "Messages to publish and handle.", _DEFAULT.messages)
@_number("--consumers", "Greenlets made by spawn_consumer.", _DEFAULT.consumers)
@_number("--queues", "Queues that they share.", _DEFAULT.queues)
@_number("--publishers", "Greenlets that publish.", _DEFAULT.publishers)
@_number("--pool", "Connections that the publishers share.", _DEFAULT.connections)
@_number("--size", "Bytes of padding in each body.", _DEFAULT.size)
@click.option("--plain", is_flag=True, help="Plain lines, even in a terminal.")
def command(
    url: str,
    messages: int,
    consumers: int,
    queues: int,
    publishers: int,
    pool: int,
    size: int,
    plain: bool,
) -> int:
    """Run consumers and publishers, show live what happens, and count every message.

    Exit code 1 if a message was lost.
    """
    console = Console(highlight=False)
    plan = Plan(
        url=url,
        messages=messages,
        consumers=consumers,
        queues=min(queues, consumers),
        publishers=publishers,
        connections=pool,
        size=size,
    )
    workload = Workload(plan)
    console.print(
        f"{consumers:,} consumers on {plan.queues:,} queues of {workload.broker}, "
        f"{publishers:,} publishers through a pool of {pool}"
    )
    with Display(console, plan, plain=plain or not console.is_terminal) as display:
        summary = workload.run(display.show)
    console.print(summary_table(summary))
    if summary.lost:
        console.print(f"[red]{summary.lost:,} messages were lost[/red]")
        return 1
    return 0
