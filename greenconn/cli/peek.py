"""``greenconn peek``: look at the messages of a queue, which stay there."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from greenconn.cli.options import timeout_option, url_option

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = ["command"]

#: Width of the name of a property or header.
NAME: Final = 20
#: Characters of a body that are printed.
BODY: Final = 4000
#: Properties that are the transport's own, or stand elsewhere.
OWN: Final = frozenset({"application_headers", "body_encoding", "delivery_info", "delivery_tag"})
#: Parts of ``delivery_info`` that are shown.
ROUTE: Final = ("exchange", "routing_key", "redelivered", "priority")


@click.command("peek")
@click.argument("queue")
@url_option
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--json", "is_json", is_flag=True, help="Print each message as JSON, a line each.")
@timeout_option
def command(queue: str, url: str, count: int, is_json: bool, timeout: float) -> None:
    """Print the oldest messages of QUEUE with headers and properties.  They stay there.

    No message is acknowledged, and none counts as delivered where the broker can tell; RabbitMQ marks
    them as redelivered.

    \b
    Example:
      greenconn peek mail
      greenconn peek mail.dead --count 1 --json
    """
    from greenconn.cli.broker import connection_to
    from greenconn.cli.interrupt import interruptible
    from greenconn.worker.moving import count_of, look

    connection = connection_to(url, timeout)
    try:
        with interruptible():
            connection.connect()
            with connection.channel() as channel:
                messages = look(channel, queue, count)
                waiting = count_of(channel, queue)
    finally:
        connection.close()
    for number, message in enumerate(messages, 1):
        if is_json:
            click.echo(json.dumps(_as_dict(message), default=repr, ensure_ascii=False))
        else:
            for line in _lines(number, message):
                click.echo(line)
    if not is_json:
        what = f"{len(messages)} of {waiting:,} messages" if messages else "no message waits"
        click.echo(f"{queue}: {what}", err=True)


def _as_dict(message: Message) -> dict[str, Any]:
    info = message.delivery_info
    return {
        "route": {name: info[name] for name in ROUTE if info.get(name) not in (None, "")},
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "properties": _given(message.properties, OWN),
        "headers": _given(message.headers),
        "body": _body_of(message),
    }


def _given(values: Mapping[str, Any], without: Container[str] = ()) -> dict[str, Any]:
    return {name: each for name, each in values.items() if each is not None and name not in without}


def _body_of(message: Message) -> Any:
    """Return the body as it is decoded, where that is safe; else as text."""
    body: Any = message.body
    if str(message.content_type).startswith("application/json"):
        with suppress(Exception):  # it says that it is JSON, and is not
            return message.payload
    if isinstance(body, (bytes, bytearray, memoryview)):
        body = bytes(body).decode("utf-8", "backslashreplace")
    return body


def _lines(number: int, message: Message) -> Iterator[str]:
    shown = _as_dict(message)
    yield click.style(f"#{number}  {shown['content_type'] or 'no content type'}", bold=True)
    for part in ("route", "properties", "headers"):
        for name, value in shown[part].items():
            text = value if isinstance(value, str) else json.dumps(value, default=repr)
            head = name if part != "headers" else f"header {name}"
            yield f"  {click.style(f'{head:{NAME}}', fg='cyan')} {text}"
    body = shown["body"]
    text = (
        body
        if isinstance(body, str)
        else json.dumps(body, indent=2, default=repr, ensure_ascii=False)
    )
    if len(text) > BODY:
        text = f"{text[:BODY]}... ({len(text):,} characters)"
    yield from (f"  {line}" for line in text.splitlines() or [""])
    yield ""
