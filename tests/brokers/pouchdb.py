"""A pouchdb-server of one's own: what speaks CouchDB's protocol and comes from npm."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from gevent import socket

from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker, find_pouchdb
from tests.brokers.server import Server


class CouchServer(Server):
    """A server of CouchDB's protocol that this process owns.

    Arguments:
        login: user and password of the administrator; without them everybody is.
    """

    start_timeout = 60.0

    def __init__(self, keeper: Keeper, login: tuple[str, str] | None) -> None:
        super().__init__(keeper)
        self.folder = self.directory
        self._login = login

    @property
    def url(self) -> str:
        """Its address, without a database."""
        login = "" if self._login is None else ":".join(self._login) + "@"
        return f"couchdb://{login}127.0.0.1:{self.port}"


class PouchDB(CouchServer):
    """A pouchdb-server that this process owns.

    Arguments:
        is_kept: its data survive its end, in a folder; else they are in memory only.
        login: user and password of the administrator; without them everybody is.  One who asks with
            others ends this server: an error of its own.

    Raises:
        NoBroker: the program is not to be had.
    """

    name = "pouchdb-server"
    step = 0.05

    def __init__(
        self, keeper: Keeper, is_kept: bool = False, login: tuple[str, str] | None = None
    ) -> None:
        self._node, self._program = find_pouchdb(keeper.directory)
        super().__init__(keeper, login)
        self._is_kept = is_kept or login is not None  # in memory it never answers with a login
        if login is not None:
            (self.directory / "config.json").write_text(json.dumps({"admins": dict([login])}))

    def command(self) -> list[str | Path]:
        """The program and its arguments."""
        command: list[str | Path] = [self._node.server, self._program]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--no-stdout-logs"]
        return [*command, *(("--dir", self.directory) if self._is_kept else ("--in-memory",))]

    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        return {**os.environ, **self._node.libraries()}

    def is_ready(self) -> bool:
        """Whether it answers: it listens long before."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as asking:
                asking.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return bool(asking.recv(1))
        except OSError:
            return False


if __name__ == "__main__":
    # Fetches it for those who will need it.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            find_pouchdb(Path(scratch))
        except NoBroker as error:
            sys.exit(str(error))
