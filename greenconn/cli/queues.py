"""``greenconn queues``: list, declare, bind and delete queues."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from greenconn.cli import (
    CommandGroup,
    Decorator,
    json_option,
    queue_argument,
    timeout_option,
    url_option,
    yes_option,
)

#: Fields of a queue that are printed as JSON.
FIELDS: Final = ("kind", "durable", "ready", "unacked", "consumers")

_arguments_option: Decorator = click.option(
    "-a",
    "--argument",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Such as x-overflow=reject-publish; VALUE is JSON, or else text.  (Repeatable.)",
)


@click.group("queues", cls=CommandGroup)
def queues() -> None:
    """List, declare, bind or delete queues.

    \b
    Example:
      greenconn queues list 'mail*'
      greenconn queues declare mail --type quorum --dead-letter
      greenconn queues bind mail events --key 'mail.#' --type topic
      greenconn queues delete mail --if-empty --yes
    """


@queues.command("list")
@queue_argument("names", nargs=-1, metavar="[QUEUE]...")
@url_option
@json_option
@timeout_option
def list_(names: tuple[str, ...], url: str, is_json: bool, timeout: float) -> None:
    """Print the queues: waiting and unacknowledged messages, and consumers.

    QUEUE is a name, or a pattern such as 'mail.*'.  RabbitMQ lists queues by its management API; without
    the plugin they must be named.
    """
    from greenconn.cli.broker import connected
    from greenconn.cli.terminal import UNKNOWN, Column, number, table_lines
    from greenconn.service.records import QueueReader

    check_names(names)
    with connected(url, timeout) as connection:
        found = QueueReader(connection, names, timeout).read(must_exist=True)
    if is_json:
        for each in found:
            shown = {"queue": each.name} | {name: getattr(each, name) for name in FIELDS}
            click.echo(json.dumps(shown, ensure_ascii=False))
        return
    columns = [
        Column("QUEUE", is_right=False),
        Column("KIND", is_right=False, is_optional=True),
        Column("READY"),
        Column("UNACKED", is_optional=True),
        Column("CONSUMERS"),
    ]
    rows = [
        [
            each.name,
            (each.kind or UNKNOWN) + (", transient" if each.durable is False else ""),
            *(number(value) for value in (each.ready, each.unacked, each.consumers)),
        ]
        for each in found
    ]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    titles, *lines = table_lines(columns, rows, width)
    if lines:
        click.secho(titles, bold=True)
    for line in lines:
        click.echo(line)
    click.echo(f"{len(found)} queue{'s' * (len(found) != 1)}", err=True)


@queues.command("declare")
@queue_argument()
@url_option
@click.option(
    "--type",
    "kind",
    type=click.Choice(["classic", "quorum", "stream"]),
    help="The type, on RabbitMQ.  [default: that of the virtual host]",
)
@click.option("--transient", is_flag=True, help="It does not outlive a restart of the broker.")
@click.option("--auto-delete", is_flag=True, help="It goes with its last consumer.")
@click.option(
    "--expires", type=click.FloatRange(min=0, min_open=True), help="Seconds unused until it goes."
)
@click.option(
    "--message-ttl", type=click.FloatRange(min=0), help="Seconds that a message stays in it."
)
@click.option("--max-length", type=click.IntRange(min=0), help="Messages that it holds at most.")
@click.option("--max-priority", type=click.IntRange(min=1, max=255), help="The highest priority.")
@click.option(
    "--dead-letter", is_flag=True, help="Keep what it gives up in QUEUE.dead, declared with it."
)
@_arguments_option
@json_option
@timeout_option
def declare(
    queue: str,
    url: str,
    kind: str | None,
    transient: bool,
    auto_delete: bool,
    expires: float | None,
    message_ttl: float | None,
    max_length: int | None,
    max_priority: int | None,
    dead_letter: bool,
    arguments: tuple[str, ...],
    is_json: bool,
    timeout: float,
) -> None:
    """Declare QUEUE, durable unless told otherwise.  One that exists must be the same."""
    from greenconn.cli.broker import connected
    from greenconn.entity import Queue

    check_names([queue])
    given = _parsed(arguments)
    if kind is not None:
        given["x-queue-type"] = kind
    with connected(url, timeout) as connection, connection.channel() as channel:
        Queue(
            queue,
            channel=channel,
            durable=not transient,
            auto_delete=auto_delete,
            expires=expires,
            message_ttl=message_ttl,
            max_length=max_length,
            max_priority=max_priority,
            dead_letter=dead_letter,
            queue_arguments=given or None,
        ).declare()
        found = channel.queue_declare(queue, passive=True)
    if is_json:
        shown = {"queue": queue, "ready": found.message_count, "consumers": found.consumer_count}
        click.echo(json.dumps(shown, ensure_ascii=False))
        return
    click.echo(
        f"declared {queue}: {found.message_count} messages, {found.consumer_count} consumers"
    )


@queues.command("bind")
@queue_argument()
@click.argument("exchange")
@url_option
@click.option(
    "-k", "--key", "keys", multiple=True, default=[""], help="The routing key.  (Repeatable.)"
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["direct", "topic", "fanout", "headers"]),
    help="Declare EXCHANGE (durable), of this type.",
)
@click.option("--remove", is_flag=True, help="Remove the binding instead.")
@_arguments_option
@json_option
@timeout_option
def bind(
    queue: str,
    exchange: str,
    url: str,
    keys: tuple[str, ...],
    kind: str | None,
    remove: bool,
    arguments: tuple[str, ...],
    is_json: bool,
    timeout: float,
) -> None:
    """Bind QUEUE to EXCHANGE.  A binding that exists is no error, nor the removal of a missing one."""
    from greenconn.cli.broker import connected

    check_names([queue])
    given = _parsed(arguments)
    with connected(url, timeout) as connection, connection.channel() as channel:
        if kind is not None:
            channel.exchange_declare(exchange, kind, durable=True, auto_delete=False)
        change = channel.queue_unbind if remove else channel.queue_bind
        for key in keys:
            change(queue, exchange, key, arguments=given or None)
            if is_json:
                shown = {"queue": queue, "exchange": exchange, "key": key, "bound": not remove}
                click.echo(json.dumps(shown, ensure_ascii=False))
                continue
            text = "unbound {} from {}" if remove else "bound {} to {}"
            click.echo(text.format(queue, exchange) + (f" with key {key!r}" if key else ""))


@queues.command("delete")
@queue_argument("queues", nargs=-1, required=True, metavar="QUEUE...")
@url_option
@click.option("--if-unused", is_flag=True, help="Only if it has no consumers.")
@click.option("--if-empty", is_flag=True, help="Only if no messages wait in it.")
@yes_option
@json_option
@timeout_option
def delete(
    queues: tuple[str, ...],
    url: str,
    if_unused: bool,
    if_empty: bool,
    yes: bool,
    is_json: bool,
    timeout: float,
) -> int:
    """Delete each QUEUE with its messages and bindings."""
    from greenconn.cli.broker import connected
    from greenconn.cli.terminal import is_sure
    from greenconn.worker.failures import count_of

    check_names(queues)
    with connected(url, timeout) as connection, connection.channel() as channel:
        # All of them must be there before the first one goes.
        waiting = {name: count_of(channel, name) for name in queues}
        for name, count in waiting.items():
            if not yes and not is_sure(f"Delete {name} with {count} messages?"):
                click.echo("nothing more was deleted", err=True)
                return 1
            gone = channel.queue_delete(name, if_unused=if_unused, if_empty=if_empty)
            if is_json:
                click.echo(json.dumps({"queue": name, "messages": gone}, ensure_ascii=False))
            else:
                click.echo(f"deleted {name} with {gone} message{'s' * (gone != 1)}")
    return 0


def _parsed(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return arguments of a declaration; values that are JSON are parsed."""
    from greenconn.cli.records import parse_pair

    parsed: dict[str, Any] = {}
    for each in arguments:
        name, text = parse_pair(each, "--argument")
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def check_names(names: Sequence[str]) -> None:
    """Check that names of queues are not empty.

    Raises:
        BadParameter: one is.
    """
    if not all(names):
        raise click.BadParameter("must not be empty", param_hint="QUEUE")
