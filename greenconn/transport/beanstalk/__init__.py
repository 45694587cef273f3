"""Beanstalk: ``beanstalk://host:11300/``."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from greenconn._version import __version__
from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.transport import StoreOptions, StoreTransport
from greenconn.transport.beanstalk.store import BeanstalkOptions, BeanstalkStore

__all__ = ["Channel", "Transport"]


class Channel(StoreChannel[StoreLink]):
    """A channel over beanstalk."""

    #: The server counts in seconds.
    has_whole_delays: Final = True

    def kick(self, queue: str = "", limit: int = 1000) -> int:
        """Let rejected messages, which lie buried in their queue, be delivered again.  May switch.

        Where none is buried, delayed messages become ready now (beanstalk's ``kick``).

        Arguments:
            limit: of messages.

        Returns:
            how many there were.
        """
        link = self.connection
        link.catch_up()
        store = link.store
        assert isinstance(store, BeanstalkStore)
        return link.ask("kicking messages", store.kick, self.entities.queue_name(queue), limit)


class Transport(StoreTransport):
    """``beanstalk://``: a tube for each queue, kombu's envelope in each job.

    ``transport_options`` are those of
    :class:`~greenconn.transport.beanstalk.store.BeanstalkOptions`.
    """

    Channel: ClassVar[type[StoreChannel[StoreLink]]] = Channel
    Options: ClassVar[type[StoreOptions]] = BeanstalkOptions
    driver_type = "beanstalk"
    driver_name = "greenconn"
    default_port = 11300
    #: Seconds between two attempts to connect, at most: a beanstalkd is back soon.
    longest_pause: ClassVar[float] = 1.0

    def make_store(self, wake: Callable[[str | None], None]) -> BeanstalkStore:
        return BeanstalkStore(self.client, wake, self.options)

    def driver_version(self) -> str:
        return __version__
