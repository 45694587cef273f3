"""The outbox of a program that uses SQLAlchemy.

::

    from greenconn.contrib.outbox.sqlalchemy import Outbox

    outbox = Outbox(Base.metadata)                     # its tables are migrated with the others

    with Session(engine) as session, session.begin():
        session.add(Order(number=7))
        outbox.publish(session, "orders", {"number": 7})

    outbox.relay(engine).run()                         # in a process of its own, or app.service(...)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    and_,
    event,
    func,
    or_,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from greenconn.contrib.outbox import (
    CHANNEL,
    LONGEST,
    Backlog,
    Lease,
    OutboxStore,
    PendingMessage,
    conninfo_of,
    row_of,
)
from greenconn.contrib.outbox.relay import Relay, RelayOptions, has_relays, wake_relays
from greenconn.publishing.publisher import Target

if TYPE_CHECKING:
    from sqlalchemy.sql.dml import Insert, ReturningInsert
    from typing_extensions import Unpack

    from greenconn.publishing.publisher import PublishArguments

__all__ = ["Outbox"]

#: A session has it that has written messages; whether its transaction is to wake the relays.
_MARK = "greenconn.outbox"


class Outbox:
    """The two tables of an outbox.

    Arguments:
        metadata: to which the tables are added, so that ``create_all`` and Alembic know them; None: a
            new one.
        name: of the table of messages; that of the leases has ``_leases`` behind it.

    Attributes:
        messages, leases: the tables.
    """

    def __init__(self, metadata: MetaData | None = None, *, name: str = "greenconn_outbox") -> None:
        metadata = MetaData() if metadata is None else metadata
        self.messages = Table(
            name,
            metadata,
            # SQLite numbers no other type by itself.
            Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
            Column("message_id", String(LONGEST), nullable=False),
            Column("partition", SmallInteger, nullable=False),
            Column("ordering_key", String(LONGEST)),
            Column("target", String(LONGEST), nullable=False),
            Column("envelope", Text, nullable=False),
            Column("body", LargeBinary(2**24), nullable=False),
            Column("created_ms", BigInteger, nullable=False),
            Column("sent_ms", BigInteger),
            Column("retry_ms", BigInteger, nullable=False, default=0),
            Column("attempts", Integer, nullable=False, default=0),
            Column("error", Text),
            Index(f"ix_{name}_sent", "sent_ms", "id"),
            Index(f"ix_{name}_retry", "retry_ms"),
        )
        self.leases = Table(
            f"{name}_leases",
            metadata,
            Column("name", String(64), primary_key=True),
            Column("owner", String(64), nullable=False),
            Column("beat", BigInteger, nullable=False),
        )

    def create_tables(self, engine: Engine) -> None:
        """Create the tables that are not there."""
        self.messages.metadata.create_all(engine, tables=[self.messages, self.leases])

    def publish(
        self,
        session: Session | scoped_session[Session] | Connection,
        target: Target,
        body: Any,
        *,
        key: str | None = None,
        **options: Unpack[PublishArguments],
    ) -> str:
        """Write a message into the transaction of *session*; a relay publishes it after the commit.

        Arguments:
            session: a session, or a connection.
            target, body, options: as for :func:`greenconn.publish`.
            key: messages of one key are published in the order in which they were written; None: in
                any.

        Returns:
            Its ``message_id``.

        Raises:
            EncodeError: the body cannot be serialised.
            TypeError, ValueError: wrong arguments.
        """
        row = row_of(target, body, key, options)
        insert: Insert | ReturningInsert[Any] = self.messages.insert()
        bind = session if isinstance(session, Connection) else session.get_bind(clause=insert)
        if bind.dialect.name == "postgresql":
            # At the commit, and without a statement more.
            insert = insert.returning(func.pg_notify(CHANNEL, self.messages.name))
        session.execute(insert, asdict(row)).close()
        if has_relays() and not isinstance(session, Connection):
            _wake_at_commit(session() if isinstance(session, scoped_session) else session)
        return row.message_id

    def relay(self, engine: Engine, **options: Any) -> Relay:
        """Return a relay; see :class:`~greenconn.contrib.outbox.relay.RelayOptions` for *options*."""
        return Relay(_Store(self, engine), RelayOptions(**options))


def _wake_at_commit(session: Session) -> None:
    if _MARK not in session.info:
        event.listen(session, "after_transaction_end", _wake_at_end)
    session.info[_MARK] = True


def _wake_at_end(session: Session, transaction: SessionTransaction) -> None:
    # Not at the end of a savepoint.  After a rollback there is nothing to do, and little lost.
    if transaction.parent is None and session.info[_MARK]:
        session.info[_MARK] = False
        wake_relays()


class _Store(OutboxStore):
    """The tables of an outbox in the database of an engine."""

    def __init__(self, outbox: Outbox, engine: Engine) -> None:
        self._messages = outbox.messages
        self._leases = outbox.leases
        self._engine = engine

    def table(self) -> str:
        return self._messages.name

    def conninfo(self) -> dict[str, Any] | None:
        if self._engine.dialect.name != "postgresql":
            return None
        with self._engine.connect() as connection:
            return conninfo_of(connection.connection.driver_connection)

    def pending(self, partitions: Collection[int], now: int, limit: int) -> list[PendingMessage]:
        columns = self._messages.c
        blocked = select(columns.ordering_key).where(
            columns.retry_ms > now, columns.ordering_key.is_not(None)
        )
        query = (
            select(
                columns.id,
                columns.partition,
                columns.ordering_key,
                columns.attempts,
                columns.envelope,
                columns.body,
            )
            .where(
                columns.sent_ms.is_(None),
                columns.retry_ms <= now,
                columns.partition.in_(partitions),
                or_(columns.ordering_key.is_(None), columns.ordering_key.not_in(blocked)),
            )
            .order_by(columns.id)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [PendingMessage(**row) for row in connection.execute(query).mappings()]

    def mark_sent(self, ids: Sequence[int], now: int) -> None:
        table = self._messages
        with self._engine.begin() as connection:
            connection.execute(
                table.update().where(table.c.id.in_(ids)).values(sent_ms=now, retry_ms=0)
            )

    def mark_failed(self, id: int, error: str, retry: int) -> None:
        table = self._messages
        values = {"retry_ms": retry, "error": error, "attempts": table.c.attempts + 1}
        with self._engine.begin() as connection:
            connection.execute(table.update().where(table.c.id == id).values(values))

    def prune(self, before: int, limit: int) -> int:
        table = self._messages
        old = select(table.c.id).where(table.c.sent_ms < before).limit(limit)
        with self._engine.begin() as connection:
            ids = list(connection.scalars(old))
            if ids:
                connection.execute(table.delete().where(table.c.id.in_(ids)))
        return len(ids)

    def backlog(self) -> Backlog:
        columns = self._messages.c
        waiting = columns.sent_ms.is_(None)
        query = select(func.count(), func.min(columns.created_ms)).where(waiting)
        failing = select(func.count()).where(waiting, columns.retry_ms > 0)
        with self._engine.connect() as connection:
            count, oldest = connection.execute(query).one()
            return Backlog(waiting=count, failing=connection.scalar(failing) or 0, oldest_ms=oldest)

    def leases(self) -> list[Lease]:
        with self._engine.connect() as connection:
            return [Lease(**row) for row in connection.execute(select(self._leases)).mappings()]

    def add_leases(self, leases: Collection[Lease]) -> None:
        for lease in leases:
            try:
                with self._engine.begin() as connection:
                    connection.execute(self._leases.insert(), asdict(lease))
            except IntegrityError:
                pass  # another relay was quicker

    def renew_leases(self, owner: str) -> None:
        table = self._leases
        with self._engine.begin() as connection:
            connection.execute(
                table.update().where(table.c.owner == owner).values(beat=table.c.beat + 1)
            )

    def take_leases(self, leases: Collection[Lease], owner: str) -> None:
        table = self._leases
        with self._engine.begin() as connection:
            for lease in leases:
                taken = table.update().where(self._is_unchanged(lease))
                connection.execute(taken.values(owner=owner, beat=lease.beat + 1))

    def free_leases(self, names: Collection[str], owner: str) -> None:
        table = self._leases
        with self._engine.begin() as connection:
            connection.execute(
                table.update()
                .where(table.c.name.in_(names), table.c.owner == owner)
                .values(owner="", beat=table.c.beat + 1)
            )

    def delete_leases(self, leases: Collection[Lease]) -> None:
        with self._engine.begin() as connection:
            for lease in leases:
                connection.execute(self._leases.delete().where(self._is_unchanged(lease)))

    def _is_unchanged(self, lease: Lease) -> Any:
        columns = self._leases.c
        return and_(
            columns.name == lease.name, columns.owner == lease.owner, columns.beat == lease.beat
        )

    def close(self) -> None:
        """Do nothing: the engine is the program's."""
