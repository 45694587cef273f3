"""One life of a connection to the memory broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from greenconn.broker.channel import BrokerLink, StoreChannel
from greenconn.broker.directory import Directory
from greenconn.broker.queue_port import KnownQueues
from greenconn.broker.routing import Routing
from greenconn.options import MemoryOptions
from greenconn.transport.memory.answers import Answers
from greenconn.transport.memory.broker import Broker
from greenconn.transport.memory.publishing import MemoryPublisher
from greenconn.transport.memory.queues import MemoryQueues
from greenconn.transport.memory.subscriptions import MemorySubscriptions
from greenconn.transport.virtual.owners import new_owner

__all__ = ["MemoryLink"]

T = TypeVar("T")


class MemoryLink(BrokerLink):
    """A link to *broker*: open until it is closed, or the broker ends it."""

    def __init__(self, client: Any, broker: Broker, options: MemoryOptions | None = None) -> None:
        options = options or MemoryOptions()
        super().__init__(client, is_confirming=options.confirm_publish)
        self.broker = broker
        self.options = options
        self.owner = new_owner()
        self.state = broker.state
        self.topology = None
        self.directory = Directory(self, MemoryQueues(broker), KnownQueues())
        self.routing = Routing(self)
        self.answers = Answers(broker)
        self.subscriptions = MemorySubscriptions(broker, self.directory)
        self.feeds = {}  # queues serve their consumers themselves
        broker.links[self] = None

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``.  Never switches."""
        return function(*args)

    def publisher(self, channel: StoreChannel[Any]) -> MemoryPublisher:
        """Return what *channel* publishes with."""
        return MemoryPublisher(channel, self.broker, self.options)

    def flush_answers(self) -> None:
        """Do nothing: an answer takes effect at once."""

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life: what its channels hold goes back, its exclusive queues go.

        Never switches.
        """
        if self.lost is None:
            self._give_back()
        super().end(exc, closed=closed)
        self.broker.left(self)

    def _give_back(self) -> None:
        """Give back what its channels hold; none of it comes to them again."""
        channels = [each for each in self.channels.values() if isinstance(each, StoreChannel)]
        for channel in channels:
            for consumer in channel.consumers.values():
                consumer.stop()
        for channel in channels:
            channel.deliveries.release()
