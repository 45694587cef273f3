"""Queues that are not classic, as one connection knows them by their declarations.

Quorum queues and streams take no prefetch for a whole channel, streams no reject, no get and no
consumer without acks.  The broker ends the whole connection of who asks for that; what is known not to
work is not asked for.  A queue is known by its declaration on the same connection, a stream also by
the offset that its consumer names.

A quorum queue drops a message that was delivered more often than its ``x-delivery-limit`` (RabbitMQ 4:
20, if it sets none) and was not acknowledged.  With a dead-letter exchange the message goes there;
without one it is gone, so the log warns before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from amqp import spec

from greenconn.exceptions import AMQPNotImplementedError
from greenconn.green.supervisor import spawn
from greenconn.streams import OFFSET, check_offset

if TYPE_CHECKING:
    from greenconn.transport.amqp.consuming import ChannelConsumer
    from greenconn.transport.amqp.message import Delivery
    from greenconn.transport.amqp.port import LinkPort
    from greenconn.wire.acks import AckLedger

__all__ = ["DeliveryLimits", "QueueKinds"]

#: Queues whose kind one connection remembers.
_KINDS_KEPT: Final = 10_000
#: Tags of stream consumers, beside those that run, that one channel remembers.
_STREAMS_KEPT: Final = 1024

logger = logging.getLogger("greenconn.transport.amqp")
#: RabbitMQ 4's limit of a quorum queue that sets none.
DEFAULT_LIMIT: Final = 20
#: Queues that one connection remembers.
_KEPT: Final = 10_000


class QueueKinds:
    """Mixed into ``Channel``."""

    connection: LinkPort
    basic_qos: Callable[..., None]
    _consumers: dict[bytes, ChannelConsumer]
    _ledger: AckLedger
    _qos: tuple[int, int, bool] | None

    def _init_kinds(self) -> None:
        #: Tags of consumers that read streams, also of those that are gone, as their messages may
        #: still be answered.
        self.streams: set[str] = set()

    def _note_kind(self, queue: str, arguments: Mapping[str, Any] | None) -> None:
        """*queue* was declared, or deleted (no arguments).  Never switches."""
        self.connection.delivery_limits.declared(queue, arguments)
        kind = arguments.get("x-queue-type") if arguments else None
        kinds = self.connection.queue_kinds
        if kind in ("quorum", "stream"):
            if len(kinds) >= _KINDS_KEPT:
                del kinds[next(iter(kinds))]  # the one known longest
            kinds[queue] = kind
        elif queue in kinds:
            del kinds[queue]

    def _prepare_consume(
        self, queue: str, tag: str, no_ack: bool, arguments: Mapping[str, Any] | None
    ) -> None:
        """Make ready for a consumer of *queue*.  May switch.

        Raises:
            AMQPNotImplementedError: what the broker would end the connection for.
            ValueError: an offset that is none.
        """
        kind = self.connection.queue_kinds.get(queue)
        is_stream = kind == "stream" or bool(arguments and OFFSET in arguments)
        if is_stream:
            if no_ack:
                raise AMQPNotImplementedError(
                    f"queue {queue!r} is a stream, whose consumers must acknowledge",
                    spec.Basic.Consume,
                )
            if arguments and OFFSET in arguments:
                check_offset(arguments[OFFSET])
            self._note_stream(tag)
        elif tag in self.streams:
            self.streams.discard(tag)
        if (kind or is_stream) and self._qos is not None and self._qos[2]:
            self._limit_each_consumer(queue)

    def _limit_each_consumer(self, queue: str) -> None:
        """Turn the prefetch for the whole channel into one for each consumer.  May switch."""
        assert self._qos is not None
        if self._consumers:
            # They were started without a limit of their own.
            raise AMQPNotImplementedError(
                f"queue {queue!r} knows no prefetch for a whole channel, and other consumers of this "
                f"channel run under one: set it without apply_global, or use another channel",
                spec.Basic.Consume,
            )
        wanted = self._qos
        try:
            self.basic_qos(0, 0, True)
            self.basic_qos(wanted[0], wanted[1], False)
        except BaseException:
            self._qos = wanted  # killed half way: the next one does all of it
            raise

    def _note_stream(self, tag: str) -> None:
        if len(self.streams) >= _STREAMS_KEPT and not self._ledger.outstanding:
            self.streams &= {consumer.tag for consumer in self._consumers.values()}
        self.streams.add(tag)

    def _check_get(self, queue: str) -> None:
        if self.connection.queue_kinds.get(queue) == "stream":
            raise AMQPNotImplementedError(
                f"queue {queue!r} is a stream, which can only be consumed", spec.Basic.Get
            )


class DeliveryLimits:
    """What one connection knows of the limits of queues.  Nothing here switches.

    Arguments:
        where: the broker's URL with the password masked, for messages.
        version: of the RabbitMQ; None for another broker.
    """

    __slots__ = ("_default", "_limits", "_where")

    def __init__(self, where: str, version: tuple[int, int] | None) -> None:
        self._where = where
        self._default = DEFAULT_LIMIT if version is not None and version >= (4, 0) else None
        #: By queue, where it is not the default; None: nothing is dropped silently, or it was said.
        self._limits: dict[str, int | None] = {}

    def declared(self, queue: str, arguments: Mapping[str, Any] | None) -> None:
        """*queue* was declared with *arguments*, or deleted (None)."""
        if arguments is None:
            self._limits.pop(queue, None)
            return
        limit = arguments.get("x-delivery-limit", self._default)
        is_quorum = arguments.get("x-queue-type") == "quorum"
        is_silent = is_quorum and "x-dead-letter-exchange" not in arguments
        self._note(queue, limit if is_silent and isinstance(limit, int) and limit >= 0 else None)

    def _note(self, queue: str, limit: int | None) -> None:
        if len(self._limits) >= _KEPT and queue not in self._limits:
            del self._limits[next(iter(self._limits))]  # the one known longest
        self._limits[queue] = limit

    def look(self, queue: str, message: Delivery) -> None:
        """Warn, once for each queue, when *message* was delivered nearly as often as it may be."""
        limit = self._limits.get(queue, self._default)
        if limit is None:
            return
        count = message.headers.get("x-delivery-count")
        if not isinstance(count, int) or count * 4 < limit * 3:
            return
        self._note(queue, None)
        spawn(
            "log",
            logger.warning,
            "%s: a message of queue %r was delivered %d times before; a quorum queue drops a message "
            "that was delivered more than %d times and not acknowledged, unless it has a dead-letter "
            "exchange, and this one was not declared with one here: set x-dead-letter-exchange, or "
            "raise x-delivery-limit (this is said once)",
            self._where,
            queue,
            count,
            limit,
        )
