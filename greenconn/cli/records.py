"""Messages as JSON records, laid out for readers, and as a user writes them.

``consume --json`` prints records, and ``publish --jsonl`` publishes them.  A record has the message's
address, content type, content encoding, headers, properties and body.  A body of JSON is a JSON value in
it, text is a string.  Bytes, and values of headers and properties for which JSON has no type, are typed
values, as :mod:`greenconn.jsoncodec` writes them.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from textwrap import wrap
from typing import Any, Final

import click
from gevent.socket import wait_read, wait_write

from greenconn.cli.terminal import ACCENT, visible
from greenconn.encoding import charset, safe_repr
from greenconn.jsoncodec import dumps as json_dumps
from greenconn.jsoncodec import encode, loads
from greenconn.message import Message
from greenconn.publishing.publisher import PROPERTIES
from greenconn.serialization import dumps
from greenconn.worker.failures import NOT_COPIED

JSON: Final = "application/json"
#: The properties of a record.
PROPERTY_NAMES: Final = PROPERTIES | {"delivery_mode", "expiration", "priority"}
#: The fields of a record; only the body is required.  ``redelivered`` is ignored when it is published.
FIELDS: Final = frozenset(
    {
        "exchange",
        "routing_key",
        "redelivered",
        "content_type",
        "content_encoding",
        "properties",
        "headers",
        "body",
    }
)
#: Before each line below the title.
MARGIN: Final = "  "
#: Columns that the text of a field has at least.
LEAST: Final = 20
#: Control characters and halves of characters, which JSON may have without an escape.
_controls: Final = re.compile("[\x7f-\x9f\ud800-\udfff]")
#: Characters of a body that are printed.
BODY: Final = 4000


def record_of(message: Message) -> dict[str, Any]:
    """Return a received message as a record."""
    info, properties = message.delivery_info, message.properties
    return {
        "exchange": info.get("exchange") or "",
        "routing_key": info.get("routing_key") or "",
        "redelivered": bool(info.get("redelivered")),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "properties": {
            name: each
            for name, each in properties.items()
            if each is not None and (name == "priority" or name not in NOT_COPIED)
        },
        "headers": {name: each for name, each in message.headers.items() if each is not None},
        "body": body_of(message),
    }


def line_of(message: Message) -> str:
    """Return a received message as a record in one line."""
    return json_line(record_of(message), json_dumps)


def json_line(value: Any, dumps: Callable[..., str]) -> str:
    """Return a value as JSON in one line, without control characters, which a terminal might obey.

    Arguments:
        dumps: as ``json.dumps``.
    """
    try:
        text = dumps(value, ensure_ascii=False)
    except TypeError:
        try:
            text = dumps(_with_text_keys(value), ensure_ascii=False)
        except (TypeError, RecursionError):
            text = dumps(safe_repr(value))
    return _controls.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _with_text_keys(value: Any) -> Any:
    """Return a value with text as the keys of all its tables; those of AMQP may be bytes."""
    if isinstance(value, dict):
        return {
            key.decode("utf-8", "backslashreplace")
            if isinstance(key, bytes)
            else key: _with_text_keys(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(each) for each in value]
    return value


def body_of(message: Message) -> Any:
    """Return the body of a message as a record has it: a JSON value, text, or bytes."""
    body: Any = message.body
    if not isinstance(body, (str, bytes, bytearray, memoryview)):
        return body  # of an envelope that cannot be read, or nothing
    if not isinstance(body, str):
        body = bytes(body)
    if _is_json(message.content_type):
        with suppress(ValueError):  # it says that it is JSON, and is not
            value = loads(body)
            if not isinstance(value, bytes):  # which would stand for a body that is not JSON
                return value
        return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    if isinstance(body, str):
        return body
    encoding: Any = message.content_encoding or "utf-8"
    known = charset(encoding) if isinstance(encoding, str) else None
    with suppress(UnicodeError, TypeError):
        text = body.decode(known)
        if text.encode(known) == body:
            return text
    return body


def message_of(record: Any) -> Message:
    """Return the message of a record.

    Raises:
        ValueError: it is no record; names the field.
    """
    if not isinstance(record, Mapping) or "body" not in record:
        raise ValueError(
            f'a message must be an object with a "body", got {type(record).__name__} {record!r:.60}'
        )
    if unknown := record.keys() - FIELDS:
        raise ValueError(f"unknown field {min(unknown)!r}: known are {', '.join(sorted(FIELDS))}")
    body, kind = record["body"], record.get("content_type")
    encoding = record.get("content_encoding")
    if isinstance(body, bytes):
        if "content_type" not in record:
            kind, encoding = "application/data", encoding or "binary"
    elif "content_type" not in record:
        kind, encoding, body = dumps(body)
    elif _is_json(kind):
        body = encode(body).encode("utf-8")
    elif not isinstance(body, str):
        raise ValueError(
            f"the body of a message of content_type {kind!r} must be text or bytes, got "
            f"{type(body).__name__}"
        )
    else:
        known = charset(encoding or "utf-8")
        if known is None:
            raise ValueError(f"content_encoding {encoding!r} must be that of text, as the body is")
        body = body.encode(known)
    properties = _table(record, "properties")
    if unknown := properties.keys() - PROPERTY_NAMES:
        raise ValueError(
            f"unknown property {min(unknown)!r}: known are {', '.join(sorted(PROPERTY_NAMES))}"
        )
    address = {name: record.get(name) or "" for name in ("exchange", "routing_key")}
    message = Message(
        body,
        content_type=kind,
        content_encoding=encoding,
        delivery_info=address,
        properties=properties,
    )
    message.headers = _table(record, "headers")  # the body is not compressed, whatever they say
    return message


def _is_json(content_type: Any) -> bool:
    return str(content_type).partition(";")[0] == JSON


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {type(value).__name__} {value!r:.60}")
    return value


def message_lines(title: str, fields: Mapping[str, object], body: object) -> Iterator[str]:
    """Yield the lines of a message; the last one is empty.

    Arguments:
        fields: name -> value; one that is no text is printed as JSON.  In a terminal a long one is
            broken between words.
        body: as a record of ``consume --json`` has it.
    """
    yield click.style(visible(title), bold=True)
    names = max(map(len, map(visible, fields)), default=0)
    rest = " " * (len(MARGIN) + names + 1)
    room = None
    if sys.stdout.isatty():
        room = max(LEAST, shutil.get_terminal_size().columns - len(rest))
    for name, value in fields.items():
        text = visible(value) if isinstance(value, str) else json_line(value, _dumps)
        head = f"{MARGIN}{click.style(f'{visible(name):{names}}', fg=ACCENT)} "
        for part in _parts(text, room):
            yield f"{head}{part}"
            head = rest
    if isinstance(body, bytes):
        text = visible(body.decode("utf-8", "backslashreplace"))
    elif isinstance(body, str):
        text = visible(body)
    else:
        try:
            text = visible(json.dumps(body, indent=2, default=repr, ensure_ascii=False))
        except RecursionError:  # indenting takes more of the stack than reading
            text = visible(json_line(body, _dumps))
    if len(text) > BODY:
        text = f"{text[:BODY]}... ({len(text):,} characters)"
    yield from (f"{MARGIN}{line}" for line in text.splitlines() or [""])
    yield ""


_dumps: Final = partial(json.dumps, default=repr)


def count_line(queue: str, shown: int, waiting: int) -> str:
    """Return the line that follows the messages of *queue*."""
    if not shown:
        return f"{queue}: no message waits"
    return f"{queue}: {shown:,} of {waiting:,} message{'s' * (waiting != 1)}"


def _parts(text: str, room: int | None) -> list[str]:
    if room is None or len(text) <= room:
        return [text]
    # wrap() gives no line for blanks.
    return wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def bodies_of(arguments: Sequence[str], as_json: bool) -> Iterator[list[Any]]:
    """Yield the bodies of a command; without arguments those on the standard input, as they come.

    Those of the arguments, which are one batch, are read before anything else is done.  May switch.

    Arguments:
        arguments: each a text, or ``@`` and the name of a file; ``@-`` is the whole standard input.
        as_json: parse each, or each line of the standard input, as JSON.

    Raises:
        UsageError: one is not JSON, or its file cannot be read.
    """
    if arguments:
        return iter([[_body_of(each, as_json) for each in arguments]])
    return _bodies_of_input(as_json)


def _bodies_of_input(as_json: bool) -> Iterator[list[Any]]:
    for batch in lines_of_input("one body a line"):
        yield [_parsed(text, where) if as_json else text for where, text in batch]


def lines_of_input(prompt: str) -> Iterator[list[tuple[str, str]]]:
    """Yield the lines of the standard input, each with its number, as many at a time as have come.

    May switch.

    Arguments:
        prompt: tells a user at a terminal what to type.

    Raises:
        UsageError: a line is not UTF-8.
    """

    if sys.stdin is not None and sys.stdin.isatty():
        click.echo(f"{prompt}; end with Ctrl-D", err=True)
    number = 0
    for batch in lines():
        texts = []
        for line in batch:
            number += 1
            texts.append((f"line {number}", _text(line, number)))
        yield texts


def _text(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise click.UsageError(
            f"line {number} of the standard input is not UTF-8 text ({exc.reason}): "
            f"use @- as BODY to send the whole input as one message"
        ) from None


def _body_of(argument: str, as_json: bool) -> Any:
    if not argument.startswith("@"):
        return _parsed(argument, "BODY") if as_json else argument
    data = _content(argument[1:])
    return _parsed(data, argument) if as_json else data


def _content(path: str) -> bytes:

    if path == "-":
        return whole_input()
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise click.UsageError(
            f"cannot read the file {path!r}: {why} (a text that begins with @ must be given on the "
            f"standard input)"
        ) from None


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise click.UsageError(f"{where}: {text[:60]!r} is not JSON: {exc}") from None


def parse_pair(text: str, option: str = "--header") -> tuple[str, str]:
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


def parse_headers(texts: Sequence[str]) -> dict[str, Any]:
    """Return headers of ``NAME=TEXT`` or ``NAME:=JSON``.

    Raises:
        click.BadParameter: one is something else.
    """
    headers: dict[str, Any] = {}
    for each in texts:
        name, value = parse_pair(each)
        if len(name) > 1 and name.endswith(":"):
            try:
                headers[name[:-1]] = json.loads(value)
            except ValueError as exc:
                raise click.BadParameter(
                    f"{value!r} is not JSON: {exc}", param_hint="--header"
                ) from None
        else:
            headers[name] = value
    return headers


CHUNK: Final = 65536
#: Bytes that a pipe takes without blocking when it takes any (POSIX: at least 512).
PIECE: Final = 4096
#: Bytes of one line, and of all where it is one message: no broker takes more.
LIMIT: Final = 128 * 2**20


def lines() -> Iterator[list[bytes]]:
    """Yield the lines of the standard input, as many at a time as have come.  May switch."""
    parts: list[bytes] = []
    size = 0
    for chunk in _chunks():
        first, *others = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        _check(size, "a line of the standard input")
        if others:
            yield [b"".join(parts), *others[:-1]]
            parts, size = [others[-1]], len(others[-1])
    if size:
        yield [b"".join(parts)]


def whole_input() -> bytes:
    """Return all of the standard input.  May switch."""
    parts: list[bytes] = []
    size = 0
    for chunk in _chunks():
        parts.append(chunk)
        size += len(chunk)
        _check(size, "the standard input")
    return b"".join(parts)


def check_output() -> None:
    """Find out whether there is a standard output, before anything is taken that is to go there.

    Raises:
        UsageError: there is none.
    """
    if sys.stdout is None:
        raise click.UsageError("the standard output is closed: redirect it to a file or a pipe")


def write_line(text: str) -> None:
    """Write a line to the standard output.  May switch.

    Raises:
        BrokenPipeError: the reader has closed it.
    """
    fd = _descriptor(sys.stdout)
    if fd is None:
        click.echo(text)
        return
    data = memoryview(f"{text}\n".encode("utf-8", "backslashreplace"))
    while data:
        wait_write(fd)
        try:
            data = data[os.write(fd, data[:PIECE]) :]
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OSError(
                exc.errno, f"cannot write to the standard output: {exc.strerror}"
            ) from exc


def _chunks() -> Iterator[bytes]:
    if sys.stdin is None:
        raise click.UsageError("there is no standard input: give the bodies as arguments")
    fd = _descriptor(sys.stdin)
    if fd is None:
        yield sys.stdin.buffer.read()
        return
    while True:
        wait_read(fd)
        chunk = os.read(fd, CHUNK)
        if not chunk:
            return
        yield chunk


def _descriptor(stream: object) -> int | None:
    """Return the descriptor of a stream; None of one that is not the system's."""
    try:
        return stream.fileno()  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, io.UnsupportedOperation, ValueError):
        return None


def _check(size: int, what: str) -> None:
    if size > LIMIT:
        raise click.UsageError(f"{what} is longer than {LIMIT >> 20} MiB: no broker accepts that")
