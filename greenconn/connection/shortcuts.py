"""Shortcuts from a connection to what is built on it, which is imported when it is first asked for.

A program that only publishes has no use for consumers, one that is about to fork for neither, and
most have none for pools and simple queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.transport.base import Factories

if TYPE_CHECKING:
    from greenconn.abc import Channel, Connection
    from greenconn.messaging import Consumer as _Consumer
    from greenconn.messaging import Producer as _Producer
    from greenconn.resource import ChannelPool as _ChannelPool
    from greenconn.resource import ConnectionPool as _ConnectionPool
    from greenconn.simple import SimpleBuffer as _SimpleBuffer
    from greenconn.simple import SimpleQueue as _SimpleQueue

__all__ = ["Shortcuts"]


class Shortcuts:
    """Methods of a connection that make pools, producers, consumers and simple queues."""

    def Pool(self: Connection, limit: int | None = None, **kwargs: Any) -> _ConnectionPool:  # noqa: N802
        """A pool of connections like this one; *limit* None is unlimited."""
        from greenconn.resource import ConnectionPool

        return ConnectionPool(self, limit, **kwargs)

    def ChannelPool(self: Connection, limit: int | None = None, **kwargs: Any) -> _ChannelPool:  # noqa: N802
        """A pool of channels of this connection; *limit* None is unlimited."""
        from greenconn.resource import ChannelPool

        return ChannelPool(self, limit, **kwargs)

    def Producer(  # noqa: N802
        self: Connection, channel: Channel | None = None, *args: Any, **kwargs: Any
    ) -> _Producer:
        """A producer on *channel*, or on the default channel."""
        return _producer(self if channel is None else channel, *args, **kwargs)

    def Consumer(  # noqa: N802
        self: Connection,
        queues: Any = None,
        channel: Channel | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> _Consumer:
        """A consumer of *queues* on *channel*, or on the default channel."""
        return _consumer(self if channel is None else channel, queues, *args, **kwargs)

    def SimpleQueue(  # noqa: N802
        self: Connection,
        name: Any,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Channel | None = None,
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
        self: Connection,
        name: Any,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        channel: Channel | None = None,
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


def _producer(*args: Any, **kwargs: Any) -> _Producer:
    from greenconn.messaging import Producer

    return Producer(*args, **kwargs)


def _consumer(*args: Any, **kwargs: Any) -> _Consumer:
    from greenconn.messaging import Consumer

    return Consumer(*args, **kwargs)


# Channels have the same shortcuts; messaging, once imported, puts its classes there itself.
Factories.Producer = Factories.Producer or _producer
Factories.Consumer = Factories.Consumer or _consumer
