"""``greenconn ping``: connect to the broker and measure round trips."""

from __future__ import annotations

import json
from statistics import median
from time import perf_counter

import click

from greenconn.cli.options import json_option, timeout_option, url_argument


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
@json_option
@timeout_option
def ping(url: str, count: int, is_json: bool, timeout: float) -> None:
    """Connect to the broker at URL, say what it is, and measure round trips.

    \b
    Example:
      greenconn ping amqp://guest:guest@localhost:5672//
      greenconn ping --json
    """
    import gevent

    from greenconn.cli.broker import connection_to, interruptible, product_of, round_trip

    connection = connection_to(url, timeout)
    no_reply = TimeoutError(f"{connection.as_uri()}: no reply")
    try:
        with interruptible(), gevent.Timeout(2 * timeout, no_reply):
            began = perf_counter()
            connection.connect()
            opened = 1e3 * (perf_counter() - began)
            broker = product_of(connection)
            if not is_json:
                click.echo(f"{connection.as_uri()}: {broker}, open in {opened:.1f} ms")
            times = [1e3 * round_trip(connection) for _ in range(count)]
    finally:
        connection.close()
    best, middle, worst = min(times), median(times), max(times)
    if is_json:
        found = {"open_ms": opened, "best_ms": best, "median_ms": middle, "worst_ms": worst}
        rounded = {name: round(each, 3) for name, each in found.items()}
        where = {"url": connection.as_uri(), "broker": broker}
        click.echo(json.dumps({**where, **rounded, "count": count}, ensure_ascii=False))
        return
    click.echo(
        f"round trip: {best:.2f} ms at best, {middle:.2f} ms median, {worst:.2f} ms at worst "
        f"({count} times)"
    )
