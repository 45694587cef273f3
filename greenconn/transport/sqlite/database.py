"""One connection to a SQLite file, used in a native thread.

All links of a process to one file share it, so that they never wait for each other's locks.  All calls
that wait run in one transaction: what a turn of the hub publishes, claims and settles costs one commit.
When one of them fails, all are rolled back and run one by one.

To take a message out of a SQLite file, its log must be written, and the log must go into the file: both
need free disk space.  So a reserve file lies beside it.  When the disk is full, the reserve is removed,
the log is written into the file, and messages can be claimed and settled.  New messages are refused
until there is room to make the reserve again.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from greenconn.broker.link import StoreOptions
from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.exceptions import (
    AMQPError,
    NotAllowed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.green.retry import RetryPolicy, attempts, isolated
from greenconn.green.threadpool import CallOutcome, NativeThread
from greenconn.transport.sqlite.queues import APPLICATION_ID, SCHEMA, VERSION, Queues

#: SQLITE_IOERR_WRITE and SQLITE_IOERR_SHMSIZE: a quota is used up, or a limit of the process reached.
_NOT_WRITTEN: Final = frozenset({778, 4874})
_LOOK: Final = "look at the disk, its quota, and the limits of this process"


class _Both:
    """Makes an error of amqp's kind and of sqlite3's at once.  Its text has the remedy."""

    has_remedy = True

    def __init__(self, text: str = "") -> None:
        AMQPError.__init__(self, text)
        self.args = (text,)  # what copies are made of

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


class CannotOpen(_Both, NotAllowed, sqlite3.DatabaseError):  # type: ignore[misc]
    """The file cannot be used, and to try again would not help."""


class DatabaseBusy(_Both, RecoverableConnectionError, sqlite3.OperationalError):  # type: ignore[misc]
    """Others kept the file locked for too long."""


class DatabaseLost(_Both, RecoverableConnectionError, sqlite3.DatabaseError):  # type: ignore[misc]
    """The file is damaged, or is not there any more."""


class DiskFull(_Both, RecoverableChannelError, sqlite3.OperationalError):  # type: ignore[misc]
    """The disk has no room for what was to be stored."""


def is_locked(exc: BaseException) -> bool:
    """Return whether the file is locked by another connection."""
    text = str(exc)
    return isinstance(exc, sqlite3.OperationalError) and (
        "database is locked" in text or "database table is locked" in text
    )


def is_full(exc: sqlite3.Error) -> bool:
    """Return whether the disk was full."""
    return not isinstance(exc, AMQPError) and (
        "full" in str(exc) or getattr(exc, "sqlite_errorcode", 0) in _NOT_WRITTEN
    )


def as_error(exc: sqlite3.Error, path: str) -> Exception:
    """Return the exception for one of sqlite3's."""
    text = f"SQLite file {path}: {exc}"
    if is_locked(exc):
        return DatabaseBusy(f"{text}: other processes kept it locked; raise busy_timeout")
    reason = str(exc)
    if "full" in reason:
        return DiskFull(f"{text}: free some space; nothing was stored")
    if getattr(exc, "sqlite_errorcode", 0) in _NOT_WRITTEN:  # from Python 3.11 on
        return DiskFull(f"{text}: {_LOOK}; nothing was stored")
    if "readonly" in reason:
        return CannotOpen(f"{text}: this process may not write the file or its directory")
    if "not a database" in reason or "encrypted" in reason:
        return CannotOpen(
            f"{text}: name a file that does not exist, or one created by this transport"
        )
    if "unable to open" in reason:
        return DatabaseLost(
            f"{text}: check that this process can create files in that directory and open more files"
        )
    if "I/O" in reason:
        return DatabaseLost(f"{text}: {_LOOK}")
    return DatabaseLost(text)


#: Values of ``synchronous``.
SYNCHRONOUS: Final = ("NORMAL", "FULL")


class SqliteOptions(StoreOptions):
    """The options of a connection to a SQLite file."""

    synchronous: str = "FULL"
    """``FULL``: a publish or a declaration returns when it is on the disk, so that it survives a power
    failure, too; transient messages and exclusive queues do not wait.  ``NORMAL``: it survives the
    death of any process, and may be lost when the machine loses power."""

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


#: Behind the path of the file.
RESERVE_SUFFIX: Final = "-reserve"

#: Where the system cannot reserve, so much is written at once.
RESERVE_CHUNK: Final = 1024 * 1024

#: The disk, or what the user may have of it, is full.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """The reserve of one file, shared by all processes.  Used in its thread only.

    Arguments:
        path: of the SQLite file.
        size: bytes; 0 keeps none.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path = path + RESERVE_SUFFIX
        self._size = size

    def ensure(self) -> bool:
        """Return whether there is one, made now if there is room for it twice.

        Where none is wanted, or none can be made although there is room, the disk counts as not full.
        """
        return not self._size or os.path.exists(self._path) or self._make()

    @property
    def needed(self) -> int:
        """Bytes that must be free on the disk for it to be made."""
        return 2 * self._size

    def free(self) -> int:
        """Return the bytes that are free on the disk.

        Raises:
            OSError: the system does not say.
        """
        found = os.statvfs(os.path.dirname(self._path))
        return found.f_bavail * found.f_frsize

    def remove(self) -> bool:
        """Make room; return whether there was a reserve."""
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True

    def _make(self) -> bool:
        try:
            if self.free() < self.needed:
                return False
            self._write(f"{self._path}-{os.getpid()}")
        except OSError as exc:
            if exc.errno in _FULL:
                return False
            self._size = 0  # a limit of the process, most likely: it would be the same each time
        return True

    def _write(self, path: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, self._size)
                else:
                    for start in range(0, self._size, RESERVE_CHUNK):
                        os.write(descriptor, bytes(min(RESERVE_CHUNK, self._size - start)))
            finally:
                os.close(descriptor)
            os.rename(path, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise


#: Not all systems can write the data alone.
_write_to_disk: Final = getattr(os, "fdatasync", os.fsync)

#: Bytes of the log at which it is written into the file, and that it keeps then (SQLite's default).
LOG_LIMIT: Final = 1000 * 4096

#: Compiled statements that are kept.
STATEMENTS: Final = 256

#: For a locked file; for how long is an option.
LOCKED: Final = RetryPolicy(first=0.0005, longest=0.02, jitter=0.0)


class Job(NamedTuple):
    """A call.

    Attributes:
        function: called with the connection, in a transaction; done again when another fails.
        writes: whether it changes anything.
        grows: whether it is refused where the disk has no room but the reserve.
        durable: whether what it changes must be on the disk when it returns.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    writes: bool
    grows: bool = False
    durable: bool = False


class Database:
    """The file, and the thread in which it is used.

    Arguments:
        path: absolute.

    Attributes:
        queues: what is known of the queues in it; used in the thread only.
        users: links that have it.
        is_lost: it cannot be used any more.
    """

    def __init__(self, path: str, options: SqliteOptions) -> None:
        self.path = path
        self.queues = Queues()
        self.users = 0
        self.is_lost = False
        self._options = options
        self._is_full = options.synchronous.upper() == "FULL"
        self._reserve = Reserve(path, options.reserve)
        self._pid = os.getpid()
        self._worker: NativeThread[Job] = NativeThread(self._run, self._closed)
        self._connection: sqlite3.Connection | None = None
        #: Of the file that was opened.
        self._identity: tuple[int, int] | None = None
        self._log_path = f"{os.path.realpath(path)}-wal"
        #: The log, to write it to the disk.
        self._log: int | None = None
        #: Something was committed that must be on the disk, and may not be there yet.
        self._is_unsynced = False

    @property
    def is_usable(self) -> bool:
        """Whether another link may share it."""
        return self.users > 0 and not self.is_lost and self._pid == os.getpid()

    def read(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(connection, *args)``, which changes nothing.  May switch."""
        return self._worker.call(Job(function, args, False))

    def write(
        self,
        function: Callable[..., Any],
        *args: Any,
        on_left: Callable[[Any], object] | None = None,
        grows: bool = False,
        durable: bool = False,
    ) -> Any:
        """Return ``function(connection, *args)``; it is committed by then.  May switch.

        Arguments:
            on_left: called with the result if the caller was killed meanwhile.  Must not switch.
            grows: refuse it where the disk has no room but the reserve.
            durable: with ``synchronous=FULL`` it is on the disk by then, too.
        """
        return self._worker.call(Job(function, args, True, grows, durable), on_left)

    def post(self, then: Callable[[Any], object], function: Callable[..., Any], *args: Any) -> None:
        """Have *then* called with what :meth:`write` would return.  Never switches."""
        self._worker.post(Job(function, args, True), then)

    def _closed(self) -> Exception:
        error: Exception = DatabaseLost(f"SQLite file {self.path} was closed")
        return error

    def open(self) -> None:
        """Open the file, and make it if it is not there.  May switch.

        Raises:
            CannotOpen: it cannot be used.
            DatabaseBusy: others keep it locked.
        """
        self._worker.call(Job(self._open, (), False))

    def leave(self) -> None:
        """Remove a link; the last one closes the database.  Never switches."""
        self.users -= 1
        if not self.users:
            self._worker.close(self._close)

    def join(self) -> None:
        """Wait until it is closed, if it has no more users.  May switch."""
        if not self.users:
            self._worker.join()

    def forget(self) -> None:
        """Forget the parent's connections in the child of a fork.  Never switches."""
        self._worker.forget()
        if self._connection is not None:
            _leak(self._connection)
            self._connection = None
        self._close_log()

    # -- in the thread

    def _open(self, opened: sqlite3.Connection | None) -> None:
        """Open the file, unless another link has opened it.  In the thread."""
        if opened is not None:
            return  # for another link
        path = self.path
        folder = os.path.dirname(path)
        if os.path.isdir(path):
            raise CannotOpen(
                f"SQLite file {path} must be a file, got a directory: name a file in it"
            )
        if not os.path.isdir(folder):
            raise CannotOpen(
                f"SQLite file {path}: directory {folder} does not exist; create it first"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CannotOpen(
                f"SQLite file {path}: this process may not write in directory {folder}, where "
                f"SQLite keeps its write-ahead log"
            )
        # Without its own waiting: a fork must not wait for that.
        connection = sqlite3.connect(
            path,
            timeout=0.0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=STATEMENTS,
        )
        try:
            self._prepare(connection)
        except sqlite3.OperationalError as exc:
            connection.close()
            if "unable to open" in str(exc):
                raise CannotOpen(f"SQLite file {path}: it cannot be opened: {exc}") from exc
            raise
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._identity = _identity(path)
        self._reserve.ensure()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check whose file it is, set it up, and create its tables if it is new."""
        # In one transaction: another process may be creating the tables.
        connection.execute("BEGIN")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("COMMIT")
        if application != APPLICATION_ID:
            if tables or application:
                raise CannotOpen(
                    f"SQLite file {self.path}: it belongs to another program; name another file"
                )
        elif version > VERSION:
            raise CannotOpen(
                f"SQLite file {self.path} was created by a later version of greenconn (tables "
                f"{version}, known here up to {VERSION})"
            )
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise CannotOpen(
                f"SQLite file {self.path}: its file system has no write-ahead log (journal_mode is "
                f"{mode}); put it on a local disk"
            )
        # What must be on the disk is written there after its commit, by ``_run``: the lock of the file
        # is free by then, and what need not be there, such as claims and acks, never waits.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA temp_store=MEMORY")
        # The reserve must have room for all that stands in the log.
        reserve = self._options.reserve
        limit = min(LOG_LIMIT, reserve // 2) if reserve else LOG_LIMIT
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint={max(limit // size, 1)}")
        connection.execute(f"PRAGMA journal_size_limit={limit}")
        if application != APPLICATION_ID:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._create(connection)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application == APPLICATION_ID:
            return  # another greenlet has closed it
        for statement in SCHEMA.split(";"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={VERSION}")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._close_log()

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            os.close(log)

    def _run(self, jobs: Sequence[Job]) -> Sequence[CallOutcome]:
        parts = isolated(jobs, self._outcomes, self._refused)
        outcomes = [outcome for part in parts for outcome in part]
        if not self._is_unsynced:
            return outcomes
        self._is_unsynced = False
        # As SQLite does it with synchronous=FULL: the log is enough, and while the connection is open it
        # stays the same file.
        try:
            if self._log is None:
                self._log = os.open(self._log_path, os.O_RDWR | os.O_CLOEXEC)
            _write_to_disk(self._log)
        except OSError as exc:
            text = f"SQLite file {self.path}: {exc.strerror}: {_LOOK}; it may be stored"
            error = DatabaseLost(text)
            error.__cause__ = exc
            self.is_lost = True
            for at, job in enumerate(jobs):
                if job.durable and outcomes[at].error is None:
                    outcomes[at] = CallOutcome(error=error)
        return outcomes

    def _outcomes(self, jobs: Sequence[Job]) -> list[CallOutcome]:
        return [CallOutcome(each) for each in self._retried(jobs)]

    def _refused(self, job: Job, exc: Exception) -> list[CallOutcome]:
        return [CallOutcome(error=self._error(exc))]

    def _error(self, exc: Exception) -> Exception:
        error = exc
        if isinstance(exc, sqlite3.Error) and not isinstance(exc, AMQPError):
            error = as_error(exc, self.path)
            error.__cause__ = exc
        self.is_lost |= isinstance(error, DatabaseLost)
        return error

    def _retried(self, jobs: Sequence[Job]) -> list[Any]:
        """Do it, again as long as others have the file locked, and once more with the reserve."""
        try:
            return self._with_room(jobs)
        except sqlite3.OperationalError as exc:
            deadline = Deadline(self._options.busy_timeout)
            again = attempts(LOCKED, deadline, is_locked, pause=self._worker.pause, failure=exc)
        for attempt in again:
            with attempt:
                return self._with_room(jobs)
        raise AssertionError("unreachable")

    def _with_room(self, jobs: Sequence[Job]) -> list[Any]:
        try:
            with self._worker.fork_lock:
                return self._transact(jobs)
        except sqlite3.OperationalError as exc:
            if not is_full(exc) or not self._make_room():
                raise
        with self._worker.fork_lock:
            return self._transact(jobs)

    def _make_room(self) -> bool:
        """Free the reserve and write the log into the file; return whether that made room."""
        has_room = self._reserve.remove()
        connection = self._connection
        if connection is not None:
            with suppress(sqlite3.Error), self._worker.fork_lock:
                before = self._log_size()
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                has_room |= self._log_size() < before
        return has_room

    def _has_room(self, connection: sqlite3.Connection) -> bool:
        """Return whether more may be stored: the reserve exists, or the file has as much free space."""
        if self._reserve.ensure():
            return True
        (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        return int(pages * size) >= self._options.reserve

    def _log_size(self) -> int:
        try:
            return os.stat(self._log_path).st_size
        except OSError:
            return 0

    def _transact(self, jobs: Sequence[Job]) -> list[Any]:
        connection = self._connection
        if connection is None:
            return [job.function(connection, *job.args) for job in jobs]  # it opens
        if _identity(self.path) != self._identity:
            raise DatabaseLost(
                f"SQLite file {self.path}: the file was removed or replaced; its messages are gone"
            )
        if any(job.grows for job in jobs) and not self._has_room(connection):
            raise DiskFull(
                f"SQLite file {self.path}: the disk must have {self._reserve.needed} bytes free, twice "
                f"the option reserve={self._options.reserve}, which keeps space for consuming, and has "
                f"{self._reserve.free()}: free some space, or set a smaller reserve in the URL "
                f"(?reserve=BYTES); nothing was stored"
            )
        before = connection.total_changes
        connection.execute("BEGIN IMMEDIATE" if any(job.writes for job in jobs) else "BEGIN")
        try:
            values = [job.function(connection, *job.args) for job in jobs]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if connection.total_changes != before:
            self._is_unsynced |= self._is_full and any(job.durable for job in jobs)
        return values


def _identity(path: str) -> tuple[int, int] | None:
    """Return what distinguishes a file from another one at the same path."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


#: By file and options.
_databases: Final[PerHub[dict[tuple[str, SqliteOptions], Database]]] = PerHub(dict)


def database_of(path: str, options: SqliteOptions) -> Database:
    """Return the database of a file for one more link, which must ``leave`` it.  Never switches."""
    known, key = _databases.get(), (os.path.realpath(path), options)
    found = known.get(key)
    if found is None or not found.is_usable:
        found = known[key] = Database(path, options)
    found.users += 1
    return found


def _leak(connection: sqlite3.Connection) -> None:
    """Keep a connection of the parent's from ever being closed here, also at the end.

    SQLite forbids any use of it in this process; to close it may roll back or remove the log of others.
    """
    import ctypes  # in the child of a fork only

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
