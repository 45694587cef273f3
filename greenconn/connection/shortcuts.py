"""Shortcuts from a connection to what is built on it.

Pools and simple queues are imported when they are first asked for: most programs use neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.messaging import Consumer as _Consumer
from greenconn.messaging import Producer as _Producer

if TYPE_CHECKING:
    from greenconn.resource import ChannelPool as _ChannelPool
    from greenconn.resource import ConnectionPool as _ConnectionPool
    from greenconn.simple import SimpleBuffer as _SimpleBuffer
    from greenconn.simple import SimpleQueue as _SimpleQueue

__all__ = ["Shortcuts"]


class Shortcuts:
    """Methods of a connection that make pools, producers, consumers and simple queues."""

    def Pool(self, limit: int | None = None, **kwargs: Any) -> _ConnectionPool:  # noqa: N802
        """A pool of connections like this one; *limit* None is unlimited."""
        from greenconn.resource import ConnectionPool

        return ConnectionPool(self, limit, **kwargs)

    def ChannelPool(self, limit: int | None = None, **kwargs: Any) -> _ChannelPool:  # noqa: N802
        """A pool of channels of this connection; *limit* None is unlimited."""
        from greenconn.resource import ChannelPool

        return ChannelPool(self, limit, **kwargs)

    def Producer(self, channel: Any = None, *args: Any, **kwargs: Any) -> _Producer:  # noqa: N802
        """A producer on *channel*, or on the default channel."""
        return _Producer(self if channel is None else channel, *args, **kwargs)

    def Consumer(  # noqa: N802
        self, queues: Any = None, channel: Any = None, *args: Any, **kwargs: Any
    ) -> _Consumer:
        """A consumer of *queues* on *channel*, or on the default channel."""
        return _Consumer(self if channel is None else channel, queues, *args, **kwargs)

    def SimpleQueue(  # noqa: N802
        self,
        name: Any,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Any = None,
        **kwargs: Any,
    ) -> _SimpleQueue:
        """A queue with ``put`` and ``get``, on *channel* or the default channel.

        Arguments:
            name: of the queue, its exchange and its routing key; or a Queue.
            no_ack: whether messages need no acknowledgement.
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
        channel: Any = None,
        **kwargs: Any,
    ) -> _SimpleBuffer:
        """As :meth:`SimpleQueue`, but nothing in it outlives the broker or needs an answer."""
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
