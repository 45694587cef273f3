"""``greenconn move``: move the messages of a queue to another, perhaps of another broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from greenconn.cli.options import (
    header_option,
    queue_argument,
    rate_option,
    timeout_option,
    url_option,
)

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.publishing.publisher import OutgoingMessage


@click.command("move")
@queue_argument("source")
@queue_argument("target")
@url_option
@click.option("--to", "to_url", metavar="URL", help="URL of TARGET's broker, where it is another.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Move this many at most.")
@rate_option
@header_option("Only those with this header.  (Repeatable.)")
@click.option("--contains", metavar="TEXT", help="Only those whose body contains TEXT.")
@click.option("--declare", is_flag=True, help="Declare TARGET (durable) if it does not exist.")
@timeout_option
def command(
    source: str,
    target: str,
    url: str,
    to_url: str | None,
    count: int | None,
    rate: float | None,
    headers: tuple[str, ...],
    contains: str | None,
    declare: bool,
    timeout: float,
) -> None:
    """Move the messages that wait in SOURCE to TARGET, the oldest first.

    Each is acknowledged when TARGET's broker has confirmed it: none is lost, and the same command goes
    on where one was interrupted.

    \b
    Example:
      greenconn move mail mail.later
      greenconn move mail mail --to amqp://guest:guest@other:5672// --rate 100
    """
    if source == target and to_url is None:
        raise click.BadParameter("must not be SOURCE itself", param_hint="TARGET")
    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.cli.records import parse_pair
    from greenconn.cli.terminal import progress
    from greenconn.defaults import publishing_connection
    from greenconn.publishing.publisher import PublishOptions
    from greenconn.worker.failures import OBEYED, count_of, move, priority_of, resent

    is_meant = _filter(dict(parse_pair(each) for each in headers), contains)
    taking = connection_to(url, timeout)
    giving = connection_to(to_url, timeout) if to_url else taking
    moved, is_whole = 0, False

    def route(message: Message) -> OutgoingMessage | None:
        if not is_meant(message):
            return None
        options = PublishOptions(target, {**priority_of(message), "declare": declare})
        headers = {name: each for name, each in message.headers.items() if name not in OBEYED}
        return resent(message, options, headers)

    def note(done: int) -> None:
        nonlocal moved
        moved = done
        show(done)

    try:
        with interruptible():
            taking.connect()
            publishing = publishing_connection(giving)
            publishing.connect()
            with taking.channel() as channel:
                waiting = count_of(channel, source)
                total = waiting if count is None else min(count, waiting)
                with progress("moved", total) as show:
                    move(
                        channel, source, publishing, route,
                        limit=count, rate=rate, on_moved=note,
                    )  # fmt: skip
        is_whole = True
    finally:
        taking.close()
        giving.close()
        if is_whole or moved:
            what = f"moved {moved} message{'s' * (moved != 1)}"
            click.echo(f"{what} from {source} to {target}", err=True)


def _filter(headers: dict[str, str], contains: str | None) -> Callable[[Message], bool]:
    def is_meant(message: Message) -> bool:
        if any(str(message.headers.get(name)) != value for name, value in headers.items()):
            return False
        if contains is None:
            return True
        body = message.body
        text = body if isinstance(body, str) else bytes(body).decode("utf-8", "replace")
        return contains in text

    return is_meant
