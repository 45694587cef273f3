"""A MongoDB server of one's own: a stand-in (see :mod:`tests.brokers.mongodb`), or MongoDB 3.6."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo

from tests.brokers import older
from tests.brokers.keeper import Keeper
from tests.brokers.server import Server


class MongoStandin(Server):
    """A stand-in that this process owns.

    Arguments:
        is_durable: it notes each write before it confirms it, so that it finds them again.
        replica_set: the name of the set of which it is the only member; such tell of changes.
        login: ``user:password``, for the mechanism PLAIN.
    """

    #: The end of an URL with a login.
    login_options = "?authMechanism=PLAIN&authSource=$external"
    name = "mongodb-standin"
    ready = b"is ready"
    folder = Path(__file__).resolve().parents[2]

    def __init__(
        self,
        keeper: Keeper,
        *,
        is_durable: bool = False,
        replica_set: str | None = None,
        login: str | None = None,
    ) -> None:
        super().__init__(keeper)
        self._options: list[str] = []
        if is_durable:
            self._options += ["--journal", str(self.directory / "journal")]
        if replica_set is not None:
            self._options += ["--replica-set", replica_set]
        if login is not None:
            self._options += ["--login", login]

    @property
    def url(self) -> str:
        """Its address, without a database."""
        return f"mongodb://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """The program and its arguments."""
        command = [sys.executable, "-W", "error", "-m", "tests.brokers.mongodb"]
        return [*command, "--port", str(self.port), *self._options]


class MongoDB(Server):
    """A MongoDB that this process owns; its data survive its end.

    Arguments:
        is_durable: no difference; see :class:`MongoStandin`.
        replica_set: the name of the set of which it is the only member.
        login: ``user:password`` of a user who may do all.

    Raises:
        NoBroker: the program is not to be had.
    """

    login_options = "?authSource=admin"
    name = "mongodb"
    start_timeout = 60.0

    def __init__(
        self,
        keeper: Keeper,
        *,
        is_durable: bool = False,
        replica_set: str | None = None,
        login: str | None = None,
    ) -> None:
        self._program = older.find(older.MONGODB, keeper.directory)
        super().__init__(keeper)
        (self.directory / "data").mkdir()
        self._replica_set = replica_set
        self._login = login

    @property
    def url(self) -> str:
        """Its address, without a database."""
        return f"mongodb://127.0.0.1:{self.port}"

    def command(self) -> list[str | Path]:
        """The program and its arguments."""
        command: list[str | Path] = [self._program, "--port", str(self.port)]
        command += ["--bind_ip", "127.0.0.1", "--dbpath", self.directory / "data", "--quiet"]
        command += ["--wiredTigerCacheSizeGB", "0.25"]
        if self._replica_set is not None:
            command += ["--replSet", self._replica_set]
        return [*command, *(["--auth"] if self._login is not None else [])]

    def wait_ready(self) -> None:
        """Wait until it is ready, and tell it its set or its user the first time.  May switch."""
        super().wait_ready()
        client: pymongo.MongoClient[dict[str, Any]]
        with pymongo.MongoClient(self.url, directConnection=True) as client:
            if self._replica_set is not None:
                members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
                client.admin.command(
                    "replSetInitiate", {"_id": self._replica_set, "members": members}
                )
            if self._login is not None:
                name, _, password = self._login.partition(":")
                client.admin.command("createUser", name, pwd=password, roles=["root"])


MongoServer = MongoStandin | MongoDB
#: What the environment asks for.
KIND: Callable[..., MongoServer] = MongoDB if older.is_wanted() else MongoStandin
