"""A SQLite file that several processes share, in a storm."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gevent

from greenconn.connection import Connection
from greenconn.entity import Queue
from tests.quality.faults.kinds import OF_PROCESSES, Fault, Kind
from tests.quality.faults.targets.base import DELETED, Place, places_of

#: Seconds between two attempts to get the lock of the file.
STEP = 0.01


class SqliteTarget:
    """There is no server and no line: what may die are the processes, and what they wait for is a lock.

    Arguments:
        file: where the messages are.
    """

    name = transport = "sqlite"
    kinds = frozenset({*OF_PROCESSES, Kind.PAUSE, Kind.DELETE, Kind.INTERRUPT})
    heartbeat: float | None = None
    rate = float("inf")
    is_ordered = True

    def __init__(self, file: Path) -> None:
        self._file = file
        self.url = f"sqlite:///{file}"
        self.options: dict[str, Any] = {"lease": 3.0, "look_interval": 1.0}

    def places(self) -> list[Place]:
        """Queues in the file."""
        return places_of([Queue(f"rows-{number}") for number in (1, 2, 3, 4)])

    def settle(self) -> None:
        """Each write was a transaction."""

    def held(self) -> int:
        """Those of the dead, too, until their leases end."""
        with closing(sqlite3.connect(self._file)) as file:
            (count,) = file.execute("SELECT count(*) FROM messages WHERE state IS NULL").fetchone()
        return int(count)

    def inject(self, fault: Fault) -> None:
        """Have a fault."""
        if fault.kind is Kind.PAUSE:
            self._lock(fault.seconds)
        elif fault.kind is Kind.DELETE:
            with Connection(self.url) as connection:
                connection.default_channel.queue_delete(DELETED)

    def _lock(self, seconds: float) -> None:
        """Somebody else, such as a backup, holds the file's lock for a while."""
        with closing(sqlite3.connect(self._file, timeout=0, isolation_level=None)) as other:
            while True:
                try:
                    other.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError:  # it is locked by one of ours
                    gevent.sleep(STEP)
            gevent.sleep(seconds)
            other.execute("ROLLBACK")

    def heal(self) -> None:
        """Nothing lasts."""

    def close(self) -> None:
        """The file goes with its folder."""


@contextmanager
def sqlite_target() -> Iterator[SqliteTarget]:
    """A file that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="greenconn-faults-") as folder:
        yield SqliteTarget(Path(folder) / "messages.db")
