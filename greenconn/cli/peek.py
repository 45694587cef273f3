"""``greenconn peek``: look at the messages of a queue, which stay there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from greenconn.cli.options import queue_argument, timeout_option, url_option
from greenconn.encoding import bytes_to_str

if TYPE_CHECKING:
    from greenconn.message import Message

#: Fields of a record that are shown as properties are.
ROUTE: Final = ("exchange", "routing_key", "redelivered")


@click.command("peek")
@queue_argument()
@url_option
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--json", "is_json", is_flag=True, help="Print each message as JSON, a line each.")
@timeout_option
def command(queue: str, url: str, count: int, is_json: bool, timeout: float) -> None:
    """Print the oldest messages of QUEUE with headers and properties.  They stay there.

    No message is acknowledged, and none counts as delivered where the broker can tell; RabbitMQ marks
    them as redelivered.

    \b
    Example:
      greenconn peek mail
      greenconn peek mail.dead --count 1 --json
    """
    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.cli.records import check_output, count_line, line_of, write_line
    from greenconn.worker.failures import count_of, look

    check_output()
    connection = connection_to(url, timeout)
    try:
        with interruptible():
            connection.connect()
            with connection.channel() as channel:
                # Counted first: those that were looked at go back to the queue a moment later.
                waiting = count_of(channel, queue)
                messages = look(channel, queue, count)
    finally:
        connection.close()
    for number, message in enumerate(messages, 1):
        if is_json:
            write_line(line_of(message))
        else:
            for line in _lines(number, message):
                click.echo(line)
    if not is_json:
        click.echo(count_line(queue, len(messages), max(waiting, len(messages))), err=True)


def _lines(number: int, message: Message) -> Iterator[str]:
    from greenconn.cli.records import message_lines, record_of

    record = record_of(message)
    fields = {name: record[name] for name in ROUTE if record[name]}
    fields.update(record["properties"])
    fields.update(
        (f"header {bytes_to_str(name)}", each) for name, each in record["headers"].items()
    )
    title = f"#{number}  {record['content_type'] or 'no content type'}"
    return message_lines(title, fields, record["body"])
