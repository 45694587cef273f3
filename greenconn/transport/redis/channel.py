"""A channel to a Redis server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from greenconn.broker.channel import StoreChannel
from greenconn.broker.entities import SharedEntities
from greenconn.transport.redis.client import LinkedRedis
from greenconn.transport.redis.link import RedisLink
from greenconn.transport.redis.sweeper import Sweeper
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.arguments import SupportedArguments
from greenconn.transport.virtual.consumer import Consumer, Prefetch, PrefetchView
from greenconn.transport.virtual.state import Binding

__all__ = ["Channel"]


class RedisPrefetchView(PrefetchView):
    """The ``qos`` of a channel to Redis, as kombu's programs use it."""

    def __init__(self, prefetch: Prefetch, sweeper: Sweeper) -> None:
        super().__init__(prefetch)
        self._sweeper = sweeper

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Give back now what dead consumers left; sweepers do it anyway.  May switch."""
        self._sweeper.look()


class RedisEntities(SharedEntities):
    """Exchanges, queues and bindings of a channel to a Redis."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._redis = channel.connection

    def _bind(self, binding: Binding, method: Method) -> None:
        super()._bind(binding, method)
        if self._is_heard(binding):
            self._redis.fanout.bound(binding.destination)

    def _unbind(self, binding: Binding) -> None:
        if self._is_heard(binding):
            fanout = self._redis.fanout
            fanout.unbound(binding.destination, binding.source, binding.routing_key)
        super()._unbind(binding)

    def _is_heard(self, binding: Binding) -> bool:
        """Return whether the destination listens for what the source gets."""
        return not binding.to_exchange and self._redis.is_broadcast(binding.source)


class Channel(StoreChannel[RedisLink]):
    """A channel.  Any greenlet of its connection's hub may call any method at any time.

    Arguments:
        connection: the link.
    """

    entities_class = RedisEntities
    supported_arguments = SupportedArguments(
        queue=frozenset(
            {
                "x-dead-letter-exchange",
                "x-dead-letter-routing-key",
                "x-delivery-limit",
                "x-expires",
                "x-message-ttl",
            }
        ),
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", "CC", "BCC"}),
    )

    def __init__(self, connection: RedisLink, channel_id: int | None = None) -> None:
        super().__init__(connection, channel_id)
        self._order = connection.options.queue_order_strategy
        self.prefetch.is_divided = self._order == "round_robin"

    @property
    def qos(self) -> RedisPrefetchView:
        """The prefetch and what is unanswered, as kombu's programs read them."""
        return RedisPrefetchView(self.prefetch, self.connection.sweeper)

    @property
    def visibility_timeout(self) -> float:
        """Seconds after which what a dead consumer of kombu's held is given back to its queue."""
        return self.connection.options.visibility_timeout

    @property
    def client(self) -> LinkedRedis:
        """A redis-py client of this connection's server and database.  Never switches.

        Its commands may switch.  Keys get the ``global_keyprefix``.  It ends with the connection.

        Raises:
            RecoverableConnectionError, RecoverableChannelError: the channel is closed.
            WrongHub: called from another thread.
        """
        self.check_open()
        return self.connection.clients.client()

    @contextmanager
    def conn_or_acquire(self, client: LinkedRedis | None = None) -> Iterator[LinkedRedis]:
        """Yield *client*, or :attr:`client` (kombu's name)."""
        yield client or self.client

    def _in_order(self) -> list[Consumer]:
        if self._order == "round_robin":
            return super()._in_order()
        consumers = list(self.consumers.values())
        if self._order == "sorted":
            consumers.sort(key=_queue_of)
        return consumers


def _queue_of(consumer: Consumer) -> str:
    return consumer.queue
