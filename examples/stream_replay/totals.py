"""A reader that continues where it was stopped or killed: ``greenconn run totals``.

It keeps its position in the stream beside its result, in one transaction, so that each measurement
counts exactly once, although the broker delivers at least once.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from measurements import MEASUREMENTS

import greenconn


class Totals:
    """The number and the sum of the measurements, and the offset of the next one, in SQLite.

    Its methods ``load`` and ``store`` make it a store for the option ``offsets``.
    """

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path)
        # A power failure may undo the last transactions; they are then read from the stream again.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS totals (next INTEGER, count INTEGER, sum REAL)"
        )
        with self._db:
            self._db.execute(
                "INSERT INTO totals SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM totals)"
            )

    def add(self, offset: int, celsius: float) -> None:
        """Add a measurement, unless it has been added before."""
        with self._db:
            self._db.execute(
                "UPDATE totals SET next = ? + 1, count = count + 1, sum = sum + ? WHERE next <= ?",
                (offset, celsius, offset),
            )

    def read(self) -> tuple[int, float]:
        count, total = self._db.execute("SELECT count, sum FROM totals").fetchone()
        return count, total

    def load(self, stream: str, reader: str) -> int | None:
        """Return the offset at which the reader starts."""
        (offset,) = self._db.execute("SELECT next FROM totals").fetchone()
        return int(offset)

    def store(self, stream: str, reader: str, offset: int) -> None:
        """Do nothing: ``add`` has stored the offset together with the measurement."""


app = greenconn.App()
totals = Totals("totals.db")


@app.consumer(MEASUREMENTS, name="totals", offsets=totals)
def count(measurement: dict[str, Any], message: greenconn.Message) -> None:
    totals.add(message.headers["x-stream-offset"], measurement["celsius"])
    number, total = totals.read()
    if number % 100 == 0:
        print(f"counted {number} measurements, mean {total / number:.2f}", flush=True)
