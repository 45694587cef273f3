"""Messages laid out for a terminal, and what a user writes as arguments and on the standard input."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from textwrap import wrap
from typing import Any, Final

import click
from gevent.socket import wait_read, wait_write

from greenconn.cli.terminal import ACCENT, visible
from greenconn.service.records import json_line

#: Before each line below the title.
MARGIN: Final = "  "
#: Columns that the text of a field has at least.
LEAST: Final = 20
#: Characters of a body that are printed.
BODY: Final = 4000


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
