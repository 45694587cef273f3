"""The store of limits: short facts that all processes share, with leases, by the store's own clock.

A fact is a key, a holder and the time until which it holds.  What is asked of a store is one of these:

- :class:`Take`: a place of at most so many under a key, a token of a rate, or both or neither;
- :class:`Give`: a place is free again;
- :class:`Renew`: a place is still held;
- :class:`Read` and :class:`Note`: the latest token under a key, and a later one.

Redis, PostgreSQL, SQLite and this process's memory carry them out, the last two by the functions below.
All that the greenlets of a thread ask in one turn of the hub is one round trip: one greenlet sends what
has gathered while the last answer was on its way.  What was taken for a caller that has left, or whose
answer was lost, is given back.

Leases.  A place that is held here is renewed three times in its lease, all places by one request.  That
of a killed process comes back when its lease has ended.  A process that was suspended for longer, or
that did not reach the store for so long, may overlap with the next holder.

In SQLite facts are a table, in PostgreSQL a function of the schema keeps them; Redis' scripts stand
apart.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from greenconn.clocks import CLOCK
from greenconn.defaults import check_limits, consuming_connection, keeper_of
from greenconn.exceptions import RecoverableConnectionError, error_text
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.hub import weakly
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.identity import uuid
from greenconn.jsoncodec import dumps, loads
from greenconn.session.broker import Configuration

if TYPE_CHECKING:
    import sqlite3

    from greenconn.broker.link import StoreLink
    from greenconn.connection import Connection
    from greenconn.transport.memory import MemoryLink
    from greenconn.transport.memory.broker import Broker
    from greenconn.transport.postgresql import PostgresStore
    from greenconn.transport.sqlite import SqliteStore


logger = logging.getLogger("greenconn.limits")

#: Microseconds in a second: what stores count in.
MICRO: Final = 1_000_000
#: Seconds for which a token of a rate may be taken ahead: so long a message waits in this process.
PATIENCE: Final = 1.0
#: Seconds after which, at the latest, a message without a token asks again.
LONGEST_WAIT: Final = 60.0
#: Seconds for an answer of the store.
STORE_TIMEOUT: Final = 5.0
#: Attempts to send, each over a new link.
TRIES: Final = 3
#: A place is renewed so many times in its lease.
RENEWALS: Final = 3
#: Seconds between two attempts to give back what could not be given back.
GIVING_INTERVAL: Final = 5.0
#: Characters of a key that is stored as it is.
LONGEST_KEY: Final = 200
#: Keys in memory after which those that hold no more are forgotten.
SWEEP: Final = 1000
#: The facts of a rate: when its bucket is full again, and the time that was promised last.
FULL: Final = "full"
PROMISED: Final = "promised"


class Take(NamedTuple):
    """Take a place, a token of a rate, or both or neither.

    A holder that has the place already gets it again.

    Attributes:
        queue: the keys of one queue are kept together.
        holder: unique for each place that is held.
        place: its key; '': no place is needed.
        limit: number of places.
        lease: seconds.
        rate: its key; '': no token is needed.
        interval: seconds between two tokens.
        burst: tokens that the bucket holds.
        has_waited: the message came back; one that comes for the first time is not served before those
            that were promised a token.
    """

    queue: str
    holder: str
    place: str = ""
    limit: int = 0
    lease: float = 0.0
    rate: str = ""
    interval: float = 0.0
    burst: int = 1
    has_waited: bool = False


class Taken(NamedTuple):
    """The reply to :class:`Take`.

    Attributes:
        is_taken: place and token were taken.
        wait: seconds until the token may be used; where it was not taken, until it is to be asked for
            again, 0.0 where that is not known.
        holder: one that has the place instead.
    """

    is_taken: bool
    wait: float
    holder: str | None


class Give(NamedTuple):
    """Give a place back."""

    queue: str
    place: str
    holder: str


class Renew(NamedTuple):
    """Have a place held for *lease* seconds from now; the reply is whether it was held until now.

    Attributes:
        restores: take it in any case: what it stands for goes on.
    """

    queue: str
    place: str
    holder: str
    lease: float
    restores: bool


class Note(NamedTuple):
    """Note the latest token under a key, unless a later one is there."""

    queue: str
    key: str
    token: str
    lease: float


class Read(NamedTuple):
    """Read the latest token under a key."""

    queue: str
    key: str


class Seen(NamedTuple):
    """The reply to :class:`Read`: the store's time in microseconds, and the token if there is one."""

    now: int
    token: str | None


Operation: TypeAlias = "Take | Give | Renew | Note | Read"


def key_of(kind: str, queue: str, text: str) -> str:
    """Return the key of a fact in the store.

    Arguments:
        kind: one letter.
        text: as :func:`text_of` returns it.
    """
    return f"{kind}:{queue}:{text}"


def text_of(value: object) -> str:
    """Return the text of a program's key, the same in all processes; a long one is shortened.

    Raises:
        TypeError: it is of a type whose values have no such text.
    """
    _check_key(value)
    text = repr(value)  # escapes what stores cannot keep
    if len(text) <= LONGEST_KEY:
        return text
    return f"{text[:40]}...{sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()}"


def _check_key(value: object) -> None:
    if type(value) is tuple:
        for part in value:
            _check_key(part)
    elif value is not None and type(value) not in (str, bytes, int, float, bool):
        raise TypeError(
            f"a key must be text, bytes, a number, a bool, None or a tuple of them, got {value!r:.100}"
        )


# -- in Python, for memory and SQLite


class Rows(Protocol):
    """Facts, for the functions below.  Times are in microseconds."""

    def at(self, key: str, now: int) -> dict[str, int]:
        """Return the holders of *key* whose lease has not ended, and when it does."""

    def put(self, key: str, holder: str, until: int) -> None:
        """Have *holder* hold until then."""

    def drop(self, key: str, holder: str) -> None:
        """Forget *holder*."""


def carry_out(rows: Rows, operation: Operation, now: int) -> Any:
    """Carry *operation* out, and return its reply.  Never switches."""
    if isinstance(operation, Take):
        return _take(rows, operation, now)
    if isinstance(operation, Give):
        rows.drop(operation.place, operation.holder)
        return None
    if isinstance(operation, Renew):
        place, holder = operation.place, operation.holder
        was_held = holder in rows.at(place, now)
        if was_held or operation.restores:
            rows.put(place, holder, now + micro(operation.lease))
        return was_held
    tokens = rows.at(operation.key, now)
    if isinstance(operation, Note):
        if operation.token >= max(tokens, default=""):
            for token in list(tokens):
                rows.drop(operation.key, token)
            rows.put(operation.key, operation.token, now + micro(operation.lease))
        return None
    return Seen(now, max(tokens, default=None))


def _take(rows: Rows, take: Take, now: int) -> Taken:
    if take.place:
        held = rows.at(take.place, now)
        if take.holder not in held and len(held) >= take.limit:
            return Taken(False, 0.0, max(held))
    wait = 0
    if take.rate:
        times = rows.at(take.rate, now)
        interval, promised = micro(take.interval), times.get(PROMISED, now)
        full = times.get(FULL, now)
        due = max(now, full - (take.burst - 1) * interval)
        if (take.has_waited or promised <= now) and due - now <= PATIENCE * MICRO:
            rows.put(take.rate, FULL, full + interval)
            wait = due - now
        else:
            # One after another, so that they do not come back together.
            if promised > now:
                promised += interval
            promised = min(max(promised, due), now + micro(LONGEST_WAIT))
            rows.put(take.rate, PROMISED, promised)
            return Taken(False, (promised - now) / MICRO, None)
    if take.place:
        rows.put(take.place, take.holder, now + micro(take.lease))
    return Taken(True, wait / MICRO, None)


def micro(seconds: float) -> int:
    """Return *seconds* in microseconds, at least one."""
    return max(1, round(seconds * MICRO))


class MemoryFacts:
    """Facts in the memory of this process.

    Arguments:
        clock: returns seconds; None: that of the process.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: CLOCK.monotonic())  # that of a test meanwhile
        self._facts: dict[str, dict[str, int]] = {}
        self._sweep_at = SWEEP

    def at(self, key: str, now: int) -> dict[str, int]:
        """Return the holders of *key* whose lease has not ended, and when it does."""
        facts = self._facts.get(key)
        if facts is None:
            return {}
        kept = {holder: until for holder, until in facts.items() if until > now}
        if kept:
            self._facts[key] = kept
        else:
            del self._facts[key]
        return kept

    def put(self, key: str, holder: str, until: int) -> None:
        """Have *holder* hold until then."""
        self._facts.setdefault(key, {})[holder] = until

    def drop(self, key: str, holder: str) -> None:
        """Forget *holder*."""
        facts = self._facts.get(key)
        if facts is not None:
            facts.pop(holder, None)
            if not facts:
                del self._facts[key]

    def __len__(self) -> int:
        return len(self._facts)

    def run(self, operations: Sequence[Operation]) -> list[Any]:
        """Carry *operations* out, and return their replies.  Never switches."""
        now = round(self._clock() * MICRO)
        replies = [carry_out(self, operation, now) for operation in operations]
        if len(self._facts) >= self._sweep_at:
            for key in list(self._facts):
                self.at(key, now)
            self._sweep_at = max(SWEEP, 2 * len(self._facts))
        return replies


#: Those of the brokers in memory.
_in_memory: Final[WeakKeyDictionary[Broker, MemoryFacts]] = WeakKeyDictionary()


def run_in_memory(link: MemoryLink, operations: Sequence[Operation]) -> list[Any]:
    """Carry *operations* out in the memory broker of *link*.  Never switches."""
    broker = link.broker
    facts = _in_memory.get(broker)
    if facts is None:
        facts = _in_memory[broker] = MemoryFacts(broker.now)
    return facts.run(operations)


# -- the store of a connection


class Held(NamedTuple):
    """A place that is held here."""

    renew: Renew
    renewed_at: float


class Request(NamedTuple):
    """The operations of one greenlet, and the slot for their replies."""

    operations: Sequence[Operation]
    slot: Slot[list[Any]]


class LimitStore:
    """The requests of the greenlets of one thread to one store.

    Arguments:
        run: carries operations out, and returns their replies; may switch.
        where: for the log.
        is_over: returns whether nothing more can be sent.

    Attributes:
        round_trips: the number of requests that were sent.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Operation]], list[Any]],
        where: str,
        is_over: Callable[[], bool] = bool,
    ) -> None:
        self._run = run
        self._where = where
        self._is_over = is_over
        self.round_trips = 0
        self._pid = os.getpid()
        self._requests: list[Request] = []
        self._is_running = False
        #: By place and holder.
        self._held: dict[tuple[str, str], Held] = {}
        #: What is to be given back, and when that is of no use any more.
        self._giving: dict[Give, float] = {}
        #: Until the next check of what is held, and its seconds.
        self._timer: Any = None
        self._interval = 0.0
        self._is_failing = False
        #: Begins the names of the holders of this thread.
        self._name = uuid()
        self._number = 0

    def __repr__(self) -> str:
        return f"<LimitStore {self._where}: {len(self._held)} places>"

    def new_holder(self) -> str:
        """Return a name that no other holder has."""
        self._number += 1
        return f"{self._name}.{self._number}"

    def ask(self, operations: Sequence[Operation], deadline: Deadline | None = None) -> list[Any]:
        """Return the replies to *operations*.  May switch.

        Whatever happens to this greenlet, no place is taken unless this returns it.

        Raises:
            TimeoutError: there was no answer in time.
            Exception: the store cannot be reached, or refuses.
        """
        slot: Slot[list[Any]] = Slot()
        self._requests.append(Request(operations, slot))
        self._start()
        try:
            return slot.wait((deadline or Deadline()).within(STORE_TIMEOUT))
        except BaseException:
            if slot.has_value:  # it came at the same moment
                self._undo(operations, slot.value)
            raise

    def post(self, operations: Sequence[Operation]) -> None:
        """Send what needs no reply.  Never switches.  What fails is not sent again."""
        self._requests.append(Request(operations, Slot()))
        self._start()

    def give(self, give: Give, lease: float) -> None:
        """Give a place back, as soon as can be.  Never switches.

        Arguments:
            lease: seconds after which it is free in any case.
        """
        self.release(give.place, give.holder)
        self._giving[give] = CLOCK.monotonic() + lease
        self._start()

    def hold(self, renew: Renew) -> None:
        """Renew a place from now on, which has just been taken.  Never switches."""
        self._check_process()
        self._held[renew.place, renew.holder] = Held(renew, CLOCK.monotonic())
        self._tick_within(renew.lease / RENEWALS)

    def release(self, place: str, holder: str) -> None:
        """Renew a place no more.  Never switches."""
        self._held.pop((place, holder), None)

    def flush(self, deadline: Deadline) -> None:
        """Wait until what is to be given back was given back, or the store has failed.  May switch."""
        if self._giving:
            self._is_failing = False
            slot: Slot[list[Any]] = Slot()
            self._requests.append(Request((), slot))
            self._start()
            try:
                slot.wait(deadline)
            except Exception as exc:
                if is_thrown(exc):
                    raise
                logger.debug("%s: flushing limits: %s", self._where, error_text(exc))

    # -- the greenlet that sends

    def _start(self) -> None:
        if not self._is_running:
            self._check_process()
            self._is_running = True
            spawn("limits", self._send_all)

    def _send_all(self) -> None:
        try:
            while self._requests or (self._giving and not self._is_failing):
                self._send()
        finally:
            self._is_running = False
        if self._giving or self._held:
            self._tick_within(GIVING_INTERVAL)

    def _send(self) -> None:
        """Send what was asked, after what is to be given back, and pass the replies on.  May switch."""
        requests, self._requests = self._requests, []
        giving = list(self._giving)
        operations: list[Operation] = [*giving]
        for request in requests:
            operations += request.operations
        if not operations:
            replies: Iterator[Any] = iter(())
        else:
            self.round_trips += 1
            try:
                replies = iter(self._run(operations))
            except BaseException as exc:
                self._fail(requests, exc)
                if not isinstance(exc, Exception):
                    raise
                return
        self._is_failing = False
        for give in giving:
            next(replies)
            self._giving.pop(give, None)
        for request in requests:
            own = [next(replies) for _ in request.operations]
            if not request.slot.offer(own):
                self._undo(request.operations, own)

    def _fail(self, requests: list[Request], exc: BaseException) -> None:
        self._is_failing = True
        now = CLOCK.monotonic()
        for give, until in list(self._giving.items()):
            if until <= now:
                del self._giving[give]
        for request in requests:
            # The reply may have been lost.
            self._undo(request.operations, None)
            request.slot.fail(
                exc
                if isinstance(exc, Exception)
                else RecoverableConnectionError(f"{self._where}: the request was interrupted")
            )
        if self._is_over():
            self.forget()

    def _undo(self, operations: Sequence[Operation], replies: Sequence[Any] | None) -> None:
        """Give back what was, or may have been, taken in vain.  Never switches."""
        for number, operation in enumerate(operations):
            if (
                isinstance(operation, Take)
                and operation.place
                and (replies is None or replies[number].is_taken)
            ):
                give = Give(operation.queue, operation.place, operation.holder)
                self._giving[give] = CLOCK.monotonic() + operation.lease
        if self._giving:
            self._tick_within(GIVING_INTERVAL)

    # -- renewing

    def _tick_within(self, seconds: float) -> None:
        """Check what is held in *seconds* at the latest.  Never switches."""
        if self._timer is not None:
            if seconds >= self._interval:
                return
            self._timer.close()
        self._interval = seconds
        self._timer = CLOCK.timer(seconds, ref=False)  # leases go by the clock of a test, too
        self._timer.start(weakly(self._tick), update=True)

    def _tick(self) -> None:
        # In the hub.
        self._stop_ticking()
        self._check_process()
        if not self._held and not self._giving:
            return
        self._tick_within(self._interval)
        now, slack = CLOCK.monotonic(), self._interval / 2
        due = [
            held.renew
            for held in self._held.values()
            if now >= held.renewed_at + held.renew.lease / RENEWALS - slack
        ]
        if due:
            spawn("limits-renewal", self._renew, due)
        elif self._giving:
            self._is_failing = False
            self._start()

    def _renew(self, due: list[Renew]) -> None:
        try:
            replies = self.ask(due)
        except Exception as exc:
            logger.warning(
                "%s: %d places could not be renewed, and may be taken by others when their lease has "
                "ended: %s",
                self._where,
                len(due),
                error_text(exc),
            )
            return
        now, lost = CLOCK.monotonic(), 0
        for renew, was_held in zip(due, replies, strict=True):
            key = renew.place, renew.holder
            if key not in self._held:
                # It was given back meanwhile; the renewal may have come later.
                self._giving.setdefault(
                    Give(renew.queue, renew.place, renew.holder), now + renew.lease
                )
                self._start()
            elif was_held:
                self._held[key] = Held(renew, now)
            elif renew.restores:
                self._held[key] = Held(renew, now)
                lost += 1
            else:
                del self._held[key]
        if lost:
            logger.warning(
                "%s: the leases of %d places had ended, and others may have taken them meanwhile (the "
                "process was suspended, or the store was away or has lost its data)",
                self._where,
                lost,
            )

    def _stop_ticking(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _check_process(self) -> None:
        """Forget what the parent holds, in the child of a fork."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._name = uuid()
            self._requests = []
            self._is_running = False
            self.forget()

    def forget(self) -> None:
        """Renew nothing any more, and give nothing back: leases end.  Never switches."""
        self._held.clear()
        self._giving.clear()
        self._stop_ticking()


def find_store(connection: Connection) -> LimitStore | None:
    """Return the store of limits for what uses *connection*; None: there is none.  Never switches.

    It is the connection's own broker if that keeps limits, else the one that the program has named.
    """
    if keeper_of(connection) is not None:
        return _store_of(connection)
    given = connection.session.limits
    if given is None:
        given = Configuration.current.limits
    return None if given is None else _store_of(consuming_connection(given))


def store_for(connection: Connection, what: str) -> LimitStore:
    """Return the store of limits for what uses *connection*.  Never switches.

    Arguments:
        what: the option that needs it, for the error.

    Raises:
        ValueError: there is none; says what to do.
    """
    store = find_store(connection)
    if store is None:
        raise ValueError(
            f"{what} needs a store that all processes share, which {connection.as_uri()} is not: pass "
            f"limits='redis://...' (or the URL of a PostgreSQL or SQLite broker) to "
            f"greenconn.configure() or greenconn.App(), or set GREENCONN_LIMITS"
        )
    return store


def _store_of(connection: Connection) -> LimitStore:
    session = connection.session
    session.check_hub()
    store = session.services.limit_store
    if store is None:
        check_limits(connection)  # that of the environment is checked nowhere else
        runner = _Runner(connection, keeper_of(connection))
        store = LimitStore(runner.run, session.broker.label, lambda: session.is_closed)
        session.services.limit_store = store
        session.on_closed.append(store.forget)
    return store


class _Runner:
    """The way of operations to the broker of a connection."""

    def __init__(self, connection: Connection, keeper: str | None) -> None:
        self._session = connection.session
        self._run: Callable[[Any, Sequence[Operation]], list[Any]]
        if keeper == "redis":
            from greenconn.limits.redis import run_in_redis

            self._run = run_in_redis
        elif keeper == "postgresql":
            self._run = run_in_postgresql
        elif keeper == "sqlite":
            self._run = run_in_sqlite
        else:
            self._run = run_in_memory

    def run(self, operations: Sequence[Operation]) -> list[Any]:
        """Carry *operations* out, again after the loss of a link.  May switch."""
        session, deadline = self._session, Deadline(STORE_TIMEOUT)
        for tries_left in reversed(range(TRIES)):
            try:
                return session.utility.run(
                    lambda channel: self._run(channel.connection, operations), deadline
                )
            except session.broker.connection_errors as exc:
                if is_thrown(exc) or not tries_left or deadline.has_ended or session.is_closed:
                    raise
                session.link(deadline)
        raise AssertionError("unreachable")


# -- SQLite

#: Made when it is first needed: most files have no limits.
_TABLES: Final = (
    """
CREATE TABLE facts (
    key TEXT NOT NULL,
    holder TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (key, holder)
) WITHOUT ROWID
""",
    "CREATE INDEX facts_until ON facts (until)",
)


class SqliteRows:
    """Facts as rows, in a transaction.

    Arguments:
        connection: of the file.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def at(self, key: str, now: int) -> dict[str, int]:
        """Return the holders of *key* whose lease has not ended, and when it does."""
        statement = "SELECT holder, until FROM facts WHERE key = ? AND until > ?"
        return dict(self._connection.execute(statement, (key, now)).fetchall())

    def put(self, key: str, holder: str, until: int) -> None:
        """Have *holder* hold until then."""
        self._connection.execute(
            "INSERT OR REPLACE INTO facts (key, holder, until) VALUES (?, ?, ?)",
            (key, holder, until),
        )

    def drop(self, key: str, holder: str) -> None:
        """Forget *holder*."""
        self._connection.execute("DELETE FROM facts WHERE key = ? AND holder = ?", (key, holder))


def run_in_sqlite(link: StoreLink, operations: Sequence[Operation]) -> list[Any]:
    """Carry *operations* out in one transaction, and return their replies.  May switch."""
    store: SqliteStore = link.store  # type: ignore[assignment]
    replies: list[Any] = store.database.write(_run_in_file, operations)
    return replies


def _run_in_file(connection: sqlite3.Connection, operations: Sequence[Operation]) -> list[Any]:
    # In the thread.
    now = round(time() * MICRO)
    try:
        connection.execute("DELETE FROM facts WHERE until <= ?", (now,))
    except connection.OperationalError as exc:
        if "no such table" not in str(exc):
            raise
        for statement in _TABLES:
            connection.execute(statement)
    rows = SqliteRows(connection)
    return [carry_out(rows, operation, now) for operation in operations]


# -- PostgreSQL


def run_in_postgresql(link: StoreLink, operations: Sequence[Operation]) -> list[Any]:
    """Carry *operations* out by one statement, and return their replies.  May switch."""
    store: PostgresStore = link.store  # type: ignore[assignment]
    session = store.session
    asked = dumps([_row_of(operation) for operation in operations])
    ((found,),) = session.call(session.fetch, "SELECT greenconn.limits(%s::jsonb)::text", (asked,))
    return [_reply_of(*pair) for pair in zip(operations, loads(found), strict=True)]


def _row_of(operation: Operation) -> list[Any]:
    if isinstance(operation, Take):
        return [
            "take",
            operation.place,
            operation.holder,
            micro(operation.lease),
            operation.rate,
            operation.limit,
            micro(operation.interval),
            operation.burst,
            operation.has_waited,
            micro(PATIENCE),
            micro(LONGEST_WAIT),
        ]
    if isinstance(operation, Give):
        return ["give", operation.place, operation.holder, 0, ""]
    if isinstance(operation, Renew):
        kind = "restore" if operation.restores else "renew"
        return [kind, operation.place, operation.holder, micro(operation.lease), ""]
    if isinstance(operation, Note):
        return ["note", operation.key, operation.token, micro(operation.lease), ""]
    return ["read", operation.key, "", 0, ""]


def _reply_of(operation: Operation, reply: Any) -> Any:
    if isinstance(operation, Take):
        is_taken, wait, holder = reply
        return Taken(is_taken, wait / MICRO, holder)
    if isinstance(operation, Renew):
        return bool(reply)
    if isinstance(operation, (Give, Note)):
        return None
    now, token = reply
    return Seen(now, token)
