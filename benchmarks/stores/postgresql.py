"""The stage on PostgreSQL, where each library has tables of its own, and greenconn over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

import greenconn
from benchmarks.rivals.shape import PREFETCH
from benchmarks.stores import greenconn_works
from benchmarks.stores.stage import Counting, TableStage

#: In the statements of the stage itself.
_MARK = "/* stage */"


class Stage(TableStage):
    """Queues in tables that are emptied afterwards."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._database = psycopg.connect(url, autocommit=True)
        self._database.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def of(self, api: Any, url: str) -> str:
        """The address for a library."""
        self.api = api
        self.url = url
        return url

    @property
    def _table(self) -> str:
        return {"greenconn": "greenconn.messages", "kombu": "kombu_message"}.get(
            self.api.__name__, "by_hand"
        )

    def counting(self) -> Counting:
        return Counting(self._statements)

    def _statements(self) -> float:
        """The statements so far, without those that have the mark of this class."""
        ((count,),) = self._database.execute(
            f"{_MARK} SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query NOT LIKE %s",
            (f"%{_MARK}%",),
        ).fetchall()
        return float(count)

    def clear(self) -> None:
        """End the other sides, and delete all messages."""
        self.end_peers()
        self._database.execute(f"TRUNCATE {self._table}")

    def close(self) -> None:
        """Close the own connection."""
        self._database.close()

    def messages(self) -> Sequence[object]:
        return self._database.execute(
            f"{_MARK} SELECT 1 FROM {self._table} LIMIT {PREFETCH}"
        ).fetchall()


class Works(greenconn_works.Works):
    """The works of greenconn."""

    def __init__(self, url: str, stage: Stage) -> None:
        super().__init__(stage.of(greenconn, url), stage)
