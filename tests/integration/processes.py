"""Programs of ours in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess  # gevent's would take the end of every child, the brokers' tools' too
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gevent
from gevent.socket import wait_read, wait_write

__all__ = ["ROOT", "Outcome", "Running", "run", "start"]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 150.0
#: On a busy machine a process is held up by others, whatever its handlers do.
HELD_UP = re.compile(r"^handler .* blocked the hub for .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        errors: its standard error, without warnings of :data:`HELD_UP`.
    """

    code: int
    output: str
    errors: str


class Running:
    """A program that runs; :meth:`end` in any case."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process

    @property
    def output(self) -> IO[bytes]:
        """Its standard output."""
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def errors(self) -> IO[bytes]:
        """Its standard error."""
        assert self.process.stderr is not None
        return self.process.stderr

    @property
    def input(self) -> IO[bytes]:
        """Its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def outcome(self, input: bytes | None = None, timeout: float = TIMEOUT) -> Outcome:
        """Wait for its end.  May switch."""
        process = self.process
        with gevent.Timeout(timeout, AssertionError("the program did not end")):
            writer = gevent.spawn(_write_all, self.input, input or b"")
            output = gevent.spawn(_read_all, self.output)
            errors = gevent.spawn(_read_all, self.errors)
            for each in (writer, output, errors):
                each.get()
            while process.poll() is None:
                gevent.sleep(0.01)
        said = HELD_UP.sub("", errors.get().decode())
        return Outcome(process.returncode, output.get().decode(), said)

    def line(self, timeout: float = TIMEOUT) -> str:
        """Wait for the next line of its output.  May switch.

        Raises:
            EOFError: it has ended.
        """
        text = b""
        with gevent.Timeout(timeout, AssertionError("the program printed nothing")):
            while not text.endswith(b"\n"):
                wait_read(self.output.fileno())
                char = os.read(self.output.fileno(), 1)
                if not char:
                    raise EOFError(self.outcome().errors)
                text += char
        return text[:-1].decode()

    def end(self) -> None:
        """See that it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _read_all(pipe: IO[bytes]) -> bytes:
    parts: list[bytes] = []
    while True:
        wait_read(pipe.fileno())
        part = os.read(pipe.fileno(), 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _write_all(pipe: IO[bytes], data: bytes) -> None:
    try:
        while data:
            wait_write(pipe.fileno())
            data = data[os.write(pipe.fileno(), data[:4096]) :]
        pipe.close()
    except BrokenPipeError:
        pass  # it ended without reading all


def start(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> Running:
    """Start Python with *arguments*, in the checkout."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    environment.pop("GREENCONN_URL", None)
    environment.update(env or {})
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        **{
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        },
    )
    return Running(process)


def run(
    *arguments: str,
    input: bytes | None = b"",
    env: dict[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Outcome:
    """Run Python with *arguments* to its end.  May switch."""
    running = start(*arguments, env=env)
    try:
        return running.outcome(input, timeout)
    finally:
        running.end()
