"""A handler that runs in a transaction of a database, in which its message is acknowledged, too.

What the handler writes and the end of its message are committed together, so its effects in the database
happen exactly once, however often the message is delivered.  If the handler fails, both are undone, and
the rules of the consumer for failures apply.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gevent import Timeout

from greenconn.checks import check_has_run
from greenconn.green.supervisor import spawn
from greenconn.log import message_fields

if TYPE_CHECKING:
    from greenconn.message import Message

logger = logging.getLogger("greenconn.worker")

#: Begins a transaction, which ends with the block: gives it, and the further arguments of the handler.
Begin: TypeAlias = "Callable[[], AbstractContextManager[tuple[Any, tuple[Any, ...]]]]"

_WHAT: Final = (
    "the alias of a database of Django, an Engine or a sessionmaker of SQLAlchemy, or a pool of "
    "psycopg"
)


class _NotHeld(Exception):
    """The message was redelivered, or its transaction was committed after all."""


class TransactionHandler:
    """Calls a handler in a transaction, and acknowledges its message in that.

    Arguments:
        handler: called as ``handler(body, message)`` with a database of Django, else with a session or
            connection as the third argument.
        given: see :func:`greenconn.spawn_consumer`.

    Raises:
        TypeError: *given* is nothing that begins a transaction.
    """

    def __init__(self, handler: Callable[..., Any], given: Any) -> None:
        self._handler = handler
        self._begin = begin_of(given)
        update_wrapper(self, handler)

    def __call__(self, body: Any, message: Message) -> None:
        ack: Any = None
        try:
            with self._begin() as (transaction, arguments):
                result = self._handler(body, message, *arguments)
                if result is not None:
                    check_has_run("the handler", result)
                if message.acknowledged:
                    return  # the handler has decided what becomes of it
                ack = message.channel.within(transaction)
                if not ack.ack(message):
                    raise _NotHeld
        except _NotHeld:
            _log_not_held(message)
        except (Exception, Timeout):
            # An error of the commit does not tell whether it is done: the row of the message does.
            if ack is None or ack.is_held(message):
                raise
        except BaseException:
            if ack is not None:
                ack.undo(message)
            raise
        # The row is gone, and this is for the link alone.
        message.ack(flush=False)


def begin_of(given: Any) -> Begin:
    """Return what begins a transaction.

    Raises:
        TypeError: *given* is nothing that does.
    """
    if isinstance(given, str):
        return lambda: _django(given)
    if callable(getattr(given, "getconn", None)) and callable(getattr(given, "connection", None)):
        return lambda: _pool(given)
    if hasattr(given, "dialect") and callable(getattr(given, "connect", None)):
        from sqlalchemy.orm import Session

        return lambda: _session(lambda: Session(given))
    if callable(getattr(given, "begin", None)) and callable(given):
        return lambda: _session(given)
    raise TypeError(f"transaction must be {_WHAT}, got {given!r}")


@contextmanager
def _django(alias: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    from django.db import connections, transaction

    connection = connections[alias]
    connection.close_if_unusable_or_obsolete()
    try:
        with transaction.atomic(using=alias):
            yield alias, ()
    finally:
        connection.close_if_unusable_or_obsolete()


@contextmanager
def _pool(pool: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    with pool.connection() as connection, connection.transaction():
        yield connection, (connection,)


@contextmanager
def _session(make: Callable[[], Any]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    with make() as session, session.begin():
        yield session, (session,)


def takes_session(given: Any) -> bool:
    """Return whether the handler gets a session or connection beside the message."""
    return not isinstance(given, str)


def _log_not_held(message: Message) -> None:
    spawn(
        "log",
        logger.warning,
        "delivery %s was redelivered while its handler ran; its transaction was rolled back",
        message.delivery_tag,
        extra=message_fields(message),
    )
