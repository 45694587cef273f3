"""A MongoDB server of one's own: a stand-in (see :mod:`tests.brokers.mongodb`), or MongoDB 3.6."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pymongo

from tests.brokers import older
from tests.brokers.keeper import Keeper
from tests.brokers.server import Server


class MongoServer(Server):
    """A server of MongoDB's protocol that this process owns.

    Arguments:
        is_durable: it notes each write before it confirms it, so that it finds them again.
        replica_set: the name of the set of which it is the only member; such tell of changes.
        login: ``user:password`` of a user who may do all.
    """

    #: The end of an URL with a login.
    login_options: ClassVar[str]

    def __init__(
        self,
        keeper: Keeper,
        *,
        is_durable: bool = False,
        replica_set: str | None = None,
        login: str | None = None,
    ) -> None:
        super().__init__(keeper)
        self._is_durable = is_durable
        self._replica_set = replica_set
        self._login = login

    @property
    def url(self) -> str:
        """Its address, without a database."""
        return f"mongodb://127.0.0.1:{self.port}"


class MongoStandin(MongoServer):
    """The stand-in, whose login has the mechanism PLAIN."""

    login_options = "?authMechanism=PLAIN&authSource=$external"
    name = "mongodb-standin"
    ready = b"is ready"
    folder = Path(__file__).resolve().parents[2]

    def command(self) -> list[str | Path]:
        """The program and its arguments."""
        command: list[str | Path] = [sys.executable, "-W", "error", "-m", "tests.brokers.mongodb"]
        command += ["--port", str(self.port)]
        if self._is_durable:
            command += ["--journal", self.directory / "journal"]
        if self._replica_set is not None:
            command += ["--replica-set", self._replica_set]
        if self._login is not None:
            command += ["--login", self._login]
        return command


class MongoDB(MongoServer):
    """A MongoDB, whose data survive its end in any case.

    Raises:
        NoBroker: the program is not to be had.
    """

    login_options = "?authSource=admin"
    name = "mongodb"
    start_timeout = 60.0

    def command(self) -> list[str | Path]:
        """The program and its arguments."""
        folder = self.directory / "data"
        folder.mkdir(exist_ok=True)
        program = older.find(older.MONGODB, self._keeper.directory)
        command: list[str | Path] = [program, "--port", str(self.port)]
        command += ["--bind_ip", "127.0.0.1", "--dbpath", folder, "--quiet"]
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


#: What the environment asks for.
KIND: type[MongoServer] = MongoDB if older.is_wanted() else MongoStandin
