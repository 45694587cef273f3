"""``greenconn publish``: publish messages from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from greenconn.cli.options import timeout_option, url_option

if TYPE_CHECKING:
    from greenconn.connection import Connection

__all__ = ["bodies_from_input", "command", "parse_body", "parse_header"]


@click.command("publish")
@click.argument("queue")
@click.argument("bodies", nargs=-1, metavar="[BODY]...")
@url_option
@click.option("--json", "as_json", is_flag=True, help="Parse each BODY as JSON instead of text.")
@click.option(
    "--binary", is_flag=True, help="Publish the whole standard input, unchanged, as one message."
)
@click.option("--declare", is_flag=True, help="Declare QUEUE (durable) if it does not exist.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@timeout_option
def command(
    queue: str,
    bodies: tuple[str, ...],
    url: str,
    as_json: bool,
    binary: bool,
    declare: bool,
    headers: tuple[str, ...],
    timeout: float,
) -> None:
    """Publish each BODY to QUEUE, or each line of the standard input if there is none.

    Returns when the broker has confirmed all.  QUEUE must exist, unless --declare is given: its
    consumer may declare it with other arguments.

    \b
    Example:
      greenconn publish mail 'hello' 'world' --declare
      greenconn publish mail '{"to": "ada@example.org"}' --json -H source=shell
      tail -f app.log | greenconn publish log
      greenconn publish images --binary < cat.png
    """
    if binary and (bodies or as_json):
        raise click.UsageError(
            "--binary publishes the standard input unchanged: it cannot be combined with BODY or --json"
        )
    parsed = dict(parse_header(each) for each in headers)
    given = [[parse_body(each, as_json, "BODY") for each in bodies]] if bodies else None

    from greenconn.cli.broker import connection_to
    from greenconn.cli.interrupt import interruptible
    from greenconn.defaults import publishing_connection
    from greenconn.publishing import publish_many

    connection = connection_to(url, timeout)
    count, is_whole = 0, False
    try:
        with interruptible():
            _open(publishing_connection(connection))
            for batch in given or bodies_from_input(as_json, binary):
                count += publish_many(
                    queue,
                    batch,
                    connection=connection,
                    timeout=timeout,
                    headers=parsed or None,
                    declare=declare,
                )
        is_whole = True
    finally:
        connection.close()
        if is_whole or count:
            click.echo(f"published {count} message{'s' * (count != 1)} to {queue}", err=True)


def _open(connection: Connection) -> None:
    """Find out at once whether the broker is there, rather than wait for it."""
    connection.connect()


def bodies_from_input(as_json: bool, binary: bool = False) -> Iterator[list[Any]]:
    """Yield the bodies on the standard input, as many at a time as have come.  May switch.

    Arguments:
        as_json: parse each line as JSON.
        binary: the whole input is one body.
    """
    from greenconn.cli.streams import lines, whole_input

    if binary:
        yield [whole_input()]
        return
    if sys.stdin is not None and sys.stdin.isatty():
        click.echo("one body a line; end with Ctrl-D", err=True)
    number = 0
    for batch in lines():
        bodies = []
        for line in batch:
            number += 1
            bodies.append(parse_body(_text(line, number), as_json, f"line {number}"))
        yield bodies


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise click.UsageError(
            f"line {number} of the standard input is not UTF-8 text ({exc.reason}): "
            f"use --binary to publish the whole input as one message"
        ) from None


def parse_body(text: str, as_json: bool, where: str) -> Any:
    """Return a body of the command line.

    Arguments:
        where: the text stood, for the error.

    Raises:
        UsageError: it is not JSON, and must be.
    """
    if not as_json:
        return text
    try:
        return json.loads(text)
    except ValueError as exc:
        raise click.UsageError(f"{where}: {text[:60]!r} is not JSON: {exc}") from None


def parse_header(text: str, option: str = "--header") -> tuple[str, str]:
    """Return name and value of ``NAME=VALUE``.

    Arguments:
        option: by which it was given.

    Raises:
        click.BadParameter: it is something else.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    return name, value
