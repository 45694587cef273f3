"""The link of channels that are made in this process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from gevent import get_hub

from greenconn.broker.consumers import Subscriptions
from greenconn.broker.deliveries import Acknowledger
from greenconn.broker.directory import ConsumedQueue, Directory
from greenconn.broker.routing import Routing
from greenconn.broker.topology import Topology
from greenconn.exceptions import ConnectionError, RecoverableConnectionError, ResourceError
from greenconn.green import fork
from greenconn.green.deadline import NEVER, Deadline
from greenconn.transport.base import Link, open_links
from greenconn.transport.virtual.consumer import STALE
from greenconn.transport.virtual.exchange import Router
from greenconn.transport.virtual.state import BrokerState

if TYPE_CHECKING:
    from greenconn.broker.channel import Publisher, StoreChannel

T = TypeVar("T")

#: Channels that one link may have.
CHANNEL_MAX = 65535


class BrokerLink(Link):
    """A link that keeps its channels, and ends them when it ends.

    It belongs to the hub on which it was opened.

    Arguments:
        is_confirming: every publish waits for its confirm.

    Attributes:
        owner: the unique name that owns the exclusive queues of this life.
        feeds: queue -> what serves its consumers of this link.
        settlements: sends the acks, requeues and rejects of its channels.
        subscriptions: the queues that its channels consume from.
        topology: the exchanges and bindings that are shared with other processes; None: they are not.
    """

    channel_max = CHANNEL_MAX
    owner: str
    state: BrokerState
    directory: Directory
    routing: Routing
    feeds: Mapping[str, ConsumedQueue]
    settlements: Acknowledger
    subscriptions: Subscriptions
    topology: Topology | None

    def __init__(self, client: Any, *, is_confirming: bool = False) -> None:
        super().__init__(client)
        self.is_confirming = is_confirming
        self.channels: dict[int, StoreChannel[Any]] = {}
        self._last_id = 0
        #: Channels that take no more messages until the next drain; see :meth:`recall`.
        self._undrained: set[StoreChannel[Any]] = set()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<{type(self).__name__}: {state}, {len(self.channels)} channels>"

    # -- what a transport writes

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``, which asks the broker.  May switch.

        Arguments:
            what: for messages.
        """
        raise NotImplementedError

    def router_of(self, exchange: str, type: str) -> Callable[[], Router] | None:
        """Return what makes the router of an exchange; None: the usual one of its type."""
        return None

    def existing(self, queues: Sequence[str]) -> Sequence[str]:
        """Return those of *queues* that exist.  May switch where that is not known."""
        is_there = self.directory.is_there
        return [each for each in queues if is_there(each)]

    def publisher(self, channel: StoreChannel[Any]) -> Publisher[Any]:
        """Return the publisher of *channel*."""
        raise NotImplementedError

    def wait_settled(self, deadline: Deadline) -> None:
        """Return when the broker has all acks up to now, or they are on their way.  May switch.

        Raises:
            TimeoutError: not before the deadline, or within ``reply_timeout``.
            RecoverableConnectionError: the link is lost.
        """
        raise NotImplementedError

    def flush_acks(self) -> None:
        """Return when all acks and rejects are on their way.  May switch.

        After the loss of the connection this does nothing: the next life sends them.

        Raises:
            TimeoutError: the broker read too little within ``reply_timeout``.
        """
        if self.lost is None:
            self.hub_affinity.check(self)
            try:
                self.wait_settled(NEVER)
            except RecoverableConnectionError:
                pass

    # -- what its consumers have taken, and its program does not drain

    @property
    @abstractmethod
    def place(self) -> object:
        """The broker that this link leads to; two links to one broker have equal places."""

    def recall(self, queue: str) -> bool:
        """Requeue messages of a queue that this thread's connections do not drain.  May switch.

        A consumer takes messages before ``drain_events`` runs.  A program of kombu's may look for one of
        them by ``basic_get`` instead, over another connection: kombu takes it while it drains only.

        Returns:
            False: there were none.

        Raises:
            TimeoutError, RecoverableConnectionError: the broker does not have them yet.
        """
        hub, place = self.hub_affinity.hub, self.place
        links = [
            each
            for each in open_links()
            if isinstance(each, BrokerLink)
            and each.hub_affinity.hub is hub
            and each.is_open
            and each.place == place
            and each._give_back(queue)
        ]
        for link in links:
            link.flush_settlements(NEVER)
        return bool(links)

    def _give_back(self, queue: str) -> bool:
        """Requeue what is not drained of a queue, and take no more until the next drain."""
        recalled = False
        for channel in list(self.channels.values()):
            consumers = [
                each for each in channel.consumers.values() if each.queue == queue and each.backlog
            ]
            if consumers and channel.prefetch.is_flowing:
                channel.prefetch.is_flowing = False
                self._undrained.add(channel)
                for consumer in consumers:
                    recalled = channel.deliveries.recall(consumer) or recalled
        return recalled

    def _resume(self) -> None:
        """Let channels go on that took no more until this drain.  Never switches."""
        channels, self._undrained = self._undrained, set()
        for channel in channels:
            channel.flow(True)

    # -- its channels

    def take_channel_id(self, channel_id: int | None = None) -> int:
        """Return *channel_id*, or another number that is free, for a new channel.

        Raises:
            RecoverableConnectionError: the link is closed.
            ResourceError: it has as many channels as it may have.
            WrongHub: called from another thread.
        """
        self.hub_affinity.check(self)
        self.check_open()
        if len(self.channels) >= self.channel_max:
            raise ResourceError(f"all {self.channel_max} channels are in use", (20, 10))
        if channel_id is None:
            channel_id = self._last_id % self.channel_max + 1
            while channel_id in self.channels:
                channel_id = channel_id % self.channel_max + 1
            self._last_id = channel_id
        elif channel_id in self.channels:
            raise ConnectionError(f"channel {channel_id} is open already", (20, 10))
        return channel_id

    def remove_channel(self, channel: StoreChannel[Any]) -> None:
        """Forget a channel that ended."""
        self.channels.pop(channel.channel_id, None)
        self._undrained.discard(channel)

    def drain(self, timeout: float | Deadline | None) -> None:
        """Run the next event; those of consumers that are gone are dropped.  May switch."""
        if get_hub() is not self.hub_affinity.hub:
            self.hub_affinity.check(self)
        began_at = monotonic()
        while True:
            if self.lost is not None:
                self.check_open()
            if self._undrained:
                self._resume()
            function, argument = self.events.get(timeout)
            if function(argument) is not STALE:
                return
            if timeout is not None and not isinstance(timeout, Deadline):
                timeout = Deadline(timeout - (monotonic() - began_at))

    def forget(self, exc: BaseException) -> None:
        """Forget it, silently, in the child of a fork, as the parent owns it.  Never switches."""
        self.lost = exc
        self.events.clear()
        for channel in self.channels.values():
            channel.forget(exc)
        self.channels.clear()

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life: its channels end, and what they hold goes back.  Never switches."""
        if self.lost is not None:
            return
        super().end(exc, closed=closed)
        for channel in list(self.channels.values()):
            channel.end(exc)


class ForkHandler:
    """The end of a link in the child of a fork, as long as this object exists."""

    def __init__(self, link: BrokerLink) -> None:
        self._link = link
        fork.register(self)

    def forget(self) -> None:
        """See :class:`greenconn.green.fork.ForkAware`."""
        self._link.forget(RecoverableConnectionError("the connection was opened before a fork"))
