"""Connections to a broker (kombu 5.7, ``kombu.connection``).

A connection is opened when it is first needed.  All greenlets of a thread can share it, its channels,
its producers and its pools; another thread uses a :meth:`Connection.clone`.

The state is in one :class:`~greenconn.session.session.Session`, which is shared by all facades of the
connection: the connection itself and the :class:`PooledConnection` objects that a pool hands out.

Producers, consumers, pools and simple queues are imported when they are first used: a program that only
publishes needs no consumers, and one that is about to fork needs neither.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from inspect import signature
from itertools import chain
from math import inf
from operator import attrgetter
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

from gevent import Greenlet
from gevent.event import Event

from greenconn.checks import (
    Seconds,
    check_keywords,
    in_seconds,
    is_connection,
    maybe_channel,
    shows,
)
from greenconn.credentials import SharedLogin
from greenconn.exceptions import (
    ChannelLimitExceeded,
    ConnectionLimitExceeded,
    OperationalError,
    RecoverableConnectionError,
    error_text,
)
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.supervisor import State, moved, spawn
from greenconn.options import BROKER_HEARTBEAT, ConnectOptions
from greenconn.session.broker import (
    DEFAULT_TRANSPORT,
    STRATEGIES,
    UNNAMED,
    URI_FIELDS,
    Broker,
    Failover,
    ParameterKey,
    Parameters,
    check_scheme,
    combined,
    configured,
)
from greenconn.session.ensure import Revival, ensure_open, ensured, library_errors, retry_options
from greenconn.session.session import Listeners, Session, SessionState, sessions_in_use
from greenconn.transport import get_transport_cls
from greenconn.transport.base import Factories, Link
from greenconn.url import split_urls

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from greenconn.abc import Channel, Lender
    from greenconn.messaging import Consumer as _Consumer
    from greenconn.messaging import Producer as _Producer
    from greenconn.resource import ChannelPool, ConnectionPool, PoolArguments, Resource
    from greenconn.resource import ChannelPool as _ChannelPool
    from greenconn.resource import ConnectionPool as _ConnectionPool
    from greenconn.simple import SimpleBuffer as _SimpleBuffer
    from greenconn.simple import SimpleQueue as _SimpleQueue

    class _NoArguments(TypedDict):
        """The arguments of :class:`Connection` that are not named."""

    class _ProducerArguments(TypedDict, total=False):
        """The arguments of a producer beside the channel."""

        auto_declare: bool | None
        compression: str | None
        exchange: Any
        on_return: Callable[..., Any] | None
        routing_key: str | None
        serializer: str | None

    class _ConsumerArguments(TypedDict, total=False):
        """The arguments of a consumer beside the channel and the queues."""

        accept: Iterable[str] | None
        auto_declare: bool | None
        callbacks: list[Callable[..., Any]] | None
        no_ack: bool | None
        on_decode_error: Callable[[Any, Exception], Any] | None
        on_message: Callable[[Any], Any] | None
        prefetch_count: int | None
        tag_prefix: str | None

    class _SimpleArguments(TypedDict, total=False):
        """The further arguments of simple queues."""

        accept: Iterable[str] | None
        compression: str | None
        serializer: str | None


__all__ = [
    "BrokerConnection",
    "ChannelLimitExceeded",
    "ChannelPool",
    "Connection",
    "ConnectionArguments",
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

#: Maximum seconds that an explicit ``connect()`` waits after an attempt that has just failed.
CONNECT_INTERVAL: Final = 0.2
#: Maximum number of places in the program that are logged for using a released connection.
LATE_USES: Final = 1000
_late_uses: Final[set[str]] = set()
_new: Final = object.__new__
_CLOSED: Final = SessionState.CLOSED
_NAMES: Final = frozenset(Parameters.fields)
#: Arguments of a clone that logs in elsewhere, or as another user.
_OF_LOGIN: Final = frozenset(
    {"alternates", "credential_provider", "hostname", "password", "userid"}
)


class _Shared(Generic[T]):
    """An attribute of a connection that is read from its session.

    Arguments:
        default: the value of the attribute on the class, as in kombu.
        read: returns the value for a session.
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
    """An attribute of a connection that is a parameter of the current broker.

    Arguments:
        default: the value of the attribute on the class.
        parameter: the name of the parameter; empty is the name of the attribute.
        fills: whether the attribute is *default* if the parameter is None.
    """

    def __init__(self, default: T, parameter: str = "", *, fills: bool = False) -> None:
        self._parameter = parameter
        self._fills = fills
        # Of C, since opening a connection reads all parameters.
        super().__init__(default, attrgetter(f"broker.parameters.{parameter}"))

    def __set_name__(self, owner: type[Any], name: str) -> None:
        super().__set_name__(owner, name)
        if not self._parameter:
            self._parameter = name
            self._read = attrgetter(f"broker.parameters.{name}")

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> T:
        if instance is None:
            return self._default
        value = self._read(instance.session)
        return self._default if value is None and self._fills else value

    def __set__(self, instance: Any, value: T) -> None:
        instance.session.broker.change(self._parameter, value)


class _Password(_Parameter[Any]):
    """The password of now, which all clones of a connection share once it was changed."""

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        return self._default if instance is None else instance.session.broker.password


class _Errors(_Shared[tuple[type[BaseException], ...]]):
    """An attribute of a connection with exception classes, which the transport names."""

    def __init__(self) -> None:
        super().__init__((), self._read_errors)

    def _read_errors(self, session: Session) -> tuple[type[BaseException], ...]:
        errors: tuple[type[BaseException], ...] = getattr(session.broker, self.name)
        return errors

    def __set__(self, instance: Any, value: tuple[type[BaseException], ...]) -> None:
        instance.session.broker.replace_errors(self.name, tuple(value))


class Connection:
    """A connection to a broker, or to one of several.

    Example::

        Connection("amqp://guest:guest@localhost:5672//")
        Connection("amqp://one;amqp://two", failover_strategy="shuffle")
        Connection("redis://", transport_options={"visibility_timeout": 3600})

    All greenlets of a thread can share a connection, and each of them can publish, drain or close it.

    A lost connection is recovered until :meth:`close`: at once in the background if it has consumers,
    otherwise on its next use.  A closed connection is opened again by :meth:`connect`,
    :meth:`channel`, :attr:`default_channel` and :meth:`ensure_connection`.

    Arguments:
        hostname: a URL, several URLs (a list, or text separated by ``;``), or a host name.  Without it,
            and without arguments for an address or a login, the broker is that of
            :func:`greenconn.configure` or else of ``GREENCONN_URL``, with the options of ``configure``
            for which there is no argument; if there is neither, the broker on this machine.
        userid, password, virtual_host, port: values for the parts that the URL lacks.  A password can
            be a function that returns it.  It is called for each attempt to connect, and before a
            :class:`~greenconn.credentials.Token` that it returned expires.
        insist: accepted for compatibility with kombu and ignored.
        ssl: True for TLS with verification, or a dict of TLS options.
        transport: an alias, a class or the path of a class, if the URL has no scheme.
        connect_timeout: seconds to connect to one broker, from name lookup to login; None is no limit.
            Of several brokers, all but the last have an equal part of it in the first round.
        transport_options: options of the transport, see there.
        login_method: SASL mechanism.
        uri_prefix: the part of the scheme before a ``+``.
        heartbeat: seconds between heartbeats; 0 turns them off.  By default the broker's proposal.
        failover_strategy: ``round-robin``, ``shuffle``, or a function that takes the list of URLs
            and returns an iterator of the URLs to try.
        alternates: further URLs of the failover list.
        credential_provider: an object whose ``get_credentials()`` returns user name and password;
            called when a password function would be.

    Raises:
        TypeError: an argument is unknown.
        ValueError: the URL is malformed, or has an unknown option.
        KeyError: there is no transport of that name.
    """

    # Also those of PooledConnection: the class of a program may have slots, too, and of two classes with
    # slots there is no common subclass.
    __slots__ = (
        *("__dict__", "__weakref__", "session"),
        *("_attributes", "_core", "_lent", "_loan", "_pool", "_released"),
    )

    #: Aliases of transports -> their names in ``info()``.
    resolve_aliases: ClassVar[Mapping[str, str]] = {"pyamqp": "amqp", "librabbitmq": "amqp"}
    #: Names of failover strategies -> functions.
    failover_strategies: ClassVar[Mapping[str, Any]] = dict(STRATEGIES)

    hostname: _Parameter[str | None] = _Parameter(None)
    userid: _Parameter[str | None] = _Parameter(None)
    password: _Parameter[Any] = _Password(None)
    virtual_host: _Parameter[str] = _Parameter("/", fills=True)
    port: _Parameter[int | None] = _Parameter(None)
    insist: _Parameter[bool] = _Parameter(False)
    ssl: _Parameter[Any] = _Parameter(None)
    transport_cls: _Parameter[Any] = _Parameter(DEFAULT_TRANSPORT, "transport", fills=True)
    connect_timeout: _Parameter[float | None] = _Parameter(5)
    transport_options: _Parameter[dict[str, Any]] = _Parameter(None)  # type: ignore[arg-type]  # on the class
    login_method: _Parameter[str | None] = _Parameter(None)
    uri_prefix: _Parameter[str | None] = _Parameter(None)
    heartbeat: _Parameter[float | None] = _Parameter(None)
    credential_provider: _Parameter[Any] = _Parameter(None)

    #: The URLs of the failover list; empty for a single URL.
    alt: _Shared[list[str]] = _Shared([], lambda session: session.broker.failover.addresses)
    #: The iterator of the URLs to try; None for a single URL.
    cycle: _Shared[Iterator[str] | None] = _Shared(
        None, lambda session: session.broker.failover.cycle
    )
    #: The function that makes that iterator of the list.
    failover_strategy: _Shared[Any] = _Shared(
        "round-robin", lambda session: session.broker.failover.strategy
    )
    #: Entities that are known to exist at the broker; a new set for each life of the connection.
    declared_entities: _Shared[set[Any]] = _Shared(
        None,  # type: ignore[arg-type]  # on the class
        lambda session: session.life.declared_entities,
    )
    #: The single flight of ``maybe_declare``: one declaration of an entity at a time, for each life.
    declare_flight: _Shared[Any] = _Shared(None, lambda session: session.life.declare_flight)
    #: A list to append functions to.  Each is called with the error when the connection is lost, in a
    #: greenlet of its own; an exception in it is logged.
    on_connection_lost: _Shared[Listeners] = _Shared(
        Listeners(), lambda session: session.on_connection_lost
    )
    #: A list to append functions to.  Each is called without arguments when a lost connection is open
    #: again, with its topology and its consumers restored.
    on_recovered: _Shared[Listeners] = _Shared(Listeners(), lambda session: session.on_recovered)

    @shows(defaults=dict)
    def __init__(
        self,
        hostname: str | Iterable[str] | None = UNNAMED,
        userid: str | None = None,
        password: str | Callable[[], str] | None = None,
        virtual_host: str | None = None,
        port: int | None = None,
        insist: bool = False,
        ssl: Any = False,
        transport: str | type[Any] | None = None,
        connect_timeout: Seconds | None = 5,
        transport_options: dict[str, Any] | None = None,
        login_method: str | None = None,
        uri_prefix: str | None = None,
        heartbeat: Seconds | None = BROKER_HEARTBEAT,
        failover_strategy: Any = "round-robin",
        alternates: Iterable[str] | None = None,
        credential_provider: Any = None,
        **kwargs: Unpack[_NoArguments],
    ) -> None:
        check_keywords(type(self).__name__, kwargs, ARGUMENTS, is_kombus=True)
        keywords = Parameters(
            userid=userid,
            password=password,
            virtual_host=virtual_host,
            port=port,
            insist=insist,
            ssl=ssl,
            transport=transport,
            connect_timeout=in_seconds(connect_timeout),
            transport_options={} if transport_options is None else transport_options,
            login_method=login_method,
            uri_prefix=uri_prefix,
            heartbeat=_heartbeat(heartbeat),
            credential_provider=credential_provider,
        )
        if hostname is UNNAMED and alternates is None:
            hostname, missing = configured(keywords)
            if missing:
                alternates = missing.get("alternates")
                if failover_strategy == "round-robin":
                    failover_strategy = missing.get("failover_strategy", failover_strategy)
                keywords = keywords.replace(
                    **{name: value for name, value in missing.items() if name in _NAMES}
                )
        hosts = _hosts(hostname)
        first, whole = combined(hosts[0] if hosts else None, keywords, is_first=True)
        addresses, current = _addresses(hosts, alternates, first, keywords)
        for address in addresses:
            combined(address, keywords)  # report an invalid URL now, not when it is needed
        failover = Failover(
            addresses, whole.get("failover_strategy") or failover_strategy, self.failover_strategies
        )
        if current is not None:
            failover.skip_to(current)
        #: The state of this connection, shared by all its facades.
        self.session: Session = Session(Broker(self, keywords, first, failover))

    @property
    def _family(self) -> type[Self]:
        """The class of clones."""
        return type(self)

    def create_transport(self) -> Any:
        """Return a new transport for the current broker."""
        return self.get_transport_cls()(client=self)

    # kombu's methods for opening the transport's connection, which programs and their tests replace.

    def _connection_factory(self) -> Any:
        return self._establish_connection()

    def _establish_connection(self) -> Any:
        return self.session.broker.open_link()

    # kombu's private attributes that programs read, and that their tests replace.

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
            KeyError: there is no transport of that name.
        """
        return get_transport_cls(self.transport_cls)

    @property
    def transport(self) -> Any:
        """The transport of the current broker, created when it is first needed."""
        return self.session.broker.transport

    def completes_cycle(self, retries: int) -> bool:
        """Return whether *retries* more attempts have tried all brokers of the failover list."""
        return self.session.broker.failover.completes_cycle(retries)

    def clone(self, **kwargs: Unpack[_CloneArguments]) -> Self:
        """Return a new connection with the same parameters, which is not open.

        Arguments:
            kwargs: arguments of the constructor that are to differ.
        """
        broker = self.session.broker
        given = broker.info(resolve=False)
        shares_login = not _OF_LOGIN & kwargs.keys()
        if shares_login and broker.login.secret is not None:
            given["password"] = broker.parameters.password  # with the same key
        clone = self._family(**{**given, **kwargs})
        if shares_login:
            clone.session.broker.login = broker.login
        if not {"hostname", "alternates"} & kwargs.keys():
            # Parts that a URL lacks come from the keywords, not from the URL in use.
            changes = {name: value for name, value in kwargs.items() if name in _NAMES}
            clone.session.broker.keywords = broker.keywords.replace(**changes)
        return clone

    def __copy__(self) -> Self:
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"keywords": self.session.broker.keywords} if self.alt else None
        return self._family, tuple(self.info().values()), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.session.broker.keywords = state["keywords"]

    def info(self) -> dict[str, Any]:
        """Return the arguments of the constructor that make this connection.

        They include the password in clear.
        """
        return self.session.broker.info()

    def as_uri(
        self,
        include_password: bool = False,
        mask: str = "**",
        getfields: Callable[[dict[str, Any]], Any] = URI_FIELDS,
    ) -> str:
        """Return the URL of the current broker.

        Arguments:
            include_password: whether to include the password; a password function is called.
            mask: the text in place of the password otherwise.
            getfields: returns port, user, password, virtual host and transport of ``info()``.
        """
        return self.session.broker.as_uri(include_password, mask, getfields)

    @property
    def host(self) -> str:
        """Host name and port, separated by a colon."""
        return f"{self.hostname}:{self.port}"

    def __eqhash__(self) -> ParameterKey:
        """Return the key for pools, which is equal for connections with equal parameters."""
        return self.session.broker.key()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.session.broker.label} at {id(self):#x}>"

    # Opening, and functions that retry

    def connect(self) -> Any:
        """Open the connection if it is not open, and return the transport's connection.  May switch.

        Raises:
            Exception: the error of the transport, after one attempt for each broker of the list.
        """
        return self.session.link(reopen=True, rounds=1, interval=CONNECT_INTERVAL)

    def ensure_connection(
        self,
        errback: Callable[[Exception, float], Any] | None = None,
        max_retries: float | None = None,
        interval_start: Seconds = 2,
        interval_step: Seconds = 2,
        interval_max: Seconds = 30,
        callback: Callable[[], Any] | None = None,
        reraise_as_library_errors: bool = True,
        timeout: Seconds | Deadline | None = None,
    ) -> Self:
        """Open the connection if it is not open, with retries, and return this object.  May switch.

        Arguments:
            errback: called with each error and the seconds until the next attempt.
            max_retries: attempts after the first; None and infinity retry forever.
            interval_start: seconds to wait after the first round over the failover list.
            interval_step: seconds by which each wait is longer than the one before.
            interval_max: maximum seconds of a wait.
            callback: called before each wait, and once a second during it.
            reraise_as_library_errors: whether to raise OperationalError in place of the error of the
                transport.
            timeout: seconds for all attempts together; None and 0 are no limit.

        Raises:
            OperationalError: all attempts failed; the last error is its cause.
            Exception: an error that a retry cannot solve, as a refused login.
        """
        if self.session.is_open:
            self.session.link()  # raises WrongHub in another thread
        else:
            policy = ConnectOptions(
                errback=errback,
                max_retries=_limit(max_retries),
                interval_start=in_seconds(interval_start),
                interval_step=in_seconds(interval_step),
                interval_max=in_seconds(interval_max),
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
        # kombu's private method, which programs call.  It returns the transport's connection.
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
        """The transport's connection, opened if necessary; None if closed.  May switch."""
        return None if self.session.is_closed else self.connect()

    def channel(self) -> Any:
        """Open a channel.  May switch."""
        link = self.session.link(reopen=True)
        return self.transport.create_channel(link)

    def update_secret(
        self, secret: str, reason: str = "", *, timeout: Seconds | None = None
    ) -> None:
        """Change the password of the connection and all its clones, as OAuth 2 requires.  May switch.

        Clones are also the connections that are opened for ``publish(connection=...)``, for dead
        letters and for consumers without acknowledgements.  Those of this thread that are open log in
        anew at once; later attempts of all of them to connect use it, too, unless the password is a
        function or there is a ``credential_provider``.  Nothing is opened.

        Arguments:
            secret: the new password, or token.
            reason: text for the broker's log.
            timeout: seconds to wait for the broker's reply; None is the limit of the transport.

        Raises:
            ConnectionError: the broker refused the password and closed the connection.
            TimeoutError: the broker did not reply in time.
            NotImplementedError: the transport cannot change the password.
        """
        session, deadline = self.session, Deadline(timeout)
        session.check_hub()
        broker = session.broker
        sharing = [each for each in sessions_in_use() if each.broker.login is broker.login]
        sharing.sort(key=lambda each: each is not session)  # a refusal comes before any is changed
        for each in (each for each in sharing if each.is_open):
            try:
                each.broker.transport.update_secret(each.link(), secret, reason, deadline)
            except (RecoverableConnectionError, OSError):
                if each is session or each.is_open:
                    raise
                continue  # it was lost meanwhile, and logs in with the new one
            broker.update_password(secret)
        broker.update_password(secret)

    @property
    def default_channel(self) -> Any:
        """The channel that all users of the connection share.  May switch.

        It is opened when it is first needed, and again after an error closed it.  The connection is
        opened, too: with the retries of ``transport_options`` (``max_retries``, ``interval_start``,
        ``interval_step``, ``interval_max``, ``errback``, ``callback``, ``connect_retries_timeout``), or
        without these within ``connect_timeout``.

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
        """The default channel if it is open, otherwise None.  Never switches."""
        channel = self.session.life.default_channel
        return channel if getattr(channel, "is_open", True) else None

    def ensure(
        self,
        obj: Any,
        fun: Callable[..., Any],
        errback: Callable[[Exception, float], Any] | None = None,
        max_retries: float | None = None,
        interval_start: Seconds = 1,
        interval_step: Seconds = 1,
        interval_max: Seconds = 1,
        on_revive: Callable[[Any], Any] | None = None,
        retry_errors: tuple[type[BaseException], ...] | None = None,
        *,
        timeout: Seconds | Deadline | None = None,
    ) -> Callable[..., Any]:
        """Return a function that calls *fun*, and retries after a loss of connection or channel.

        Errors after which the operation may have been done (``PublishTimeout`` and the others in
        :data:`greenconn.exceptions.NEVER_REPEATED`) are raised at once.

        Arguments:
            obj: its ``revive(channel)`` is called before each retry.
            fun: the function to call.
            errback: called with each error of connection or channel and the seconds until the next
                attempt.
            max_retries: calls after the first; None and infinity retry forever.
            interval_start, interval_step, interval_max: seconds between attempts.
            on_revive: called with the channel after ``obj.revive``.
            retry_errors: further errors after which *fun* is called again, without reviving *obj*.
            timeout: seconds for one call of the returned function, retries included; None is no limit.

        Raises:
            OperationalError: (by the returned function) all attempts failed; the last error is its
                cause.
        """
        policy = ConnectOptions(
            errback=errback,
            max_retries=_limit(max_retries),
            interval_start=in_seconds(interval_start),
            interval_step=in_seconds(interval_step),
            interval_max=in_seconds(interval_max),
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
        # Celery uses it around each task that it sends.
        return library_errors(self)

    def autoretry(
        self, fun: Callable[..., Any], channel: Channel | None = None, **ensure_options: Any
    ) -> Callable[..., tuple[Any, Any]]:
        """Return a function that calls *fun* with ``channel=...`` and retries as :meth:`ensure` does.

        That function returns the result of *fun* and the channel that was used last.

        Arguments:
            fun: the function to call.
            channel: the channel for the first call; None is the default channel.
            ensure_options: arguments of :meth:`ensure`; those about retries apply to the first
                connecting, too.
        """
        names = ("errback", "max_retries", "interval_start", "interval_step", "interval_max")
        opening = {"timeout": self.connect_timeout, **retry_options(self.transport_options)}
        opening.update((name, ensure_options[name]) for name in names if name in ensure_options)
        revival = Revival(self, fun, channel, lambda: self.ensure_connection(**opening))
        return self.ensure(revival, revival, **ensure_options)

    # The transport of the current broker

    def supports_exchange_type(self, exchange_type: str) -> bool:
        """Return whether the transport has exchanges of that type."""
        return exchange_type in self.transport.implements.exchange_type

    @property
    def supports_heartbeats(self) -> bool:
        """Whether the transport's protocol has heartbeats."""
        return bool(self.transport.implements.heartbeats)

    @property
    def is_evented(self) -> bool:
        """False: no event loop is needed to drive the connection."""
        return False

    @property
    def qos_semantics_matches_spec(self) -> bool:
        """Whether ``basic_qos(apply_global=True)`` applies to the whole connection.  May switch."""
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

    #: Errors that indicate a lost connection; a tuple that is set replaces the transport's.
    connection_errors = _Errors()
    #: Errors that indicate a lost channel, as above.
    channel_errors = _Errors()
    #: Errors after which a new connection may help, as above.
    recoverable_connection_errors = _Errors()
    #: Errors after which a new channel may help, as above.
    recoverable_channel_errors = _Errors()

    # Events

    def drain_events(self, timeout: Seconds | None = None, **kwargs: Any) -> Any:
        """Wait for the next event of this connection and run its callbacks.  May switch.

        If the connection is lost, the error is raised once in each greenlet that waits here.  The next
        call waits until topology and consumers are restored, and continues.

        Arguments:
            timeout: seconds to wait; None is no limit.
            kwargs: further arguments of the transport.

        Raises:
            socket.timeout: there was no event in time.
            ConnectionError, OSError: the connection was lost, or is closed.
            Exception: the exception of a callback.
        """
        session = self.session
        life = session.ready_life()
        if life is None:
            deadline = Deadline(timeout)
            life = session.wait_ready(deadline)
            timeout = deadline.left()
        try:
            if kwargs:  # not passed on where there are none: that costs as much as the rest
                return life.transport.drain_events(life.link, timeout=timeout, **kwargs)
            return life.transport.drain_events(life.link, timeout=timeout)
        except Exception as exc:
            session.note_error(exc)
            raise

    def heartbeat_check(self, rate: float = 2) -> Any:
        """Raise an error if the connection is lost; open it if it never was.  May switch.

        Heartbeats are sent and checked in the background: there is no need to call this.

        Arguments:
            rate: accepted for compatibility with kombu and ignored.

        Raises:
            ConnectionError, OSError: the connection is lost or closed, or could not be opened.
        """
        session = self.session
        session.check_hub()
        if not session.is_open and (session.is_lost or session.is_closed):
            lost = session.lost or getattr(session.life.link, "lost", None)
            raise RecoverableConnectionError(
                f"connection to {session.broker.label} is not open ({lost or 'closed'})"
            ) from lost
        link = session.life.link if session.is_open else self.connect()
        try:
            return self.transport.heartbeat_check(link, rate=rate)
        except Exception as exc:
            session.note_error(exc)
            raise

    def get_heartbeat_interval(self) -> Any:
        """Return the seconds between heartbeats as negotiated; 0 if they are off.  May switch."""
        return self.transport.get_heartbeat_interval(self.connection)

    def register_with_event_loop(self, loop: Any) -> None:
        """Make *loop* drain this connection when it has events.

        This is for programs that are built around an event loop.  The loop must run in a greenlet.

        Arguments:
            loop: an object with ``add_reader(fd, callback)``.  A transport that implements kombu's base
                class gets it as it is.
        """
        if self.session.broker.has_base_contract:
            self.transport.register_with_event_loop(self.connection, loop)
        else:
            EventDescriptor(self, loop)

    def maybe_close_channel(self, channel: Channel) -> None:
        """Close a channel, ignoring errors of the connection and the channel.  May switch."""
        try:
            channel.close()
        except self.connection_errors + self.channel_errors as exc:
            if is_thrown(exc):
                raise

    def flush(self, timeout: Seconds | None = None) -> None:
        """Wait until all pending publishes and acks have been sent.  May switch.

        Without it they are sent together in the next turn of the hub.  When it returns, on AMQP and
        Redis the operating system has them, and sends them even if the program blocks or dies at once;
        on the other transports the broker has them.  Only a confirm tells that the broker has stored a
        message.

        If the connection is not open, it returns at once.  If it is being recovered, it waits for that
        and for the messages that are sent again.

        Arguments:
            timeout: seconds; None is the limit of the transport.

        Raises:
            TimeoutError: the broker did not read in time, or the connection was not recovered in time.
            ConnectionError, OSError: the connection is lost.
        """
        session, deadline = self.session, Deadline(timeout)
        session.check_hub()
        life = session.wait_ready(deadline) if session.is_lost else session.life
        if life.is_open and isinstance(life.link, Link):
            life.link.flush(deadline)

    def release(self) -> None:
        """Close the connection, or release a pooled one.  May switch.

        Raises an error in the greenlets that wait on it, stops recovery and drops its consumers.
        """
        broker = self.session.broker
        try:
            self.session.close()
        finally:
            broker.drop_transport()

    close = release

    def collect(self, socket_timeout: Seconds | None = None) -> None:
        """Close the sockets at once, without the protocol's closing handshake.

        Arguments:
            socket_timeout: accepted for compatibility with kombu and ignored.
        """
        self.session.collect()
        self.session.broker.drop_transport()

    def switch(self, conn_str: str) -> None:
        """Close the connection and use another broker from now on.  May switch.

        The connection to the other broker is opened when it is needed.

        Arguments:
            conn_str: a URL, or a host name to replace the current one.
        """
        session = self.session
        session.close()
        session.broker.use_address(conn_str, keeps_transport=False)
        session.broker.login = SharedLogin()
        session.restart()

    def maybe_switch_next(self) -> None:
        """Switch to the next broker of the failover list, if there is one.  May switch."""
        self.session.check_hub()
        address, login = self.session.broker.failover.next(), self.session.broker.login
        if address is not None:
            self.switch(address)
            self.session.broker.login = login

    def revive(self, new_channel: Any) -> None:
        """Make *new_channel* the default channel and close the previous one.  May switch.

        Arguments:
            new_channel: an open channel of this connection.  With any other channel, or None, the next
                use opens a new default channel.
        """
        former = self.session.set_default_channel(new_channel)
        if former is not None:
            self.maybe_close_channel(former)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: object = None, exc: object = None, traceback: object = None
    ) -> None:
        self.release()

    # Shortcuts to the classes that use a connection

    def Pool(  # noqa: N802
        self, limit: int | None = None, **kwargs: Unpack[PoolArguments]
    ) -> _ConnectionPool:
        """Return a pool of clones of this connection; *limit* None is unlimited."""
        from greenconn.resource import ConnectionPool

        return ConnectionPool(self, limit, **kwargs)

    def ChannelPool(  # noqa: N802
        self, limit: int | None = None, **kwargs: Unpack[PoolArguments]
    ) -> _ChannelPool:
        """Return a pool of channels of this connection; *limit* None is unlimited."""
        from greenconn.resource import ChannelPool

        return ChannelPool(self, limit, **kwargs)

    def Producer(  # noqa: N802
        self, channel: Channel | None = None, *args: Any, **kwargs: Unpack[_ProducerArguments]
    ) -> _Producer:
        """Return a producer on *channel*, or on the default channel."""
        return _producer(self if channel is None else channel, *args, **kwargs)

    def Consumer(  # noqa: N802
        self,
        queues: Any = None,
        channel: Channel | None = None,
        *args: Any,
        **kwargs: Unpack[_ConsumerArguments],
    ) -> _Consumer:
        """Return a consumer of *queues* on *channel*, or on the default channel."""
        return _consumer(self if channel is None else channel, queues, *args, **kwargs)

    def SimpleQueue(  # noqa: N802
        self,
        name: Any,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Channel | None = None,
        **kwargs: Unpack[_SimpleArguments],
    ) -> _SimpleQueue:
        """Return a queue with ``put`` and ``get``, on *channel* or on the default channel.

        Arguments:
            name: the name of the queue, its exchange and its routing key; or a Queue.
            no_ack: whether messages need no ack.
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
        **kwargs: Unpack[_SimpleArguments],
    ) -> _SimpleBuffer:
        """Return a :meth:`SimpleQueue` that is transient and whose messages need no ack."""
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
        """Whether a pool can reuse this connection, as it was not closed."""
        # Not is_closed: pools check this for each acquire, twice if they made the caller wait.
        return self.session._state is not _CLOSED

    def lend(self, pool: Lender) -> PooledConnection:
        """Return a facade of this connection for one holder.  For pools.  Never switches.

        Arguments:
            pool: the pool, whose ``release`` or ``replace`` is called with the facade.
        """
        cls = type(self)
        # Without a call of an __init__, as an acquire may have to make one.
        is_plain = cls is Connection and not self.__dict__
        lent, released = _FACADES if is_plain else _facade_classes(cls)
        facade = _new(lent)
        facade._lent = lent
        facade._released = released
        facade._core = self
        facade._pool = pool
        facade._attributes = facade.__dict__
        facade._loan = None
        facade.session = self.session
        return facade


class EventDescriptor:
    """A pipe that *loop* watches: it is readable while an event of *connection* waits.

    The loop's callback drains all events.  The pipe is closed with the connection.

    Arguments:
        loop: anything with ``add_reader(fd, callback)``, running in a greenlet.

    Raises:
        TypeError: *loop* has no ``add_reader``.
        WrongHub: the connection belongs to another thread.
    """

    def __init__(self, connection: Connection, loop: Any) -> None:
        if not hasattr(loop, "add_reader"):
            raise TypeError(f"loop must have a method add_reader(fd, callback), got {loop!r}")
        self._connection = connection
        self._session = connection.session
        self._session.check_hub()
        self._loop = loop
        self._drained = Event()
        self._readable, self._writable = os.pipe()
        for descriptor in (self._readable, self._writable):
            os.set_blocking(descriptor, False)
        loop.add_reader(self._readable, self.drain)
        self._session.on_closed.append(self.close)
        self._watcher: Greenlet[..., Any] = spawn("event-fd", self._watch)

    def drain(self) -> None:
        """Run all events that wait: the loop's callback.  May switch."""
        try:
            os.read(self._readable, 64)
        except BlockingIOError:
            return
        try:
            while True:
                self._connection.drain_events(timeout=0)
        except TimeoutError:
            pass
        finally:
            self._drained.set()

    def close(self) -> None:
        """Take the descriptor from the loop and close it."""
        self._session.on_closed.remove(self.close)
        self._watcher.kill(block=False)
        remove = getattr(self._loop, "remove_reader", None) or getattr(self._loop, "remove", None)
        if remove is not None:
            remove(self._readable)
        os.close(self._readable)
        os.close(self._writable)

    def _watch(self) -> None:
        while True:
            try:
                events = self._session.wait_ready(Deadline()).link.events
                events.put_back(events.get(Deadline()))
            except (OperationalError, RecoverableConnectionError, OSError) as exc:
                logger.debug(
                    "no event: %s",
                    error_text(exc),
                    extra={"connection": self._session.broker.label},
                )
                if self._session.is_closed:
                    return
                continue
            self._drained.clear()
            os.write(self._writable, b"!")
            self._drained.wait()


class _Truth(int):
    """A truth value that can also be called."""

    __slots__ = ()

    def __call__(self) -> bool:
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))

    __str__ = __repr__


class BrokerConnection(Connection):
    """A connection for programs written for carrot, which call ``connection.connected()``."""

    @property
    def connected(self) -> _Truth:  # type: ignore[override]  # bool has no subclasses
        """Whether the connection is open, as a truth value that can also be called."""
        return _Truth(self._is_connected())


class CheckoutState(State):
    """The states of a pooled connection that a holder has acquired."""

    #: The holder can use it.
    LENT = "lent"
    #: The holder has released it.  Uses after that work, and are logged.
    RELEASED = "released"
    #: The connection below was closed.  Every use raises.
    EXPIRED = "expired"


LOAN_MOVES: Final[Mapping[CheckoutState, frozenset[CheckoutState]]] = {
    CheckoutState.LENT: frozenset({CheckoutState.RELEASED, CheckoutState.EXPIRED}),
    CheckoutState.RELEASED: frozenset(),
    CheckoutState.EXPIRED: frozenset(),
}


class PooledConnection(Connection):
    """A pooled connection in the hands of one holder.

    A facade that shares the session of the connection below, and equals it.  ``release``, ``close`` and
    the end of ``with`` release it, once.  As with kombu, producers and other objects that are bound to
    it continue to work after the release.  By then the connection may belong to another holder, so the
    log names each place in the program that does so, once.

    Made by :meth:`Connection.lend`.  From its release until it is lent again it has another class, whose
    session logs each use: so uses before the release cost no check.
    """

    __slots__ = ()

    #: The connection below.
    _core: Connection
    #: The pool that it was acquired from; None after the release.
    _pool: Lender | None
    #: The pool's record of it; None if the pool does not lend it again.
    _loan: Any
    #: What a holder has set on it: its ``__dict__``, which takes longer to ask for.
    _attributes: dict[str, Any]
    #: Its class while it is lent, and after its release.
    _lent: type[PooledConnection]
    _released: type[PooledConnection]

    _checkout = CheckoutState.LENT

    @property
    def _family(self) -> type[Any]:
        return type(self._core)

    def __eqhash__(self) -> ParameterKey:
        return self._core.__eqhash__()

    # All facades of a connection are equal.

    def __eq__(self, other: object) -> bool:
        return self._core is (other._core if isinstance(other, PooledConnection) else other)

    def __hash__(self) -> int:
        return hash(self._core)

    def __repr__(self) -> str:
        state = "" if self._pool is not None else ", released"
        label = self._core.session.broker.label
        return f"<{self._lent.__name__}: {label}{state} at {id(self):#x}>"

    def lend(self, pool: Lender) -> PooledConnection:
        """Refuse to be a resource of another pool.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self!r} belongs to a pool already: make a pool of a connection")

    def lend_again(self, pool: Lender) -> bool:
        """Lend it to another holder, as if it was new; False if the connection was closed.

        For pools, if nothing refers to it since its release.  Never switches.
        """
        if self._core.session._state is _CLOSED:
            return False
        if self._attributes:  # of the last holder
            self._attributes.clear()
        self._pool = pool
        self.__class__ = self._lent
        return True

    def mark_released(self) -> None:
        """Mark as released, so that later uses are logged.  For pools.  Never switches."""
        # On the hot path: no call of moved().
        self._pool = None
        self.__class__ = self._released

    def expire(self, reason: str) -> None:
        """Make each later use raise an error with *reason*.  For pools.  Never switches."""
        moved(self._checkout, CheckoutState.EXPIRED, LOAN_MOVES, "a loan")
        self.mark_released()
        self._checkout = CheckoutState.EXPIRED
        self._reason = reason

    def release(self) -> None:
        """Release the connection to its pool; do nothing if it was released.  Never switches."""
        pool = self._pool
        if pool is not None:
            pool.release(self)

    close = release

    def collect(self, socket_timeout: Seconds | None = None) -> None:
        """Close the sockets at once; do nothing if it was released."""
        if self._pool is not None:
            super().collect(socket_timeout)

    def replace(self) -> None:
        """Release the connection as broken, so that the pool replaces it."""
        pool = self._pool
        if pool is not None:
            pool.replace(self)

    def __exit__(
        self, exc_type: object = None, exc: object = None, traceback: object = None
    ) -> None:
        pool = self._pool
        if pool is None:
            return
        if exc_type is not None and self.session.may_be_lost:
            pool.replace(self)
        else:
            pool.release(self)


class _ReleasedConnection(PooledConnection):
    """A pooled connection after its release, or whose connection was closed."""

    __slots__ = ()

    _checkout = CheckoutState.RELEASED
    #: The reason why it cannot be used any more; empty if it can.
    _reason = ""

    @property
    def session(self) -> Session:  # type: ignore[override]  # set by nothing
        """The session, for a use after the release.

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


def _calling_place() -> str:
    """Return the file and the line in the program that called the library."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("greenconn."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class _Forwarding:
    """The attributes that a program or a subclass sets on the connection below a facade.

    Only for those that have any, as each use of an attribute is slower with it.
    """

    __slots__ = ()

    _core: Connection

    def __getattr__(self, name: str) -> Any:
        if name == "_core":
            raise AttributeError(name)
        return getattr(self._core, name)


class _Slotted:
    """The slots of a subclass in a facade, which are a holder's own as the facade's ``__dict__`` is."""

    __slots__ = ()

    #: Those of the class, and of its bases.
    _slots: tuple[MemberDescriptorType, ...]

    def lend_again(self, pool: Lender) -> bool:
        """Lend it as if it was new; see :meth:`PooledConnection.lend_again`."""
        for slot in self._slots:
            with suppress(AttributeError):  # it was not set
                slot.__delete__(self)
        return super().lend_again(pool)  # type: ignore[misc,no-any-return]  # of PooledConnection


#: The class of a facade while it is lent, and after its release.
_FacadeClasses = tuple[type[PooledConnection], type[PooledConnection]]

_FACADES: Final[_FacadeClasses] = (PooledConnection, _ReleasedConnection)
#: Class of a connection -> classes of its facades, which are subclasses of it.
_facades: WeakKeyDictionary[type[Connection], _FacadeClasses] = WeakKeyDictionary()


def _facade_classes(cls: type[Connection]) -> _FacadeClasses:
    found = _facades.get(cls)
    if found is None:
        own = () if issubclass(PooledConnection, cls) else (cls,)
        name, members = f"Pooled{cls.__name__}", {"__module__": cls.__module__, "__slots__": ()}
        slots = tuple(_slots_of(cls))
        added = (_Forwarding,) if not slots else (_Slotted, _Forwarding)
        lent = type(name, (*added, PooledConnection, *own), {**members, "_slots": slots})
        found = _facades[cls] = (lent, type(name, (_ReleasedConnection, lent), members))
    return found


def _slots_of(cls: type[Connection]) -> Iterator[MemberDescriptorType]:
    """Return the slots that *cls* and its bases add to those of a connection."""
    for base in cls.__mro__:
        if base not in Connection.__mro__ and "__slots__" in vars(base):
            yield from (each for each in vars(base).values() if type(each) is MemberDescriptorType)


def _hosts(hostname: object) -> list[str]:
    if hostname is None or hostname == "":
        return []
    if isinstance(hostname, bytes) or not isinstance(hostname, Iterable):
        raise TypeError(
            f"hostname must be a URL, a host name, or a list of them, got {type(hostname).__name__}"
        )
    return split_urls(hostname)


def _heartbeat(value: Any) -> float | None:
    """Return the heartbeat in seconds; like kombu, accept text."""
    if not value:
        return value  # type: ignore[no-any-return]  # 0, BROKER_HEARTBEAT or None
    try:
        return float(in_seconds(value))
    except (TypeError, ValueError):
        raise ValueError(f"heartbeat must be a number of seconds, got {value!r}") from None


def _addresses(
    hosts: list[str],
    alternates: Iterable[str] | None,
    first: Parameters,
    keywords: Parameters,
) -> tuple[list[str], str | None]:
    """Return the failover list and its member that is *first*; empty and None for a single host.

    A copy or a pickle passes the current host in addition to the list, which contains it.
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
    """Return the limit of retries; None for infinity, which oslo.messaging passes."""
    return None if max_retries == inf else cast("int | None", max_retries)


def _producer(*args: Any, **kwargs: Any) -> _Producer:
    from greenconn.messaging import Producer

    return Producer(*args, **kwargs)


def _consumer(*args: Any, **kwargs: Any) -> _Consumer:
    from greenconn.messaging import Consumer

    return Consumer(*args, **kwargs)


#: The arguments of :class:`Connection` beside the URL.
ConnectionArguments = TypedDict(  # noqa: UP013 - the types of a class are texts, each of which is compiled
    "ConnectionArguments",
    {
        "alternates": Iterable[str] | None,
        "connect_timeout": Seconds | None,
        "credential_provider": Any,
        "failover_strategy": Any,
        "heartbeat": Seconds | None,
        "insist": bool,
        "login_method": str | None,
        "password": str | Callable[[], str] | None,
        "port": int | None,
        "ssl": Any,
        "transport": str | type[Any] | None,
        "transport_options": dict[str, Any] | None,
        "uri_prefix": str | None,
        "userid": str | None,
        "virtual_host": str | None,
    },
    total=False,
)

if TYPE_CHECKING:

    class _CloneArguments(ConnectionArguments, total=False):
        """The arguments of :class:`Connection`."""

        hostname: str | Iterable[str] | None


def connection_defaults() -> dict[str, Any]:
    """Return the defaults of the arguments of :class:`Connection`, by name."""
    parameters = signature(Connection.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


#: The names of the arguments of a connection.
ARGUMENTS: Final = frozenset(Connection.__init__.__annotations__) - {"kwargs", "return"}
#: The mappings of ``Connection``: an entry added here is added there.
failover_strategies = Connection.failover_strategies
resolve_aliases = Connection.resolve_aliases

#: kombu's name.
_check_url_transport = check_scheme

# The shortcuts of channels.  When messaging is imported it sets its classes there itself.
Factories.Producer = Factories.Producer or _producer
Factories.Consumer = Factories.Consumer or _consumer

if not TYPE_CHECKING:  # otherwise a type checker accepts any attribute

    def __getattr__(name: str) -> Any:
        if name not in ("ChannelPool", "ConnectionPool", "Resource"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from greenconn import resource

        value = globals()[name] = getattr(resource, name)
        return value
