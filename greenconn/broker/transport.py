"""The transport over a store, and the options that all such transports have."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from greenconn.broker.channel import StoreChannel
from greenconn.broker.entities import Management
from greenconn.broker.exchanges import PREDECLARED, BrokerState
from greenconn.broker.leases import Handover
from greenconn.broker.link import StoreLink
from greenconn.broker.port import ConsumerRegistry, Store
from greenconn.broker.publishing import StorePublisher
from greenconn.checks import Record, check_count, check_seconds, check_type, invalid
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    InconsistencyError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import PerHub
from greenconn.options import known_options
from greenconn.transport import base


class StoreOptions(Record):
    """The options of a connection to any store."""

    lease: float = 30.0
    """Seconds after which the messages of a consumer that shows no sign of life are requeued.  A
    living consumer renews the lease every third of that time, however long its handlers run."""

    delivery_limit: int | None = None
    """Maximum number of deliveries of a message, after which it is dead-lettered; None is no limit.
    A queue's ``x-delivery-limit`` takes precedence."""

    dead_letter_queue: str | None = None
    """Queue for dead letters of queues without ``x-dead-letter-exchange``; None drops them."""

    deadletter_queue: str | None = None
    """Queue for messages that no binding matches; None drops them (kombu's)."""

    confirm_publish: bool = False
    """Accepted as for AMQP and ignored: every publish waits until the message is stored."""

    reply_timeout: float | None = 30.0
    """Seconds for a call of the store, if the caller gives no timeout; None is no limit."""

    confirm_timeout: float | None = None
    """Seconds that a publish waits until its message is stored, if the call gives no timeout; None
    is as long as the store replies within *reply_timeout*."""

    max_message_size: int = 512 * 1024 * 1024
    """Maximum bytes of a body."""

    def __post_init__(self) -> None:
        check_type(self, str, "dead_letter_queue", "deadletter_queue", optional=True)
        check_type(self, bool, "confirm_publish")
        check_seconds(self, "lease", optional=False)
        check_seconds(self, "reply_timeout", "confirm_timeout")
        check_count(self, "delivery_limit", least=1)
        check_count(self, "max_message_size", least=1, optional=False)
        if not self.lease:
            raise invalid(self, "lease", "a number of seconds above 0")


logger = logging.getLogger("greenconn.broker")
T = TypeVar("T")


class _Shared:
    """The exchanges and consumers that are known here."""

    def __init__(self) -> None:
        self.registry = ConsumerRegistry()
        self.state = BrokerState()
        for name, kind in PREDECLARED.items():
            self.state.declare(name, kind, durable=True)


#: By transport and place: what all connections of a process know of one broker.
_shared: Final[PerHub[dict[tuple[type[Any], str], _Shared]]] = PerHub(dict)


class StoreTransport(base.Transport[StoreLink]):
    """Base of the transports whose broker is a :class:`~greenconn.broker.port.Store`.

    A subclass sets ``Channel``, ``Options``, ``driver_type``, ``driver_name`` and the errors of its
    client library, and writes :meth:`make_store`.
    """

    Channel: ClassVar[type[StoreChannel[StoreLink]]] = StoreChannel
    Publisher: ClassVar[type[StorePublisher]] = StorePublisher
    Options: ClassVar[type[StoreOptions]] = StoreOptions
    Management = Management
    inner_schemes: ClassVar[frozenset[str] | None] = frozenset()
    #: Seconds between two attempts to connect, at most.
    longest_pause: ClassVar[float] = 5.0
    connection_errors: tuple[type[BaseException], ...] = (
        ConnectionError,
        InconsistencyError,
        OSError,
    )
    channel_errors: tuple[type[BaseException], ...] = (ChannelError,)
    recoverable_connection_errors: tuple[type[BaseException], ...] = (
        RecoverableConnectionError,
        OSError,
    )
    recoverable_channel_errors = (RecoverableChannelError,)
    implements = base.default_transport_capabilities.extend(
        asynchronous=True,
        exchange_type=frozenset({"direct", "topic", "fanout", "headers"}),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._options: StoreOptions | None = None

    @abstractmethod
    def make_store(self, wake: Callable[[str | None], None]) -> Store:
        """Return a store that is not open yet.  Never switches.

        Raises:
            ValueError: an option or the URL cannot be.
        """

    def place(self) -> str:
        """Return a key that is equal for connections to the same messages."""
        client = self.client
        return f"{client.hostname}:{client.port}/{client.virtual_host}"

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings as this process knows them."""
        return self._share().state

    @property
    def registry(self) -> ConsumerRegistry:
        """The consumers of this process."""
        return self._share().registry

    def _share(self) -> _Shared:
        known, key = _shared.get(), (type(self), self.place())
        found = known.get(key)
        if found is None:
            found = known[key] = _Shared()
        return found

    @property
    def handover(self) -> Handover:
        """The hand-over from former lives of this connection to the same broker."""
        return self.kept(Handover)

    def kept(self, kind: Callable[[], T]) -> T:
        """Return the object of *kind* that all lives of this connection to the same place share."""
        return self.kept_state.get(kind, f"{type(self).__module__} {self.place()}")

    @property
    def options(self) -> Any:
        """The transport options, read when they are first needed.

        Raises:
            ValueError: one has a value that cannot be.
        """
        if self._options is None:
            client = self.client
            self._options = known_options(
                self.Options, client.transport_options, client.as_uri(), logger
            )
        return self._options

    @property
    def stores_fanout(self) -> bool:
        """Whether a fan-out exchange stores messages for queues without consumers at that time."""
        return bool(getattr(self.options, "fanout_lists", True))

    def establish_connection(self, deadline: Deadline | None = None) -> StoreLink:
        """Open a link.  May switch.

        Arguments:
            deadline: of the caller; ``connect_timeout`` bounds it too.
        """
        link = StoreLink(self)
        link.open((deadline or Deadline()).within(self.client.connect_timeout))
        return link

    def create_channel(self, connection: StoreLink) -> StoreChannel[StoreLink]:
        """Open a channel."""
        return self.Channel(connection)

    def qos_semantics_matches_spec(self, connection: StoreLink) -> bool:
        """``apply_global`` means the channel, as RabbitMQ has it."""
        return False

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": self.default_port}
