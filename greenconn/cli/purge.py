"""``greenconn purge``: empty a queue."""

from __future__ import annotations

import sys

import click

from greenconn.cli.options import queue_argument, timeout_option, url_option


@click.command("purge")
@queue_argument()
@url_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@timeout_option
def command(queue: str, url: str, yes: bool, timeout: float) -> int:
    """Purge QUEUE: delete its waiting messages.  Unacknowledged messages stay.

    \b
    Example:
      greenconn purge mail --yes
    """
    from greenconn.cli.broker import connection_to, interruptible

    if not queue:
        raise click.BadParameter("must not be empty", param_hint="QUEUE")
    connection = connection_to(url, timeout)
    try:
        with interruptible():
            connection.connect()
            waiting = connection.default_channel.queue_declare(queue, passive=True).message_count
            if not yes and not is_sure(f"Purge {waiting} messages of {queue}?"):
                click.echo("nothing was purged", err=True)
                return 1
            gone = connection.default_channel.queue_purge(queue)
    finally:
        connection.close()
    click.echo(f"purged {gone} message{'s' * (gone != 1)} of {queue}")
    return 0


def is_sure(question: str) -> bool:
    """Ask the user.

    Raises:
        click.UsageError: there is no terminal to ask at.
    """
    try:
        return click.confirm(question)
    except click.Abort:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("not confirmed: use --yes to do it without a prompt") from None
        raise
