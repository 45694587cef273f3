"""The default connections, which are used when a program passes no connection.

Each thread (gevent hub) has its own pair, created on first use: one connection for consuming and one for
publishing.  On AMQP these are two sockets, because RabbitMQ stops reading from a connection that it
blocks, and acknowledgements must not wait behind publishes.  On other transports both are the same
connection.

The broker is the URL of ``configure(url)``, else the environment variable ``GREENCONN_URL``, else the
default of kombu.  The environment is read once, when a default connection is first needed.

``configure`` may be called at any time and applies to all threads.  The default connections of the
calling thread are closed at once, which stops the consumers that use them.  Those of another thread are
closed and replaced when that thread next requests one.  Connections by URL and connections that the
program created are not affected.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from weakref import WeakSet

import gevent
from gevent import get_hub

from greenconn.checks import check_keywords, shows
from greenconn.connection import ARGUMENTS as CONNECTION_ARGUMENTS
from greenconn.connection import Connection, ConnectionArguments, connection_defaults
from greenconn.exceptions import AMQPError, KombuError
from greenconn.green.hub import PerHub, exit_deadline
from greenconn.green.supervisor import spawn
from greenconn.session.broker import DEFAULT_URL, Configuration, check_is_url
from greenconn.session.session import OWN_CONNECTION

if TYPE_CHECKING:
    from typing_extensions import Unpack


logger = logging.getLogger("greenconn.defaults")

Kind: TypeAlias = Literal["consume", "publish"]

KINDS: Final = ("consume", "publish")
PURPOSES: Final = {"consume": "consuming", "publish": "publishing"}
#: The arguments that take a URL and further arguments of a connection.
ARGUMENTS: Final = CONNECTION_ARGUMENTS - {"hostname"} | {"limits", "url"}
#: Names of the transports whose brokers keep limits.
KEEPERS: Final = ("memory", "postgresql", "redis", "sqlite")


class _Pair(dict[str, Connection]):
    """A connection for consuming and one for publishing, by kind; each is created on first use.

    Arguments:
        make: function that returns the first of the two.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Connection]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, kind: str) -> Connection:
        first = next(iter(self.values()), None)
        connection = self[kind] = self._make() if first is None else _for_other_kind(first)
        if connection is not first and _has_both_kinds(connection):
            connection.session.purpose = PURPOSES[kind]
        return connection

    def take(self) -> Iterator[Connection]:
        """Remove both, and yield the one that publishes first."""
        connections = self.copy()
        self.clear()
        in_order = [connections[kind] for kind in reversed(KINDS) if kind in connections]
        yield from {id(each): each for each in in_order}.values()


class _HubConnections:
    """The default connections of one hub, and the connections that it keeps by URL."""

    def __init__(self) -> None:
        self.configuration = Configuration.current
        self.default = _Pair(_made(self.configuration))
        self.by_url: dict[str, _Pair] = {}
        _close_at_exit()

    def connection(self, kind: Kind) -> Connection:
        """Return the default connection for *kind*.  May switch when ``configure`` was called since."""
        if self.configuration is not Configuration.current:
            self.renew()
        return self.default[kind]

    def pair(self, url: str) -> _Pair:
        """Return the pair for *url*.  Never switches."""
        pair = self.by_url.get(url)
        if pair is None:
            check_is_url("connection", url)
            pair = self.by_url[url] = _Pair(lambda: Connection(url))
        return pair

    def renew(self) -> None:
        """Close the default connections, as ``configure`` was called since.  May switch."""
        self.configuration = Configuration.current
        old, self.default = self.default, _Pair(_made(self.configuration))
        _close_all(old.take())

    def take(self) -> Iterator[Connection]:
        """Remove all connections and yield them."""
        for pair in (self.default, *self.by_url.values()):
            yield from pair.take()


_kept = PerHub(_HubConnections)
#: Those of applications, which are closed at the end of the interpreter, too.
_others: PerHub[WeakSet[Connection]] = PerHub(WeakSet)
_is_exit_watched = False


@shows(ConnectionArguments, defaults=connection_defaults)
def configure(
    url: str | None = None,
    *,
    declare_by_name: bool | None = None,
    limits: Connection | str | None = None,
    **connection_kwargs: Unpack[ConnectionArguments],
) -> None:
    """Set the broker for ``spawn_consumer``, ``publish`` and ``rpc`` calls without a connection.  May
    switch.

    No connection is opened.  Existing default connections of this thread are closed, which stops the
    consumers that use them.  Those of another thread are replaced when that thread next requests one.

    Arguments:
        url: URL of the broker, with its scheme.  None uses the environment variable ``GREENCONN_URL``,
            or ``amqp://guest:guest@localhost:5672//`` if that is not set.
        declare_by_name: who declares a queue that is given by name and does not exist, on any
            connection.  None: consumers declare it.  True: consumers and publishers declare it.  False:
            it is never declared, and its absence is an error.
        limits: where the limits and rates of consumers and the unique keys of messages are kept: the URL
            or a ``Connection`` of Redis, PostgreSQL, SQLite or memory.  A broker that is one of these
            keeps its own.  None uses the environment variable ``GREENCONN_LIMITS``, if it is set.
        connection_kwargs: arguments of :class:`~greenconn.connection.Connection`.

    Raises:
        TypeError, ValueError, KeyError: the URL or an option is invalid; the configuration is unchanged.
    """
    if declare_by_name not in (None, True, False):
        raise TypeError(f"declare_by_name must be True, False or None, got {declare_by_name!r}")
    if url is not None and not isinstance(url, str):
        raise TypeError(
            f"url must be text such as 'amqp://localhost//', or None, got {type(url).__name__}"
        )
    check_keywords("configure", connection_kwargs, ARGUMENTS | {"declare_by_name"})
    check_limits(limits)
    new = Configuration(url, connection_kwargs, declare_by_name, limits)
    if url is not None:
        _made(new)()  # made to be checked; it never opens
        if not connection_kwargs.get("transport"):
            check_is_url("url", url)
    Configuration.current = new
    kept = _kept.pop()
    if kept is not None:
        fresh = _kept.get()
        fresh.by_url = kept.by_url
        _close_all(kept.default.take())


def keeper_of(connection: Connection) -> str | None:
    """Return which of :data:`KEEPERS` the broker of *connection* is; None: it keeps no limits."""
    kind = connection.get_transport_cls()
    for name in KEEPERS:
        if any(base.__module__ == f"greenconn.transport.{name}" for base in kind.__mro__):
            return name
    return None


def check_limits(given: object) -> None:
    """Check the argument ``limits`` of ``configure`` and ``App``.

    Raises:
        TypeError: it is no URL and no connection.
        ValueError: that broker keeps no limits.
    """
    if given is None:
        return
    if not isinstance(given, (str, Connection)):
        raise TypeError(f"limits must be a URL, a Connection or None, got {type(given).__name__}")
    connection = Connection(given) if isinstance(given, str) else given  # it never opens
    if keeper_of(connection) is None:
        raise ValueError(
            f"limits must be the URL or a Connection of Redis, PostgreSQL, SQLite or memory, got "
            f"{connection.as_uri()!r}"
        )


def declare_by_name() -> bool | None:
    """Return the argument *declare_by_name* of the last :func:`configure`.  Never switches."""
    return Configuration.current.declare_by_name


def default_connection(kind: Kind) -> Connection:
    """Return this thread's default connection for *kind*.  May switch, once after :func:`configure`.

    The connection is opened on first use.  Both kinds are the same connection unless the transport is
    AMQP.

    Arguments:
        kind: ``'consume'`` or ``'publish'``.

    Raises:
        ValueError: *kind* is neither of them.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be 'consume' or 'publish', got {kind!r}")
    return _kept.get().connection(kind)


def consuming_connection(connection: Connection | str | None = None) -> Connection:
    """Return the connection that consumers use.

    Arguments:
        connection: a ``Connection``, which is returned itself, or a URL, for which this thread keeps a
            connection.  None returns the default connection.
    """
    if isinstance(connection, Connection):
        return connection
    if connection is None:
        return default_connection("consume")
    return _kept.get().pair(_checked(connection))["consume"]


def publishing_connection(connection: Connection | str | None = None) -> Connection:
    """Return the connection that publishes for *connection*.

    Arguments:
        connection: a ``Connection`` or a URL, for which this thread keeps a connection.  None returns
            the default connection.  On AMQP a ``Connection`` is represented by one clone, which is kept
            until the connection is closed; on other transports it is returned itself.

    Raises:
        WrongHub: the connection belongs to another thread.
    """
    if isinstance(connection, Connection):
        connection.session.check_hub()
        services = connection.session.services
        if services.publishing_connection is None:
            _choose_publisher(connection)
        publisher = services.publishing_connection
        return publisher if isinstance(publisher, Connection) else connection
    if connection is None:
        return _kept.get().connection("publish")
    return _kept.get().pair(_checked(connection))["publish"]


def _choose_publisher(connection: Connection) -> None:
    session = connection.session
    other = _for_other_kind(connection)
    if other is not connection:
        other.session.purpose = PURPOSES["publish"]
    if session.is_closed:
        session.restart()  # it is used again, and can be closed again

    def close() -> None:
        # The next call chooses again: the connection may be switched to another broker.
        session.on_closed.remove(close)
        session.services.publishing_connection = None
        if other is not connection:
            other.close()

    # Not the connection itself: that may be another facade of the session each time.
    own = other is connection
    session.services.publishing_connection = OWN_CONNECTION if own else other
    session.on_closed.append(close)


def reset() -> None:
    """Close this thread's default connections and discard the configuration.  May switch."""
    Configuration.current = Configuration()
    kept = _kept.pop()
    if kept is not None:
        _close_all(kept.take())


def _close_all(connections: Iterator[Connection]) -> None:
    """Close all connections, even if closing one fails or the caller is killed.  May switch."""
    if closing := list(connections):
        # A caller that is interrupted meanwhile raises, while they go on closing.
        spawn("close-default", _close_each, closing).join()


def _close_each(connections: list[Connection]) -> None:
    for connection in connections:
        try:
            connection.close()
        except Exception:
            logger.exception(
                "closing %s failed",
                connection.session.broker.label,
                extra={"connection": connection.session.broker.label},
            )


def _made(configuration: Configuration) -> Callable[[], Connection]:
    """Return the function that makes the default connection."""
    return lambda: Connection(configuration.url or DEFAULT_URL, **configuration.options)


def _for_other_kind(connection: Connection) -> Connection:
    """Return a connection for the other kind: a clone on AMQP, where publishing must not delay acks."""
    return connection.clone() if _has_both_kinds(connection) else connection


def _has_both_kinds(connection: Connection) -> bool:
    """Return whether there is another connection for publishing than for consuming."""
    return bool(connection.get_transport_cls().driver_type == "amqp")


def _checked(url: object) -> str:
    if not isinstance(url, str):
        raise TypeError(f"connection must be a Connection, a URL or None, got {type(url).__name__}")
    return url


def closed_at_exit(connection: Connection) -> Connection:
    """Return *connection*, which is closed when the interpreter ends, if it is still open then.

    So other processes get its messages, its exclusive queues and the leadership of its schedules at
    once, not when its leases end.
    """
    _close_at_exit()
    _others.get().add(connection)
    return connection


def _close_at_exit() -> None:
    global _is_exit_watched
    if not _is_exit_watched:
        _is_exit_watched = True
        atexit.register(_at_exit)


def _at_exit() -> None:
    """Finish outstanding publishes, then close the connections of the main thread; other threads have
    ended.
    """
    kept, others = _kept.pop(), _others.pop()
    ending = [*(kept.take() if kept is not None else ()), *(others or ())]
    if ending:
        # Greenlets that the program has left waiting get errors, which are worth no traceback.
        hub = get_hub()
        hub.NOT_ERROR = (*hub.NOT_ERROR, AMQPError, KombuError)
        closing = [spawn("close-default", _close_each, [each]) for each in ending]
        gevent.joinall(closing, timeout=exit_deadline().left())
