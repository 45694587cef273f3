"""Programs of ours in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess  # gevent's would take the end of every child, the brokers' tools' too
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gevent
from gevent.socket import wait_read, wait_write

from tests.fix_wires import until
from tests.integration.stacks import SIGNAL

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

    def suspend(self, url: str) -> None:
        """Stop the process, but with no lock of SQLite, which would stop all others, too.  May switch.

        Arguments:
            url: its broker or database.
        """
        while True:
            self.signal(signal.SIGSTOP)
            # After the signal each thread runs on for a moment.
            until(lambda: _states(self.pid) <= {"T"}, TIMEOUT, "a process that is suspended")
            if not url.startswith("sqlite:///") or _is_free(url):
                return
            self.signal(signal.SIGCONT)
            gevent.sleep(0.01)

    def outcome(self, input: bytes | None = None, timeout: float = TIMEOUT) -> Outcome:
        """Wait for its end.  May switch.

        Raises:
            AssertionError: it did not end within *timeout* seconds; the text has what it printed.
        """
        process = self.process
        output, errors = bytearray(), bytearray()
        greenlets: list[gevent.Greenlet[..., None]] = [
            gevent.spawn(_write_all, self.input, input or b""),
            gevent.spawn(_read_all, self.output, output),
            gevent.spawn(_read_all, self.errors, errors),
        ]
        try:
            with gevent.Timeout(timeout):
                gevent.joinall(greenlets, raise_error=True)
                while process.poll() is None:
                    gevent.sleep(0.01)
        except gevent.Timeout:
            gevent.killall(greenlets)
            texts = f"{output.decode()}\n{errors.decode()}\n{self.stacks()}"
            raise AssertionError(f"the program did not end; it printed:\n{texts}") from None
        finally:
            gevent.killall(greenlets)  # who waits at a pipe that is closed ends the process
        return Outcome(process.returncode, output.decode(), HELD_UP.sub("", errors.decode()))

    def stacks(self, timeout: float = 5.0) -> str:
        """Return what is in its standard error, and the stacks of its greenlets.  May switch.

        The stacks are there if it called :func:`~tests.integration.stacks.print_on_signal`.
        """
        if self.process.poll() is None and _handles(self.pid, SIGNAL):
            self.signal(SIGNAL)
        else:
            timeout = 0.1
        texts = bytearray()
        reader = gevent.spawn(_read_all, self.errors, texts)
        reader.join(timeout)
        reader.kill()
        return texts.decode(errors="replace")

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

    def read_into(self, lines: list[str]) -> None:
        """Append the lines that it prints, until it ends.  May switch."""
        try:
            while True:
                lines.append(self.line())
        except EOFError:
            pass

    def end(self) -> None:
        """See that it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _read_all(pipe: IO[bytes], read: bytearray) -> None:
    while True:
        wait_read(pipe.fileno())
        part = os.read(pipe.fileno(), 65536)
        if not part:
            return
        read += part


def _handles(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal; others would end by it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _states(pid: int) -> set[str]:
    """Return the states of the threads of a process, as ``ps`` shows them."""
    states = set()
    for each in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (each / "stat").read_text()
        except OSError:
            continue  # it has ended
        states.add(text.rpartition(")")[2].split()[0])
    return states


def _is_free(url: str) -> bool:
    """Return whether the file of an URL of SQLite can be locked now, or soon."""
    path = url.removeprefix("sqlite:///").partition("?")[0]
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
    return True


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
