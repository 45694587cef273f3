"""A beanstalkd of one's own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time

from gevent import sleep

from tests.brokers.keeper import Keeper, send
from tests.brokers.packages import NoBroker, find_beanstalkd
from tests.brokers.ports import free_ports

__all__ = ["Beanstalkd"]

START_TIMEOUT = 30.0
STEP = 0.02


class Beanstalkd:
    """A beanstalkd that this process owns.

    Arguments:
        keeper: ends it, whatever becomes of this process.
        is_durable: it keeps its jobs in a folder, so that a restart loses none.
        options: further options of the program, such as ``("-z", "1048576")``.

    Raises:
        NoBroker: the program is not to be had.
    """

    def __init__(
        self, keeper: Keeper, options: tuple[str, ...] = (), *, is_durable: bool = False
    ) -> None:
        self._keeper = keeper
        self._programs = find_beanstalkd(keeper.directory)
        (self.port,) = free_ports(1)
        self.directory = keeper.directory / f"beanstalk-{self.port}"
        self.directory.mkdir()
        self._options = options
        self._is_durable = is_durable
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"beanstalk://127.0.0.1:{self.port}/"

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def command(self) -> list[str]:
        """The program and its arguments."""
        command = [str(self._programs.server), "-l", "127.0.0.1", "-p", str(self.port)]
        if self._is_durable:
            # Each job is on the disk before it is answered for.
            command += ["-b", str(self.directory), "-f", "0"]
        return [*command, *self._options]

    def begin(self) -> None:
        """Start its process and do not wait for it."""
        assert not self.is_running
        environment = {"LANG": "C.UTF-8", **self._programs.libraries()}
        log = self.directory / "output"
        self._process = self._keeper.run(self.command(), env=environment, output=log)

    def start(self) -> None:
        """Start it and wait until it is ready.  May switch.

        Raises:
            NoBroker: it did not start.
        """
        self.begin()
        end = time.monotonic() + START_TIMEOUT
        while not self._listens():
            if not self.is_running or time.monotonic() >= end:
                log = self.directory / "output"
                said = log.read_text(errors="replace")[-1000:] if log.exists() else "nothing"
                raise NoBroker(f"beanstalkd did not start: {said}")
            sleep(STEP)

    def _listens(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(START_TIMEOUT)
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

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
        """Freeze it (SIGSTOP): its connections stay open and silent."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        if self._process is not None:
            self._send(signal.SIGCONT)

    def drain(self) -> None:
        """Let it take no new jobs any more (SIGUSR1), until it is restarted."""
        self._send(signal.SIGUSR1)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        send(self._process.pid, number)

    def close(self) -> None:
        """Stop it for good.  May switch."""
        self.resume()
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
