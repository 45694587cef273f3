"""A pouchdb-server of one's own: what speaks CouchDB's protocol and comes from npm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gevent import sleep, socket

from tests.brokers.keeper import Keeper, send
from tests.brokers.packages import NoBroker, find_pouchdb
from tests.brokers.ports import free_ports

__all__ = ["PouchDB"]

START_TIMEOUT = 60.0
STEP = 0.05


class PouchDB:
    """A pouchdb-server that this process owns.

    Arguments:
        keeper: ends it, whatever becomes of this process.
        is_kept: its data survive its end, in a folder; else they are in memory only.
        login: user and password of the administrator; without them everybody is.  One who asks with
            others ends this server: an error of its own.

    Raises:
        NoBroker: the program is not to be had.
    """

    def __init__(
        self, keeper: Keeper, is_kept: bool = False, login: tuple[str, str] | None = None
    ) -> None:
        self._keeper = keeper
        self._node, self._program = find_pouchdb(keeper.directory)
        self._is_kept = is_kept or login is not None  # in memory it never answers with a login
        self._login = login
        (self.port,) = free_ports(1)
        self.directory = keeper.directory / f"pouchdb-{self.port}"
        self.directory.mkdir()
        if login is not None:
            (self.directory / "config.json").write_text(json.dumps({"admins": dict([login])}))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, without a database."""
        login = "" if self._login is None else ":".join(self._login) + "@"
        return f"couchdb://{login}127.0.0.1:{self.port}"

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
        command: list[str | Path] = [self._node.server, self._program]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--no-stdout-logs"]
        command += ["--dir", str(self.directory)] if self._is_kept else ["--in-memory"]
        self._process = self._keeper.run(
            command,
            env={**os.environ, **self._node.libraries()},
            output=self.directory / "output",
            cwd=self.directory,
        )
        self._wait_ready()

    def _wait_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if not self.is_running or time.monotonic() >= end:
                said = (self.directory / "output").read_text(errors="replace")[-1000:]
                raise NoBroker(f"pouchdb-server did not start: {said}")
            sleep(STEP)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as asking:
                asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(asking.recv(1))
        except OSError:
            return False

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
        assert self._process is not None
        send(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        if self._process is not None:
            send(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good.  May switch."""
        self.resume()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


if __name__ == "__main__":
    # Fetches it for those who will need it.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            find_pouchdb(Path(scratch))
        except NoBroker as error:
            sys.exit(str(error))
