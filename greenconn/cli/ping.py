"""``greenconn ping``: is the broker there, and how far away?"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import click
import gevent

from greenconn.cli.options import timeout_option, url_argument
from greenconn.connection import Connection

__all__ = ["command"]


@click.command("ping")
@url_argument
@click.option("-c", "--count", default=5, show_default=True, help="Round trips to measure.")
@timeout_option
def command(url: str | None, count: int, timeout: float) -> None:
    """Connect to the broker at URL, say what it is, and measure round trips."""
    connection = Connection(url, connect_timeout=timeout)
    with gevent.Timeout(timeout * 2, TimeoutError(f"{connection.as_uri()}: no answer")):
        began = perf_counter()
        connection.connect()
        opened = perf_counter() - began
        click.echo(f"{connection.as_uri()}: {_product(connection)}, open in {opened * 1e3:.1f} ms")
        times = [_round_trip(connection) for _ in range(count)]
        connection.close()
    if times:
        click.echo(
            f"round trip: {min(times) * 1e3:.2f} ms at best, {median(times) * 1e3:.2f} ms median, "
            f"{max(times) * 1e3:.2f} ms at worst ({count} times)"
        )


def _product(connection: Connection) -> str:
    properties: dict[str, Any] = getattr(connection.connection, "server_properties", {}) or {}
    product = properties.get("product") or connection.transport.driver_type
    return f"{product} {properties.get('version', '')}".strip()


def _round_trip(connection: Connection) -> float:
    began = perf_counter()
    connection.default_channel.basic_qos(0, 1, False)
    return perf_counter() - began
