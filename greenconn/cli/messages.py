"""``greenconn peek``, ``move``, ``purge`` and ``dead``: the messages that wait in a queue."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from greenconn.cli import (
    CommandGroup,
    Decorator,
    header_option,
    queue_argument,
    rate_option,
    timeout_option,
    url_option,
    yes_option,
)
from greenconn.encoding import bytes_to_str

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.message import Message
    from greenconn.publishing.publisher import OutgoingMessage
    from greenconn.worker.failures import DeadLetterEntry, DeadLetters


#: Fields of a record that are shown as properties are.
ROUTE: Final = ("exchange", "routing_key", "redelivered")


@click.command("peek")
@queue_argument()
@url_option
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--json", "is_json", is_flag=True, help="Print each message as JSON, a line each.")
@timeout_option
def peek(queue: str, url: str, count: int, is_json: bool, timeout: float) -> None:
    """Print the oldest messages of QUEUE with headers and properties.  They stay there.

    No message is acknowledged, and none counts as delivered where the broker can tell; RabbitMQ marks
    them as redelivered.

    \b
    Example:
      greenconn peek mail
      greenconn peek mail.dead --count 1 --json
    """
    from greenconn.cli.broker import connected
    from greenconn.cli.records import check_output, count_line, write_line
    from greenconn.service.records import line_of
    from greenconn.worker.failures import count_of, look

    check_output()
    with connected(url, timeout) as connection, connection.channel() as channel:
        # Counted first: those that were looked at go back to the queue a moment later.
        waiting = count_of(channel, queue)
        messages = look(channel, queue, count)
    for number, message in enumerate(messages, 1):
        if is_json:
            write_line(line_of(message))
        else:
            for line in _lines(number, message):
                click.echo(line)
    if not is_json:
        click.echo(count_line(queue, len(messages), max(waiting, len(messages))), err=True)


def _lines(number: int, message: Message) -> Iterator[str]:
    from greenconn.cli.records import message_lines
    from greenconn.service.records import record_of

    record = record_of(message)
    fields = {name: record[name] for name in ROUTE if record[name]}
    fields.update(record["properties"])
    fields.update(
        (f"header {bytes_to_str(name)}", each) for name, each in record["headers"].items()
    )
    title = f"#{number}  {record['content_type'] or 'no content type'}"
    return message_lines(title, fields, record["body"])


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
def move(
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
    from greenconn.worker.failures import count_of, forwarded
    from greenconn.worker.failures import move as move_messages

    is_meant = _filter(dict(parse_pair(each) for each in headers), contains)
    taking = connection_to(url, timeout)
    giving = connection_to(to_url, timeout) if to_url else taking
    moved, is_whole = 0, False

    def route(message: Message) -> OutgoingMessage | None:
        return forwarded(message, target, declare=declare) if is_meant(message) else None

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
                    move_messages(
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


@click.command("purge")
@queue_argument()
@url_option
@yes_option
@timeout_option
def purge(queue: str, url: str, yes: bool, timeout: float) -> int:
    """Purge QUEUE: delete its waiting messages.  Unacknowledged messages stay.

    \b
    Example:
      greenconn purge mail --yes
    """
    from greenconn.cli.broker import connected
    from greenconn.cli.terminal import is_sure

    if not queue:
        raise click.BadParameter("must not be empty", param_hint="QUEUE")
    with connected(url, timeout) as connection:
        waiting = connection.default_channel.queue_declare(queue, passive=True).message_count
        if not yes and not is_sure(f"Purge {waiting} messages of {queue}?"):
            click.echo("nothing was purged", err=True)
            return 1
        gone = connection.default_channel.queue_purge(queue)
    click.echo(f"purged {gone} message{'s' * (gone != 1)} of {queue}")
    return 0


_name_option: Decorator = click.option(
    "--name", help="Name of the queue of the dead letters.  [default: QUEUE.dead]"
)


@click.group("dead", cls=CommandGroup)
def dead() -> None:
    """Show, count, replay or purge the dead letters of a queue.

    \b
    Example:
      greenconn dead look mail
      greenconn dead replay mail --error TimeoutError --rate 10
    """


@dead.command("look")
@queue_argument()
@url_option
@_name_option
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--json", "is_json", is_flag=True, help="Print each as JSON, a line each.")
@timeout_option
def look_dead(
    queue: str, url: str, name: str | None, count: int, is_json: bool, timeout: float
) -> None:
    """Print the oldest dead letters of QUEUE with the reason, the error and the body.  They stay."""
    from greenconn.cli.records import check_output, count_line, write_line
    from greenconn.service.records import json_line

    check_output()
    with _letters(queue, url, name, timeout) as letters:
        # Counted first: those that were looked at go back to the queue a moment later.
        waiting, found = letters.count(), letters.look(count)
        where = letters.name
    for number, letter in enumerate(found, 1):
        if is_json:
            write_line(json_line(_letter_fields(letter), partial(json.dumps, default=repr)))
        else:
            for line in _letter_lines(number, letter):
                click.echo(line)
    if not is_json or not found:
        click.echo(count_line(where, len(found), max(waiting, len(found))), err=True)


@dead.command("count")
@queue_argument()
@url_option
@_name_option
@timeout_option
def count_dead(queue: str, url: str, name: str | None, timeout: float) -> None:
    """Print how many dead letters QUEUE has."""
    with _letters(queue, url, name, timeout) as letters:
        click.echo(letters.count())


@dead.command("replay")
@queue_argument()
@url_option
@_name_option
@click.option("-n", "--count", type=click.IntRange(min=1), help="Replay this many at most.")
@rate_option
@click.option("--reason", help="Only those with this reason: failed, undecodable, rejected...")
@click.option("--error", help="Only those whose error is of this class, such as TimeoutError.")
@click.option("--to", "target", help="Publish all of them to this queue instead of QUEUE.")
@timeout_option
def replay_dead(
    queue: str,
    url: str,
    name: str | None,
    count: int | None,
    rate: float | None,
    reason: str | None,
    error: str | None,
    target: str | None,
    timeout: float,
) -> None:
    """Publish the dead letters of QUEUE to their queue again, the oldest first."""

    def is_meant(letter: DeadLetterEntry) -> bool:
        known = letter.error or ""
        return (reason is None or letter.reason == reason) and (
            error is None or error in (known, known.rpartition(".")[2])
        )

    with _letters(queue, url, name, timeout) as letters:
        done = letters.replay(is_meant, limit=count, rate=rate, target=target)
        click.echo(f"replayed {done} message{'s' * (done != 1)} of {letters.name}")


@dead.command("purge")
@queue_argument()
@url_option
@_name_option
@yes_option
@timeout_option
def purge_dead(queue: str, url: str, name: str | None, yes: bool, timeout: float) -> int:
    """Delete the dead letters of QUEUE."""
    from greenconn.cli.terminal import is_sure

    with _letters(queue, url, name, timeout) as letters:
        if not yes and not is_sure(f"Purge {letters.count()} messages of {letters.name}?"):
            click.echo("nothing was purged", err=True)
            return 1
        gone = letters.purge()
        click.echo(f"purged {gone} message{'s' * (gone != 1)} of {letters.name}")
        return 0


@contextmanager
def _letters(queue: str, url: str, name: str | None, timeout: float) -> Iterator[DeadLetters]:
    from greenconn.cli.broker import connected
    from greenconn.worker.failures import dead_letters

    if not queue:
        raise click.BadParameter("must not be empty", param_hint="QUEUE")
    with connected(url, timeout) as connection:
        letters = dead_letters(queue, name=name, connection=connection)
        # Without dead letters so far there may be the queue alone.
        _check_exists(connection, [letters.name] if name else [letters.name, queue])
        yield letters


def _check_exists(connection: Connection, names: list[str]) -> None:
    """Check that one of these queues exists.  May switch.

    Raises:
        NotFound: none does; names the last one.
    """
    from greenconn.exceptions import NotFound, ResourceLocked

    for name in names:
        try:
            with connection.channel() as channel:
                channel.queue_declare(name, passive=True)
            return
        except ResourceLocked:
            return  # the queue of another connection
        except NotFound:
            if name == names[-1]:
                raise


def _letter_lines(number: int, letter: DeadLetterEntry) -> Iterator[str]:
    from greenconn.cli.records import message_lines
    from greenconn.service.records import body_of
    from greenconn.worker.failures import EXCHANGE, FAILURE_HEADERS, ROUTING_KEY

    shown = {*FAILURE_HEADERS} - {EXCHANGE, ROUTING_KEY}  # by the fields
    message = letter.message
    fields: dict[str, object] = {
        name: value
        for name, value in (
            ("error", letter.error),
            ("text", letter.text),
            ("attempts", letter.attempts),
            ("first failure", letter.first_failure),
            ("queue", letter.queue),
            ("raised in", _origin_in(letter.traceback)),
        )
        if value is not None
    }
    fields.update(
        (f"header {bytes_to_str(name)}", value)
        for name, value in message.headers.items()
        if value not in (None, "") and name not in shown
    )
    return message_lines(f"#{number}  {letter.reason or 'no reason'}", fields, body_of(message))


def _origin_in(traceback: str | None) -> str | None:
    """Return the line of a traceback that says where the error was raised."""
    files = [line for line in (traceback or "").splitlines() if line.startswith('  File "')]
    return files[-1].strip() if files else None


def _letter_fields(letter: DeadLetterEntry) -> dict[str, object]:
    try:
        body: object = letter.message.payload
    except Exception:
        body = letter.message.body
    if isinstance(body, (bytes, bytearray, memoryview)):
        body = bytes(body).decode("utf-8", "backslashreplace")
    return {
        "queue": letter.queue,
        "reason": letter.reason,
        "error": letter.error,
        "text": letter.text,
        "traceback": letter.traceback,
        "attempts": letter.attempts,
        "first_failure": letter.first_failure,
        "headers": letter.message.headers,
        "body": body,
    }
