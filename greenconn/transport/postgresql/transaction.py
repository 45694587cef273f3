"""Messages that are published or acknowledged in a transaction of the program's own.

They are rows of that transaction: rolled back, there never was a message; committed, consumers are
notified by the server.  What is declared for them is declared over the broker's own connection, at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final, cast

from greenconn.broker.port import Entry, NoQueue
from greenconn.broker.publishing import CopyOutcomes, StoredResult, StorePublisher
from greenconn.exceptions import PublishRefused
from greenconn.green.deadline import Deadline
from greenconn.transport.postgresql.messages import STORE, columns_of

if TYPE_CHECKING:
    from sqlalchemy import Connection as SqlalchemyConnection

    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.consuming import StoreDelivery
    from greenconn.broker.envelope import Envelope
    from greenconn.broker.link import StoreLink
    from greenconn.broker.publishing import Completion
    from greenconn.transport.postgresql import Channel, PostgresStore

#: libpq's PQTRANS_IDLE: there is no transaction.
_IDLE: Final = 0

#: Stores messages and notifies all links of the schema at the commit: who waits then is not known yet.
#: The time is that of the statement, as a transaction may be long.
_PUT: Final = (
    STORE.replace("now()", "clock_timestamp()")
    + "SELECT name, is_bounded, pg_notify(%s, id || %s) FROM target"
)

_ACK: Final = "DELETE FROM greenconn.messages WHERE id = %s AND holder = %s RETURNING id"


def channel_of(schema: str) -> str:
    """Return the channel on which all links of a schema are notified of what a program commits."""
    # A name has room for 63 bytes, and that of a schema may need them all.
    return f"greenconn_{md5(schema.encode(), usedforsecurity=False).hexdigest()}"


class Transaction:
    """A transaction of the program's, and how a statement is run in it.

    Arguments:
        given: a connection of psycopg (3 or 2), a Session or Connection of SQLAlchemy, or the alias of a
            database of Django.

    Raises:
        TypeError: it is something else.
        ValueError: no transaction is open, or it is not one of PostgreSQL.
    """

    def __init__(self, given: Any) -> None:
        if isinstance(given, str):
            self._cursor = _of_django(given).cursor
            return
        if callable(getattr(given, "get_bind", None)) and callable(given.connection):
            given = given.connection()  # a Session: it begins its transaction with that
        if hasattr(given, "exec_driver_sql"):
            given = _of_sqlalchemy(given)
        if not callable(getattr(given, "cursor", None)) or not hasattr(given, "info"):
            raise TypeError(
                f"transaction must be a connection of psycopg, a Session or Connection of SQLAlchemy, "
                f"or the alias of a database of Django, got {type(given).__name__}"
            )
        if given.autocommit and given.info.transaction_status == _IDLE:
            raise ValueError(
                "transaction must have begun, but its connection is in autocommit mode and has no "
                "transaction: publish within connection.transaction(), or without autocommit"
            )
        self._cursor = given.cursor

    def fetch(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows.  May switch, as the program's own statements do.

        Raises:
            Exception: what the program's own statements raise.
        """
        with self._cursor() as cursor:
            cursor.execute(statement, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows


def _of_django(alias: str) -> Any:
    from django.db import connections

    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise ValueError(f"transaction={alias!r} must be PostgreSQL, got {connection.vendor}")
    if not connection.in_atomic_block:
        raise ValueError(
            f"transaction={alias!r} must have begun: publish within django.db.transaction.atomic()"
        )
    return connection


def _of_sqlalchemy(connection: SqlalchemyConnection) -> Any:
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.driver not in ("psycopg", "psycopg2"):
        raise ValueError(
            f"transaction must be of PostgreSQL by psycopg or psycopg2, got {dialect.name}+"
            f"{dialect.driver}"
        )
    if not connection.in_transaction():
        connection.begin()  # as its first statement would
    return connection.connection.driver_connection


def store_of(channel: StoreChannel[Any]) -> PostgresStore:
    """Return the store of the link that a channel belongs to."""
    return cast("PostgresStore", channel.connection.store)


class TransactionChannel:
    """Publishes over a channel in a transaction.  Messages are stored by :meth:`store`, together.

    Arguments:
        channel: knows the exchanges and the queues.
        given: see :class:`Transaction`.
    """

    def __init__(self, channel: Channel, given: object) -> None:
        self.prepare_message = channel.prepare_message
        self.delayed_route = channel.delayed_route
        self._transaction = Transaction(given)
        self._publisher = _Publisher(channel, channel.connection)
        self._store = store_of(channel)

    def begin_publish(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> StoredResult:
        """Take *message*; the result has its outcome after :meth:`store`.  May switch."""
        return self._publisher.begin(message, exchange, routing_key, mandatory, immediate, deadline)

    # -- acks

    def ack(self, message: StoreDelivery) -> bool:
        """Delete *message* in the transaction; False: this link does not hold it any more.

        Ack it over its channel, too, when the transaction is committed.  May switch, as the program's
        own statements do.

        Raises:
            Exception: what the program's own statements raise.
        """
        store, handle = self._store, message.claimed.handle
        store.leaving.add(handle)
        statement = _ACK.replace("greenconn.", store.session.prefix)
        return bool(self._transaction.fetch(statement, handle))

    def is_held(self, message: StoreDelivery) -> bool:
        """Return whether *message* is still there, when its transaction has ended.  May switch.

        Raises:
            RecoverableConnectionError: the link is lost; then it is redelivered if it is.
        """
        store, handle = self._store, message.claimed.handle
        if store.is_held(handle):
            store.leaving.discard(handle)
            return True
        return False

    def undo(self, message: StoreDelivery) -> None:
        """Note that the transaction has ended in any way.  Never switches."""
        self._store.leaving.discard(message.claimed.handle)

    # -- publishing

    def store(self) -> None:
        """Store what was taken.  May switch, as the program's own statements do.

        Raises:
            Exception: what the program's own statements raise.
        """
        self._publisher.store(self._transaction)


class _Publisher(StorePublisher):
    """Gathers the messages of one call."""

    def __init__(self, channel: Channel, link: StoreLink) -> None:
        super().__init__(channel, link)
        self._taken: list[tuple[Entry, Completion]] = []

    def _put(
        self, target: Sequence[Entry], queue: str, done: Completion, deadline: Deadline | None
    ) -> None:
        if len(target) != 1:
            done = CopyOutcomes(len(target), done)
        self._taken += ((entry, done) for entry in target)

    def store(self, transaction: Transaction) -> None:
        """See :meth:`TransactionChannel.store`."""
        if not self._taken:
            return
        taken, self._taken = self._taken, []
        store = store_of(self._channel)
        entries = [entry for entry, _ in taken]
        columns = columns_of(entries)
        # 0: something is due, or expires, later.
        is_timed = any(entry.delay or entry.lifetime is not None for entry in entries)
        found = transaction.fetch(
            _PUT.replace("greenconn.", store.session.prefix),
            (
                list(dict.fromkeys(columns[0])),
                *columns,
                channel_of(store.session.schema),
                " 0" if is_timed else "",
            ),
        )
        bounded = {name: is_bounded for name, is_bounded, _ in found}
        for entry, done in taken:
            done.offer(self._outcome(entry.queue, bounded.get(entry.queue)))

    def _outcome(self, queue: str, is_bounded: bool | None) -> Exception | None:
        if is_bounded is None:
            return NoQueue(queue)
        if is_bounded:
            return PublishRefused(
                f"queue {queue!r} has a maximum length, and takes no message in a transaction: others "
                f"that publish to it would wait for its end"
            )
        return None
