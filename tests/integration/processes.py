"""Programs of ours in processes of their own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gevent
from gevent import monkey, subprocess

__all__ = ["ROOT", "Outcome", "Running", "run", "start"]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

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
    def input(self) -> IO[bytes]:
        """Its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def outcome(self, input: bytes | None = None, timeout: float = TIMEOUT) -> Outcome:
        """Wait for its end.  May switch."""
        with gevent.Timeout(timeout, AssertionError("the program did not end")):
            output, errors = self.process.communicate(input)
        return Outcome(self.process.returncode, output.decode(), errors.decode())

    def end(self) -> None:
        """See that it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if not monkey.is_module_patched("subprocess"):
            # gevent's watcher takes the end of every child: those of the standard library, too.
            gevent.get_hub().loop.reset_sigchld()


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
