"""Getting a connection to the broker (carrot.connection)."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Final

from greenconn.checks import Seconds, check_keywords
from greenconn.compat.carrot.backends import get_backend_cls
from greenconn.compat.carrot.utils import retry_over_time
from greenconn.connection import ARGUMENTS
from greenconn.connection import BrokerConnection as Connected
from greenconn.exceptions import AccessRefused, ConnectionLimitExceeded
from greenconn.exceptions import ConnectionError as AMQPConnectionException
from greenconn.green.deadline import Deadline
from greenconn.green.pool import FairPool
from greenconn.url import mask_secrets, parse_url

__all__ = [
    "DEFAULT_CONNECT_TIMEOUT",
    "AMQPConnection",
    "AMQPConnectionException",
    "BrokerConnection",
    "ConnectionLimitExceeded",
    "ConnectionPool",
    "DjangoAMQPConnection",
    "DjangoBrokerConnection",
    "LoginRefused",
    "get_backend_cls",
    "get_django_conninfo",
]

#: Seconds.
DEFAULT_CONNECT_TIMEOUT = 5


class LoginRefused(AccessRefused, AMQPConnectionException):  # type: ignore[misc]  # amqp has no types
    """A refused login: AMQP's error 403, which carrot's programs expect of a connection."""


@contextmanager
def _login_errors() -> Iterator[None]:
    try:
        yield
    except AccessRefused as exc:
        raise LoginRefused(exc.reply_text, exc.method_sig, None, exc.reply_code) from exc


class BrokerConnection:
    """A connection to a broker, opened when it is needed.

    Any number of greenlets may share it; each publisher and each consumer has a channel of its own.

    Arguments:
        hostname: of the broker; or a URL, several with ``;`` between.
        userid, password: of the login.
        virtual_host: a part of the broker.
        port: None is the backend's.
        pool: the pool that lends it.
        insist: taken for carrot's sake.
        connect_timeout: seconds; None waits.
        ssl: True, or a dict of options.
        backend_cls, transport: a backend's or a transport's name, module path or class.
        kwargs: others are for :class:`greenconn.Connection`.
    """

    virtual_host: str = "/"
    port: int | None = None
    insist: bool = False
    connect_timeout: Seconds | None = DEFAULT_CONNECT_TIMEOUT
    ssl: Any = False
    backend_cls: Any = None

    ConnectionException = AMQPConnectionException

    def __init__(
        self,
        hostname: str | None = None,
        userid: str | None = None,
        password: Any = None,
        virtual_host: str | None = None,
        port: int | None = None,
        pool: ConnectionPool | None = None,
        **kwargs: Any,
    ) -> None:
        known = ARGUMENTS | {"backend_cls", "pool"}
        check_keywords(type(self).__name__, kwargs, known, is_kombus=True)
        self.hostname = hostname
        self.userid = userid
        self.password = password
        self.virtual_host = virtual_host or self.virtual_host
        self.port = port or self.port
        self.pool = pool
        self.insist = kwargs.pop("insist", self.insist)
        self.connect_timeout = kwargs.pop("connect_timeout", self.connect_timeout)
        self.ssl = kwargs.pop("ssl", self.ssl)
        transport = kwargs.pop("transport", None)
        self.backend_cls = kwargs.pop("backend_cls", None) or transport or self.backend_cls
        self._others = kwargs
        self._closed = False
        self._inner: Connected | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.host}>"

    def __copy__(self) -> BrokerConnection:
        clone = type(self).__new__(type(self))
        BrokerConnection.__init__(
            clone,
            self.hostname,
            self.userid,
            self.password,
            self.virtual_host,
            self.port,
            self.pool,
            insist=self.insist,
            connect_timeout=self.connect_timeout,
            ssl=self.ssl,
            backend_cls=self.backend_cls,
            **self._others,
        )
        return clone

    def __enter__(self) -> BrokerConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # What it is

    @property
    def host(self) -> str:
        """Host and port with a colon between; the URL, password masked, if that was given."""
        hostname = self.hostname or ""
        if "://" in hostname:
            return mask_secrets(hostname)
        return f"{self.hostname}:{self.port or self.create_backend().default_port}"

    def info(self) -> dict[str, Any]:
        """Return its parameters, the password included."""
        backend_cls = self.backend_cls or "amqplib"
        return {
            "hostname": self.hostname,
            "userid": self.userid,
            "password": self.password,
            "virtual_host": self.virtual_host,
            "port": self.port or self.create_backend().default_port,
            "insist": self.insist,
            "ssl": self.ssl,
            "transport_cls": backend_cls,
            "backend_cls": backend_cls,
            "connect_timeout": self.connect_timeout,
        }

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """The errors of a lost connection."""
        errors: tuple[type[BaseException], ...] = self.create_backend().connection_errors
        return errors

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """The errors of a refusal by the broker."""
        errors: tuple[type[BaseException], ...] = self.create_backend().channel_errors
        return errors

    # Backends

    def get_backend_cls(self) -> Any:
        """Return the class of backends."""
        return get_backend_cls(self.backend_cls)

    def create_backend(self) -> Any:
        """Return a new backend, whose channel is opened when it is needed."""
        return self.get_backend_cls()(connection=self)

    def channel(self) -> Any:
        """Return a new backend (kombu's name)."""
        return self.create_backend()

    def get_channel(self) -> Any:
        """Open a channel.  May switch.

        Raises:
            ConnectionException: the connection was closed.
        """
        connection = self.connection
        if connection is None:
            raise self.ConnectionException(f"connection to {self.host} is closed: call connect()")
        return connection.channel()

    # Life

    @property
    def connection(self) -> Any:
        """The open connection, a :class:`greenconn.BrokerConnection`; None once it is closed.

        May switch: it is opened now if it was not.

        Raises:
            ConnectionException: the broker refused the login, among others.
        """
        with _login_errors():
            return self._opened()

    def _opened(self) -> Any:
        if self._closed:
            return None
        if self._inner is None:
            self._inner = self._make()
        if not self._inner.connected:
            self._inner.connect()
        return self._inner

    def _make(self) -> Connected:
        return Connected(
            self.hostname or "localhost",
            userid=self.userid,
            password=self.password,
            virtual_host=self.virtual_host,
            port=self.port,
            insist=self.insist,
            ssl=self.ssl,
            connect_timeout=self.connect_timeout,
            transport=self.get_backend_cls().transport,
            **self._others,
        )

    @property
    def connected(self) -> Any:
        """Whether it is open; may be called, too."""
        return self._make().connected if self._inner is None else self._inner.connected

    def connect(self) -> Any:
        """Open it, also after :meth:`close`, and return :attr:`connection`.  May switch."""
        self._closed = False
        return self.connection

    def drain_events(self, **kwargs: Any) -> Any:
        """Handle the next event of any channel.  May switch.

        Arguments:
            kwargs: ``timeout`` in seconds.

        Raises:
            socket.timeout: nothing came in time.
        """
        return self.connection.drain_events(**kwargs)

    def ensure_connection(
        self,
        errback: Callable[[BaseException, float], Any] | None = None,
        max_retries: int | None = None,
        interval_start: Seconds = 2,
        interval_step: Seconds = 2,
        interval_max: Seconds = 30,
    ) -> BrokerConnection:
        """Open it, and try again until that works.  May switch.

        Arguments:
            errback: called as ``errback(exc, interval)`` before each wait.
            max_retries: attempts after the first; None or 0 is without limit.
            interval_start, interval_step, interval_max: seconds of the first wait, how many more
                each time, and at most.

        Raises:
            ConnectionError, OSError: what the last attempt raised.
        """
        self._closed = False
        with _login_errors():  # outside: a refused login is not tried again
            retry_over_time(
                self._opened,
                self.connection_errors,
                errback=errback,
                max_retries=max_retries,
                interval_start=interval_start,
                interval_step=interval_step,
                interval_max=interval_max,
            )
        return self

    def close(self) -> None:
        """Close it.  May switch."""
        inner, self._inner = self._inner, None
        self._closed = True
        if inner is not None:
            inner.close()

    def release(self) -> None:
        """Give it back to its pool, or close it if it has none."""
        if self.pool is None:
            self.close()
        else:
            self.pool.release(self)


class DjangoBrokerConnection(BrokerConnection):
    """A connection with what the arguments leave out from Django's settings.

    Arguments:
        settings: None is ``django.conf.settings``; see :func:`get_django_conninfo`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = kwargs.pop("settings", None)
        names = ("hostname", "userid", "password", "virtual_host", "port", "pool")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        super().__init__(**{**get_django_conninfo(settings), **given})


#: carrot's older names.
AMQPConnection = BrokerConnection
DjangoAMQPConnection = DjangoBrokerConnection


class ConnectionPool:
    """Lends connections, each to one greenlet at a time, in the order of arrival.

    Arguments:
        source_connection: the first one; the others are copies.
        min: connections that are there from the beginning.
        max: connections at most; None is without limit.
        preload: open the first *min* at once (may switch).
    """

    def __init__(
        self,
        source_connection: BrokerConnection,
        min: int = 2,
        max: int | None = None,
        preload: bool = True,
    ) -> None:
        if max is not None and max < min:
            raise ValueError(f"max must be at least min, got max={max} and min={min}")
        self.source_connection = source_connection
        self.min = min
        self.max = max
        self.preload = preload
        source_connection.pool = self
        self._pool: FairPool[BrokerConnection] = FairPool(
            lambda deadline: self._new_connection(),
            lambda connection: connection.close(),
            None,
            max,
            lambda: f"carrot of {source_connection.host}",
            ConnectionLimitExceeded,
        )
        for connection in [source_connection, *(self._new_connection() for _ in range(min - 1))]:
            if preload:
                connection.connect()
            self._pool.add(connection)

    def acquire(
        self,
        block: bool = False,
        timeout: Seconds | None = None,
        connect_timeout: Seconds | None = None,
    ) -> BrokerConnection:
        """Borrow a connection.  May switch.

        Arguments:
            block: wait when all are lent.
            timeout: seconds of that wait; None waits.
            connect_timeout: of the connection, from now on.

        Raises:
            ConnectionLimitExceeded: all are lent (for *timeout* seconds).
        """
        connection = self._pool.acquire(block, Deadline(timeout))
        if connect_timeout is not None:
            connection.connect_timeout = connect_timeout
        return connection

    def release(self, connection: BrokerConnection) -> None:
        """Give a connection back.  A second call does nothing."""
        self._pool.release(connection)

    def _new_connection(self) -> BrokerConnection:
        return copy(self.source_connection)


#: Argument -> setting, with BROKER_ before it (or AMQP_, which is older).
_SETTINGS: Final = {
    "hostname": "HOST",
    "userid": "USER",
    "password": "PASSWORD",
    "virtual_host": "VHOST",
    "port": "PORT",
    "ssl": "USE_SSL",
    "insist": "INSIST",
    "connect_timeout": "CONNECTION_TIMEOUT",
    "heartbeat": "HEARTBEAT",
    "login_method": "LOGIN_METHOD",
    "transport_options": "TRANSPORT_OPTIONS",
}
_BACKENDS: Final = ("CARROT_BACKEND", "BROKER_BACKEND", "BROKER_TRANSPORT")


def get_django_conninfo(settings: Any = None) -> dict[str, Any]:
    """Return the arguments of a connection that the settings have.

    ``BROKER_HOST``, ``BROKER_USER``, ``BROKER_PASSWORD``, ``BROKER_VHOST``, ``BROKER_PORT``, and
    ``BROKER_USE_SSL``, ``BROKER_INSIST``, ``BROKER_CONNECTION_TIMEOUT``, ``BROKER_HEARTBEAT``,
    ``BROKER_LOGIN_METHOD``, ``BROKER_TRANSPORT_OPTIONS``; each wins over its part of ``BROKER_URL``.
    The backend is ``CARROT_BACKEND``, ``BROKER_BACKEND`` or ``BROKER_TRANSPORT``.  With ``AMQP_`` in
    place of ``BROKER_`` they are older names, which warn.

    Arguments:
        settings: any object with such attributes; None is ``django.conf.settings``.

    Raises:
        ImportError: no settings are given and Django is not installed.
    """
    if settings is None:
        settings = importlib.import_module("django.conf").settings
    found = _of_url(getattr(settings, "BROKER_URL", None))
    found.setdefault("backend_cls", None)
    found.update(separate_settings(settings))
    return found


def separate_settings(settings: Any) -> dict[str, Any]:
    """Return the arguments of a connection for which *settings* have names of their own.

    Those of :func:`get_django_conninfo` without what is only in ``BROKER_URL``.
    """
    found: dict[str, Any] = {}
    backend = next(filter(None, (getattr(settings, name, None) for name in _BACKENDS)), None)
    if backend is not None:
        found["backend_cls"] = backend
    for argument, name in _SETTINGS.items():
        if hasattr(settings, f"BROKER_{name}"):
            found[argument] = getattr(settings, f"BROKER_{name}")
        elif hasattr(settings, f"AMQP_{name}"):
            found[argument] = getattr(settings, f"AMQP_{name}")
            _warn(f"AMQP_{name}", f"BROKER_{name}")
    if "hostname" not in found and hasattr(settings, "AMQP_SERVER"):
        found["hostname"] = settings.AMQP_SERVER
        _warn("AMQP_SERVER", "BROKER_HOST")
    return found


def _of_url(url: str | None) -> dict[str, Any]:
    if not url:
        return {}
    parts = parse_url(url)
    parts["backend_cls"] = parts.pop("transport", None)
    return {name: value for name, value in parts.items() if value is not None}


def _warn(old: str, new: str) -> None:
    warnings.warn(DeprecationWarning(f"the setting {old} has been renamed to {new}"), stacklevel=4)
