"""Errors of a file, with their remedies."""

from __future__ import annotations

import sqlite3
from typing import Final

from greenconn.exceptions import (
    AMQPError,
    NotAllowed,
    RecoverableChannelError,
    RecoverableConnectionError,
)

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
