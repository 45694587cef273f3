"""``greenconn consume``: print the messages of a queue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from greenconn.cli.options import timeout_option, url_option

if TYPE_CHECKING:
    from greenconn.worker import ConsumerGreenlet

__all__ = ["body_text", "command"]

#: Messages that are fetched ahead at most.
PREFETCH: Final = 100


@click.command("consume")
@click.argument("queue")
@url_option
@click.option("-n", "--count", type=click.IntRange(min=1), help="Stop after this many messages.")
@click.option(
    "-w",
    "--wait",
    type=click.FloatRange(min=0.01),
    help="Stop when no message arrived for this many seconds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each body as JSON, including text.")
@click.option("--accept", multiple=True, help="Serializer or content type to accept; repeatable.")
@timeout_option
def command(
    queue: str,
    url: str,
    count: int | None,
    wait: float | None,
    as_json: bool,
    accept: tuple[str, ...],
    timeout: float,
) -> None:
    """Print the messages of QUEUE, a line each, and acknowledge them once they are printed.

    JSON, text and bytes are accepted without --accept.

    \b
    Example:
      greenconn consume mail --count 10
      greenconn consume mail --wait 1 --json > mail.jsonl
    """
    from greenconn.cli.broker import connection_to, report_losses
    from greenconn.cli.interrupt import interruptible
    from greenconn.cli.printer import MessagePrinter
    from greenconn.cli.streams import check_output
    from greenconn.worker import spawn_consumer

    check_output()
    connection = connection_to(url, timeout)
    is_whole = False
    printer = MessagePrinter(count, lambda body: body_text(body, is_json=as_json))
    try:
        with interruptible():
            connection.connect()
            report_losses(connection)
            consumer = spawn_consumer(
                queue,
                printer.handle,
                connection=connection,
                prefetch_count=min(count or PREFETCH, PREFETCH),
                accept=["json", "text/plain", "application/data", *accept],
                on_decode_error=printer.refuse,
                on_error="requeue",
                passive=True,
            )
            try:
                _check_ready(consumer, queue, timeout)
                printer.wait(consumer, wait)
            finally:
                consumer.stop(timeout)
        is_whole = True
    finally:
        connection.close()
        if is_whole or printer.handled:
            click.echo(
                f"consumed {printer.handled} message{'s' * (printer.handled != 1)} from {queue}",
                err=True,
            )


def _check_ready(consumer: ConsumerGreenlet, queue: str, timeout: float) -> None:
    if not consumer.wait_ready(timeout):
        raise TimeoutError(f"no consumer of {queue!r} could be started within {timeout:g} s")


def body_text(body: Any, *, is_json: bool) -> str:
    """Return a decoded body as a line; text stays as it is, unless it is to be JSON, too."""
    if isinstance(body, (bytes, bytearray, memoryview)):
        body = bytes(body).decode("utf-8", "backslashreplace")
    if isinstance(body, str) and not is_json:
        return body
    return json.dumps(body, default=repr, ensure_ascii=False)
