"""The standard input and output, without blocking the hub."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from typing import Final

import click
from gevent.socket import wait_read, wait_write

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
