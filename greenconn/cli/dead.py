"""``greenconn dead``: the dead letters of a queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from greenconn.cli.options import (
    CommandGroup,
    Decorator,
    queue_argument,
    rate_option,
    timeout_option,
    url_option,
)
from greenconn.encoding import bytes_to_str

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.worker.failures import DeadLetter, DeadLetters

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
def look(queue: str, url: str, name: str | None, count: int, is_json: bool, timeout: float) -> None:
    """Print the oldest dead letters of QUEUE with the reason, the error and the body.  They stay."""
    from greenconn.cli.records import check_output, count_line, json_line, write_line

    check_output()
    with _letters(queue, url, name, timeout) as letters:
        # Counted first: those that were looked at go back to the queue a moment later.
        waiting, found = letters.count(), letters.look(count)
        where = letters.name
    for number, letter in enumerate(found, 1):
        if is_json:
            write_line(json_line(_shown(letter), partial(json.dumps, default=repr)))
        else:
            for line in _lines(number, letter):
                click.echo(line)
    if not is_json or not found:
        click.echo(count_line(where, len(found), max(waiting, len(found))), err=True)


@dead.command("count")
@queue_argument()
@url_option
@_name_option
@timeout_option
def count(queue: str, url: str, name: str | None, timeout: float) -> None:
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
def replay(
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

    def is_meant(letter: DeadLetter) -> bool:
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
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@timeout_option
def purge(queue: str, url: str, name: str | None, yes: bool, timeout: float) -> int:
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


def _lines(number: int, letter: DeadLetter) -> Iterator[str]:
    from greenconn.cli.records import body_of, message_lines
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


def _shown(letter: DeadLetter) -> dict[str, object]:
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
