"""A stand-in for a MongoDB server of one's own; see :mod:`tests.brokers.mongodb`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from gevent import sleep

from tests.brokers.keeper import Keeper, send
from tests.brokers.packages import NoBroker
from tests.brokers.ports import free_ports

__all__ = ["MongoStandin"]

READY = b"is ready"
START_TIMEOUT = 30.0
STEP = 0.02
ROOT = Path(__file__).resolve().parents[2]


class MongoStandin:
    """A stand-in that this process owns.

    Arguments:
        keeper: ends it, whatever becomes of this process.
        is_durable: it notes each write before it confirms it, so that it finds them again.
        replica_set: the name of the set of which it is the only member; such tell of changes.
        login: ``user:password``, for the mechanism PLAIN.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        is_durable: bool = False,
        replica_set: str | None = None,
        login: str | None = None,
    ) -> None:
        self._keeper = keeper
        (self.port,) = free_ports(1)
        self.directory = keeper.directory / f"mongodb-{self.port}"
        self.directory.mkdir()
        self._options: list[str] = []
        if is_durable:
            self._options += ["--journal", str(self.directory / "journal")]
        if replica_set is not None:
            self._options += ["--replica-set", replica_set]
        if login is not None:
            self._options += ["--login", login]
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began_at = 0

    @property
    def url(self) -> str:
        """Its address, without a database."""
        return f"mongodb://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it is ready.  May switch.

        Raises:
            NoBroker: it did not start.
        """
        assert not self.is_running
        log = self.directory / "output"
        self._log_began_at = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-W", "error", "-m", "tests.brokers.mongodb"]
        command += ["--port", str(self.port), *self._options]
        self._process = self._keeper.run(command, env=dict(os.environ), output=log, cwd=ROOT)
        end = time.monotonic() + START_TIMEOUT
        while not (log.exists() and READY in log.read_bytes()[self._log_began_at :]):
            if self._process.poll() is not None or time.monotonic() >= end:
                said = log.read_text(errors="replace")[-1000:] if log.exists() else "nothing"
                raise NoBroker(f"the stand-in for MongoDB did not start: {said}")
            sleep(STEP)

    def stop(self) -> None:
        """Stop it.  May switch."""
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
