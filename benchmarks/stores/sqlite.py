"""The stage on SQLite: a file for each library, since each has tables of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import gevent

from benchmarks.rivals.shape import PREFETCH
from benchmarks.stage import BODY
from benchmarks.stores.stage import StoreStage


class Stage(StoreStage):
    """Queues in files that are emptied afterwards.

    Attributes:
        api: the library that is measured, which fills its queues itself.
    """

    api: Any = None

    def of(self, api: Any, prefix: str = "") -> str:
        """The address for a library."""
        self.api = api
        self.url = f"{prefix}{self.url}-{api.__name__}"
        return self.url

    @property
    def _path(self) -> str:
        return self.url.partition("sqlite:///")[2]

    def _execute(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._path, timeout=20, isolation_level=None)) as database:
            return database.execute(statement).fetchall()

    def clear(self) -> None:
        """Delete all messages."""
        table = "messages" if self.api.__name__ == "greenconn" else "kombu_message"
        self._execute(f"DELETE FROM {table}")

    def close(self) -> None:
        """Nothing is open."""

    def source(self, count: int) -> str:
        name = self.name()
        with self.api.Connection(self.url) as connection:
            self.api.Queue(name)(connection.default_channel).declare()
            producer = connection.Producer()
            for _ in range(count):
                producer.publish(BODY, routing_key=name)
        return name

    def wait_empty(self, queue: str) -> None:
        if self.api.__name__ != "greenconn":
            return  # a message is marked when it is taken, and stays
        while self._execute(f"SELECT 1 FROM messages LIMIT {PREFETCH}"):
            gevent.sleep(0.02)
