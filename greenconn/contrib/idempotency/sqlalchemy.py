"""Ids in a table of a database, by SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import time
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    MetaData,
    String,
    Table,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from greenconn.checks import Seconds, in_seconds
from greenconn.contrib.idempotency import Claim, IdStore
from greenconn.green.threadpool import in_threadpool

__all__ = ["SqlIds"]


class SqlIds(IdStore):
    """Ids as rows.  Those that are old are deleted by a job that calls :meth:`prune`.

    Calls block a thread, not the hub, unless the process is patched: a driver is green there.  Times are
    those of the machines' clocks, which must agree within a lease.

    Arguments:
        engine: of the database.
        metadata: to which the table is added; None: a new one.
        name: of the table.
        clock: seconds since 1970.

    Attributes:
        table: the table.
    """

    def __init__(
        self,
        engine: Engine,
        metadata: MetaData | None = None,
        *,
        name: str = "greenconn_ids",
        clock: Callable[[], float] = time,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self.table = Table(
            name,
            MetaData() if metadata is None else metadata,
            Column("id", String(255), primary_key=True),
            # Empty: it was handled.
            Column("owner", String(64), nullable=False),
            Column("expires_ms", BigInteger, nullable=False),
            Index(f"ix_{name}_expires", "expires_ms"),
        )

    def create_table(self) -> None:
        """Create the table if it is not there."""
        self.table.metadata.create_all(self._engine, tables=[self.table])

    def claim(self, id: str, owner: str, lease: float) -> Claim:
        """Claim an id."""
        return in_threadpool(partial(self._claim, id, owner, lease))

    def renew(self, id: str, owner: str, lease: float) -> bool:
        """Have a claim last longer."""
        return in_threadpool(partial(self._renew, id, owner, lease))

    def finish(self, id: str, owner: str, ttl: float) -> None:
        """Keep an id as handled."""
        in_threadpool(partial(self._finish, id, owner, ttl))

    def release(self, id: str, owner: str) -> None:
        """Forget a claim."""
        in_threadpool(partial(self._release, id, owner))

    def add(
        self, session: Session | scoped_session[Session] | Connection, id: str, ttl: Seconds
    ) -> None:
        """Write an id as handled into the transaction of *session*, instead of by ``handled_once``.

        The handler's changes and the mark are committed together, or not at all: nothing is done twice.

        Raises:
            sqlalchemy.exc.IntegrityError: it was written before, perhaps a moment ago.
        """
        values = {"id": id, "owner": "", "expires_ms": self._expiry(in_seconds(ttl))}
        session.execute(self.table.insert(), values)

    def prune(self) -> int:
        """Delete the ids whose time is over; return how many there were."""
        table = self.table
        with self._engine.begin() as connection:
            old: Any = connection.execute(
                table.delete().where(table.c.expires_ms <= self._now_ms())
            )
            return int(old.rowcount)

    def _claim(self, id: str, owner: str, lease: float) -> Claim:
        table, now = self.table, self._now_ms()
        values = {"owner": owner, "expires_ms": now + int(lease * 1000)}
        expired = table.update().where(table.c.id == id, table.c.expires_ms <= now)
        try:
            with self._engine.begin() as connection:
                if connection.execute(expired.values(values)).rowcount:
                    return Claim.NEW
                connection.execute(table.insert(), {"id": id, **values})
            return Claim.NEW
        except IntegrityError:
            pass  # it is there
        with self._engine.connect() as connection:
            found = connection.scalar(select(table.c.owner).where(table.c.id == id))
        return Claim.HANDLED if found == "" else Claim.BUSY

    def _renew(self, id: str, owner: str, lease: float) -> bool:
        table = self.table
        longer = table.update().where(table.c.id == id, table.c.owner == owner)
        values = {"expires_ms": self._expiry(lease)}
        with self._engine.begin() as connection:
            return bool(connection.execute(longer.values(values)).rowcount)

    def _finish(self, id: str, owner: str, ttl: float) -> None:
        table = self.table
        values = {"owner": "", "expires_ms": self._expiry(ttl)}
        with self._engine.begin() as connection:
            connection.execute(table.update().where(table.c.id == id).values(values))

    def _release(self, id: str, owner: str) -> None:
        table = self.table
        with self._engine.begin() as connection:
            connection.execute(table.delete().where(table.c.id == id, table.c.owner == owner))

    def _expiry(self, seconds: float) -> int:
        """Return the time in *seconds* from now."""
        return self._now_ms() + int(seconds * 1000)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
