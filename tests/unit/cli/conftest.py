"""The command line in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import gevent
import pytest
from gevent.socket import wait_write

from greenconn.cli import main
from greenconn.transport import memory


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def complaint(self) -> str:
        """The only line on standard error."""
        (line,) = self.errors.splitlines()
        return line


Command: TypeAlias = Callable[..., Ended]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """``stdin(data)`` makes *data* what commands find on their standard input, a pipe."""
    with ExitStack() as pipes:

        def put(data: bytes) -> None:
            reading, writing = os.pipe()
            monkeypatch.setattr(sys, "stdin", pipes.enter_context(open(reading)))
            if len(data) > 4096:
                gevent.spawn(_feed, writing, data)
            else:  # a question blocks the hub
                with open(writing, "wb") as pipe:  # os.close would wait for the hub when patched
                    pipe.write(data)

        yield put


def _feed(writing: int, data: bytes) -> None:
    with open(writing, "wb", buffering=0):
        view = memoryview(data)
        while view:
            wait_write(writing)
            view = view[os.write(writing, view[:4096]) :]


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """``command("ping", url)`` runs a command in this process."""
    monkeypatch.delenv("GREENCONN_URL", raising=False)
    hub = gevent.get_hub()
    hub.exception_stream = None  # the one it has may be a capture that has ended

    def start(*arguments: str) -> Ended:
        capfd.readouterr()
        code = main(arguments)
        output, errors = capfd.readouterr()
        return Ended(code, output, errors)

    yield start
    del hub.exception_stream  # back to sys.stderr, whatever that is then


@pytest.fixture
def url(unique: str) -> Iterator[str]:
    """A memory broker of the test's own."""
    yield f"memory:///{unique}"
    memory.reset(unique)
