"""One connection of psycopg's, which waits in the hub, and its errors.

psycopg does the work of a statement in a generator that asks for what it waits for.  Its own connection
waits with ``select``; this one with watchers of the hub.  It belongs to one link, and one greenlet at a
time uses it.  While none does, it is watched for notifications, and for its end.

A greenlet that is killed within a statement leaves it half done: then the connection is closed, and
never used again.  The server undoes what was not committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from random import shuffle
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import psycopg
from gevent import get_hub
from psycopg import errors, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.waiting import Ready

from greenconn.exceptions import (
    AccessRefused,
    AMQPError,
    NotAllowed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.hub import weakly
from greenconn.green.slot import FairLock, Slot
from greenconn.green.stream import resolve
from greenconn.url import mask_secrets

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

T = TypeVar("T")


class _Both:
    """Makes an error of amqp's kind and of psycopg's at once.  Its text has the remedy."""

    has_remedy = True

    def __init__(self, text: str = "") -> None:
        AMQPError.__init__(self, text)
        self._pgconn = self._info = None
        self.args = (text,)  # what copies are made of

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class LinkLost(_Both, RecoverableConnectionError, psycopg.OperationalError):  # type: ignore[misc]
    """The server cannot be reached, has closed the connection, or does not take writes."""


class LoginRefused(_Both, AccessRefused, psycopg.OperationalError):  # type: ignore[misc]
    """The server does not take the user name or the password, or does not let this role do that."""


class CannotUse(_Both, NotAllowed, psycopg.DatabaseError):  # type: ignore[misc]
    """The database or the schema cannot be used, and to try again would not help."""


class NotStored(_Both, RecoverableChannelError, psycopg.DatabaseError):  # type: ignore[misc]
    """The server could not do it now: the disk is full, or others held a row for too long."""


#: Codes of the server -> the class to raise, and what to do; the first two characters are a class of
#: codes.  (PostgreSQL's manual, appendix A.)
_ERRORS: Final[Mapping[str, tuple[type[Any], str]]] = {
    "08": (LinkLost, ""),
    "28": (LoginRefused, "check user name, password and pg_hba.conf"),
    "3D": (CannotUse, "create the database, or name another one in the URL"),
    "3F": (CannotUse, "it was dropped while this process was using it"),
    "40": (NotStored, "other transactions were in its way each time"),
    "42P01": (CannotUse, "it was dropped while this process was using it"),
    "42501": (CannotUse, "grant the role this right"),
    "53": (NotStored, "free some space, or raise the limit"),
    "53300": (LinkLost, "raise max_connections, or use fewer connections"),
    "55P03": (NotStored, "look for long transactions in pg_stat_activity"),
    "57": (LinkLost, ""),
    "57014": (
        NotStored,
        "look for long transactions in pg_stat_activity, or raise reply_timeout (behind a pooler the "
        "role's statement_timeout)",
    ),
    "58": (LinkLost, "look into the server's log"),
    "25006": (
        LinkLost,
        "it is a standby or read-only; name the primary, or all servers, in the URL",
    ),
    "XX": (LinkLost, "look into the server's log"),
}

#: What libpq says of logins without a code of the server.
_LOGIN_TEXTS: Final = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "authentication failed",
    "is not permitted to log in",
    "FATAL: role ",
)


def as_error(exc: psycopg.Error, where: str) -> Exception:
    """Return the exception for one of psycopg's.

    Arguments:
        where: the server's URL, password masked.
    """
    ours: Exception = exc
    if isinstance(exc, AMQPError):
        if where not in str(exc):
            exc.args = (f"{where}: {exc}",)
        return ours
    code = exc.sqlstate or ""
    said = mask_secrets(" ".join(str(exc).split()))
    kind, remedy = _ERRORS.get(code) or _ERRORS.get(code[:2]) or (None, "")
    if kind is None and not code and isinstance(exc, psycopg.OperationalError):
        kind, remedy = LinkLost, ""
        if any(each in said for each in _LOGIN_TEXTS):
            kind, remedy = _ERRORS["28"]
        elif "FATAL: database " in said:
            kind, remedy = _ERRORS["3D"]
        elif "session is read-only" in said or "hot standby" in said or "not in hot" in said:
            kind, remedy = _ERRORS["25006"]
        elif "too many" in said or "connection slots are reserved" in said:
            kind, remedy = _ERRORS["53300"]
        elif "certificate" in said:
            remedy = "check sslrootcert, and the certificate of the server"
    if kind is None:
        return exc
    error: Exception = kind(f"{where}: {said}" + (f" ({remedy})" if remedy else ""))
    return error


#: psycopg's names for the events that a watcher reports.
_READY: Final = {1: Ready.R, 2: Ready.W, 3: Ready.RW}
_READ, _WRITE = 1, 2

#: Connections of the parent, in the child of a fork: they are kept, and never closed.
_inherited: Final[list[Any]] = []


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """psycopg's connection, in the hub.  Made by :func:`connect`.

    Attributes:
        on_idle: called in the hub when the server has sent something while no greenlet waited.
        reply_timeout: seconds that the server may be silent while a greenlet waits; None is no limit.
    """

    on_idle: Callable[[], object] | None = None
    reply_timeout: float | None = None
    _slot: Slot[int] | None = None
    _reader: Any = None
    _writer: Any = None

    def watch(self) -> None:
        """Watch the socket from now on.  Never switches."""
        self._pid = os.getpid()
        loop, descriptor = get_hub().loop, self.pgconn.socket
        self._reader = loop.io(descriptor, _READ)
        self._writer = loop.io(descriptor, _WRITE)
        # A socket that is read keeps a program alive that waits for nothing else.
        self._reader.start(weakly(self._on_readable))

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one of psycopg's generators to its end, and return its result.  May switch.

        The other arguments differ between versions of psycopg, and are about signals.
        """
        try:
            wanted = next(gen)
            while True:
                wanted = gen.send(_READY[self._wait_for(wanted)])
        except StopIteration as done:
            return done.value

    def _wait_for(self, events: int) -> int:
        """Return the events that have come.  May switch.  If it is interrupted, the connection ends."""
        if self._reader is None:
            raise LinkLost("the connection is closed")
        slot = self._slot = Slot()
        try:
            if events & _WRITE:
                self._writer.start(slot.offer, _WRITE)
            found = slot.wait(NEVER if self.reply_timeout is None else Deadline(self.reply_timeout))
            if self._reader is None:
                # It was closed in the same turn: psycopg's generator would go on with freed memory.
                raise LinkLost("the connection was closed")
            return found
        except TimeoutError as exc:
            self.drop()
            raise LinkLost(f"no reply within {self.reply_timeout:g} s") from exc
        except BaseException:
            self.drop()
            raise
        finally:
            self._slot = None
            if self._writer is not None and events & _WRITE:
                self._writer.stop()

    def _on_readable(self) -> None:
        # In the hub.
        if self._slot is not None:
            self._slot.offer(_READ)
        elif self.on_idle is not None:
            self.on_idle()

    def drop(self) -> None:
        """Close it, whatever it does.  Never switches.  A second call does nothing."""
        reader, self._reader = self._reader, None
        if reader is not None:
            # First: a watcher of a closed descriptor would end the process.
            reader.close()
            self._writer.close()
            self._writer = None
        if self._slot is not None:
            self._slot.fail(LinkLost("the connection was closed"))
        if getattr(self, "_pid", None) in (None, os.getpid()):
            self.close()
        elif reader is not None:
            _inherited.append(self)  # closing it would end the session of the parent

    def __del__(self, *arguments: Any) -> None:
        # The program has dropped it, and its link, which closes in order: it requeues what it holds.  So
        # it lives on for a while, but the collector has cleared all weak references to it.
        if self._reader is not None:
            self._reader.callback = weakly(self._on_readable)


def connect(conninfo: Mapping[str, Any], deadline: Deadline, where: str) -> Connection:
    """Connect to the first server of a list that takes the login and the writes.  May switch.

    Host names are looked up in the hub, and each address is tried with its share of the time.

    Arguments:
        conninfo: libpq's parameters.
        where: for messages.

    Raises:
        LinkLost: none can be reached, or none takes writes.
        LoginRefused: the login is refused.
        CannotUse: there is no such database.
        TimeoutError: the deadline ended.
    """
    error: Exception | None = None
    attempts = _attempts(conninfo)
    for number, attempt in enumerate(attempts):
        limit = deadline.share(len(attempts) - number)
        try:
            addresses, limit = _addresses(attempt, limit)
            for address in addresses:
                try:
                    return _connect(address, limit)
                except psycopg.Error as exc:
                    error = as_error(exc, where)
                    error.__cause__ = exc
        except TimeoutError as exc:
            if deadline.has_ended:
                raise
            error = LinkLost(f"{where}: {exc}")
        except OSError as exc:
            error = LinkLost(f"{where}: {exc}")
    assert error is not None
    raise error


def _attempts(conninfo: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return libpq's parameters for each host of a list."""
    lists = {
        name: str(conninfo[name]).split(",")
        for name in ("host", "hostaddr", "port")
        if conninfo.get(name)
    }
    count = max(map(len, lists.values()), default=1)
    ports = lists.get("port", [])
    if len(ports) == 1:
        lists["port"] = ports * count  # libpq's rule
    attempts = [
        {**conninfo, **{name: each for name, each in zip(lists, values, strict=True) if each}}
        for values in zip_longest(*lists.values())
    ] or [dict(conninfo)]
    if conninfo.get("load_balance_hosts") == "random":
        shuffle(attempts)
    return attempts


def _addresses(
    attempt: dict[str, Any], deadline: Deadline
) -> tuple[list[dict[str, Any]], Deadline]:
    """Return the parameters for each address of a host, and the deadline for them.  May switch."""
    host = attempt.get("host")
    if not host or host.startswith(("/", "@")) or attempt.get("hostaddr"):
        return [attempt], deadline
    found, deadline = resolve(host, int(attempt.get("port") or 5432), deadline)
    # libpq checks the certificate against ``host``, and does not look it up.
    numbers = dict.fromkeys(str(address[3][0]) for address in found)
    return [{**attempt, "hostaddr": number} for number in numbers], deadline


def _connect(conninfo: Mapping[str, Any], deadline: Deadline) -> Connection:
    """Connect to one address.  May switch."""
    pgconn = pq.PGconn.connect_start(make_conninfo(**conninfo).encode())
    try:
        while True:
            if pgconn.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError(_said(pgconn))
            status = pgconn.connect_poll()
            if status == pq.PollingStatus.OK:
                break
            if status == pq.PollingStatus.FAILED:
                raise psycopg.OperationalError(_said(pgconn))
            events = _READ if status == pq.PollingStatus.READING else _WRITE
            _wait_once(pgconn.socket, events, deadline)
            deadline = deadline.renewed()
        pgconn.nonblocking = 1
        connection = Connection(pgconn)
    except BaseException:
        pgconn.finish()
        raise
    connection.watch()
    connection.autocommit = True
    return connection


def _said(pgconn: PGconn) -> str:
    return pgconn.error_message.decode("utf-8", "replace")


def _wait_once(descriptor: int, events: int, deadline: Deadline) -> None:
    """Wait for a socket that libpq may replace by another one at each step.  May switch."""
    slot: Slot[None] = Slot()
    watcher = get_hub().loop.io(descriptor, events)
    watcher.start(slot.offer, None)
    try:
        slot.wait(deadline)
    except TimeoutError:
        raise TimeoutError(f"connecting took longer than {deadline.timeout or 0.0:g} s") from None
    finally:
        watcher.close()


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


#: Every statement here is for an index, and planned once; a plan that was made while a table was empty
#: must not read all of it when it is full.  A bitmap of a queue's messages would be sorted for each
#: claim, and removes nothing of the index that was deleted since the last vacuum.
_SETTINGS: Final = """concat(
    set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false),
    set_config('jit', 'off', false),
    set_config('plan_cache_mode', 'force_generic_plan', false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('statement_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', %s, false),
    set_config('client_min_messages', 'warning', false))
"""
#: What a session says of itself and of the server, once.  Behind a pooler it may be lent to others
#: next, and its settings are left alone.
_GREETING: Final = f"""
SELECT pg_backend_pid(), current_user, pg_is_in_recovery(),
    CASE WHEN pg_backend_pid() = %s THEN {_SETTINGS} END
"""

#: Seconds for finding out what a pooler does.
PROBE: Final = 5.0

#: What is tried again: two transactions were in each other's way.
_CONFLICTS: Final = (errors.SerializationFailure, errors.DeadlockDetected)
RETRIES: Final = 5


def _repeat(cursor: psycopg.Cursor[Any], text: str, values: Sequence[Any]) -> None:
    """Run a statement again that was a transaction in another's way, and has changed nothing."""
    for _ in range(RETRIES - 1):
        with suppress(*_CONFLICTS):
            cursor.execute(text, values or None, prepare=False)
            return
    cursor.execute(text, values or None, prepare=False)


class Session:
    """A connection of one link, and its statements.

    Arguments:
        conninfo: libpq's parameters.
        where: the server's URL for messages, password masked.
        schema: of the tables.
        on_notify: called with channel and payload; never switches.
        on_lost: called when the connection ended while no statement ran; never switches.

    Attributes:
        user: the role.
        prefix: what stands before the name of a table.
        is_pooled: a pooler may run each transaction in another session of the server: nothing that
            belongs to a session lasts (``LISTEN``, advisory locks, settings, prepared statements).
    """

    def __init__(
        self,
        conninfo: Mapping[str, Any],
        where: str,
        schema: str,
        on_notify: Callable[[str, str], object],
        on_lost: Callable[[Exception], object],
    ) -> None:
        self.where = where
        self.schema = schema
        self.user = ""
        self.is_pooled = False
        self._conninfo = conninfo
        self._on_notify = weakly(on_notify)
        self._on_lost = weakly(on_lost)
        self.prefix = f"{quoted(schema)}."
        #: SQL as it is written -> as it is sent.
        self._texts: dict[str, str] = {}
        #: Acks must not wait for as long as there is something to claim, and the renewal of the lease
        #: not for the start of thousands of consumers.
        self._lock = FairLock()
        self._connection: Connection | None = None
        #: That of all statements: the rows of one are fetched before the next one.
        self._cursor: psycopg.Cursor[tuple[Any, ...]] | None = None
        self._is_dropped = False
        self._is_in_transaction = False
        #: Whether statements are prepared: not before it is known that the session is kept.
        self._prepares = False
        #: Whether the call that runs has changed something that cannot be undone.
        self._has_committed = False

    def open(
        self, deadline: Deadline, reply_timeout: float | None, lease: float | None = None
    ) -> None:
        """Connect.  May switch.

        Arguments:
            reply_timeout: seconds that a statement may take; None is no limit.
            lease: seconds after which the server ends a transaction in which nothing happens, so that
                what a process that was suspended has locked is free when its messages are; None is no
                limit.

        Raises:
            as :func:`connect`.
            CannotUse: a pooler ends each session with a statement.
        """
        connection = connect(self._conninfo, deadline, self.where)
        if self._is_dropped:
            connection.drop()
            raise LinkLost(f"{self.where}: the connection was closed")
        self._connection = connection
        self._cursor = connection.cursor(binary=True)
        connection.add_notify_handler(self._notified)
        connection.on_idle = weakly(self._on_idle)
        connection.reply_timeout = reply_timeout
        limits = tuple(str(int((each or 0.0) * 1000)) for each in (reply_timeout, lease))
        own = connection.pgconn.backend_pid
        ((pid, self.user, is_standby, _),) = self.call(self.fetch, _GREETING, (own, *limits))
        if is_standby:  # ``target_session_attrs`` of the URL lets it pass
            raise LinkLost(
                f"{self.where}: the server is a standby, which takes no messages; name the primary, or "
                f"all servers, in the URL"
            )
        if pid != own:  # a pooler has sent the number, as it forwards cancellations
            self.is_pooled = not self._keeps_session(pid, deadline.within(PROBE))
            if self.is_pooled:
                self.call(self._check_transactions)
            else:
                self.call(self.fetch, f"SELECT {_SETTINGS}", limits)
        self._prepares = not self.is_pooled

    def _keeps_session(self, pid: int, deadline: Deadline) -> bool:
        """Return whether a pooler leaves process *pid* of the server to this connection.  May switch."""
        try:
            other = connect(self._conninfo, deadline, self.where)
        except (AMQPError, psycopg.Error, TimeoutError):  # it may have no room for another one
            return False
        other.reply_timeout = deadline.left()
        try:
            # What this connection has left is what an idle pool lends next.
            found = other.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
            ((again,),) = self.call(self.fetch, "SELECT pg_backend_pid()")
            if found == (pid,) or again != pid:
                return False
            return self._is_notified_by(other, deadline)
        except psycopg.Error:
            if not self.is_open:
                raise
            return False
        finally:
            other.drop()

    def _is_notified_by(self, other: Connection, deadline: Deadline) -> bool:
        """Return whether a notification comes while no transaction runs.  May switch."""
        notified: Slot[None] = Slot()
        channel = f"greenconn_probe_{uuid4().hex}"
        on_notify, self._on_notify = self._on_notify, lambda *_: notified.offer(None)
        try:
            self.call(self.fetch, f"LISTEN {channel}")
            other.execute("SELECT pg_notify(%s, '')", (channel,), prepare=False)
            notified.wait(deadline)
            self.call(self.fetch, f"UNLISTEN {channel}")
        except TimeoutError:
            return False
        finally:
            self._on_notify = on_notify
        return True

    def _check_transactions(self) -> None:
        try:
            with self.transaction():
                self.fetch("SELECT 1")
        except psycopg.Error as exc:
            if "statement pooling" not in str(exc):
                raise
            raise CannotUse(
                f"{self.where}: the pooler has pool_mode = statement, in which there are no "
                f"transactions: set it to session or transaction"
            ) from exc

    def drop(self) -> None:
        """Close the connection at once.  Never switches."""
        self._is_dropped = True
        connection = self._connection
        if connection is not None:
            connection.on_idle = None
            connection.drop()

    @property
    def is_open(self) -> bool:
        """Whether statements can be run."""
        return self._connection is not None and not self._connection.closed

    # -- statements

    def call(self, function: Callable[..., T], *args: Any, is_first: bool = False) -> T:
        """Return ``function(*args)``, which calls :meth:`fetch`.  May switch.

        Calls wait for each other in the order in which they came; one that *is_first* waits for none
        that has not begun.

        Raises:
            LinkLost, LoginRefused, CannotUse, NotStored: instead of psycopg's own errors for that.
            psycopg.Error: the server refuses.
        """
        with self._lock.first() if is_first else self._lock:
            try:
                for _ in range(RETRIES):
                    self._has_committed = False
                    try:
                        return function(*args)
                    except _CONFLICTS:
                        if self._has_committed:
                            raise
                return function(*args)
            except psycopg.Error as exc:
                ours = as_error(exc, self.where)
                if ours is exc:
                    raise
                raise ours from exc

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement, and return its rows.  May switch.  Within :meth:`call` only.

        Arguments:
            statement: it writes ``greenconn.`` for the schema.
        """
        cursor = self._run(statement, values)
        result = cursor.pgresult
        # Not by the description, which is made of an object for each column.
        return cursor.fetchall() if result is not None and result.nfields else []

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return rows as :meth:`fetch`; a conflict of a transaction behind it repeats it, too."""
        has_committed = self._has_committed
        found = self.fetch(statement, values)
        self._has_committed = has_committed
        return found

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run one statement, and return the number of rows that it has changed.  As :meth:`fetch`."""
        return self._run(statement, values).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run statements in one transaction, or in that which has begun.  May switch.

        Within :meth:`call` only.
        """
        if self._is_in_transaction:
            yield
            return
        # First: the end of a statement is no commit from here on.
        self._is_in_transaction = True
        try:
            self.fetch("BEGIN ISOLATION LEVEL READ COMMITTED")
            yield
            self.fetch("COMMIT")
            self._has_committed = True
        except BaseException:
            if self.is_open:
                with suppress(psycopg.Error):
                    self.fetch("ROLLBACK")
            raise
        finally:
            self._is_in_transaction = False

    def _run(self, statement: str, values: Sequence[Any]) -> psycopg.Cursor[tuple[Any, ...]]:
        text = self._texts.get(statement)
        if text is None:
            text = statement.replace("greenconn.", self.prefix)
            self._texts[statement] = text
        cursor = self._cursor
        if cursor is None or self._is_dropped:
            raise LinkLost(f"{self.where}: the connection is closed")
        # None: with the sixth time, as it takes a round trip of its own.
        prepare = None if self._prepares and values else False
        try:
            cursor.execute(text, values or None, prepare=prepare)
        except _CONFLICTS:
            if self._is_in_transaction or not self._has_committed:
                raise  # to :meth:`call`, which repeats all of it
            _repeat(cursor, text, values)
        if not self._is_in_transaction:
            self._has_committed = True
        return cursor

    # -- what comes by itself

    def listen(self, channel: str) -> bool:
        """Have *on_notify* called for a channel; False: a pooler would lose notifications.  May switch.

        Raises:
            as :meth:`call`.
        """
        connection = self._connection
        assert connection is not None
        # A pooler has sessions of its own with the server, and other numbers for its clients.
        ((number,),) = self.call(self.fetch, "SELECT pg_backend_pid()")
        if number != connection.pgconn.backend_pid:
            return False
        self.call(self.fetch, f"LISTEN {quoted(channel)}")
        return True

    def _notified(self, notify: Any) -> None:
        self._on_notify(notify.channel, notify.payload)

    def _on_idle(self) -> None:
        # In the hub.
        connection = self._connection
        if connection is None or connection.closed:
            return
        pgconn = connection.pgconn
        try:
            pgconn.consume_input()
            while notify := pgconn.notifies():
                self._on_notify(notify.relname.decode(), notify.extra.decode())
        except psycopg.Error as exc:
            self._lose(exc)
            return
        if pgconn.status == pq.ConnStatus.BAD:
            self._lose(psycopg.OperationalError(_said(pgconn)))

    def _lose(self, exc: psycopg.Error) -> None:
        self.drop()
        error = as_error(exc, self.where)
        error.__cause__ = exc
        self._on_lost(error)


#: What a service file or the environment says that this library looks at before libpq does.
_DEFAULTS: Final = ("host", "hostaddr", "port", "load_balance_hosts", "application_name")


def defaults(conninfo: Mapping[str, Any]) -> dict[str, str]:
    """Return libpq's parameters of a service file and the environment, where there is no host yet.

    libpq would look their hosts up itself, and block the hub.  Never switches.

    Raises:
        CannotUse: there is no such service.
    """
    if conninfo.get("host") or conninfo.get("hostaddr"):
        return {}
    # It reads all of them, and refuses this before it looks anything up.
    pgconn = pq.PGconn.connect_start(make_conninfo(**{**conninfo, "gssencmode": "no"}).encode())
    try:
        found = {each.keyword.decode(): each.val for each in pgconn.info}
        problem = _said(pgconn).strip()
    finally:
        pgconn.finish()
    if not any(found.values()):
        raise CannotUse(
            f"{problem} (look into the file that PGSERVICEFILE names, or ~/.pg_service.conf)"
        )
    values = {name: found.get(name) for name in _DEFAULTS}
    return {name: value.decode() for name, value in values.items() if value}


def parsed(uri: str) -> dict[str, Any]:
    """Return libpq's parameters for a URL.

    Raises:
        ValueError: it is malformed; says how, with the password masked.
    """
    try:
        conninfo = dict(conninfo_to_dict(uri))
    except psycopg.Error as exc:
        problem = mask_secrets(" ".join(str(exc).split()))
    except UnicodeDecodeError:
        problem = "the percent-encoding must be UTF-8"
    else:
        ports = str(conninfo.get("port") or "5432").split(",")
        if all(not port or port.isdecimal() for port in ports):
            return conninfo
        problem = "the port must be a number"
    # Not with that error as its context, which may have the password.
    raise ValueError(f"{mask_secrets(uri)!r}: {problem}")
