"""Calls that survive errors of connection and channel, and calls that ignore them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from greenconn.log import get_logger

if TYPE_CHECKING:
    from greenconn.abc import Channel, Connection

__all__ = ["ignore_errors", "insured", "revive_connection"]

T = TypeVar("T")

logger = get_logger("greenconn.common")


class _HasErrors(Protocol):
    """A connection, or anything else that knows its errors."""

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]: ...

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]: ...


@contextmanager
def _ignoring(conn: _HasErrors) -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        # Looked up only now: a stand-in in the tests of a program need not have them.
        if not isinstance(exc, (*conn.connection_errors, *conn.channel_errors)):
            raise


@overload
def ignore_errors(conn: _HasErrors, fun: None = None) -> AbstractContextManager[None]: ...
@overload
def ignore_errors(
    conn: _HasErrors, fun: Callable[..., T], *args: Any, **kwargs: Any
) -> T | None: ...
def ignore_errors(
    conn: _HasErrors, fun: Callable[..., Any] | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Ignore errors of connection and channel, in a call or in a ``with`` block.

    It is for tidying up, where it does not matter any more whether the broker heard of it.

    Arguments:
        conn: anything with ``connection_errors`` and ``channel_errors``.
        fun: called with *args* and *kwargs*; None: the result is the context.

    Returns:
        What *fun* returned, None if it failed.
    """
    if fun is None:
        return _ignoring(conn)
    result = None
    with _ignoring(conn):
        result = fun(*args, **kwargs)
    return result


def revive_connection(
    connection: Connection, channel: Channel, on_revive: Callable[[Any], Any] | None = None
) -> None:
    """Tell *on_revive* of the channel that *connection* has now."""
    if on_revive is not None:
        on_revive(channel)


def insured(
    pool: Any,
    fun: Callable[..., T],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    errback: Callable[[Exception, float], Any] | None = None,
    on_revive: Callable[[Any], Any] | None = None,
    **opts: Any,
) -> T:
    """Call *fun* on a connection of *pool*, again and again if that is lost.  May switch.

    Arguments:
        fun: called with *args*, *kwargs*, ``connection=`` and ``channel=``.
        errback: called with each error and the seconds until the next attempt; None logs it.
        on_revive: called with the channel after each reconnect.
        opts: of ``Connection.autoretry``: ``max_retries``, ``interval_start``...

    Raises:
        OperationalError: it was given up.
        Exception: what *fun* raised.
    """
    errback = errback or _log_retry
    with pool.acquire(block=True) as connection:
        connection.ensure_connection(errback=errback)
        call = connection.autoretry(
            fun,
            connection.default_channel,
            errback=errback,
            on_revive=partial(revive_connection, connection, on_revive=on_revive),
            **opts,
        )
        result: T = call(*args, **{**kwargs, "connection": connection})[0]
        return result


def _log_retry(exc: Exception, interval: float) -> None:
    logger.error("connection error: %r; the next attempt is in %s s", exc, interval, exc_info=exc)
