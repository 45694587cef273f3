"""``greenconn publish``: publish messages from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import cycle, islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from greenconn.cli import (
    bodies_argument,
    header_option,
    queue_argument,
    rate_option,
    timeout_option,
    url_option,
)

if TYPE_CHECKING:
    from greenconn.publishing.publisher import OutgoingMessage

#: Messages that are under way at once, and bytes in their bodies.
WINDOW: Final = 1000
WINDOW_BYTES: Final = 4 * 2**20
#: Seconds for which messages are published at once with a rate.
BURST: Final = 0.05
#: Properties that have options of their own.
OPTIONS: Final = {
    "content_type": "--content-type",
    "expiration": "--expires",
    "priority": "--priority",
}
#: Batches of messages, as they come.
_Batches: TypeAlias = "Iterator[Iterable[OutgoingMessage]]"


@click.command("publish")
@queue_argument(required=False)
@bodies_argument
@url_option
@click.option(
    "-x", "--exchange", metavar="NAME", help="Publish to this exchange; QUEUE is the routing key."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Parse each BODY, or each line, as JSON instead of text, and print the result as JSON.",
)
@click.option(
    "--jsonl",
    is_flag=True,
    help="Each line of the standard input is a message as 'consume --json' prints it.",
)
@header_option("A header; NAME:=JSON for one that is no text.  (Repeatable.)")
@click.option(
    "-p",
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    help="A property, such as correlation_id or delivery_mode.  (Repeatable.)",
)
@click.option("--content-type", metavar="TYPE", help="BODY is serialised already, as this type.")
@click.option("--priority", type=click.IntRange(0, 255), help="Priority of each message.")
@click.option(
    "--delay",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Reach the queue so much later.",
)
@click.option(
    "--at",
    metavar="TIME",
    help="Reach the queue then, if that is not past: ISO 8601, such as 2026-12-01T10:00+01:00.  Without "
    "a zone it is local time.",
)
@click.option(
    "--expires", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait so long at most."
)
@click.option(
    "--no-mandatory", is_flag=True, help="Drop a message that reaches no queue, without an error."
)
@click.option("--declare", is_flag=True, help="Declare QUEUE (durable) if it does not exist.")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(min=1),
    help="Stop after so many messages; BODYs are repeated until then.",
)
@rate_option
@timeout_option
def publish(
    queue: str | None,
    bodies: tuple[str, ...],
    url: str,
    exchange: str | None,
    as_json: bool,
    jsonl: bool,
    headers: tuple[str, ...],
    properties: tuple[str, ...],
    content_type: str | None,
    priority: int | None,
    delay: float | None,
    at: str | None,
    expires: float | None,
    no_mandatory: bool,
    declare: bool,
    count: int | None,
    rate: float | None,
    timeout: float,
) -> None:
    """Publish each BODY to QUEUE, or each line of the standard input if there is none, or a '-'.

    Returns when the broker has confirmed all.  BODY is a text, @FILE for the bytes of a file, or @- for
    those of the whole standard input.  QUEUE must exist, unless --declare is given: its consumer may
    declare it with other arguments.  With --jsonl and without QUEUE each message goes to the exchange
    and the routing key that it names.

    \b
    Example:
      greenconn publish mail 'hello' 'world' --declare
      greenconn publish mail '{"to": "ada@example.org"}' --json -H source=shell
      greenconn publish user.new '{"id": 7}' --json --exchange events
      greenconn publish images @cat.png --content-type image/png
      greenconn publish mail 'hello' --count 5000 --rate 100
      greenconn publish mail 'good morning' --at 2026-12-01T09:00
      tail -f app.log | greenconn publish log
      greenconn consume mail --wait 1 --json | greenconn publish mail.copy --jsonl
    """
    from greenconn.cli.records import bodies_of, parse_headers

    _check_usage(queue, bodies, exchange, jsonl, declare)
    if at is not None and delay is not None:
        raise click.UsageError("--at cannot be combined with --delay")
    options: dict[str, Any] = {
        "headers": parse_headers(headers) or None,
        "content_type": content_type,
        "priority": priority,
        "delay": delay,
        "at": None if at is None else _time(at),
        "expires": expires,
        "mandatory": not no_mandatory,
        **_properties(properties),
    }
    if content_type is None and "content_encoding" in options and not jsonl:
        raise click.UsageError("content_encoding is for a BODY with a --content-type of its own")
    if exchange is None:
        options["declare"] = declare
    outgoing = _Messages(queue, exchange, options)
    if jsonl:
        batches = outgoing.of_records()
    else:
        given = bodies_of(bodies, as_json and content_type is None)
        batches = outgoing.of_bodies(given, is_repeated=bool(bodies) and count is not None)
    if count is None and bodies:
        total: int | None = len(bodies)
    else:
        total = count
    where = queue if exchange is None else f"{exchange!r} with {queue!r}"
    _publish(_windows(batches, count, rate), url, timeout, total, rate, _Report(where, as_json))


def _check_usage(
    queue: str | None, bodies: Sequence[str], exchange: str | None, jsonl: bool, declare: bool
) -> None:
    if jsonl and bodies:
        raise click.UsageError("--jsonl reads the standard input: it cannot be combined with BODY")
    if queue is None and (exchange is not None or not jsonl):
        raise click.UsageError("Missing argument 'QUEUE'")
    if declare and (exchange is not None or queue is None):
        raise click.UsageError(
            "--declare is for a QUEUE: 'greenconn queues bind' declares an exchange and its bindings"
        )


class _Report:
    """The number of messages that the broker has, as it is printed in the end.

    Arguments:
        where: they go; None: where they say.
        is_json: an object on the standard output instead of a line on the standard error.
    """

    def __init__(self, where: str | None, is_json: bool) -> None:
        self.count = 0
        self._where = where
        self._is_json = is_json
        self._began = monotonic()

    def end(self) -> None:
        """Print it."""
        count, seconds = self.count, round(monotonic() - self._began, 6)
        if self._is_json:
            click.echo(json.dumps({"published": count, "seconds": seconds}))
            return
        to = "" if self._where is None else f" to {self._where}"
        click.echo(f"published {count} message{'s' * (count != 1)}{to}", err=True)


def _publish(
    windows: Iterator[list[OutgoingMessage]],
    url: str,
    timeout: float,
    total: int | None,
    rate: float | None,
    report: _Report,
) -> None:
    """Publish messages, a window at a time.  May switch."""
    import gevent

    from greenconn.cli.broker import connection_to, interruptible
    from greenconn.cli.terminal import progress
    from greenconn.defaults import publishing_connection
    from greenconn.green.deadline import Deadline
    from greenconn.publishing import publish_prepared

    def note(position: int) -> None:
        report.count += 1

    connection = connection_to(url, timeout)
    is_whole = False
    try:
        with interruptible(), progress("published", total) as show:
            publishing = publishing_connection(connection)
            publishing.connect()  # finds out at once whether the broker is there
            began = monotonic()
            for window in windows:
                if rate is not None:
                    gevent.sleep(max(0.0, began + report.count / rate - monotonic()))
                publish_prepared(window, publishing, Deadline(timeout), note)
                show(report.count)
        is_whole = True
    finally:
        connection.close()
        if is_whole or report.count:
            report.end()


def _windows(
    batches: _Batches, count: int | None, rate: float | None
) -> Iterator[list[OutgoingMessage]]:
    """Yield messages as many at a time as are published at once."""
    taken = 0
    limit = WINDOW if rate is None else min(WINDOW, max(1, int(rate * BURST)))
    for batch in batches:
        window: list[OutgoingMessage] = []
        size = 0
        for message in islice(batch, None if count is None else count - taken):
            window.append(message)
            size += len(message.body)
            taken += 1
            if len(window) == limit or size >= WINDOW_BYTES:
                yield window
                window, size = [], 0
        if window:
            yield window
        if taken == count:
            return


class _Messages:
    """Bodies and records, as the messages that are published.

    Arguments:
        queue: the queue, or the routing key; None: what each record says.
        exchange: the name of an exchange that must exist; None: the default one.
        options: of ``greenconn.publish``, without a routing key.
    """

    def __init__(self, queue: str | None, exchange: str | None, options: dict[str, Any]) -> None:
        from greenconn.publishing.publisher import PublishOptions

        self._queue = queue
        self._exchange = exchange
        self._options = options
        self._kept: dict[tuple[str, str, int | None], PublishOptions] = {}
        if queue is not None:
            self._at(exchange or "", queue, None)  # what is wrong with them is said before all else

    def of_bodies(self, given: Iterator[list[Any]], *, is_repeated: bool) -> _Batches:
        """Yield a message for each body.

        Arguments:
            is_repeated: again and again.
        """
        assert self._queue is not None
        options = self._at(self._exchange or "", self._queue, None)
        for bodies in given:
            yield map(options.message, cycle(bodies) if is_repeated else bodies)

    def of_records(self) -> _Batches:
        """Yield the messages of the standard input."""
        from greenconn.cli.records import lines_of_input
        from greenconn.exceptions import EncodeError
        from greenconn.jsoncodec import loads

        for lines in lines_of_input("one message a line, as JSON"):
            batch = []
            for where, text in lines:
                try:
                    batch.append(self._of_record(loads(text)))
                except (ValueError, EncodeError) as exc:
                    raise click.UsageError(f"{where}: {text[:60]!r}: {exc}") from None
            yield batch

    def _of_record(self, record: Any) -> OutgoingMessage:
        from greenconn.service.records import message_of
        from greenconn.worker.failures import priority_of, resent

        message = message_of(record)
        priority = priority_of(message).get("priority")
        if self._queue is None:
            info = message.delivery_info
            options = self._at(info["exchange"], info["routing_key"], priority)
        else:
            options = self._at(self._exchange or "", self._queue, priority)
        message.content_type = options.content_type or message.content_type
        outgoing = resent(message, options, {**message.headers, **(options.headers or {})})
        assert outgoing.own is not None
        # What was given on the command line holds for all.
        for name in self._given(options.properties):
            outgoing.own.pop(name, None)
        return outgoing

    def _given(self, properties: Mapping[str, Any]) -> Iterator[str]:
        for name in properties:
            option = "expires" if name == "expiration" else name
            if self._options.get(option) is not None:
                yield name

    def _at(self, exchange: str, key: str, priority: int | None) -> Any:
        """Return the options of messages to an address.

        Arguments:
            priority: of a record, where no option says it.
        """
        from greenconn.entity import Exchange
        from greenconn.publishing.publisher import PublishOptions

        address = exchange, key, priority
        found = self._kept.get(address)
        if found is None:
            options = dict(self._options)
            if options["priority"] is None:
                options["priority"] = priority
            if exchange:
                options.pop("declare", None)
                target: Any = Exchange(exchange, passive=True)
                found = PublishOptions(target, {**options, "routing_key": key})
            else:
                found = PublishOptions(key, options)
            self._kept[address] = found
        return found


def _properties(texts: Sequence[str]) -> dict[str, Any]:
    """Return the properties that were given.

    Raises:
        click.BadParameter: one is unknown, or its value is wrong.
    """
    from greenconn.cli.records import parse_pair
    from greenconn.publishing.publisher import PROPERTIES

    known = PROPERTIES | {"content_encoding", "delivery_mode"}
    found: dict[str, Any] = {}
    for each in texts:
        name, value = parse_pair(each, "--property")
        if name in OPTIONS:
            raise click.BadParameter(
                f"{name} has an option of its own: {OPTIONS[name]}", param_hint="--property"
            )
        if name not in known:
            raise click.BadParameter(
                f"unknown property {name!r}: known are {', '.join(sorted(known))}",
                param_hint="--property",
            )
        if name == "timestamp":
            found[name] = _timestamp(value)
        elif name == "delivery_mode" and value.isdigit():
            found[name] = int(value)
        else:
            found[name] = value
    return found


def _time(text: str) -> datetime:
    """Return a time as the command line has it; one without a zone is local.

    Raises:
        click.BadParameter: it is no time, or not one that a message can wait for.
    """
    from greenconn.delays import checked_delay

    try:
        time = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text)).astimezone()
        checked_delay(None, time)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"TIME must be ISO 8601, such as 2026-12-01T10:00 (local time), 2026-12-01T10:00Z or "
            f"2026-12-01T10:00+01:00, and at most a hundred years from now, got {text!r}",
            param_hint="--at",
        ) from None
    return time


def _timestamp(text: str) -> float | datetime:
    for kind in (float, datetime.fromisoformat):
        try:
            return kind(text)
        except ValueError:
            pass
    raise click.BadParameter(
        f"timestamp must be seconds since 1970 or an ISO 8601 date, got {text!r}",
        param_hint="--property",
    )
