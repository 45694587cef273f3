"""``greenconn publish``, ``consume`` and ``purge``: messages by hand."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import gevent
import gevent.event

from greenconn.cli.options import timeout_option, url_option
from greenconn.connection import Connection
from greenconn.publishing import publish
from greenconn.worker import spawn_consumer

__all__ = ["commands"]


@click.command("publish")
@click.argument("queue")
@click.argument("bodies", nargs=-1, metavar="[BODY]...")
@url_option
@click.option("--json", "as_json", is_flag=True, help="Each BODY is JSON; else it is text.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@timeout_option
def publish_command(
    queue: str,
    bodies: tuple[str, ...],
    url: str,
    as_json: bool,
    headers: tuple[str, ...],
    timeout: float,
) -> None:
    """Publish each BODY to QUEUE, or each line of the standard input if there is none.

    Returns when the broker has confirmed all.  QUEUE is declared if it does not exist.
    """
    parsed = dict(_header(each) for each in headers)
    connection = Connection(url, connect_timeout=timeout)
    count = 0
    for text in bodies or (line.rstrip("\n") for line in sys.stdin):
        body = _parsed(text) if as_json else text
        publish(queue, body, connection=connection, timeout=timeout, headers=parsed)
        count += 1
    connection.close()
    click.echo(f"{count} published to {queue}", err=True)


@click.command("consume")
@click.argument("queue")
@url_option
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after that many messages.")
@click.option("--accept", multiple=True, help="Content type to accept beside JSON and text.")
@click.option("-w", "--wait", type=float, help="End when none came for that many seconds.")
@timeout_option
def consume_command(
    queue: str,
    url: str,
    count: int | None,
    accept: tuple[str, ...],
    wait: float | None,
    timeout: float,
) -> None:
    """Print the messages of QUEUE, a line each, and acknowledge them."""
    connection = Connection(url, connect_timeout=timeout)
    tally = _Tally(count)
    consumer = spawn_consumer(
        queue,
        tally.take,
        connection=connection,
        prefetch_count=1 if count is not None else None,
        accept=["json", "text/plain", *accept],
        on_error="requeue",
    )
    try:
        if not consumer.wait_ready(timeout):
            raise TimeoutError(f"{connection.as_uri()} did not start a consumer on {queue!r}")
        tally.wait(wait)
    finally:
        consumer.stop(timeout)
        connection.close()
    click.echo(f"{tally.taken} consumed from {queue}", err=True)


class _Tally:
    """Prints and counts messages, and tells when it is enough."""

    def __init__(self, wanted: int | None) -> None:
        self.taken = 0
        self._wanted = wanted
        self._came = gevent.event.Event()
        self._enough = gevent.event.Event()

    def take(self, body: Any, message: Any) -> None:
        if self._wanted is not None and self.taken >= self._wanted:
            message.requeue()
            return
        click.echo(body if isinstance(body, str) else json.dumps(body, default=repr))
        message.ack()
        self.taken += 1
        self._came.set()
        if self.taken == self._wanted:
            self._enough.set()

    def wait(self, longest_pause: float | None) -> None:
        """Wait until there were enough, or none came for *longest_pause* seconds."""
        while not self._enough.is_set():
            self._came.clear()
            done = gevent.wait([self._enough, self._came], timeout=longest_pause, count=1)
            if not done:
                return


@click.command("purge")
@click.argument("queue")
@url_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@timeout_option
def purge_command(queue: str, url: str, yes: bool, timeout: float) -> None:
    """Throw the messages of QUEUE away."""
    with Connection(url, connect_timeout=timeout) as connection:
        waiting = connection.default_channel.queue_declare(queue, passive=True).message_count
        if not yes:
            click.confirm(f"Throw {waiting} messages of {queue} away?", abort=True)
        gone = connection.default_channel.queue_purge(queue)
    click.echo(f"{gone} messages of {queue} thrown away")


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--header")
    return name, value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise click.BadParameter(f"{text!r} is not JSON: {exc}", param_hint="BODY") from None


commands = (publish_command, consume_command, purge_command)
