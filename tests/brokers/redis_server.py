"""A Redis of one's own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time

from gevent import sleep

from tests.brokers.keeper import Keeper, send
from tests.brokers.packages import NoBroker, find_redis
from tests.brokers.ports import free_ports

__all__ = ["RedisSentinel", "RedisServer"]

READY = b"Ready to accept connections"
START_TIMEOUT = 30.0
STEP = 0.02
DATABASES = 16


class RedisServer:
    """A Redis that this process owns; its data are in memory only.

    Arguments:
        keeper: ends it, whatever becomes of this process.
        options: further options of ``redis-server``, such as ``("--requirepass", "x")``.

    Raises:
        NoBroker: the program is not to be had.
    """

    #: What the log says when it is ready.
    ready = READY

    def __init__(self, keeper: Keeper, options: tuple[str, ...] = ()) -> None:
        self._keeper = keeper
        self._programs = find_redis(keeper.directory)
        self.server = self._programs.server
        (self.port,) = free_ports(1)
        self.directory = keeper.directory / f"redis-{self.port}"
        self.directory.mkdir()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began_at = 0

    @property
    def url(self) -> str:
        """The address of database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """The address of a database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def begin(self) -> None:
        """Start its process and do not wait for it."""
        assert not self.is_running
        log = self.directory / "output"
        self._log_began_at = log.stat().st_size if log.exists() else 0
        environment = {"LANG": "C.UTF-8", **self._programs.libraries()}
        self._process = self._keeper.run(self.command(), env=environment, output=log)

    def command(self) -> list[str]:
        """The program and its arguments."""
        command = [str(self.server), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.directory), "--save", "", "--appendonly", "no"]
        return [*command, "--databases", str(DATABASES), *self._options]

    def start(self) -> None:
        """Start it, empty, and wait until it is ready.  May switch.

        Raises:
            NoBroker: it did not start.
        """
        self.begin()
        self.wait_ready()

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until it is ready.  May switch.

        Raises:
            NoBroker: it was not within *timeout* seconds.
        """
        log = self.directory / "output"
        end = time.monotonic() + timeout
        while not (log.exists() and self.ready in log.read_bytes()[self._log_began_at :]):
            if not self.is_running or time.monotonic() >= end:
                said = log.read_text(errors="replace")[-1000:] if log.exists() else "nothing"
                raise NoBroker(f"Redis did not start: {said}")
            sleep(STEP)

    def stop(self) -> None:
        """Stop it in order; its data are gone.  May switch."""
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
        assert self._process is not None
        send(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        if self._process is not None:
            send(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good.  May switch."""
        self.resume()
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class RedisSentinel(RedisServer):
    """A sentinel.

    Arguments:
        master: the port of the server that it watches.
        quorum: sentinels that must agree.
    """

    ready = b"+monitor master"

    def __init__(self, keeper: Keeper, master: int, quorum: int) -> None:
        super().__init__(keeper)
        self._text = f"""port {self.port}
bind 127.0.0.1
dir {self.directory}
sentinel monitor mymaster 127.0.0.1 {master} {quorum}
sentinel down-after-milliseconds mymaster 500
sentinel failover-timeout mymaster 2000
"""

    def command(self) -> list[str]:
        """The program and its arguments; it writes what it learns into its file."""
        file = self.directory / "sentinel.conf"
        if not file.exists():
            file.write_text(self._text)
        return [str(self.server), str(file), "--sentinel"]
