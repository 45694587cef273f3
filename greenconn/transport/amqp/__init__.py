"""The native AMQP 0-9-1 transport: RabbitMQ and its relatives."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import amqp
from amqp.exceptions import MessageNacked

from greenconn.credentials import supplied
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.stream import numeric
from greenconn.options import BROKER_HEARTBEAT, AmqpOptions, from_transport_options, warn_of_ignored
from greenconn.transport import base
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.handshake import rabbitmq_version
from greenconn.transport.amqp.link import AmqpLink

if TYPE_CHECKING:
    from greenconn.transport.amqp.management import Management

logger = logging.getLogger("greenconn.transport.amqp")

#: Options of every transport, which other rooms check.
_COMMON = frozenset(
    {
        "max_retries",
        "interval_start",
        "interval_step",
        "interval_max",
        "errback",
        "callback",
        "connect_retries_timeout",
        "timeout",
    }
)


class Transport(base.Transport[AmqpLink]):
    """AMQP 0-9-1 (kombu 5.7, ``kombu.transport.pyamqp.Transport``).

    ``transport_options`` are those of :class:`~greenconn.options.AmqpOptions`.
    """

    Connection: ClassVar[type[AmqpLink]] = AmqpLink

    default_port = 5672
    default_ssl_port = 5671
    inner_schemes: ClassVar[frozenset[str] | None] = frozenset()
    driver_type = "amqp"
    driver_name = "py-amqp"
    connection_errors = (ConnectionError, OSError)
    channel_errors = (ChannelError,)
    # On the class, as in kombu.
    recoverable_connection_errors = (
        RecoverableConnectionError,
        MessageNacked,
        OSError,
    )
    recoverable_channel_errors = (RecoverableChannelError,)
    implements = base.default_transport_capabilities.extend(asynchronous=True, heartbeats=True)

    def __init__(
        self,
        client: Any,
        default_port: int | None = None,
        default_ssl_port: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(client, **kwargs)
        self.default_port = default_port or self.default_port
        self.default_ssl_port = default_ssl_port or self.default_ssl_port

    def driver_version(self) -> str:
        return str(amqp.__version__)

    def establish_connection(self, deadline: Deadline | None = None) -> AmqpLink:
        """Open a connection.  May switch.

        Arguments:
            deadline: of the caller; the client's ``connect_timeout`` bounds it too.

        Raises:
            See :meth:`AmqpLink.open`.
        """
        client = self.client
        options = self.options(warns=True)
        host = client.hostname or "localhost"
        use_tls = bool(client.ssl)
        port = client.port or (self.default_ssl_port if use_tls else self.default_port)
        tls = None
        if use_tls:
            from greenconn.wire.tls import tls_session  # when it is used

            tls = tls_session(client.ssl, host)
        userid, password = supplied(self.login)
        link = self.Connection(
            client,
            numeric(host),
            int(port),
            userid=userid,
            password=password,
            virtual_host=client.virtual_host or "/",
            login_method=client.login_method or options.login_method or "PLAIN",
            tls=tls,
            heartbeat=BROKER_HEARTBEAT if client.heartbeat is None else client.heartbeat,
            options=options,
            where=client.as_uri(),
        )
        within = (deadline or Deadline()).within(client.connect_timeout)
        link.open(within)
        if isinstance(password, str) and type(password) is not str:  # it may say when it expires
            link.secret.keep(password, lambda: self.login()[1])
        return link

    def update_secret(
        self, connection: AmqpLink, secret: str, reason: str = "", deadline: Deadline | None = None
    ) -> None:
        """Update the secret of the login at the broker (RabbitMQ's extension).  May switch.

        Arguments:
            deadline: None, and one without an end, is the connection's ``reply_timeout``.

        Raises:
            TimeoutError, ConnectionError: see :meth:`Secret.update`.
        """
        connection.hub_affinity.check(connection)
        if deadline is None or deadline.timeout is None:
            deadline = Deadline(connection.options.reply_timeout)
        connection.secret.update(secret, reason, deadline)

    def login(self) -> tuple[str | None, str | None]:
        """Return user name and password, from the provider if there is one.  Runs user code; may switch.

        Raises:
            TypeError: one of them is no text.
        """
        client = self.client
        provider = getattr(client, "credential_provider", None)
        if provider is not None:
            userid, password = provider.get_credentials()
        else:
            userid, password = client.userid, client.password
            if callable(password):
                password = password()
                if password is None:
                    raise TypeError("the password of a login must be text, got None")
            userid = "guest" if userid is None else userid
            password = "guest" if password is None else password
        for name, value in (("user name", userid), ("password", password)):
            if value is not None and not isinstance(value, str):
                # Else it would look like an error of the broker, and be tried again.
                raise TypeError(f"the {name} of a login must be text, got {type(value).__name__}")
        return userid, password

    def options(self, *, warns: bool = False) -> AmqpOptions:
        """Return the transport options of the connection.

        Arguments:
            warns: log names that are no options.
        """
        options, unknown = from_transport_options(AmqpOptions, self.client.transport_options or {})
        ignored = sorted(set(unknown) - _COMMON) if unknown and warns else ()
        if ignored:
            known = {*AmqpOptions.fields, *_COMMON}
            warn_of_ignored(ignored, known, self.client.as_uri(), logger)
        return options

    def create_channel(self, connection: AmqpLink) -> Channel:
        """Open a channel.  May switch."""
        return connection.channel()

    def begin_channel(self, connection: AmqpLink) -> Channel:
        """Return a channel whose opening the first requests on it follow at once.  May switch."""
        if type(self).create_channel is not Transport.create_channel:
            return self.create_channel(connection)  # a subclass decides on each channel
        return connection.begin_channel()

    def heartbeat_check(self, connection: AmqpLink, rate: int = 2) -> None:
        """Raise an error if the peer is dead; heartbeats are sent in the background."""
        connection.heartbeat_tick(rate)

    def get_heartbeat_interval(self, connection: AmqpLink) -> float:
        return float(connection.heartbeat or 0)

    def qos_semantics_matches_spec(self, connection: AmqpLink) -> bool:
        """Return whether to set the prefetch without ``apply_global``; kombu's name, and its results.

        False for RabbitMQ 3.3 to 3.13, where programs that want one prefetch for all consumers of a
        channel set it with ``apply_global``.  True for RabbitMQ 4, which gave that up, and for others.
        """
        version = rabbitmq_version(connection.server_properties)
        return version is None or not (3, 3) <= version < (4, 0)

    def get_manager(
        self,
        hostname: str | None = None,
        port: int | None = None,
        userid: str | None = None,
        password: str | None = None,
        *,
        timeout: float | None = None,
    ) -> Management:
        """Return a client of the broker's management API; sends nothing yet.

        Arguments:
            hostname, port, userid, password, timeout: see
                :class:`~greenconn.transport.amqp.management.Management`.
        """
        # Imported at the first use: HTTP costs 20 ms, and most programs do not need it.
        from greenconn.transport.amqp.management import Management

        return Management(self, hostname, port, userid, password, timeout=timeout)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {
            "userid": "guest",
            "password": "guest",
            "port": self.default_ssl_port if self.client.ssl else self.default_port,
            "hostname": "localhost",
            "login_method": "PLAIN",
        }


class SSLTransport(Transport):
    """The same over TLS (``amqps://``): verified unless the ``ssl`` argument says otherwise."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if not client.ssl:
            client.ssl = True
