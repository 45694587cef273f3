"""``greenconn consume`` and ``rpc``: print the messages of a queue, and the replies of a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import click

from greenconn.cli import (
    bodies_argument,
    header_option,
    queue_argument,
    timeout_option,
    url_option,
)

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.connection import Connection
    from greenconn.message import Message
    from greenconn.worker import ConsumerGreenlet


#: Messages that are fetched ahead at most.
PREFETCH: Final = 100


@click.command("consume")
@queue_argument()
@url_option
@click.option("-n", "--count", type=click.IntRange(min=1), help="Stop after this many messages.")
@click.option(
    "-w",
    "--wait",
    type=click.FloatRange(min=0.01),
    help="Stop when no message arrived for this many seconds.",
)
@click.option(
    "--json",
    "is_json",
    is_flag=True,
    help="Print each message with its headers and properties as JSON, a line each.",
)
@click.option(
    "--accept", multiple=True, help="Serializer or content type to decode.  (Repeatable.)"
)
@click.option(
    "--no-ack",
    "is_no_ack",
    is_flag=True,
    help="The broker deletes messages as it sends them: they are lost if this command is killed.",
)
@timeout_option
def consume(
    queue: str,
    url: str,
    count: int | None,
    wait: float | None,
    is_json: bool,
    accept: tuple[str, ...],
    is_no_ack: bool,
    timeout: float,
) -> None:
    """Print the messages of QUEUE, a line each, and acknowledge each once it is printed.

    It waits for further messages until Ctrl-C, --count or --wait ends it; 'peek' leaves them in the
    queue.  Without --json bodies are printed: JSON, text and bytes, and others with --accept.  With
    --json whole messages are printed, which 'publish --jsonl' publishes again.

    \b
    Example:
      greenconn consume mail --count 10
      greenconn consume mail --wait 1 --json > mail.jsonl
      greenconn publish mail --jsonl < mail.jsonl
    """
    if is_no_ack and count is not None:
        raise click.UsageError(
            "--no-ack cannot be combined with --count: the broker sends and deletes more than that"
        )
    from greenconn.cli.broker import connection_to, interruptible, report_losses
    from greenconn.cli.records import check_output
    from greenconn.worker import spawn_consumer

    check_output()
    connection = connection_to(url, timeout)
    is_whole = False
    printer = MessagePrinter(
        count, _record if is_json else _body, is_raw=is_json, is_no_ack=is_no_ack
    )
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
                no_ack=is_no_ack,
                on_error="reject" if is_no_ack else "requeue",  # the printer has settled it
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


def _record(body: Any, message: Message) -> str:
    from greenconn.service.records import line_of

    return line_of(message)


def _body(body: Any, message: Message) -> str:
    return body_text(body)


def body_text(body: Any) -> str:
    """Return a decoded body as a line; text stays as it is."""
    if isinstance(body, (bytes, bytearray, memoryview)):
        body = bytes(body).decode("utf-8", "backslashreplace")
    return body if isinstance(body, str) else json.dumps(body, default=repr, ensure_ascii=False)


class MessagePrinter:
    """Prints and counts messages.

    Arguments:
        wanted: after how many it is enough; None never.
        show: makes the line of a message; its body is None where it was not decoded.
        is_raw: a message is printed whether or not its body can be decoded.
        is_no_ack: the broker deleted the messages when it sent them.

    Attributes:
        handled: how many were printed and acknowledged.
    """

    def __init__(
        self,
        wanted: int | None,
        show: Callable[[Any, Message], str],
        *,
        is_raw: bool,
        is_no_ack: bool,
    ) -> None:
        from gevent.event import Event

        self.handled = 0
        self._wanted = wanted
        self._show = show
        self._is_raw = is_raw
        self._is_no_ack = is_no_ack
        self._error: Exception | None = None
        self._came = Event()
        self._is_over = Event()

    def handle(self, body: Any, message: Message) -> None:
        """Print one message, then acknowledge it.  May switch."""
        from greenconn.cli.records import write_line

        if self._is_over.is_set() and not self._is_no_ack:
            message.put_back()
            return
        try:
            write_line(self._show(body, message))
        except Exception as exc:
            self._fail(message, exc)
            return
        message.ack()  # which sends nothing without acknowledgements
        self.handled += 1
        self._came.set()
        if self.handled == self._wanted:
            self._is_over.set()

    def refuse(self, message: Message, exc: Exception) -> None:
        """Print a message whose body cannot be decoded, or leave it in its queue.  May switch."""
        if self._is_raw and not message.errors:
            self.handle(None, message)
        else:
            self._fail(message, exc)

    def wait(self, consumer: Greenlet[..., Any], longest_pause: float | None) -> None:
        """Wait until there were enough, or none came for *longest_pause* seconds.

        Raises:
            Exception: what went wrong with a message, or what ended the consumer.
        """
        from gevent import wait

        consumer.rawlink(self._note_end)
        while not self._is_over.is_set():
            self._came.clear()
            if not wait([self._is_over, self._came], timeout=longest_pause, count=1):
                break
        consumer.unlink(self._note_end)
        if self._error is not None:
            raise self._error
        if consumer.ready():
            consumer.get()

    def _fail(self, message: Message, exc: Exception) -> None:
        if not self._is_no_ack:
            message.requeue()
        if self._error is None:
            self._error = exc
        self._is_over.set()

    def _note_end(self, consumer: Greenlet[..., Any]) -> None:
        self._is_over.set()


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
