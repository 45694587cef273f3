"""The transport for brokers that only have queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.exceptions import RecoverableChannelError, RecoverableConnectionError
from greenconn.green import fork
from greenconn.green.deadline import Deadline
from greenconn.transport import base
from greenconn.transport.virtual.channel import Channel
from greenconn.transport.virtual.cycle import FairCycle
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.link import CHANNEL_MAX, VirtualLink
from greenconn.transport.virtual.management import Management
from greenconn.transport.virtual.poller import Poller
from greenconn.transport.virtual.state import BrokerState

if TYPE_CHECKING:
    pass

__all__ = ["PolledLink", "Transport"]


class _AfterFork:
    """Ends a link in the child of a fork."""

    def __init__(self, link: PolledLink) -> None:
        self._link = link
        fork.register(self)

    def forget(self) -> None:
        self._link.forget(RecoverableConnectionError("the connection was the parent process's"))
        self._link.poller.stop()


class PolledLink(VirtualLink):
    """A link with a poller.

    Arguments:
        transport: has the exchanges and bindings, and says how often to poll.
    """

    def __init__(self, transport: Transport) -> None:
        client = transport.client
        options = client.transport_options or {}
        super().__init__(client, is_confirming=bool(options.get("confirm_publish")))
        self.transport = transport
        self.state = transport.state
        #: Queues that were declared here: they may be consumed from, whether or not the broker can
        #: tell an empty one from none.
        self.declared: set[str] = set()
        self.poller = Poller(transport.polling_interval, self._poll_failed)
        self._after_fork = _AfterFork(self)

    def __getattr__(self, name: str) -> Any:
        # kombu's channels have the transport itself for a connection, and so what it has of its own.
        if name == "transport":
            raise AttributeError(name)
        return getattr(self.transport, name)

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        """Hand over what a hook has taken from *queue* (kombu's name).  May switch.

        Raises:
            KeyError: it does not say which queue that was.
        """
        if not queue:
            raise KeyError("a message was received without the name of its queue")
        channels: list[Any] = list(self.channels.values())
        found = [each for each in channels if queue in each._tag_to_queue.values()] or channels[:1]
        for channel in found[:1]:
            channel._deliver(message, queue)

    def _poll_failed(self, exc: Exception) -> None:
        """The broker could not be asked: that is the end of this link."""
        if isinstance(exc, self.transport.connection_errors):
            self.end(exc)
            return
        lost = RecoverableConnectionError(f"polling failed: {exc!r}")
        lost.__cause__ = exc
        self.end(lost)

    def close(self) -> None:
        """Close it; what was not answered is given back first.  May switch."""
        if self.is_open:
            for channel in list(self.channels.values()):
                channel.close()
        super().close()

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life.  Never switches."""
        super().end(exc, closed=closed)
        self.poller.stop()


class Transport(base.Transport[PolledLink]):
    """Base of the transports whose ``Channel`` has the hooks (kombu's ``virtual.Transport``)."""

    Channel: ClassVar[type[Channel]] = Channel
    Cycle: ClassVar[type[FairCycle[Any]]] = FairCycle
    Management = Management
    default_port = None
    #: Seconds between two looks at a broker that had nothing; None and 0: the hooks wait themselves.
    polling_interval: float | None = 1.0
    channel_max = CHANNEL_MAX
    #: Exchanges and bindings that all transports of a class share; None: each has its own.
    global_state: ClassVar[BrokerState | None] = None

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = BrokerState() if self.global_state is None else self.global_state
        for name, kind in PREDECLARED.items():
            if name not in self.state.exchanges:
                self.state.declare(name, kind, durable=True)
        interval = (client.transport_options or {}).get("polling_interval")
        if interval is not None:
            self.polling_interval = float(interval)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": self.default_port}

    @property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableConnectionError,)

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableChannelError,)

    def establish_connection(self, deadline: Deadline | None = None) -> PolledLink:
        """Open a link.  May switch in subclasses."""
        return PolledLink(self)

    def create_channel(self, connection: PolledLink) -> Any:
        """Open a channel.  May switch in subclasses."""
        return self.Channel(connection)

    def qos_semantics_matches_spec(self, connection: PolledLink) -> bool:
        """``apply_global`` means the channel, as RabbitMQ has it."""
        return False
