"""A broker's process that the tests own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from gevent import sleep

from tests.brokers.keeper import Keeper, is_stopped, send
from tests.brokers.packages import NoBroker
from tests.brokers.ports import free_ports


class Server:
    """A process that serves at a port of this machine, until it is stopped or its keeper goes.

    Arguments:
        keeper: ends it, whatever becomes of this process.

    Attributes:
        port: where it listens.
        directory: its own; it goes with it.
    """

    #: What it is called in errors, and in the name of its directory.
    name: ClassVar[str]
    #: Seconds that it may take to start.
    start_timeout: ClassVar[float] = 30.0
    #: Seconds between two looks whether it has started.
    step: ClassVar[float] = 0.02
    #: What its output has when it is ready; empty: it is when it listens.
    ready: ClassVar[bytes] = b""
    #: The folder in which it runs; None: any.
    folder: Path | None = None

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        (self.port,) = free_ports(1)
        self.directory = keeper.directory / f"{self.name}-{self.port}"
        self.directory.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began_at = 0

    def command(self) -> Sequence[str | Path]:
        """The program and its arguments."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return dict(os.environ)

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def _log(self) -> Path:
        return self.directory / "output"

    def begin(self) -> None:
        """Start its process and do not wait for it."""
        assert not self.is_running
        self._log_began_at = self._log.stat().st_size if self._log.exists() else 0
        self._process = self._keeper.run(
            self.command(), env=self.environment(), output=self._log, cwd=self.folder
        )

    def start(self) -> None:
        """Start it and wait until it is ready.  May switch.

        Raises:
            NoBroker: it did not start.
        """
        self.begin()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it is ready.  May switch.

        Raises:
            NoBroker: it was not in time.
        """
        end = time.monotonic() + self.start_timeout
        while not self.is_ready():
            if not self.is_running or time.monotonic() >= end:
                log = self._log
                said = log.read_text(errors="replace")[-1000:] if log.exists() else "nothing"
                raise NoBroker(f"{self.name} did not start: {said}")
            sleep(self.step)

    def is_ready(self) -> bool:
        """Whether it serves now."""
        if self.ready:
            log = self._log
            return log.exists() and self.ready in log.read_bytes()[self._log_began_at :]
        # A number, no name, and nothing listening is told at once: this does not block the hub.
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Stop it in order.  May switch."""
        if self._process is not None:
            self._keeper.end(self._process)
            self._process = None

    def kill(self) -> None:
        """End it at once (SIGKILL).  May switch."""
        if self._process is not None:
            self._keeper.end(self._process, grace=0)
            self._process = None

    def pause(self) -> None:
        """Freeze it (SIGSTOP): its connections stay open and silent.  May switch."""
        self.signal(signal.SIGSTOP)
        assert self._process is not None
        while not is_stopped(self._process.pid):
            sleep(self.step)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        if self._process is not None:
            self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        send(self._process.pid, number)

    def close(self) -> None:
        """Stop it for good.  May switch."""
        self.resume()
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
