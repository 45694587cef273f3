"""Connections: what a program holds to talk to a broker (kombu 5.7, ``kombu.connection``).

A connection opens nothing before it is needed.  It may be shared by all greenlets of a thread, and
so may its channels, producers and pools; another thread uses a :meth:`Connection.clone`.

All state is in one :class:`~greenconn.session.session.Session`, which the facades over the same
connection share.  Producers, consumers, pools and simple queues are imported when a connection is first
asked for one: a program that only publishes has no use for consumers, one that is about to fork for
neither.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from greenconn.abc import Lender, is_connection, maybe_channel
from greenconn.exceptions import (
    ChannelLimitExceeded,
    ConnectionLimitExceeded,
    OperationalError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.state import moved
from greenconn.options import BROKER_HEARTBEAT, ConnectOptions
from greenconn.session.broker import STRATEGIES, URI_FIELDS, Broker, Failover
from greenconn.session.ensure import Revival, ensure_open, ensured, library_errors, retry_options
from greenconn.session.event_fd import EventDescriptor
from greenconn.session.parameters import (
    DEFAULT_TRANSPORT,
    ParameterKey,
    Parameters,
    check_scheme,
    combined,
)
from greenconn.session.session import Listeners, Session
from greenconn.transport.base import Factories, Link
from greenconn.transport.registry import get_transport_cls
from greenconn.url import split_urls

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.abc import Channel
    from greenconn.messaging import Consumer as _Consumer
    from greenconn.messaging import Producer as _Producer
    from greenconn.resource import ChannelPool, ConnectionPool, Resource
    from greenconn.resource import ChannelPool as _ChannelPool
    from greenconn.resource import ConnectionPool as _ConnectionPool
    from greenconn.simple import SimpleBuffer as _SimpleBuffer
    from greenconn.simple import SimpleQueue as _SimpleQueue

__all__ = [
    "BrokerConnection",
    "ChannelLimitExceeded",
    "ChannelPool",
    "Connection",
    "ConnectionLimitExceeded",
    "ConnectionPool",
    "PooledConnection",
    "Resource",
    "failover_strategies",
    "is_connection",
    "maybe_channel",
    "resolve_aliases",
]

logger = logging.getLogger("greenconn.connection")

T = TypeVar("T")

#: Seconds that an explicit ``connect()`` waits at most when an earlier attempt has just failed.
CONNECT_INTERVAL: Final = 0.2
#: Places that are logged for using a connection after its release, at most.
LATE_USES: Final = 1000
_late_uses: Final[set[str]] = set()
_NAMES: Final = frozenset(Parameters.fields)


class _Shared(Generic[T]):
    """An attribute that is read from the session.  On the class it is its default, as in kombu.

    Arguments:
        default: the value on the class.
        read: takes it out of the session.
    """

    def __init__(self, default: T, read: Callable[[Session], T]) -> None:
        self._default = default
        self._read = read
        self.name = ""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> T:
        return self._default if instance is None else self._read(instance.session)

    def __set__(self, instance: Any, value: T) -> None:
        raise AttributeError(f"{type(instance).__name__}.{self.name} cannot be set")


class _Parameter(_Shared[T]):
    """One of the parameters of the broker that is meant now.

    Arguments:
        default: the value on the class, and what None stands for where *fills* is True.
        parameter: its name, if that is not the attribute's.
    """

    def __init__(self, default: T, parameter: str = "", *, fills: bool = False) -> None:
        super().__init__(default, self._read_parameter)
        self._parameter = parameter
        self._fills = fills

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> T:
        # As above, with a call less: opening a connection asks for all of them.
        return self._default if instance is None else self._read_parameter(instance.session)

    def _read_parameter(self, session: Session) -> T:
        value = getattr(session.broker.parameters, self._parameter or self.name)
        return self._default if value is None and self._fills else cast(T, value)

    def __set__(self, instance: Any, value: T) -> None:
        instance.session.broker.change(self._parameter or self.name, value)


class Connection:
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

    #: Aliases of transports -> what ``info`` calls them.
    resolve_aliases: ClassVar[Mapping[str, str]] = {"pyamqp": "amqp", "librabbitmq": "amqp"}
    #: Names for ``failover_strategy``.
    failover_strategies: ClassVar[Mapping[str, Any]] = dict(STRATEGIES)

    hostname = _Parameter[str | None](None)
    userid = _Parameter[str | None](None)
    password = _Parameter[Any](None)
    virtual_host = _Parameter[str]("/", fills=True)
    port = _Parameter[int | None](None)
    insist = _Parameter[bool](False)
    ssl = _Parameter[Any](None)
    transport_cls = _Parameter[Any](DEFAULT_TRANSPORT, "transport", fills=True)
    connect_timeout = _Parameter[float | None](5)
    transport_options = _Parameter[dict[str, Any]](None)  # type: ignore[arg-type]  # on the class
    login_method = _Parameter[str | None](None)
    uri_prefix = _Parameter[str | None](None)
    heartbeat = _Parameter[float | None](None)
    credential_provider = _Parameter[Any](None)

    #: The URLs of the failover list; empty where there is only one.
    alt = _Shared[list[str]]([], lambda session: session.broker.failover.addresses)
    #: Gives the next URL to try; None where there is only one.
    cycle = _Shared[Iterator[str] | None](None, lambda session: session.broker.failover.cycle)
    #: What chooses the next broker: a function of the list.
    failover_strategy = _Shared[Any](
        "round-robin", lambda session: session.broker.failover.strategy
    )
    #: Entities known to exist at the broker; a set for each life of the connection.
    declared_entities = _Shared[set[Any]](
        None,  # type: ignore[arg-type]  # on the class
        lambda session: session.life.declared_entities,
    )
    #: For ``maybe_declare``: one declaration of an entity at a time; one for each life.
    declare_flight = _Shared[Any](None, lambda session: session.life.declare_flight)
    #: Functions that are called with the reason when the connection was lost: ``append`` yours.  Each
    #: call has a greenlet of its own; what it raises is logged.
    on_connection_lost = _Shared[Listeners](Listeners(), lambda session: session.on_connection_lost)
    #: Functions that are called, without arguments, when a lost connection is open again and all is
    #: restored: what was declared, and consumers.
    on_recovered = _Shared[Listeners](Listeners(), lambda session: session.on_recovered)

    def __init__(
        self,
        hostname: str | Iterable[str] | None = "localhost",
        userid: str | None = None,
        password: str | Callable[[], str] | None = None,
        virtual_host: str | None = None,
        port: int | None = None,
        insist: bool = False,
        ssl: Any = False,
        transport: str | type[Any] | None = None,
        connect_timeout: float | None = 5,
        transport_options: dict[str, Any] | None = None,
        login_method: str | None = None,
        uri_prefix: str | None = None,
        heartbeat: float | None = BROKER_HEARTBEAT,
        failover_strategy: Any = "round-robin",
        alternates: Iterable[str] | None = None,
        credential_provider: Any = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            logger.warning(
                "%s: unknown arguments are ignored: %s",
                type(self).__name__,
                ", ".join(sorted(kwargs)),
            )
        keywords = Parameters(
            userid=userid,
            password=password,
            virtual_host=virtual_host,
            port=port,
            insist=insist,
            ssl=ssl,
            transport=transport,
            connect_timeout=connect_timeout,
            transport_options={} if transport_options is None else transport_options,
            login_method=login_method,
            uri_prefix=uri_prefix,
            heartbeat=_heartbeat(heartbeat),
            credential_provider=credential_provider,
        )
        hosts = _hosts(hostname)
        first, whole = combined(hosts[0] if hosts else None, keywords, is_first=True)
        addresses, current = _addresses(hosts, alternates, first, keywords)
        for address in addresses:
            combined(address, keywords)  # a bad one fails now, not when it is needed
        failover = Failover(
            addresses, whole.get("failover_strategy") or failover_strategy, self.failover_strategies
        )
        if current is not None:
            failover.skip_to(current)
        #: The life of this connection, shared by all its facades.
        self.session = Session(Broker(self, keywords, first, failover))

    @property
    def _family(self) -> type[Self]:
        """The class of copies."""
        return type(self)

    def create_transport(self) -> Any:
        """Make a transport for the broker that is meant now."""
        return self.get_transport_cls()(client=self)

    def _establish_connection(self, deadline: Deadline | None = None) -> Any:
        # kombu's seam between a connection and its transport, which tests of programs replace.
        return self.session.broker.open_link(deadline or Deadline())

    # kombu's names of what programs look at, and what their tests replace.

    @property
    def _closed(self) -> bool:
        return self.session.is_closed

    @_closed.setter
    def _closed(self, is_closed: bool) -> None:
        if is_closed:
            self.session.close()
        elif self.session.is_closed:
            self.session.restart()

    @property
    def _connection(self) -> Any:
        return self.session.life.link

    @property
    def _default_channel(self) -> Any:
        return self.session.life.default_channel

    @_default_channel.setter
    def _default_channel(self, channel: Any) -> None:
        self.session.life.default_channel = channel

    def get_transport_cls(self) -> Any:
        """Return the class of the transport.

        Raises:
            KeyError: no transport has that name.
        """
        return get_transport_cls(self.transport_cls)

    @property
    def transport(self) -> Any:
        """The transport, made when it is first needed."""
        return self.session.broker.transport

    def completes_cycle(self, retries: int) -> bool:
        """Return whether all brokers of the list were tried after *retries* further tries."""
        return self.session.broker.failover.completes_cycle(retries)

    def clone(self, **kwargs: Any) -> Self:
        """Return another connection with the same parameters.  Opens nothing.

        Arguments:
            kwargs: arguments of the constructor that differ.
        """
        broker = self.session.broker
        twin = self._family(**{**broker.info(resolve=False), **kwargs})
        if not {"hostname", "alternates"} & kwargs.keys():
            # What the URLs leave blank is filled from the keywords, not from the URL in use.
            changes = {name: value for name, value in kwargs.items() if name in _NAMES}
            twin.session.broker.keywords = broker.keywords.replace(**changes)
        return twin

    def __copy__(self) -> Self:
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"keywords": self.session.broker.keywords} if self.alt else None
        return self._family, tuple(self.info().values()), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.session.broker.keywords = state["keywords"]

    def info(self) -> dict[str, Any]:
        """Return the arguments of the constructor that stand for this connection.

        The password is among them in clear.
        """
        return self.session.broker.info()

    def as_uri(
        self,
        include_password: bool = False,
        mask: str = "**",
        getfields: Callable[[dict[str, Any]], Any] = URI_FIELDS,
    ) -> str:
        """Return the URL of the broker that is meant now.

        Arguments:
            include_password: write the password; one that is a function is called.
            mask: what stands for it otherwise.
            getfields: takes port, user, password, virtual host and transport out of ``info()``.
        """
        return self.session.broker.as_uri(include_password, mask, getfields)

    @property
    def host(self) -> str:
        """Host name and port, with a colon between them."""
        return f"{self.hostname}:{self.port}"

    def __eqhash__(self) -> ParameterKey:
        """Return the key of its pools, which is the same for connections with the same parameters."""
        return self.session.broker.key()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.session.broker.label} at {id(self):#x}>"

    # Opening, and functions that survive a loss

    def connect(self) -> Any:
        """Open the connection now, and return the transport's own object for it.  May switch.

        Raises:
            Exception: the transport's error when each broker of the list was tried once.
        """
        return self.session.link(reopen=True, rounds=1, interval=CONNECT_INTERVAL)

    def ensure_connection(
        self,
        errback: Callable[[Exception, float], Any] | None = None,
        max_retries: float | None = None,
        interval_start: float = 2,
        interval_step: float = 2,
        interval_max: float = 30,
        callback: Callable[[], Any] | None = None,
        reraise_as_library_errors: bool = True,
        timeout: float | Deadline | None = None,
    ) -> Self:
        """Open the connection if it is not open, trying as often as is said here.  May switch.

        Arguments:
            errback: called with each error and the seconds until the next attempt.
            max_retries: attempts after the first; None and infinity never give up.
            interval_start: seconds to wait after the first round over the brokers of the list.
            interval_step: seconds by which each wait is longer than the one before.
            interval_max: seconds that no wait exceeds.
            callback: called before each wait, and at the beginning of each whole second of it.
            reraise_as_library_errors: raise OperationalError rather than the transport's error.
            timeout: seconds for all of it; None or 0 has no end.

        Raises:
            OperationalError: all attempts failed; the last error is its cause.
            Exception: an error that trying again does not help, as a refused login.
        """
        if self.session.is_open:
            self.session.link()  # which tells who comes from another thread
        else:
            policy = ConnectOptions(
                errback=errback,
                max_retries=_limit(max_retries),
                interval_start=interval_start,
                interval_step=interval_step,
                interval_max=interval_max,
                callback=callback,
            )
            ensure_open(
                self,
                policy,
                Deadline.of(timeout or None),
                wraps_errors=reraise_as_library_errors,
            )
        return self

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        # kombu's name, which programs call: the same, and returns the transport's own object.
        return self.ensure_connection(*args, **kwargs).session.link()

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self._is_connected()

    def _is_connected(self) -> bool:
        session = self.session
        return session.is_open and bool(
            session.broker.transport.verify_connection(session.life.link)
        )

    @property
    def connection(self) -> Any:
        """The transport's own object, opened if need be; None when closed.  May switch."""
        return None if self.session.is_closed else self.connect()

    def channel(self) -> Any:
        """Open a channel.  May switch."""
        link = self.session.link(reopen=True)
        return self.transport.create_channel(link)

    def update_secret(self, secret: str, reason: str = "", *, timeout: float | None = None) -> None:
        """Change the password of this login while the connection is open, as OAuth 2 asks for.

        Later attempts to connect use it too, unless the password is a function or there is a
        ``credential_provider``: these are asked then.  A connection that is not open opens nothing.
        May switch.

        Arguments:
            reason: for the broker's log.
            timeout: seconds to wait for the broker's reply; None is the transport's own.

        Raises:
            ConnectionError: the broker refused it, and ended the connection for that.
            TimeoutError: it did not answer in time.
            NotImplementedError: the transport knows no such thing.
        """
        session = self.session
        broker = session.broker
        if session.is_open:
            deadline = Deadline(timeout)
            broker.transport.update_secret(session.link(), secret, reason, deadline)
        if not callable(self.password) and self.credential_provider is None:
            broker.change("password", secret)

    @property
    def default_channel(self) -> Any:
        """A channel that all share: opened when first needed, and again after an error.  May switch.

        ``transport_options`` may say how often to try to connect (``max_retries``,
        ``interval_start``, ``interval_step``, ``interval_max``, ``errback``, ``callback``,
        ``connect_retries_timeout``); otherwise it gives up after ``connect_timeout``.

        Raises:
            OperationalError: no broker could be reached.
        """
        session = self.session
        if not session.is_open:
            options = retry_options(self.transport_options)
            if options:
                self.ensure_connection(**{"timeout": self.connect_timeout, **options})
            else:
                with library_errors(self):
                    session.link(reopen=True)
        return session.default_channel(reopen=True)

    @property
    def ready_channel(self) -> Any:
        """The default channel if it is open now, else None.  Never switches."""
        channel = self.session.life.default_channel
        return channel if getattr(channel, "is_open", True) else None

    def ensure(
        self,
        obj: Any,
        fun: Callable[..., Any],
        errback: Callable[[Exception, float], Any] | None = None,
        max_retries: float | None = None,
        interval_start: float = 1,
        interval_step: float = 1,
        interval_max: float = 1,
        on_revive: Callable[[Any], Any] | None = None,
        retry_errors: tuple[type[BaseException], ...] | None = None,
        *,
        timeout: float | Deadline | None = None,
    ) -> Callable[..., Any]:
        """Return *fun* as a function that survives the loss of connection and channel.

        Errors whose operation may have been done (``PublishTimeout`` and the like,
        :data:`greenconn.exceptions.NEVER_REPEATED`) are raised at once.

        Arguments:
            obj: its ``revive(channel)`` is called before *fun* is called again.
            fun: what to call.
            errback: called with each error of connection or channel, and the seconds until the next
                attempt.
            max_retries: calls after the first; None and infinity never give up.
            interval_start, interval_step, interval_max: seconds between attempts.
            on_revive: called with the channel after ``obj.revive``.
            retry_errors: further errors after which *fun* is simply called again.
            timeout: seconds for one call of the result, with everything in it; None has no end.

        Raises:
            OperationalError: (the function returned) it gave up; the last error is its cause.
        """
        policy = ConnectOptions(
            errback=errback,
            max_retries=_limit(max_retries),
            interval_start=interval_start,
            interval_step=interval_step,
            interval_max=interval_max,
        )
        return ensured(
            self,
            obj,
            fun,
            policy,
            on_revive=on_revive,
            retry_errors=retry_errors or (),
            timeout=timeout,
        )

    def _reraise_as_library_errors(self) -> AbstractContextManager[None]:
        # Celery's applications use it around each task that they send.
        return library_errors(self)

    def autoretry(
        self, fun: Callable[..., Any], channel: Channel | None = None, **ensure_options: Any
    ) -> Callable[..., tuple[Any, Any]]:
        """Return a function that calls *fun* with ``channel=...``, as :meth:`ensure` does.

        It returns what *fun* returned, and the channel used last.

        Arguments:
            channel: to begin with; None takes the default channel.
            ensure_options: see :meth:`ensure`; they hold for the first connecting, too.
        """
        names = ("errback", "max_retries", "interval_start", "interval_step", "interval_max")
        opening = {"timeout": self.connect_timeout, **retry_options(self.transport_options)}
        opening.update((name, ensure_options[name]) for name in names if name in ensure_options)
        revival = Revival(self, fun, channel, lambda: self.ensure_connection(**opening))
        return self.ensure(revival, revival, **ensure_options)

    # The transport of the broker that is meant

    def supports_exchange_type(self, exchange_type: str) -> bool:
        """Return whether the transport has exchanges of that type."""
        return exchange_type in self.transport.implements.exchange_type

    @property
    def supports_heartbeats(self) -> bool:
        """Whether the transport's protocol has heartbeats."""
        return bool(self.transport.implements.heartbeats)

    @property
    def is_evented(self) -> bool:
        """False: nobody has to drive the connection."""
        return False

    @property
    def qos_semantics_matches_spec(self) -> bool:
        """Whether ``basic_qos(apply_global=True)`` is about the whole connection.  May switch."""
        matches: bool = self.transport.qos_semantics_matches_spec(self.session.link())
        return matches

    @property
    def manager(self) -> Any:
        """The management interface of the transport."""
        return self.transport.manager

    def get_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return the management interface of the transport.

        Its methods raise NotImplementedError where the transport has no management interface.
        """
        return self.transport.get_manager(*args, **kwargs)

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that mean a lost connection."""
        return self.session.broker.connection_errors

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that mean a lost channel."""
        return self.session.broker.channel_errors

    @property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors after which a new connection may help."""
        return self.session.broker.recoverable_connection_errors

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors after which a new channel may help."""
        return self.session.broker.recoverable_channel_errors

    # Events

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
        life = session.ready_life
        if life is None:
            deadline = Deadline(timeout)
            life = session.wait_ready(deadline)
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
        """Return the seconds between heartbeats, as agreed with the broker; 0 is off.  May switch."""
        return self.transport.get_heartbeat_interval(self.connection)

    def register_with_event_loop(self, loop: Any) -> None:
        """Have *loop* drain this connection whenever an event waits.

        Nobody has to: it is for programs built around a loop, which must run in a greenlet.

        Arguments:
            loop: anything with ``add_reader(fd, callback)``, or what a transport that is written to
                kombu's base contract wants: its ``register_with_event_loop`` is called.
        """
        if self.session.broker.has_base_contract:
            self.transport.register_with_event_loop(self.connection, loop)
        else:
            EventDescriptor(self, loop)

    def maybe_close_channel(self, channel: Channel) -> None:
        """Close a channel, whatever its broker or connection say to that.  May switch."""
        try:
            channel.close()
        except self.connection_errors + self.channel_errors:
            pass

    def flush(self, timeout: float | None = None) -> None:
        """Return when all publishes and acks are on their way.  May switch.

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
        life = session.wait_ready(deadline) if session.is_lost else session.life
        if life.is_open and isinstance(life.link, Link):
            life.link.flush(deadline)

    def release(self) -> None:
        """Close the connection; one of a pool is released.  May switch.

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

    # What is built on a connection

    def Pool(self, limit: int | None = None, **kwargs: Any) -> _ConnectionPool:  # noqa: N802
        """Make a pool of connections like this one; *limit* None is unlimited."""
        from greenconn.resource import ConnectionPool

        return ConnectionPool(self, limit, **kwargs)

    def ChannelPool(self, limit: int | None = None, **kwargs: Any) -> _ChannelPool:  # noqa: N802
        """Make a pool of channels of this connection; *limit* None is unlimited."""
        from greenconn.resource import ChannelPool

        return ChannelPool(self, limit, **kwargs)

    def Producer(  # noqa: N802
        self, channel: Channel | None = None, *args: Any, **kwargs: Any
    ) -> _Producer:
        """Make a producer on *channel*, or on the default channel."""
        return _producer(self if channel is None else channel, *args, **kwargs)

    def Consumer(  # noqa: N802
        self,
        queues: Any = None,
        channel: Channel | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> _Consumer:
        """Make a consumer of *queues* on *channel*, or on the default channel."""
        return _consumer(self if channel is None else channel, queues, *args, **kwargs)

    def SimpleQueue(  # noqa: N802
        self,
        name: Any,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> _SimpleQueue:
        """Make a queue with ``put`` and ``get``, on *channel* or the default channel.

        Arguments:
            name: of the queue, its exchange and its routing key; or a Queue.
            no_ack: whether messages need no acknowledgement.
            queue_opts, exchange_opts: arguments of Queue and Exchange.
            queue_args: ``x-...`` arguments of the queue.
        """
        from greenconn.simple import SimpleQueue

        return SimpleQueue(
            self if channel is None else channel,
            name,
            no_ack,
            queue_opts,
            queue_args,
            exchange_opts,
            **kwargs,
        )

    def SimpleBuffer(  # noqa: N802
        self,
        name: Any,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> _SimpleBuffer:
        """Make a :meth:`SimpleQueue` of which nothing outlives the broker or needs an ack."""
        from greenconn.simple import SimpleBuffer

        return SimpleBuffer(
            self if channel is None else channel,
            name,
            no_ack,
            queue_opts,
            queue_args,
            exchange_opts,
            **kwargs,
        )

    # For pools

    @property
    def is_reusable(self) -> bool:
        """Whether a pool may lend it again: it was not closed."""
        return not self.session.is_closed

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


class CheckoutState(Enum):
    """The stages of a loan of a pooled connection."""

    #: Its holder may use it.
    LENT = "lent"
    #: It was released.  What its former holder does with it works, and is logged.
    RELEASED = "released"
    #: What is below was closed.  Whatever is asked of it raises.
    EXPIRED = "expired"


LOAN_MOVES: Final[Mapping[CheckoutState, frozenset[CheckoutState]]] = {
    CheckoutState.LENT: frozenset({CheckoutState.RELEASED, CheckoutState.EXPIRED}),
    CheckoutState.RELEASED: frozenset(),
    CheckoutState.EXPIRED: frozenset(),
}
#: Asked for with each loan, and members of an Enum are not looked up for nothing.
_LENT: Final = CheckoutState.LENT
_RELEASED: Final = CheckoutState.RELEASED


class PooledConnection(Connection):
    """A loan of a pooled connection, for one holder.

    It shares everything with the connection below, and equals it.  ``release``, ``close`` and the
    end of ``with`` give it back, once.  What was bound to it may go on using it, as with kombu: the
    connection is shared, and may be lent to somebody else by then, so the log names each place that
    does so, once.

    Arguments:
        core: the pooled connection.
        pool: where it came from.
    """

    _checkout = CheckoutState.LENT
    #: Why it cannot be used any more; empty while it can.
    _reason = ""

    def __init__(self, core: Connection, pool: Lender) -> None:
        self._core = core
        self._pool = pool
        # The session is taken away when it is released, so that only a later use pays for looking.
        self.session = core.session

    @property
    def _family(self) -> type[Any]:
        return type(self._core)

    def __getattr__(self, name: str) -> Any:
        if name == "session" and self._checkout is not _LENT:
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
        if self._checkout is CheckoutState.EXPIRED:
            raise OperationalError(f"{self!r} cannot be used any more: {self._reason}")
        place = _calling_place()
        if place not in _late_uses and len(_late_uses) < LATE_USES:
            _late_uses.add(place)
            logger.warning(
                "%s: used after its release at %s; another holder may have it now: use it before "
                "it is released, or use a connection of your own",
                self._core,
                place,
            )
        return self._core.session

    def __eqhash__(self) -> ParameterKey:
        return self._core.__eqhash__()

    # Each holder has an object of its own, over the same connection.

    def __eq__(self, other: object) -> bool:
        return self._core is (other._core if isinstance(other, PooledConnection) else other)

    def __hash__(self) -> int:
        return hash(self._core)

    def __repr__(self) -> str:
        state = "" if self._checkout is _LENT else ", released"
        label = self._core.session.broker.label
        return f"<{type(self).__name__}: {label}{state} at {id(self):#x}>"

    def lend(self, pool: Lender) -> PooledConnection:
        """Refuse to lend a facade to another pool.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self!r} belongs to a pool")

    def mark_released(self) -> None:
        """Log later uses: the connection is not this holder's any more.  Never switches.  For pools."""
        # Without a call of moved(), and without making a __dict__: each loan ends here.
        if self._checkout is _LENT:
            self._checkout = _RELEASED
            del self.session
        else:
            self._checkout = moved(self._checkout, _RELEASED, LOAN_MOVES, "a loan")

    def expire(self, reason: str) -> None:
        """Raise from now on, whatever is asked for, naming *reason*.  Never switches.  For pools."""
        self._checkout = moved(self._checkout, CheckoutState.EXPIRED, LOAN_MOVES, "a loan")
        self._reason = reason
        self.__dict__.pop("session", None)

    def release(self) -> None:
        """Give the connection back; again: does nothing."""
        if self._checkout is _LENT:
            self._pool.release(self)

    close = release

    def collect(self, socket_timeout: float | None = None) -> None:
        """Drop what is open at once; after the release: does nothing."""
        if self._checkout is _LENT:
            super().collect(socket_timeout)

    def replace(self) -> None:
        """Give the connection back as broken, so that the pool opens another."""
        if self._checkout is _LENT:
            self._pool.replace(self)

    def __exit__(self, exc_type: object = None, *exc_info: object) -> None:
        if exc_type is not None and self._checkout is _LENT and self.session.is_lost:
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


def _hosts(hostname: object) -> list[str]:
    if hostname is None or hostname == "":
        return []
    if isinstance(hostname, bytes) or not isinstance(hostname, Iterable):
        raise TypeError(f"hostname must be a URL, a host name, or a list of them, got {hostname!r}")
    return split_urls(hostname)


def _heartbeat(value: Any) -> float | None:
    """Return the heartbeat in seconds; kombu takes text, too."""
    if not value:
        return value  # type: ignore[no-any-return]  # 0, also the one that means the broker's, or None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"heartbeat must be a number of seconds, got {value!r}") from None


def _addresses(
    hosts: list[str],
    alternates: Iterable[str] | None,
    first: Parameters,
    keywords: Parameters,
) -> tuple[list[str], str | None]:
    """Return the failover list and the member that *first* is; both empty for a single host.

    Copies and pickles give the current host apart from the list that it is a member of.
    """
    others = [] if alternates is None else split_urls(alternates)
    if len(hosts) > 1 or not others:
        addresses = list(chain(hosts, others)) if len(hosts) + len(others) > 1 else []
        return addresses, None
    for address in others:
        if address == (hosts or [""])[0] or _is_same_place(combined(address, keywords)[0], first):
            return others, address
    return [hosts[0] if hosts else "localhost", *others], None


def _is_same_place(one: Parameters, other: Parameters) -> bool:
    names = ("hostname", "port", "virtual_host", "userid")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _limit(max_retries: float | None) -> int | None:
    """Return the limit of retries; infinity, which oslo.messaging passes, is none."""
    return None if max_retries == inf else cast("int | None", max_retries)


def _producer(*args: Any, **kwargs: Any) -> _Producer:
    from greenconn.messaging import Producer

    return Producer(*args, **kwargs)


def _consumer(*args: Any, **kwargs: Any) -> _Consumer:
    from greenconn.messaging import Consumer

    return Consumer(*args, **kwargs)


#: The names of the arguments of a connection.
ARGUMENTS: Final = frozenset(Connection.__init__.__annotations__) - {"kwargs", "return"}
#: What ``Connection`` has under these names: adding to one adds to the other.
failover_strategies = Connection.failover_strategies
resolve_aliases = Connection.resolve_aliases

#: kombu's name.
_check_url_transport = check_scheme

# Channels have the same shortcuts; messaging, once imported, puts its classes there itself.
Factories.Producer = Factories.Producer or _producer
Factories.Consumer = Factories.Consumer or _consumer

if not TYPE_CHECKING:  # or a type checker would let any name pass

    def __getattr__(name: str) -> Any:
        if name not in ("ChannelPool", "ConnectionPool", "Resource"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from greenconn import resource

        value = globals()[name] = getattr(resource, name)
        return value
