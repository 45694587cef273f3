"""A stand-in for a MongoDB server of one's own; see :mod:`tests.brokers.mongodb`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.brokers.keeper import Keeper
from tests.brokers.server import Server


class MongoStandin(Server):
    """A stand-in that this process owns.

    Arguments:
        is_durable: it notes each write before it confirms it, so that it finds them again.
        replica_set: the name of the set of which it is the only member; such tell of changes.
        login: ``user:password``, for the mechanism PLAIN.
    """

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
