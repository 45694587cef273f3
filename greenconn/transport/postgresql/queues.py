"""The queues, exchanges, bindings, consumers and links of a schema: functions that run statements.

A link that consumes, has exclusive queues or holds messages is registered in ``links``, with a lease
that it renews.  Its session holds an advisory lock by the same number.  The lock ends with the session,
so that others see at once that a link is dead, and remove its consumers and exclusive queues.  What it
held stays until the end of the lease, since the program may live, and go on with it over its next
connection.  A link whose session a pooler lends to others has no lock, and a number below 0: it is dead
when its lease ends.

No wake-up is missing: a link arms its consumers, and looks for messages once more after that has been
committed.  A link that stores messages looks for armed consumers after *that* has been committed.  One
of the two sees the other.

Of several that wait for one queue it notifies one, and none where one that was notified has not claimed
yet: that one will see what is stored meanwhile, too.  One that has no room for all notifies the next.
A link that was notified may be unable to claim: it has no room any more, is stuck, or dead.  So where
others wait on, the link that has notified it looks a moment later whether the queue still has messages,
and notifies one more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from greenconn.broker.exchanges import (
    Exchange,
    ExchangeRecord,
    Row,
    Topology,
    TopologyStore,
    as_exchange,
)
from greenconn.broker.queues import Declaration, QueuePolicy, is_lost
from greenconn.jsoncodec import dumps, loads

if TYPE_CHECKING:
    from greenconn.transport.postgresql.connection import Session

T = TypeVar("T")
V = TypeVar("V")

#: The beginning of the channel on which a link is notified; its owner follows.
CHANNEL: Final = "greenconn_"

#: Notifies all links that wait for one of some queues, except the own one.
_ANNOUNCE_ALL: Final = """
WITH waiting AS MATERIALIZED (
    SELECT queue, owner FROM greenconn.consumers
    WHERE queue = ANY (%b::int8[]) AND armed = 1 AND owner <> %b
    FOR UPDATE SKIP LOCKED
), woken AS (
    UPDATE greenconn.consumers c SET armed = 0 FROM waiting w
    WHERE c.queue = w.queue AND c.owner = w.owner
    RETURNING c.owner, c.queue
)
SELECT greenconn.notify(owner, array_agg(queue)) FROM woken GROUP BY owner
"""
_ANNOUNCE_DUE: Final = """
SELECT pg_notify('greenconn_' || owner, %b) FROM greenconn.consumers
WHERE queue = ANY (%b::int8[]) AND owner <> %b
"""


def announce(
    session: Session, numbers: Collection[int], owner: str, due_in: float | None = None
) -> Collection[int]:
    """Notify one of the links that wait for messages of each of some queues.  After the commit only.

    Arguments:
        due_in: seconds until one of them may be delivered, or dies; notifies all consumers.

    Returns:
        the queues for which others wait on: see :func:`announce_rest`.
    """
    if not numbers:
        return ()
    others = _notify_one(session, "announce", numbers, owner)
    if due_in is not None:
        session.fetch(_ANNOUNCE_DUE, (f"@{due_in}", list(numbers), owner))
    return others


def announce_rest(session: Session, numbers: Collection[int], owner: str) -> Collection[int]:
    """Notify one more link for each queue of which none that was notified has claimed the messages.

    Returns:
        the queues for which others wait on.
    """
    return _notify_one(session, "announce_rest", numbers, owner)


def _notify_one(
    session: Session, function: str, numbers: Collection[int], owner: str
) -> Collection[int]:
    statement = f"SELECT greenconn.{function}(%b::int8[], %b::text)"
    others: Collection[int]
    ((others,),) = session.fetch(statement, (list(numbers), owner))
    return others


def announce_all(session: Session, numbers: Collection[int], owner: str) -> None:
    """Notify all links that wait for messages of some queues: by one that cannot look once more."""
    if numbers:
        session.fetch(_ANNOUNCE_ALL, (list(numbers), owner))


def notify(session: Session, owners: Iterable[str], payload: str = "0") -> None:
    """Notify links that something has changed."""
    for owner in owners:
        session.fetch("SELECT pg_notify(%s, %s)", (CHANNEL + owner, payload))


def arm(session: Session, numbers: Collection[int], owner: str) -> None:
    """Note that a link waits for messages of some queues.  Look for them once more after that."""
    session.change(
        "UPDATE greenconn.consumers SET armed = 1 "
        "WHERE owner = %b AND queue = ANY (%b::int8[]) AND armed <> 1",
        (owner, list(numbers)),
    )


def disarm(session: Session, numbers: Collection[int], owner: str) -> Collection[int]:
    """Note that a link has no more room for messages of some queues, and notify others for the rest.

    Returns:
        the queues for which others wait on.
    """
    session.change(
        "UPDATE greenconn.consumers SET armed = 0 WHERE owner = %b AND queue = ANY (%b::int8[])",
        (owner, list(numbers)),
    )
    return announce_rest(session, numbers, owner)


class _Asked(Generic[V]):
    """One caller of :class:`Lookups`, and what was found."""

    __slots__ = ("is_answered", "key", "value")

    def __init__(self, key: str) -> None:
        self.key = key
        self.is_answered = False
        self.value: V | None = None


class Lookups(Generic[V]):
    """Finds something by its key; callers that wait for the session are served by one statement.

    Arguments:
        session: what statements run in.
        find: returns what it finds of some keys, by key; it runs within :meth:`Session.call`.
    """

    def __init__(
        self, session: Session, find: Callable[[Collection[str]], Mapping[str, V]]
    ) -> None:
        self._session = session
        self._find = find
        self._asked: list[_Asked[V]] = []

    def get(self, key: str) -> V | None:
        """Return what is found; None: nothing.  May switch.

        Raises:
            Exception: as :meth:`Session.call`.
        """
        asked: _Asked[V] = _Asked(key)
        self._asked.append(asked)
        return self._session.call(self._answer, asked)

    def _answer(self, caller: _Asked[V]) -> V | None:
        if not caller.is_answered:
            asked, self._asked = self._asked, []
            if caller not in asked:
                asked.append(caller)  # what was asked with it has failed
            found = self._find({each.key for each in asked})
            for each in asked:
                each.value = found.get(each.key)
                each.is_answered = True
        return caller.value


class QueueRow(NamedTuple):
    """A queue as it is in the table."""

    id: int
    name: str
    declaration: Declaration
    policy: QueuePolicy


class Begun(NamedTuple):
    """Whether a link may consume from a queue.

    Attributes:
        row: the queue; None: there is none.
        is_accepted: the link may consume, unless there is no queue.
        due_in: seconds until something comes by time; None: nothing does.
    """

    row: QueueRow | None
    is_accepted: bool
    due_in: float | None


_CONSUME: Final = (
    "CALL greenconn.consume(NULL, NULL, NULL, NULL, %b::text, %b::text, %b::int4, %b::boolean)"
)

#: The number of queues that a link consumes, and those of them with messages.
#: ``OFFSET 0``: else the server may read all that wait once, instead of one message of each queue.
_CONSUMED: Final = (
    "SELECT (SELECT count(*) FROM greenconn.consumers WHERE owner = %b), "
    "ARRAY (SELECT queue FROM greenconn.consumers c WHERE owner = %b AND EXISTS (SELECT 1 "
    "FROM greenconn.messages m WHERE m.queue = c.queue AND holder IS NULL AND due IS NULL OFFSET 0))"
)

#: Those of some queues that exist, and whether each has messages that can be claimed.
_EXISTING: Final = (
    "SELECT id, EXISTS (SELECT 1 FROM greenconn.messages m WHERE m.queue = q.id "
    "AND holder IS NULL AND due IS NULL OFFSET 0) FROM greenconn.queues q WHERE id = ANY (%b::int8[])"
)

#: Queues whose declarations are kept.
MOST_KNOWN: Final = 10_000


class Queues:
    """The queues of a schema, as one session asks for them.

    A number stands for one queue for ever, and a queue never changes, so what is known of a number is
    kept.

    Arguments:
        session: what statements run in.
        owner: the link.
    """

    def __init__(self, session: Session, owner: str) -> None:
        self._session = session
        self._owner = owner
        self._known: dict[int, QueueRow] = {}
        self._records = Records(session)
        self._found = Lookups(session, self._by_name)

    def row(self, name: str) -> QueueRow | None:
        """Return a queue; None: there is none."""
        return next(iter(self.rows([name])), None)

    def rows(self, names: Collection[str]) -> list[QueueRow]:
        """Return those of some queues that exist."""
        found = self._session.read(
            "SELECT id, name, declaration FROM greenconn.queues WHERE name = ANY (%b::text[])",
            (list(names),),
        )
        return [self.known(*each) for each in found]

    def of(self, numbers: Collection[int]) -> dict[int, QueueRow]:
        """Return those of some queues that exist, or did, by number."""
        missing = [number for number in numbers if number not in self._known]
        if missing:
            for each in self._session.fetch(
                "SELECT id, name, declaration FROM greenconn.queues WHERE id = ANY (%b::int8[])",
                (missing,),
            ):
                self.known(*each)
        return {number: self._known[number] for number in numbers if number in self._known}

    def known(self, number: int, name: str, text: str) -> QueueRow:
        """Return the queue of a number, of which *text* is the declaration."""
        known = self._known.get(number)
        if known is None:
            declared = Declaration.read(text.encode())
            known = QueueRow(number, name, declared, declared.policy)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[number] = known
        return known

    def consumed(self, numbers: Collection[int]) -> tuple[Collection[int], Collection[int]]:
        """Return the consumed queues that have messages, and those of *numbers* that are gone."""
        ((noted, ready),) = self._session.fetch(_CONSUMED, (self._owner, self._owner))
        # Who drops a queue removes its consumers, too: an idle link with thousands looks at no queue.
        if noted == len(numbers):
            return ready, ()
        found = dict(self._session.fetch(_EXISTING, (list(numbers),)))
        return [each for each in found if found[each]], {*numbers} - found.keys()

    # -- declaring

    def make(self, name: str, declared: Declaration) -> Declaration:
        """Make a queue unless it is there, and return how it was declared."""
        policy = declared.policy
        while True:
            made = self._session.change(
                "INSERT INTO greenconn.queues (name, declaration, owner, auto_delete, max_length, "
                "max_length_bytes, is_single, idle_until) "
                "VALUES (%b, %b, %b, %b, %b, %b, %b, now() + %b::float8 * interval '1 s') "
                "ON CONFLICT (name) DO NOTHING",
                (
                    *(name, declared.text(), declared.owner, declared.auto_delete),
                    *(policy.max_length, policy.max_length_bytes),
                    *(policy.is_single_active, policy.expires),
                ),
            )
            if made:
                return declared
            found = self.find(name)
            if found is not None:
                return found

    def _by_name(self, names: Collection[str]) -> dict[str, QueueRow]:
        return {row.name: row for row in self.rows(names)}

    def look_up(self, name: str) -> Declaration | None:
        """Return the declaration of a queue as :meth:`find` does.  Not within ``Session.call``."""
        row = self._found.get(name)
        if row is None or row.declaration.owner in (None, self._owner):
            return None if row is None else row.declaration
        return self._session.call(self.find, name)

    def find(self, name: str) -> Declaration | None:
        """Return the declaration of a queue; None: there is none, or its owner was dead."""
        row = self.row(name)
        if row is None:
            return None
        owner = row.declaration.owner
        if owner is not None and owner != self._owner and owner in self.dead_owners([owner]):
            self.remove_links([owner])
            return None
        return row.declaration

    def names(self) -> Collection[str]:
        """Return the names of the queues."""
        found = self._session.fetch("SELECT name, owner FROM greenconn.queues")
        owners = {owner for _, owner in found if owner is not None and owner != self._owner}
        dead = self.dead_owners(owners) if owners else ()
        return [name for name, owner in found if owner not in dead]

    def touch(self, row: QueueRow) -> None:
        """Start the ``x-expires`` of a used queue anew."""
        if row.policy.expires is not None:
            self._session.change(
                "UPDATE greenconn.queues q SET idle_until = CASE WHEN EXISTS (SELECT 1 FROM "
                "greenconn.consumers c WHERE c.queue = q.id) THEN NULL "
                "ELSE now() + %b::float8 * interval '1 s' END WHERE id = %b",
                (row.policy.expires, row.id),
            )

    def drop(self, name: str) -> int:
        """Delete a queue, and notify its consumers; return how many messages waited."""
        with self._session.transaction():
            return self._drop(name)

    def _drop(self, name: str, *, if_idle: bool = False) -> int:
        """Delete a queue within a transaction."""
        condition = " AND idle_until <= now()" if if_idle else ""
        gone = self._session.fetch(
            f"DELETE FROM greenconn.queues WHERE name = %b{condition} RETURNING id", (name,)
        )
        if not gone:
            return 0
        ((number,),) = gone
        self._known.pop(number, None)
        consumers = self._session.fetch(
            "DELETE FROM greenconn.consumers WHERE queue = %b RETURNING owner", (number,)
        )
        count = self.delete_waiting(number)
        for held in ("holder IS NOT NULL", "due IS NOT NULL"):
            self._session.change(
                f"DELETE FROM greenconn.messages WHERE queue = %b AND {held}", (number,)
            )
        self._session.change("DELETE FROM greenconn.lengths WHERE queue = %b", (number,))
        self._records.forget_queue(name)
        notify(self._session, (owner for (owner,) in consumers if owner != self._owner))
        return count

    def delete_waiting(self, number: int) -> int:
        """Delete the messages that wait in a queue, and return how many there were."""
        return self._session.change(
            "DELETE FROM greenconn.messages WHERE queue = %b AND holder IS NULL AND due IS NULL",
            (number,),
        )

    def purge(self, name: str) -> int:
        """Delete what waits, now or for its time."""
        row = self.row(name)
        if row is None:
            return 0
        with self._session.transaction():
            return self.delete_waiting(row.id) + self._session.change(
                "DELETE FROM greenconn.messages WHERE queue = %b AND due IS NOT NULL", (row.id,)
            )

    def counts(self, names: Collection[str]) -> dict[str, tuple[int, int]]:
        """Return the numbers of messages that wait and of consumers on other links.

        Messages that have expired are not counted, and a queue that has ended has none.
        """
        found = self._session.fetch(
            "SELECT name, (SELECT count(*) FROM greenconn.messages m WHERE m.queue = q.id "
            "AND holder IS NULL AND due IS NULL), "
            "(SELECT count(*) FROM greenconn.messages m WHERE m.queue = q.id "
            "AND holder IS NULL AND due IS NULL AND expires IS NOT NULL AND expires <= now()), "
            "(SELECT coalesce(sum(count), 0)::int8 FROM greenconn.consumers c "
            "WHERE c.queue = q.id AND c.owner <> %b) "
            "FROM greenconn.queues q WHERE name = ANY (%b::text[])",
            (self._owner, list(names)),
        )
        counts = {name: (count - dead, others) for name, count, dead, others in found}
        return dict.fromkeys(names, (0, 0)) | counts

    # -- consumers

    def consume(self, name: str, count: int, exclusive: bool) -> Begun:
        """Note how many consumers the link has now, one at least.  Not within a transaction."""
        ((number, text, accepted, due_in),) = self._session.fetch(
            _CONSUME, (name, self._owner, count, exclusive)
        )
        row = None if number is None else self.known(number, name, text)
        return Begun(row, accepted is not False, due_in)

    def leave(self, name: str) -> QueueRow | None:
        """Note that the link has no consumers any more; return the queue, None: there is none."""
        row = self.row(name)
        if row is None:
            return None
        expires = row.policy.expires is not None
        with self._session.transaction() if expires else nullcontext():
            # Locked: one that begins at once would not see that this one has left.
            removed = self._session.fetch(
                "WITH locked AS MATERIALIZED "
                "(SELECT id FROM greenconn.queues WHERE id = %b FOR UPDATE) "
                "DELETE FROM greenconn.consumers c USING locked "
                "WHERE c.queue = locked.id AND c.owner = %b RETURNING armed",
                (row.id, self._owner),
            )
            self.touch(row)
        if row.policy.is_single_active or (2,) in removed:
            # It is the next one's turn, or nothing has claimed what this one was notified of.
            announce_all(self._session, [row.id], self._owner)
        return row

    def remove_dead_rivals(self, name: str) -> bool:
        """Remove the consumers of a queue whose links are dead; return whether there were any."""
        found = self._session.fetch(
            "SELECT c.owner FROM greenconn.consumers c JOIN greenconn.queues q ON q.id = c.queue "
            "WHERE q.name = %b AND c.owner <> %b",
            (name, self._owner),
        )
        return bool(self.remove_links(self.dead_owners({owner for (owner,) in found})))

    def other_consumers(self, name: str) -> int:
        """Return the number of consumers that other links have."""
        ((count,),) = self._session.fetch(
            "SELECT coalesce(sum(count), 0)::int8 FROM greenconn.consumers c "
            "JOIN greenconn.queues q ON q.id = c.queue WHERE q.name = %b AND c.owner <> %b",
            (name, self._owner),
        )
        return int(count)

    def firsts(self, numbers: Collection[int]) -> set[int]:
        """Return those of some queues whose oldest consumer is on this link."""
        found = self._session.fetch(
            "SELECT DISTINCT ON (queue) queue, owner FROM greenconn.consumers "
            "WHERE queue = ANY (%b::int8[]) ORDER BY queue, since, owner",
            (list(numbers),),
        )
        return {queue for queue, owner in found if owner == self._owner}

    # -- links

    def dead_owners(self, owners: Collection[str]) -> set[str]:
        """Return those of *owners* whose links are dead."""
        if not owners:
            return set()
        # A living session holds its lock: where another one gets it, that session is dead.
        alive = self._session.fetch(
            "SELECT owner FROM greenconn.links WHERE owner = ANY (%b::text[]) AND lease_until > now() "
            "AND (number < 0 OR NOT pg_try_advisory_xact_lock_shared(number))",
            (list(owners),),
        )
        living = {owner for (owner,) in alive if not is_lost(owner)}
        return set(owners).difference(living, {self._owner})

    def remove_links(self, owners: Collection[str]) -> Collection[str]:
        """Remove the consumers, the exclusive and the unused auto-delete queues of dead links."""
        for owner in owners:
            with self._session.transaction():
                consumed = self._session.fetch(
                    "DELETE FROM greenconn.consumers WHERE owner = %b RETURNING queue", (owner,)
                )
                numbers = [number for (number,) in consumed]
                names = self._session.fetch(
                    "SELECT name FROM greenconn.queues q WHERE owner = %b OR (auto_delete "
                    "AND id = ANY (%b::int8[]) AND NOT EXISTS (SELECT 1 FROM greenconn.consumers c "
                    "WHERE c.queue = q.id))",
                    (owner, numbers),
                )
                for (name,) in names:
                    self._drop(name)
                for row in self.of(numbers).values():
                    self.touch(row)
            announce_all(self._session, numbers, self._owner)
        return owners

    def drop_idle(self) -> None:
        """Delete the queues that were not used for longer than their ``x-expires``."""
        late = self._session.read("SELECT name FROM greenconn.queues WHERE idle_until <= now()")
        for (name,) in late:
            with self._session.transaction():
                self._drop(name, if_idle=True)


def register(session: Session, owner: str, lease: float) -> int:
    """Register a link, and return its number, which no other registration has."""
    number = (int.from_bytes(os.urandom(8), "big") >> 1) or 1
    if session.is_pooled:
        number = -number
    else:  # first: a link without its lock is dead
        session.fetch("SELECT pg_advisory_lock(%b)", (number,))
    session.change(
        "INSERT INTO greenconn.links (number, owner, lease_until) "
        "VALUES (%b, %b, now() + %b::float8 * interval '1 s')",
        (number, owner, lease),
    )
    return number


def deregister(session: Session, number: int) -> None:
    """Remove a link that holds nothing any more."""
    session.change("DELETE FROM greenconn.links WHERE number = %b", (number,))
    if number > 0:
        session.fetch("SELECT pg_advisory_unlock(%b)", (number,))


def renew_links(session: Session, numbers: Collection[int], lease: float) -> set[int]:
    """Begin the leases of links anew; return those that are there."""
    renewed = session.fetch(
        "UPDATE greenconn.links SET lease_until = now() + %b::float8 * interval '1 s' "
        "WHERE number = ANY (%b::int8[]) RETURNING number",
        (lease, list(numbers)),
    )
    return {number for (number,) in renewed}


class Records(TopologyStore):
    """Exchanges and bindings, by the statements of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, exchange: str) -> ExchangeRecord | None:
        return self.records([exchange]).get(exchange)

    def records(self, exchanges: Collection[str]) -> dict[str, ExchangeRecord]:
        """Return how those of some exchanges that exist were declared, by name."""
        return {
            name: {
                "type": kind,
                "durable": durable,
                "auto_delete": auto_delete,
                "arguments": loads(arguments),
            }
            for name, kind, durable, auto_delete, arguments in self._session.fetch(
                "SELECT name, type, durable, auto_delete, arguments FROM greenconn.exchanges "
                "WHERE name = ANY (%b::text[])",
                (list(exchanges),),
            )
        }

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        self._write(
            "INSERT INTO greenconn.exchanges VALUES (%b, %b, %b, %b, %b) ON CONFLICT DO NOTHING",
            *(exchange, record["type"], record["durable"], record["auto_delete"]),
            _text(record["arguments"]),
        )

    def delete(self, exchange: str) -> None:
        self._write("DELETE FROM greenconn.exchanges WHERE name = %b", exchange)
        self._write("DELETE FROM greenconn.bindings WHERE source = %b", exchange)

    def rows(self, exchange: str) -> Sequence[Row] | None:
        found = self._session.fetch(
            "SELECT routing_key, pattern, destination, arguments, to_exchange "
            "FROM greenconn.bindings WHERE source = %b ORDER BY id",
            (exchange,),
        )
        if not found and self.get(exchange) is None:
            return None
        return tuple(
            Row(key, pattern, queue, loads(arguments) or None, to_exchange)
            for key, pattern, queue, arguments, to_exchange in found
        )

    def add(self, exchange: str, row: Row) -> None:
        self._write(
            "INSERT INTO greenconn.bindings (source, destination, to_exchange, routing_key, pattern, "
            "arguments) VALUES (%b, %b, %b, %b, %b, %b) ON CONFLICT DO NOTHING",
            *(exchange, row.queue, row.to_exchange, row.routing_key, row.pattern),
            _text(row.arguments),
        )

    def remove(self, exchange: str, row: Row) -> bool:
        return self._write(
            "DELETE FROM greenconn.bindings WHERE source = %b AND destination = %b "
            "AND to_exchange = %b AND routing_key = %b AND arguments = %b",
            *(exchange, row.queue, row.to_exchange, row.routing_key, _text(row.arguments)),
        )

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        sources = self._session.fetch(
            "SELECT DISTINCT source FROM greenconn.bindings "
            "WHERE destination = %b AND to_exchange = %b",
            (destination, is_exchange),
        )
        if sources:
            self._write(
                "DELETE FROM greenconn.bindings WHERE destination = %b AND to_exchange = %b",
                *(destination, is_exchange),
            )
        return [source for (source,) in sources]

    def _write(self, statement: str, *values: Any) -> bool:
        """Run a statement; if it changes anything, what others know is old."""
        noted = (
            f"WITH changed AS ({statement} RETURNING 1) UPDATE greenconn.topology "
            f"SET version = version + 1 WHERE EXISTS (SELECT FROM changed)"
        )
        return self._session.change(noted, values) > 0


class SharedTopology(Topology):
    """The exchanges and bindings of a schema; each change is one transaction."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._records = Records(session)
        self._found = Lookups(session, self._records.records)
        #: The number of times that the version was asked for, and the last of them with a reply.
        self._asked = 0
        self._replied = 0

    def _read(self, function: Callable[..., T], *args: Any) -> T:
        return self._session.call(function, self._records, *args)

    def _change(self, function: Callable[..., object], *args: Any) -> None:
        self._session.call(self._changed, function, *args)

    def _changed(self, function: Callable[..., object], *args: Any) -> None:
        with self._session.transaction():
            function(self._records, *args)

    def find(self, name: str) -> Exchange | None:
        return as_exchange(name, self._found.get(name))

    # One statement is a transaction without more round trips.

    def declare(self, exchange: Exchange) -> None:
        self._session.call(self._records.declare, exchange)

    def add(self, exchange: str, row: Row) -> None:
        self._session.call(self._records.add, exchange, row)

    def rows(self, name: str) -> Sequence[Row] | None:
        return self._session.call(self._current, name, self._asked)

    def _current(self, name: str, asked: int) -> Sequence[Row] | None:
        # One statement serves all greenlets that were here before it began.
        if self._replied <= asked:
            self._asked += 1
            number = self._asked
            ((version,),) = self._session.fetch("SELECT version FROM greenconn.topology")
            self._replied = number
            if version != self._version:
                self._rows.clear()
                self._version = version
        if name not in self._rows:
            # Read after the version: what changes in between is read again.
            self._rows[name] = self._records.rows(name)
        return self._rows[name]


def _text(arguments: Mapping[str, Any] | None) -> str:
    """Return arguments as text; equal arguments give the same text."""
    given = arguments or {}
    return dumps({name: given[name] for name in sorted(given)})
