"""Messages, from publishing to settlement: functions that run statements.

All times are the server's.  What one call does to many messages is one statement, whatever their number.

Messages may also be published or acknowledged in a transaction of the program's own.  They are rows of
that transaction: rolled back, there never was a message; committed, consumers are notified by the
server.  What is declared for them is declared over the broker's own connection, at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from msgspec import Struct, structs

from greenconn.broker.envelope import joined, mark_redelivered
from greenconn.broker.port import (
    Claimed,
    Entry,
    NoQueue,
    QueueFull,
    Settlement,
    SettleRequest,
    StaleRoute,
)
from greenconn.broker.publishing import (
    Completion,
    CopyOutcomes,
    KnownRoute,
    StoredResult,
    StorePublisher,
)
from greenconn.exceptions import PublishRefused
from greenconn.green.deadline import Deadline

if TYPE_CHECKING:
    from sqlalchemy import Connection as SqlalchemyConnection

    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.consuming import StoreDelivery
    from greenconn.broker.envelope import Envelope
    from greenconn.broker.link import StoreLink
    from greenconn.transport.postgresql import Channel, PostgresStore
    from greenconn.transport.postgresql.connection import Session
    from greenconn.transport.postgresql.queues import QueueRow, Queues


#: Messages that are counted for ``basic_get``.
COUNTED: Final = 1000
#: Messages that one statement gives up, or that become due at once.
MOST_DEAD: Final = 100
MOST_DUE: Final = 1000


class Handle(Struct, frozen=True):
    """A claimed message: its key, and the number of the link that has claimed it."""

    id: int
    holder: int


#: In the place of a key: all that a link holds.
EVERYTHING: Final = 0


class PutResult(NamedTuple):
    """The outcome of storing messages.

    Attributes:
        outcomes: for each entry.
        numbers: the queues that they are in, unless their consumers were notified.
        dead: what became too many.
        due_in: seconds until the next of them may be delivered, or dies.
        others: queues for which others wait than those that were notified.
        late: acks that came too late.
        refused: queues of dead letters that were not stored, so that their messages stay; and why.
    """

    outcomes: list[Exception | None]
    numbers: set[int]
    dead: list[Claimed]
    due_in: float | None
    others: Collection[int] = ()
    late: int = 0
    refused: Sequence[tuple[str, Exception]] = ()


def earliest(*times: float | None) -> float | None:
    """Return the earliest of *times*; None is never."""
    return min((each for each in times if each is not None), default=None)


# -- storing

#: Stores messages in the order in which they are given, but for queues with a maximum length.  Its
#: values are the names of their queues, and their :func:`columns_of`.  ``target`` has the queues that
#: it has seen when it stored.  What was routed by another version of the exchanges is not stored.
STORE: Final = """
WITH target AS MATERIALIZED (
    SELECT id, name, is_bounded FROM greenconn.queues WHERE name = ANY (%s::text[])
), stored AS (
    INSERT INTO greenconn.messages (queue, priority, due, expires, envelope, body)
    SELECT t.id, e.priority, now() + e.delay * interval '1 s',
        now() + (coalesce(e.delay, 0) + e.lifetime) * interval '1 s', e.envelope, e.body
    FROM unnest(
        %s::text[], %s::int8[], %s::int2[], %s::float8[], %s::float8[], %s::text[], %s::bytea[]
    ) WITH ORDINALITY AS e (queue, known, priority, delay, lifetime, envelope, body, number)
    JOIN target t ON t.name = e.queue
    WHERE NOT t.is_bounded
        AND (e.known IS NULL OR e.known = (SELECT version FROM greenconn.topology))
    ORDER BY e.number
)
"""
_PUT: Final = (
    STORE.replace("%s", "%b")
    + "SELECT name, id, is_bounded, (SELECT version FROM greenconn.topology) FROM target"
)
#: The same for one message, which notifies, too.  Returns its queue, NULL where it is not stored, and
#: that if others wait for it.
_PUT_ALONE: Final = (
    "CALL greenconn.put("
    "NULL, NULL, %b::text, %b::text, %b::int8, %b::int2, %b::float8, %b::float8, %b::text, %b)"
)
#: Stores messages in one queue with a maximum length; its values are the queue and their columns.
_PUT_COUNTED: Final = """
INSERT INTO greenconn.messages (queue, priority, due, expires, is_counted, envelope, body)
SELECT %b, e.priority, now() + e.delay * interval '1 s',
    now() + (coalesce(e.delay, 0) + e.lifetime) * interval '1 s', true, e.envelope, e.body
FROM unnest(%b::int2[], %b::float8[], %b::float8[], %b::text[], %b::bytea[])
    WITH ORDINALITY AS e (priority, delay, lifetime, envelope, body, number)
ORDER BY e.number
"""
#: Stores a message as one that is claimed.
_PUT_HELD: Final = """
INSERT INTO greenconn.messages (queue, holder, priority, is_counted, envelope, body)
VALUES (%b, %b, %b, true, %b, %b) RETURNING id
"""


def put(
    session: Session,
    queues: Queues,
    entries: Sequence[Entry],
    register: Callable[[], int],
    owner: str,
) -> PutResult:
    """Store messages.  Not within a transaction.

    Arguments:
        register: returns the number of the link, which holds what full queues give up.
        owner: the link.
    """
    if len(entries) == 1:
        (entry,) = entries
        lifetime = None if entry.lifetime is None else entry.delay + entry.lifetime
        parts = (entry.head, entry.envelope["body"])
        times = (entry.delay or None, lifetime)
        values = (owner, entry.queue, entry.version or None, entry.priority, *times, *parts)
        ((stored, others),) = session.fetch(_PUT_ALONE, values)
        if stored is not None:
            return PutResult([None], set(), [], earliest(entry.delay or None, lifetime), others)
    return _put_all(session, queues, entries, register)


def _put_all(
    session: Session, queues: Queues, entries: Sequence[Entry], register: Callable[[], int]
) -> PutResult:
    """Store many messages."""
    columns = columns_of(entries)
    due_in = earliest(
        *(entry.delay or None for entry in entries),
        *(entry.delay + entry.lifetime for entry in entries if entry.lifetime is not None),
    )
    found = session.fetch(_PUT, (list(dict.fromkeys(columns[0])), *columns))
    known = {name: number for name, number, *_ in found}
    bounded = {name for name, _, is_bounded, _ in found if is_bounded}
    versions = {0, *(version for *_, version in found)}
    outcomes: list[Exception | None] = [
        None if entry.queue in known else NoQueue(entry.queue) for entry in entries
    ]
    for place, entry in enumerate(entries):
        if entry.version not in versions:
            outcomes[place] = StaleRoute()
    numbers = set(known.values())
    dead: list[Claimed] = []
    rows = queues.of([known[name] for name in bounded]) if bounded else {}
    # What is given up is held by this link.
    gives_up = any(row.policy.overflow != "reject-publish" for row in rows.values())
    holder = register() if gives_up else 0
    for name in sorted(bounded):
        places = [
            place
            for place, entry in enumerate(entries)
            if entry.queue == name and outcomes[place] is None
        ]
        if not places:
            continue
        limited = _put_bounded(
            session, queues, known[name], [entries[each] for each in places], holder
        )
        for place, outcome in zip(places, limited.outcomes, strict=True):
            outcomes[place] = outcome
        dead += limited.dead
    return PutResult(outcomes, numbers, dead, due_in)


def columns_of(entries: Sequence[Entry]) -> tuple[list[Any], ...]:
    """Return the columns of messages to be stored, as :data:`STORE` names them."""
    columns: tuple[list[Any], ...] = ([], [], [], [], [], [], [])
    for each in entries:
        version, delay, body = each.version or None, each.delay or None, each.envelope["body"]
        row = (each.queue, version, each.priority, delay, each.lifetime, each.head, body)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns


def _put_bounded(
    session: Session, queues: Queues, number: int, entries: Sequence[Entry], holder: int
) -> PutResult:
    """Store messages in a queue with a maximum length.  Others that do so wait."""
    with session.transaction():
        ((count, total),) = session.fetch("SELECT * FROM greenconn.length_of(%b)", (number,))
        if not session.fetch("SELECT 1 FROM greenconn.queues WHERE id = %b", (number,)):
            return PutResult([NoQueue(entry.queue) for entry in entries], set(), [], None)
        queue = queues.of([number])[number]
        outcomes: list[Exception | None] = []
        dead: list[Claimed] = []
        fitting: list[Entry] = []
        for entry in entries:
            size = len(entry.envelope["body"])
            outcome: Exception | None = None
            while queue.policy.is_above(count + 1, total + size):
                if queue.policy.refuses_overflow or not count:
                    outcome = QueueFull(queue.name)
                    break
                _put_counted(session, number, fitting)  # they may be dropped
                fitting = []
                dropped = claim(session, {number: 1}, holder, queues, dead="maxlen")
                if not dropped:
                    break  # consumers were faster
                count, total = count - 1, total - len(dropped[0].raw)
                dead += dropped
            if outcome is None:
                fitting.append(entry)
                if not entry.delay:
                    count, total = count + 1, total + size
            elif queue.policy.overflow == "reject-publish-dlx":
                # It is stored as one that was claimed, to become a dead letter.
                values = (number, holder, entry.priority, entry.head, entry.envelope["body"])
                ((id,),) = session.fetch(_PUT_HELD, values)
                dead.append(Claimed(queue.name, entry.envelope, Handle(id, holder), dead="maxlen"))
            outcomes.append(outcome)
        _put_counted(session, number, fitting)
        return PutResult(outcomes, {number}, dead, None)


def _put_counted(session: Session, number: int, entries: Sequence[Entry]) -> None:
    """Store messages in a queue with a maximum length, without a look at that."""
    if entries:
        session.change(_PUT_COUNTED, (number, *columns_of(entries)[2:]))


# -- taking

#: What is locked is another one's.  MATERIALIZED: else it is looked for anew for each row.
_CLAIM: Final = """
WITH picked AS MATERIALIZED (
    SELECT m.id FROM unnest(%b::int8[], %b::int8[]) AS w (queue, most) CROSS JOIN LATERAL (
        SELECT id FROM greenconn.messages
        WHERE queue = w.queue AND holder IS NULL AND due IS NULL
        ORDER BY priority DESC, id LIMIT w.most FOR UPDATE SKIP LOCKED
    ) AS m
)
UPDATE greenconn.messages SET holder = %b, deliveries = deliveries + 1
WHERE id = ANY (ARRAY (SELECT id FROM picked))
RETURNING id, queue, priority, deliveries - 1, redelivered,
    expires IS NOT NULL AND expires <= now(), envelope, body
"""
#: The same, which does not wait for the disk: a claim that the death of the server undoes is one whose
#: link is lost, too.
_CLAIM_SOON: Final = _CLAIM.replace(
    "(ARRAY (SELECT id FROM picked))",
    "(ARRAY (SELECT id FROM picked)) "
    "AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL",
)
#: The same for queues of which some have a single active consumer.  Looked at in the same statement: a
#: process that was suspended before it is not the active one any more.
_CLAIM_ACTIVE: Final = _CLAIM_SOON.replace(
    "AND due IS NULL",
    "AND due IS NULL AND (w.queue <> ALL (%b::int8[]) OR %b = (SELECT owner FROM greenconn.consumers c "
    "WHERE c.queue = w.queue ORDER BY since, owner LIMIT 1))",
)
#: Claims one message of a queue by its name, tells how many others wait, and where none does, whether
#: some have come by time.
_GET: Final = """
WITH target AS MATERIALIZED (
    SELECT id, declaration FROM greenconn.queues WHERE name = %b
), picked AS MATERIALIZED (
    SELECT id FROM greenconn.messages
    WHERE queue = (SELECT id FROM target) AND holder IS NULL AND due IS NULL
    ORDER BY priority DESC, id LIMIT 1 FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE greenconn.messages SET holder = %b, deliveries = deliveries + 1
    WHERE id = (SELECT id FROM picked)
        AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL
    RETURNING id, queue, priority, deliveries - 1, redelivered,
        expires IS NOT NULL AND expires <= now(), envelope, body
)
SELECT target.id, target.declaration, (
    SELECT count(*) FROM (
        SELECT 1 FROM greenconn.messages
        WHERE queue = target.id AND holder IS NULL AND due IS NULL LIMIT %b
    ) AS waiting
), CASE WHEN taken.id IS NULL THEN greenconn.next_due() <= 0 OR EXISTS (
    SELECT 1 FROM greenconn.links WHERE lease_until <= now() AND number <> %b
) END, taken.*
FROM target LEFT JOIN taken ON true
"""
_TAKE_DEAD: Final = """
WITH picked AS MATERIALIZED (
    SELECT id FROM greenconn.messages
    WHERE expires IS NOT NULL AND expires <= now() AND holder IS NULL AND due IS NULL
    ORDER BY expires LIMIT %b FOR UPDATE SKIP LOCKED
)
UPDATE greenconn.messages SET holder = %b, deliveries = deliveries + 1
WHERE id = ANY (ARRAY (SELECT id FROM picked))
RETURNING id, queue, priority, deliveries - 1, redelivered, true, envelope, body
"""


def claim(
    session: Session,
    wanted: Mapping[int, int],
    holder: int,
    queues: Queues,
    dead: str | None = None,
) -> list[Claimed]:
    """Claim messages.

    Arguments:
        wanted: number of a queue -> how many.
        dead: why they are given up, if they are.
    """
    # What is given up becomes so within the transaction of a publish, which waits.
    statement = _CLAIM_SOON if dead is None else _CLAIM
    values = (list(wanted), list(wanted.values()), holder)
    return _claimed(session.fetch(statement, values), holder, queues, dead)


class Got(NamedTuple):
    """The outcome of a claim of one message.

    Attributes:
        row: its queue; None: there is none.
        claimed: the message, if one waited.
        is_due: none did, and something has come by time.
    """

    row: QueueRow | None
    claimed: list[Claimed]
    is_due: bool


def get(session: Session, queues: Queues, name: str, holder: int) -> Got:
    """Claim one message of a queue, and count how many others wait, or some more than ``COUNTED``."""
    found = session.fetch(_GET, (name, holder, COUNTED + 2, holder))
    if not found:
        return Got(None, [], False)
    ((number, text, waiting, is_due, *message),) = found
    row = queues.known(number, name, text)
    if message[0] is None:
        return Got(row, [], bool(is_due))
    claimed = _claimed([tuple(message)], holder, queues)
    return Got(row, [structs.replace(each, waiting=waiting - 1) for each in claimed], False)


def claim_active(
    session: Session,
    wanted: Mapping[int, int],
    holder: int,
    queues: Queues,
    single: Collection[int],
    owner: str,
) -> list[Claimed]:
    """Claim messages, of the queues *single* only if *owner* has the oldest consumer."""
    values = (list(wanted), list(wanted.values()), list(single), owner, holder)
    return _claimed(session.fetch(_CLAIM_ACTIVE, values), holder, queues)


def held_by_dead(session: Session, numbers: Collection[int], holder: int) -> set[int]:
    """Return those of some queues of which a link that is dead still holds messages.

    (One of a pooler is known to be dead when its lease ends, by which its messages are back, too.)
    """
    found = session.fetch(
        "WITH dead AS MATERIALIZED (SELECT number FROM greenconn.links "
        "WHERE number > 0 AND number <> %b AND pg_try_advisory_xact_lock_shared(number)) "
        "SELECT DISTINCT queue FROM greenconn.messages "
        "WHERE holder IN (SELECT number FROM dead) AND queue = ANY (%b::int8[])",
        (holder, list(numbers)),
    )
    return {number for (number,) in found}


def take_dead(session: Session, holder: int, queues: Queues) -> list[Claimed]:
    """Claim waiting messages of any queue that have expired."""
    return _claimed(session.fetch(_TAKE_DEAD, (MOST_DEAD, holder)), holder, queues)


def _claimed(
    rows: list[tuple[Any, ...]], holder: int, queues: Queues, dead: str | None = None
) -> list[Claimed]:
    if not rows:
        return []
    known = queues.of({row[1] for row in rows})
    if len(rows) > 1:
        rows.sort(key=_order)
    claimed: list[Claimed] = []
    for id, number, _, deliveries, redelivered, has_expired, text, body in rows:
        queue = known.get(number)
        if queue is None:
            continue  # it was deleted meanwhile, and this goes with the lease
        stored: Envelope | str | None = text
        if redelivered:
            stored = joined(text, body)
            with suppress(Exception):  # a stranger's may be of any form
                mark_redelivered(stored)
        reason = dead or ("expired" if has_expired else None)
        handle = Handle(id, holder)
        claimed.append(Claimed(queue.name, stored, handle, deliveries, body, reason))
    return claimed


def _order(row: tuple[Any, ...]) -> tuple[int, int]:
    return -row[2], row[0]


# -- settling

#: The messages of some ids that a link holds.  It locks its row first, and so does the one that ends its
#: lease: then they cannot wait for each other's messages, each in its own order, until the server
#: notices a second later.  The links of a lock that is held are not ended: they are alive.
#: ``coalesce``: else the server may look in the index of what is held, which has all that was acked
#: since the last vacuum.
_HELD: Final = (
    "id = ANY (%b::int8[]) AND coalesce(holder, 0) = "
    "(SELECT number FROM greenconn.links WHERE number = %b FOR KEY SHARE)"
)


class _Return(NamedTuple):
    """The terms of a requeue: see :class:`~greenconn.broker.port.SettleRequest`."""

    delay: float = 0.0
    is_unseen: bool = False
    is_unhandled: bool = False


def settle(
    session: Session,
    queues: Queues,
    requests: Sequence[SettleRequest],
    register: Callable[[], int],
    lease: float,
) -> PutResult:
    """Settle what is held; what is not held any more stays as it is."""
    gone: list[Handle] = []
    back: defaultdict[_Return, list[Handle]] = defaultdict(list)
    dead: list[SettleRequest] = []
    for request in requests:
        if request.settlement is Settlement.REQUEUE:
            how = _Return(request.delay, request.is_unseen, request.is_unhandled)
            back[how].append(request.message.handle)
        elif request.entries:
            dead.append(request)
        else:
            gone.append(request.message.handle)
    if not back and not dead:
        return PutResult([], set(), [], None, late=_delete(session, gone))
    if dead:
        register()  # not within the transaction, which may be undone
    with session.transaction():
        return _settle(session, queues, gone, back, dead, register, lease)


def _settle(
    session: Session,
    queues: Queues,
    gone: list[Handle],
    back: defaultdict[_Return, list[Handle]],
    dead: Sequence[SettleRequest],
    register: Callable[[], int],
    lease: float,
) -> PutResult:
    late = 0
    held = _held(session, [request.handle for request in dead]) if dead else set()
    living = [request for request in dead if request.handle in held]
    late += len(dead) - len(living)
    entries = [entry for request in living for entry in request.entries]
    stored = PutResult([], set(), [], None)
    if entries:
        stored = _put_all(session, queues, entries, register)
    outcomes = iter(stored.outcomes)
    refused: list[tuple[str, Exception]] = []
    for request in living:
        refusals = [
            (entry.queue, error)
            for entry, error in zip(request.entries, outcomes, strict=False)
            if error is not None and not isinstance(error, NoQueue)
        ]
        refused += refusals[:1]
        if refusals:
            back[_Return(lease)].append(request.handle)
        else:
            gone.append(request.handle)
    if gone:
        late += _delete(session, gone)
    numbers, due_in = stored.numbers, stored.due_in
    for how, handles in back.items():
        due_in = earliest(due_in, how.delay or None)
        for number, ids in _by_holder(handles).items():
            if EVERYTHING in ids:
                numbers |= requeue_all(session, number)
                continue
            returned = session.fetch(
                "UPDATE greenconn.messages SET holder = NULL, due = now() + %b::float8 * "
                "interval '1 s', deliveries = deliveries - %b, redelivered = redelivered OR %b "
                f"WHERE {_HELD} RETURNING queue",
                (
                    how.delay or None,
                    int(how.is_unseen or how.is_unhandled),
                    *(how.is_unhandled, ids, number),
                ),
            )
            numbers.update(queue for (queue,) in returned)
    return PutResult([], numbers, stored.dead, due_in, late=late, refused=refused)


def is_held(session: Session, handle: Handle) -> bool:
    """Return whether a message is held.  It waits for transactions that delete it to end."""
    found = session.fetch(
        "SELECT 1 FROM greenconn.messages WHERE id = %b AND coalesce(holder, 0) = %b FOR UPDATE",
        (handle.id, handle.holder),
    )
    return bool(found)


def _delete(session: Session, handles: Sequence[Handle]) -> int:
    """Delete messages that are held; return how many were not."""
    late = len(handles)
    for holder, ids in _by_holder(handles).items():
        late -= session.change(f"DELETE FROM greenconn.messages WHERE {_HELD}", (ids, holder))
    return late


def _by_holder(handles: Sequence[Handle]) -> dict[int, list[int]]:
    ids: dict[int, list[int]] = {}
    for handle in handles:
        ids.setdefault(handle.holder, []).append(handle.id)
    return ids


def _held(session: Session, handles: Sequence[Handle]) -> set[Handle]:
    """Return those that are held, and lock them."""
    found: set[Handle] = set()
    for holder, ids in _by_holder(handles).items():
        rows = session.fetch(
            f"SELECT id FROM greenconn.messages WHERE {_HELD} FOR UPDATE", (ids, holder)
        )
        found.update(Handle(id, holder) for (id,) in rows)
    return found


def lost(session: Session, handles: Sequence[Handle]) -> list[Handle]:
    """Return the messages that are not held any more."""
    found: set[Handle] = set()
    for holder, ids in _by_holder(handles).items():
        rows = session.fetch(
            "SELECT id FROM greenconn.messages WHERE id = ANY (%b::int8[]) AND coalesce(holder, 0) = %b",
            (ids, holder),
        )
        found.update(Handle(id, holder) for (id,) in rows)
    return [handle for handle in handles if handle not in found]


def requeue_all(session: Session, holder: int) -> set[int]:
    """Requeue what a link has claimed and given to no handler; return the queues."""
    found = session.fetch(
        "UPDATE greenconn.messages SET holder = NULL, deliveries = deliveries - 1 WHERE holder = %b "
        "RETURNING queue",
        (holder,),
    )
    session.change("DELETE FROM greenconn.links WHERE number = %b", (holder,))
    return {number for (number,) in found}


# -- what comes by time


def release_due(session: Session) -> set[int]:
    """Make delayed messages claimable whose time has come; return their queues."""
    numbers: set[int] = set()
    while True:
        found = session.fetch(
            "WITH late AS MATERIALIZED (SELECT id FROM greenconn.messages WHERE due <= now() "
            "ORDER BY due LIMIT %b FOR UPDATE SKIP LOCKED) "
            "UPDATE greenconn.messages SET due = NULL WHERE id = ANY (ARRAY (SELECT id FROM late)) "
            "RETURNING queue",
            (MOST_DUE,),
        )
        numbers.update(number for (number,) in found)
        if len(found) < MOST_DUE:
            return numbers


def release_expired(session: Session, own: int) -> set[int]:
    """Requeue what links hold whose leases have ended; return the queues."""
    found = session.fetch(
        "WITH ended AS (DELETE FROM greenconn.links WHERE number = ANY (ARRAY (SELECT number FROM "
        "greenconn.links WHERE lease_until <= now() AND number <> %b FOR UPDATE SKIP LOCKED)) "
        "RETURNING number), returned AS (UPDATE greenconn.messages m SET holder = NULL FROM ended e "
        "WHERE m.holder = e.number RETURNING m.queue) SELECT DISTINCT queue FROM returned",
        (own,),
    )
    return {number for (number,) in found}


#: The number of each queue that has waiting messages is one look into the index.
_DELETE_ORPHANS: Final = """
WITH RECURSIVE used (queue) AS (
    (SELECT queue FROM greenconn.messages WHERE holder IS NULL AND due IS NULL
    ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT m.queue FROM greenconn.messages m WHERE m.queue > u.queue
        AND holder IS NULL AND due IS NULL ORDER BY m.queue LIMIT 1)
    FROM used u WHERE u.queue IS NOT NULL
)
DELETE FROM greenconn.messages WHERE holder IS NULL AND due IS NULL AND queue = ANY (ARRAY (
    SELECT queue FROM used WHERE NOT EXISTS (SELECT 1 FROM greenconn.queues q WHERE q.id = queue)
))
"""


def delete_orphans(session: Session) -> None:
    """Delete the waiting messages whose queue was deleted before they were committed."""
    session.change(_DELETE_ORPHANS)
    session.change(
        "DELETE FROM greenconn.lengths l "
        "WHERE NOT EXISTS (SELECT 1 FROM greenconn.queues q WHERE q.id = l.queue)"
    )


_SURVEY: Final = """
SELECT greenconn.next_due(),
EXISTS (SELECT 1 FROM greenconn.links WHERE lease_until <= now() AND number <> %b),
ARRAY (
    SELECT owner FROM greenconn.consumers WHERE owner <> %b
    UNION SELECT owner FROM greenconn.queues WHERE owner IS NOT NULL AND owner <> %b
)
"""


class Survey(NamedTuple):
    """The work that is due, which an idle link looks for with one statement.

    Attributes:
        seconds: until something comes by time; None: nothing does.
        has_ended: another link's lease has ended.
        owners: the other links that have consumers or queues.
    """

    seconds: float | None
    has_ended: bool
    owners: Collection[str]


def survey(session: Session, own: int, owner: str) -> Survey:
    """Look for what there is to do, for the link *own* of *owner*."""
    (row,) = session.fetch(_SURVEY, (own, owner, owner))
    return Survey(*row)


def next_due(session: Session) -> float | None:
    """Return the seconds until something comes by time; None: nothing does."""
    seconds: float | None
    ((seconds,),) = session.fetch("SELECT greenconn.next_due()")
    return seconds


#: libpq's PQTRANS_IDLE: there is no transaction.
_IDLE: Final = 0

#: Stores messages and notifies all links of the schema at the commit: who waits then is not known yet.
#: The time is that of the statement, as a transaction may be long.
_PUT_WITHIN: Final = (
    STORE.replace("now()", "clock_timestamp()")
    + "SELECT name, is_bounded, pg_notify(%s, id || %s) FROM target"
)

_ACK: Final = (
    "DELETE FROM greenconn.messages WHERE id = %s AND coalesce(holder, 0) = %s RETURNING id"
)


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
        return bool(self._transaction.fetch(statement, (handle.id, handle.holder)))

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

    #: A transaction of the program cannot publish again.
    uses_known_routes = False

    def __init__(self, channel: Channel, link: StoreLink) -> None:
        super().__init__(channel, link)
        self._taken: list[tuple[Entry, Completion]] = []

    def _put(
        self,
        target: Sequence[Entry] | KnownRoute,
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        assert not isinstance(target, KnownRoute)
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
            _PUT_WITHIN.replace("greenconn.", store.session.prefix),
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
