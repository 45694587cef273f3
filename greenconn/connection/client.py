"""Connections: what a program holds to talk to a broker (kombu 5.7, ``kombu.connection``).

A connection opens nothing before it is needed.  It may be shared by all greenlets of a thread, and
so may its channels, producers and pools; another thread uses a :meth:`Connection.clone`.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from greenconn.abc import Lender
from greenconn.connection.shortcuts import Shortcuts
from greenconn.exceptions import OperationalError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.session.event_fd import EventDescriptor
from greenconn.session.parameters import ParameterKey
from greenconn.session.persistence import Persistent
from greenconn.session.session import Session
from greenconn.transport.base import Link

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.abc import Channel

__all__ = ["BrokerConnection", "Connection", "PooledConnection"]

logger = logging.getLogger("greenconn.connection")

#: Places that are logged for using a connection after its release, at most.
LATE_USES: Final = 1000
_late_uses: Final[set[str]] = set()


class Connection(Shortcuts, Persistent):
    """A connection to a broker, or to one of several.

    Example::

        Connection("amqp://guest:guest@localhost:5672//")
        Connection("amqp://one;amqp://two", failover_strategy="shuffle")
        Connection("redis://", transport_options={"visibility_timeout": 3600})

    All greenlets of a thread may share one: use it, drain it, close it.

    When the connection is lost it comes back: at once, in the background, if consumers run on it,
    else with the next use.  That goes on until :meth:`close`.  Using a closed connection explicitly
    (:meth:`connect`, :meth:`channel`, :attr:`default_channel`, :meth:`ensure_connection`) opens it
    again.

    Arguments:
        hostname: a URL, several (a list, or a text separated by ``;``), or a host name.
        userid, password, virtual_host, port: what a URL leaves blank.  A password may be a function
            that returns one; it is called for each attempt to connect, and again before a
            :class:`~greenconn.credentials.Token` that it returned ends.
        insist: accepted for kombu's sake.
        ssl: True for TLS, verified; or a dict of its options.
        transport: an alias, a class or its path, where the URL does not name one.
        connect_timeout: seconds for one broker, name lookup to login; None waits.
        transport_options: see the transport.
        login_method: SASL mechanism.
        uri_prefix: what stands before the ``+`` in the scheme.
        heartbeat: seconds.  Not given: what the broker proposes; 0: off.
        failover_strategy: ``round-robin``, ``shuffle``, or a function that takes the list of URLs
            and gives an iterator of those to try.
        alternates: further URLs.
        credential_provider: an object with ``get_credentials()``, which returns user name and
            password; asked as a function for the password is.
        kwargs: others are ignored with a warning in the log.

    Raises:
        ValueError: a malformed URL, or one with an option that is not known.
        KeyError: no transport has that name.
    """

    def drain_events(self, timeout: float | None = None, **kwargs: Any) -> Any:
        """Take the next event of this connection and run its callbacks here.  May switch.

        A lost connection raises its error once in each greenlet that waits here.  The next call
        waits until all is restored, and goes on.

        Arguments:
            timeout: seconds; None waits.

        Raises:
            socket.timeout: nothing came in time.
            ConnectionError, OSError: the connection was lost, or is closed.
            Exception: what a callback raised.
        """
        session = self.session
        life = session.settled
        if life is None:
            deadline = Deadline(timeout)
            life = session.whole(deadline)
            timeout = deadline.left()
        try:
            return session.broker.transport.drain_events(life.link, timeout=timeout, **kwargs)
        except Exception as exc:
            session.note_error(exc)
            raise

    def heartbeat_check(self, rate: float = 2) -> Any:
        """Raise if the peer is known to be dead.  Heartbeats need no help from here.

        Arguments:
            rate: accepted for kombu's sake.

        Raises:
            ConnectionError, OSError: the connection is lost or closed.
        """
        session = self.session
        session.check_hub()
        if session.is_open:
            try:
                return self.transport.heartbeat_check(session.life.link, rate=rate)
            except Exception as exc:
                session.note_error(exc)
                raise
        if session.is_lost or session.is_closed:
            lost = session.lost or getattr(session.life.link, "lost", None)
            raise RecoverableConnectionError(
                f"connection to {session.broker.label} is not open ({lost or 'closed'})"
            ) from lost
        return None

    def get_heartbeat_interval(self) -> Any:
        """Seconds between heartbeats, as agreed with the broker; 0 is off.  May switch."""
        return self.transport.get_heartbeat_interval(self.connection)

    def register_with_event_loop(self, loop: Any) -> None:
        """Have *loop* drain this connection whenever an event waits.

        Nobody has to: it is for programs built around a loop, which must run in a greenlet.

        Arguments:
            loop: anything with ``add_reader(fd, callback)``.
        """
        EventDescriptor(self, loop)

    def maybe_close_channel(self, channel: Channel) -> None:
        """Close a channel, whatever its broker or connection say to that.  May switch."""
        try:
            channel.close()
        except self.connection_errors + self.channel_errors:
            pass

    def flush(self, timeout: float | None = None) -> None:
        """Return when all that was published and answered here is on its way.  May switch.

        What is written leaves together, at the latest when the hub has its next turn.  Behind this call
        it has left: on AMQP and Redis the operating system has it, and sends it also if the program
        blocks or dies in its next line; other brokers have it.  That the broker has stored a message
        only a confirm tells.

        Nothing is open: does nothing.  While a lost connection is on its way back it waits for that, and
        for what is sent again then.

        Arguments:
            timeout: seconds; None is what the transport takes for the limit.

        Raises:
            TimeoutError: the broker took too little, or did not come back, in time.
            ConnectionError, OSError: the connection is lost.
        """
        session, deadline = self.session, Deadline(timeout)
        session.check_hub()
        life = session.whole(deadline) if session.is_lost else session.life
        if life.is_open and isinstance(life.link, Link):
            life.link.flush(deadline)

    def release(self) -> None:
        """Close the connection; one that a pool lent is given back.  May switch.

        Whoever waits on it gets an error, recovery ends, its consumers are forgotten.
        """
        broker = self.session.broker
        try:
            self.session.close()
        finally:
            broker.drop_transport()

    close = release

    def collect(self, socket_timeout: float | None = None) -> None:
        """Drop what is open at once, without a word to the broker.

        Arguments:
            socket_timeout: accepted for kombu's sake: nothing here waits.
        """
        self.session.collect()
        self.session.broker.drop_transport()

    def switch(self, conn_str: str) -> None:
        """Close, and mean another broker from now on.  Opens nothing.  May switch.

        Arguments:
            conn_str: a URL, or a host name that takes the place of the first one.
        """
        session = self.session
        session.close()
        session.broker.point_at(conn_str, keeps_transport=False)
        session.restart()

    def maybe_switch_next(self) -> None:
        """Switch to the next broker of the failover list, if there is one.  May switch."""
        self.session.check_hub()
        address = self.session.broker.failover.next()
        if address is not None:
            self.switch(address)

    def revive(self, new_channel: Any) -> None:
        """Make *new_channel* the default channel, and close the one that it replaces.  May switch.

        Arguments:
            new_channel: an open channel of this connection; after any other, and after None, the next
                use opens the default channel anew.
        """
        former = self.session.adopt_channel(new_channel)
        if former is not None:
            self.maybe_close_channel(former)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    @property
    def is_reusable(self) -> bool:
        """Whether a pool may lend it again: it was not closed."""
        return not self._session.is_closed

    def lend(self, pool: Lender) -> PooledConnection:
        """Return a facade over this connection for one holder.  For pools; never switches.

        Arguments:
            pool: its ``release`` and ``replace`` are called with the facade.
        """
        cls = type(self)
        return (PooledConnection if cls is Connection else _facade_class(cls))(self, pool)


class _Truth(int):
    """A truth value that may also be called."""

    __slots__ = ()

    def __call__(self) -> bool:
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))

    __str__ = __repr__


class BrokerConnection(Connection):
    """A connection for programs of carrot's time, which call ``connection.connected()``."""

    @property
    def connected(self) -> _Truth:  # type: ignore[override]  # bool has no subclasses
        """Whether the connection is open: a truth value that may also be called."""
        return _Truth(self._is_connected())


class PooledConnection(Connection):
    """What one holder of a pooled connection has in its hands.

    It shares everything with the connection below, and equals it.  ``release``, ``close`` and the
    end of ``with`` give it back, once.  What was bound to it may go on using it, as with kombu: the
    connection is shared, and may be lent to somebody else by then, so the log names each place that
    does so, once.

    Arguments:
        core: the pooled connection.
        pool: where it came from.
    """

    #: Whether it was given back, or has expired.
    _is_over = False
    #: Why it cannot be used any more; None while it can.
    _expired: str | None = None

    def __init__(self, core: Connection, pool: Lender) -> None:
        self._core = core
        self._pool = pool
        # The session is taken away when it is given back, so that only a later use pays for looking.
        self._session = core._session

    @property
    def _family(self) -> type[Any]:
        return type(self._core)

    def __getattr__(self, name: str) -> Any:
        if name == "_session" and self._is_over:
            return self._late_session()
        if name == "_core":
            raise AttributeError(name)
        # What a subclass of Connection keeps in its instances.
        return getattr(self._core, name)

    def _late_session(self) -> Session:
        """Return the session for a use after the release.

        Raises:
            OperationalError: the connection below was closed.
        """
        if self._expired is not None:
            raise OperationalError(f"{self!r} cannot be used any more: {self._expired}")
        place = _calling_place()
        if place not in _late_uses and len(_late_uses) < LATE_USES:
            _late_uses.add(place)
            logger.warning(
                "%s: used after its release at %s; it may be another holder's by now: use it before it "
                "is released, or hold a connection of your own",
                self._core,
                place,
            )
        return self._core._session

    def __eqhash__(self) -> ParameterKey:
        return self._core.__eqhash__()

    # Holder after holder has an object of his own, but what he has in his hands is the same.

    def __eq__(self, other: object) -> bool:
        return self._core is (other._core if isinstance(other, PooledConnection) else other)

    def __hash__(self) -> int:
        return hash(self._core)

    def __repr__(self) -> str:
        state = ", released" if self._is_over else ""
        label = self._core.session.broker.label
        return f"<{type(self).__name__}: {label}{state} at {id(self):#x}>"

    def lend(self, pool: Lender) -> PooledConnection:
        """A facade cannot be lent.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self!r} belongs to a pool")

    def mark_released(self) -> None:
        """Log later uses: the connection is not this holder's any more.  Never switches.  For pools."""
        self._is_over = True
        self.__dict__.pop("_session", None)

    def expire(self, reason: str) -> None:
        """Raise from now on, whatever is asked for, naming *reason*.  Never switches.  For pools."""
        self._expired = reason
        self.mark_released()

    def release(self) -> None:
        """Give the connection back; again: does nothing."""
        if not self._is_over:
            self._pool.release(self)

    close = release

    def collect(self, socket_timeout: float | None = None) -> None:
        """Drop what is open at once; after the release: does nothing."""
        if not self._is_over:
            super().collect(socket_timeout)

    def replace(self) -> None:
        """Give the connection back as broken, so that the pool opens another."""
        if not self._is_over:
            self._pool.replace(self)

    def __exit__(self, exc_type: object = None, *exc_info: object) -> None:
        if exc_type is not None and not self._is_over and self.session.is_lost:
            self.replace()
        else:
            self.release()


def _calling_place() -> str:
    """Return the file and the line of the program from which the library was called."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("greenconn."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


#: Class of a pooled connection -> class of its facades, which is of the same family.
_facades: WeakKeyDictionary[type[Connection], type[PooledConnection]] = WeakKeyDictionary()


def _facade_class(cls: type[Connection]) -> type[PooledConnection]:
    if issubclass(PooledConnection, cls):
        return PooledConnection
    found = _facades.get(cls)
    if found is None:
        namespace = {"__module__": cls.__module__}
        found = type(f"Pooled{cls.__name__}", (PooledConnection, cls), namespace)
        _facades[cls] = found
    return found
