"""The broker with the arguments and attributes of Dramatiq's broker for RabbitMQ.

Programs with Dramatiq's own use names of pika, too: the arguments of its connections, its channel and
its exceptions.  What such programs need of them is here, over greenconn.  pika is not imported.  If the
program has imported ``pika.exceptions``, the errors of :class:`PikaChannel` are instances of those
classes, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from dramatiq import Middleware
from gevent import sleep

from greenconn.connection import Connection
from greenconn.contrib.dramatiq.broker import GreenconnBroker, NotAccepted
from greenconn.entity import Queue
from greenconn.exceptions import ChannelError, ConnectionError, RecoverableConnectionError

if TYPE_CHECKING:
    from greenconn.abc import Channel

#: Parameters of pika -> arguments of a connection.
_ARGUMENTS: Final = {
    "heartbeat": "heartbeat",
    "host": "hostname",
    "port": "port",
    "socket_timeout": "connect_timeout",
    "stack_timeout": "connect_timeout",  # it includes the former
    "virtual_host": "virtual_host",
}
#: Parameters of pika -> transport options.
_OPTIONS: Final = {
    "blocked_connection_timeout": "blocked_timeout",
    "channel_max": "channel_max",
    "client_properties": "client_properties",
    "frame_max": "frame_max",
    "locale": "locale",
    "tcp_options": "socket_settings",
}
#: Accepted without effect: a broker of greenconn tries to connect until its ``timeout``.
_WITHOUT_EFFECT: Final = frozenset({"connection_attempts", "retry_delay"})
#: All parameters of pika.
PARAMETERS: Final = frozenset(
    {*_ARGUMENTS, *_OPTIONS, *_WITHOUT_EFFECT, "credentials", "ssl_options"}
)
#: Those of an address, which each broker of a list has for itself.
_ADDRESS: Final = ("hostname", "port", "virtual_host", "userid", "password")


def connection_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a connection for those of ``pika.ConnectionParameters``.

    Parameters that are None are left out, as in pika.

    Raises:
        TypeError: there is no such parameter, or a value has another type than in pika.
    """
    arguments: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in sorted(parameters.items()):  # so that stack_timeout is after socket_timeout
        if name not in PARAMETERS:
            raise TypeError(f"pika's connections have no parameter {name!r}")
        if value is None:
            continue
        if name == "heartbeat" and callable(value):
            raise TypeError("heartbeat must be a number of seconds, got a function")
        if name == "credentials":
            arguments.update(_login(value))
        elif name == "ssl_options":
            arguments["ssl"] = _tls(value)
        elif name in _ARGUMENTS:
            arguments[_ARGUMENTS[name]] = value
        elif name in _OPTIONS:
            options[_OPTIONS[name]] = value
    if options:
        arguments["transport_options"] = options
    return arguments


def url_arguments(brokers: Iterable[Mapping[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Return the URLs for parameters of several brokers, and the other arguments of the connection.

    Raises:
        TypeError: as :func:`connection_arguments`.
        ValueError: the other parameters differ: they belong to all brokers.
    """
    urls: list[str] = []
    common: dict[str, Any] = {}
    for parameters in brokers:
        arguments = {"userid": "guest", "password": "guest", **connection_arguments(parameters)}
        address = {name: arguments.pop(name) for name in _ADDRESS if name in arguments}
        urls.append(Connection(**address, transport="amqp").as_uri(include_password=True))
        for name, value in arguments.items():
            if common.setdefault(name, value) != value:
                raise ValueError(f"{name} must be the same for all brokers, got {value!r}")
    return urls, common


def split_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL without pika's parameters in its query, and these as arguments of a connection."""
    address, _, query = url.partition("?")
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    theirs = {name: _number(pairs.pop(name)) for name in PARAMETERS & pairs.keys()}
    return f"{address}?{urlencode(pairs)}" if pairs else address, connection_arguments(theirs)


def _number(text: str) -> float | str | None:
    if text in ("", "None"):
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _login(credentials: Any) -> dict[str, Any]:
    if hasattr(credentials, "username"):
        return {"userid": credentials.username, "password": credentials.password}
    if getattr(credentials, "TYPE", None) == "EXTERNAL":
        return {"login_method": "EXTERNAL"}
    raise TypeError(
        f"credentials must be those of pika, with username and password, got "
        f"{type(credentials).__name__}"
    )


def _tls(options: Any) -> dict[str, Any]:
    if not hasattr(options, "context"):
        raise TypeError(f"ssl_options must be pika.SSLOptions, with a context, got {options!r}")
    name = getattr(options, "server_hostname", None)
    return {"context": options.context, **({"server_hostname": name} if name else {})}


class PikaConnection(Connection):
    """A connection with the attributes of pika's blocking connection."""

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self.connected

    @property
    def is_closed(self) -> bool:
        """Whether the connection is not open."""
        return not self.connected

    def sleep(self, duration: float) -> None:
        """Wait for *duration* seconds.  May switch."""
        sleep(duration)


class _DeclareReply(NamedTuple):
    """The reply to a declaration; pika has its fields in ``reply.method``."""

    queue: str
    message_count: int
    consumer_count: int

    @property
    def method(self) -> _DeclareReply:
        """The reply."""
        return self


class _CountReply(int):
    """The number of messages that were dropped; pika has it in ``reply.method``."""

    @property
    def method(self) -> _CountReply:
        """The reply."""
        return self

    @property
    def message_count(self) -> int:
        """The number."""
        return int(self)


class PikaChannel:
    """A channel whose methods for queues have the arguments, replies and errors of pika.

    All other attributes are those of the channel of greenconn.

    Arguments:
        channel: the channel of greenconn.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    @property
    def is_closed(self) -> bool:
        """Whether the channel is closed."""
        return not self._channel.is_open

    def confirm_delivery(self) -> None:
        """Do nothing: a broker of greenconn always waits for confirms."""

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> _DeclareReply:
        """Declare a queue, or look it up.  May switch."""
        with _errors_of_pika():
            reply = self._channel.queue_declare(
                queue=queue,
                passive=passive,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=arguments,
            )
        return _DeclareReply(*reply)

    def queue_purge(self, queue: str) -> _CountReply:
        """Drop the messages of a queue that no consumer has.  May switch."""
        with _errors_of_pika():
            return _CountReply(self._channel.queue_purge(queue) or 0)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False
    ) -> _CountReply:
        """Delete a queue.  May switch."""
        with _errors_of_pika():
            count = self._channel.queue_delete(queue, if_unused=if_unused, if_empty=if_empty)
        return _CountReply(count or 0)


def pika_errors(*names: str) -> tuple[type[Exception], ...]:
    """Return classes of ``pika.exceptions``; none if the program has not imported that module."""
    module = sys.modules.get("pika.exceptions")
    return () if module is None else tuple(getattr(module, name) for name in names)


@contextmanager
def _errors_of_pika() -> Iterator[None]:
    """Let errors of channels and connections be instances of pika's classes, too."""
    try:
        yield
    except (ChannelError, ConnectionError) as exc:
        is_refused = isinstance(exc, ChannelError)
        theirs = pika_errors("ChannelClosedByBroker" if is_refused else "AMQPConnectionError")
        if not theirs:
            raise
        values = exc.reply_text, exc.method_sig, exc.method_name, exc.reply_code
        raise _class_of_both(type(exc), theirs[0])(*values) from exc


def _class_of_both(ours: type[Exception], theirs: type[Exception]) -> type[Exception]:
    # pika's class has properties of these names, which ours could not set.
    return type(ours.__name__, (ours, theirs), {"reply_code": 0, "reply_text": None})


class RabbitmqBroker(GreenconnBroker):
    """A :class:`GreenconnBroker` that takes the place of Dramatiq's ``RabbitmqBroker``.

    It declares the same classic queues, unless *quorum* is true.

    Arguments:
        url: the URL of the broker, or several URLs: a list, or text separated by ``;``.
        confirm_delivery: accepted without effect: ``send`` always waits until RabbitMQ has the message.
        middleware: the list of middleware, as in ``dramatiq.Broker``.
        max_priority: the maximum priority of the queues, from 1 to 255; None for no priorities.
        parameters: in place of *url*, a list of dicts of parameters of ``pika.ConnectionParameters``.
        quorum: whether to declare quorum queues.
        kwargs: in place of *url*, the parameters of ``pika.ConnectionParameters``; and further arguments
            of :class:`GreenconnBroker`.

    Raises:
        RuntimeError: more than one of *url*, *parameters* and parameters of pika was given.
        TypeError: there is no such argument.
        ValueError: *max_priority* is out of range.
    """

    _connection_class = PikaConnection

    if TYPE_CHECKING:
        connection: PikaConnection
        channel: PikaChannel  # type: ignore[assignment]  # it has pika's arguments

    def __init__(
        self,
        *,
        confirm_delivery: bool = True,
        url: str | Iterable[str] | None = None,
        middleware: list[Middleware] | None = None,
        max_priority: int | None = None,
        parameters: Iterable[Mapping[str, Any]] | None = None,
        quorum: bool = False,
        **kwargs: Any,
    ) -> None:
        of_pika = {name: kwargs.pop(name) for name in PARAMETERS & kwargs.keys()}
        if (url is not None) + (parameters is not None) + bool(of_pika) > 1:
            raise RuntimeError("only one of url, parameters and pika's parameters must be given")
        if url is None:
            urls, arguments = url_arguments([of_pika] if parameters is None else parameters)
        else:
            urls, arguments = [], {}
            for each in url.split(";") if isinstance(url, str) else url:
                address, options = split_url(each)
                urls.append(address)
                arguments.update(options)
        options = {**arguments.pop("transport_options", {}), **kwargs.pop("transport_options", {})}
        if options:
            arguments["transport_options"] = options
        super().__init__(
            urls,
            middleware=middleware,
            max_priority=max_priority,
            quorum=quorum,
            **{**arguments, **kwargs},
        )
        self.confirm_delivery = confirm_delivery

    @property
    def state(self) -> SimpleNamespace:
        """An object with the ``connection`` and the ``channel`` of this thread, if they are open."""
        state = SimpleNamespace()
        if self.connection.connected:
            state.connection = self.connection
        channel = self._channels.get().opened
        if channel is not None:
            state.channel = channel
        return state

    def _open_channel(self, connection: Connection) -> Any:
        return PikaChannel(connection.channel())

    def _ensure_queue(self, name: str, connection: Connection) -> Queue:
        # Methods of subclasses that declare a queue may use self.channel, which is lost with its
        # connection, or raise errors of pika: they are called once more, as in Dramatiq.
        for is_last in (False, True):
            try:
                return super()._ensure_queue(name, connection)
            except (RecoverableConnectionError, *pika_errors("AMQPConnectionError")) as exc:
                if is_last or connection.session.is_closed:
                    raise NotAccepted(str(exc)) from exc
                del self.channel
        raise AssertionError("unreachable")
