"""The stage on PostgreSQL, where each library has tables of its own, and greenconn over it."""

from __future__ import annotations

from typing import Any

import gevent
import psycopg

import greenconn
from benchmarks.rivals.shape import PREFETCH
from benchmarks.stage import BODY
from benchmarks.stores import greenconn_works
from benchmarks.stores.stage import StoreStage


class Stage(StoreStage):
    """Queues in tables that are emptied afterwards.

    Attributes:
        api: the library that is measured, which fills its queues itself.
    """

    api: Any = None

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._database = psycopg.connect(url, autocommit=True)

    def of(self, api: Any, url: str) -> str:
        """The address for a library."""
        self.api = api
        self.url = url
        return url

    @property
    def _table(self) -> str:
        return "greenconn.messages" if self.api is greenconn else "kombu_message"

    def clear(self) -> None:
        """Delete all messages."""
        self._database.execute(f"TRUNCATE {self._table}")

    def close(self) -> None:
        """Close the own connection."""
        self._database.close()

    def source(self, count: int) -> str:
        name = self.name()
        with self.api.Connection(self.url) as connection:
            self.api.Queue(name)(connection.default_channel).declare()
            producer = connection.Producer()
            for _ in range(count):
                producer.publish(BODY, routing_key=name)
        return name

    def wait_empty(self, queue: str) -> None:
        if self.api is not greenconn:
            return  # a message is marked when it is taken, and stays
        while self._database.execute(f"SELECT 1 FROM {self._table} LIMIT {PREFETCH}").fetchall():
            gevent.sleep(0.02)


class Works(greenconn_works.Works):
    """The works of greenconn."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(stage.of(greenconn, url), stage)
