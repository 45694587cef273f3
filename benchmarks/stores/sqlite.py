"""The stage on SQLite: a file for each library, since each has tables of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from benchmarks.rivals.shape import PREFETCH
from benchmarks.stores.stage import TableStage


class Stage(TableStage):
    """Queues in files that are emptied afterwards."""

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
        """End the other sides, and delete all messages."""
        self.end_peers()
        table = "kombu_message" if self.api.__name__ == "kombu" else "messages"
        self._execute(f"DELETE FROM {table}")

    def close(self) -> None:
        """Nothing is open."""

    def messages(self) -> Sequence[object]:
        return self._execute(f"SELECT 1 FROM messages LIMIT {PREFETCH}")
