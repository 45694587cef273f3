"""The transport options of SQLite."""

from __future__ import annotations

from typing import Final

from greenconn.broker.transport import StoreOptions
from greenconn.checks import check_count, check_seconds, check_type, invalid

#: Values of ``synchronous``.
SYNCHRONOUS: Final = ("NORMAL", "FULL")


class SqliteOptions(StoreOptions):
    """The options of a connection to a SQLite file."""

    synchronous: str = "NORMAL"
    """``NORMAL``: published messages survive the death of any process, and may be lost when the
    machine loses power.  ``FULL``: they survive that, too, at the cost of a write to the disk for
    each."""

    busy_timeout: float = 10.0
    """Seconds that a transaction waits for the locks of other processes."""

    look_interval: float = 5.0
    """Seconds between checks for what other processes did not announce: one may die after storing a
    message and before its wake-up, or leave queues behind."""

    reserve: int = 8 * 1024 * 1024
    """Bytes of a file beside the database, which is removed when the disk is full, so that messages
    can still be consumed; 0 keeps none."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_type(self, str, "synchronous")
        check_count(self, "reserve", least=0, optional=False)
        check_seconds(self, "busy_timeout", "look_interval", optional=False)
        if self.synchronous.upper() not in SYNCHRONOUS:
            raise invalid(self, "synchronous", f"one of {', '.join(SYNCHRONOUS)}")
        if not self.look_interval:
            raise invalid(self, "look_interval", "a number of seconds above 0")
