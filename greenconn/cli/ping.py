"""``greenconn ping``: connect to the broker and measure round trips."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import click

from greenconn.cli.options import timeout_option, url_argument

if TYPE_CHECKING:
    from greenconn.connection import Connection

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

    from greenconn.cli.broker import connection_to
    from greenconn.cli.interrupt import interruptible

    connection = connection_to(url, timeout)
    no_reply = TimeoutError(f"{connection.as_uri()}: no reply")
    try:
        with interruptible(), gevent.Timeout(2 * timeout, no_reply):
            began = perf_counter()
            connection.connect()
            opened = perf_counter() - began
            click.echo(
                f"{connection.as_uri()}: {_product(connection)}, open in {opened * 1e3:.1f} ms"
            )
            times = [_round_trip(connection) for _ in range(count)]
    finally:
        connection.close()
    click.echo(
        f"round trip: {min(times) * 1e3:.2f} ms at best, {median(times) * 1e3:.2f} ms median, "
        f"{max(times) * 1e3:.2f} ms at worst ({count} times)"
    )


def _product(connection: Connection) -> str:
    properties = getattr(connection.connection, "server_properties", None) or {}
    product = properties.get("product") or connection.transport.driver_type
    return f"{product} {properties.get('version', '')}".strip()


def _round_trip(connection: Connection) -> float:
    # Where qos is no request to the broker, the link has a question that goes all the way.
    ping = getattr(connection.connection, "ping", None)
    channel = connection.default_channel
    began = perf_counter()
    if ping is None:
        channel.basic_qos(0, 1, False)
    else:
        ping()
    return perf_counter() - began
