"""``greenconn rpc``: call the server of a queue."""

from __future__ import annotations

import json
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from greenconn.cli.options import (
    bodies_argument,
    header_option,
    queue_argument,
    timeout_option,
    url_option,
)

if TYPE_CHECKING:
    from greenconn.connection import Connection


@click.command("rpc")
@queue_argument()
@bodies_argument
@url_option
@click.option(
    "--json",
    "is_json",
    is_flag=True,
    help="Parse each BODY as JSON, and print an object with each reply, its error and its seconds.",
)
@header_option("(Repeatable.)")
@timeout_option
def rpc(
    queue: str,
    bodies: tuple[str, ...],
    url: str,
    is_json: bool,
    headers: tuple[str, ...],
    timeout: float,
) -> int:
    """Send each BODY to the server of QUEUE, or each line of the standard input if there is none, or a
    '-', and print the reply, a line each.

    The requests are sent one after the other, and expire when the time for the reply has ended.  Exits
    with 1 when the server reported an error or did not reply.

    \b
    Example:
      greenconn rpc add '[1, 2]' --json
      greenconn rpc shorten < texts.txt
    """
    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.cli.records import bodies_of, check_output, parse_headers
    from greenconn.defaults import publishing_connection

    check_output()
    parsed = parse_headers(headers)
    given = bodies_of(bodies, is_json)
    connection = connection_to(url, timeout)
    is_failed = False
    try:
        with interruptible():
            publishing_connection(connection).connect()
            for batch in given:
                for body in batch:
                    if not _call(queue, body, connection, timeout, parsed, is_json):
                        is_failed = True
    finally:
        connection.close()
    return int(is_failed)


def _call(
    queue: str,
    body: Any,
    connection: Connection,
    timeout: float,
    headers: dict[str, Any],
    is_json: bool,
) -> bool:
    """Print the reply to one request, and return whether there was one.  May switch."""
    from greenconn.cli.broker import error_line
    from greenconn.cli.consume import body_text
    from greenconn.cli.records import write_line
    from greenconn.cli.terminal import folded
    from greenconn.exceptions import RemoteError, ReplyTimeout
    from greenconn.service.rpc import call

    reply, error, began = None, None, perf_counter()
    try:
        reply = call(
            queue,
            body,
            connection=connection,
            timeout=timeout,
            expiration=timeout,  # a server that comes later need not do it
            headers=headers or None,
        )
    except (RemoteError, ReplyTimeout) as exc:
        error = error_line(exc)[0]
    if is_json:
        seconds = round(perf_counter() - began, 6)
        shown = {"reply": reply, "error": error, "seconds": seconds}
        write_line(json.dumps(shown, default=repr, ensure_ascii=False))
    elif error is None:
        write_line(body_text(reply))
    else:
        click.echo(folded(f"greenconn: {error}", sys.stderr), err=True)
    return error is None
