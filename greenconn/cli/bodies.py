"""Bodies, headers and properties as a user writes them on the command line and on the standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click


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
    from greenconn.cli.streams import lines

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
    from greenconn.cli.streams import whole_input

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
