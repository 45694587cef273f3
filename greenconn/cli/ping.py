"""``greenconn ping``: connect to the broker and measure round trips."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import click

from greenconn.cli.options import timeout_option, url_argument

__all__ = ["command"]


@click.command("ping")
@url_argument
@click.option(
    "-c",
    "--count",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of round trips to measure.",
)
@timeout_option
def command(url: str, count: int, timeout: float) -> None:
    """Connect to the broker at URL, say what it is, and measure round trips.

    \b
    Example:
      greenconn ping amqp://guest:guest@localhost:5672//
    """
    import gevent

    from greenconn.cli.broker import connection_to, interruptible, product_of, round_trip

    connection = connection_to(url, timeout)
    no_reply = TimeoutError(f"{connection.as_uri()}: no reply")
    try:
        with interruptible(), gevent.Timeout(2 * timeout, no_reply):
            began = perf_counter()
            connection.connect()
            opened = perf_counter() - began
            click.echo(
                f"{connection.as_uri()}: {product_of(connection)}, open in {opened * 1e3:.1f} ms"
            )
            times = [round_trip(connection) for _ in range(count)]
    finally:
        connection.close()
    click.echo(
        f"round trip: {min(times) * 1e3:.2f} ms at best, {median(times) * 1e3:.2f} ms median, "
        f"{max(times) * 1e3:.2f} ms at worst ({count} times)"
    )
