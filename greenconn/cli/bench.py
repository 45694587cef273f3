"""``greenconn bench``: rates and latencies of a broker, as this client sees them."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Final

import click

from greenconn.cli.options import Decorator, json_option, timeout_option, url_option

if TYPE_CHECKING:
    from greenconn.cli.benchmark import Measurement

#: Measured part -> what it is.
PARTS: Final = {
    "publish": "published, each confirmed",
    "consume": "consumed and acknowledged",
    "latency": "at a steady rate, until the handler",
}


def _number(name: str, help_text: str, default: int, least: int = 1) -> Decorator:
    return click.option(
        name, type=click.IntRange(min=least), default=default, show_default=True, help=help_text
    )


@click.command("bench")
@url_option
@_number("--messages", "Number of messages to publish and consume.", 10_000)
@_number("--size", "Bytes of padding in each body.", 256, 0)
@_number("--publishers", "Number of greenlets that publish.", 10)
@_number("--consumers", "Number of consumers.", 1)
@_number("--prefetch", "Messages that are sent ahead to each consumer.", 100)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1),
    default=200.0,
    show_default=True,
    help="Messages a second, for the latency.",
)
@json_option
@timeout_option
def command(
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
    from greenconn.cli.benchmark import Benchmark, BenchmarkPlan
    from greenconn.cli.broker import connection_to, interruptible, product_of
    from greenconn.cli.terminal import folded
    from greenconn.url import maybe_sanitize_url

    plan = BenchmarkPlan(
        messages=messages,
        size=size,
        publishers=publishers,
        consumers=consumers,
        prefetch=prefetch,
        rate=rate,
        timeout=timeout,
    )
    connection = connection_to(url, timeout)
    try:
        with interruptible():
            connection.connect()
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
    finally:
        connection.close()


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
    from greenconn.cli.benchmark import histogram_lines
    from greenconn.cli.terminal import writable_bars

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
