"""What a channel knows of queues that are not classic.

Quorum queues and streams take no prefetch for a whole channel, streams no reject, no get and no
consumer without acks.  The broker ends the whole connection of who asks for that; what is known not to
work is not asked for.  A queue is known by its declaration on the same connection, a stream also by
the offset that its consumer names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from amqp import spec

from greenconn.exceptions import AMQPNotImplementedError
from greenconn.streams import OFFSET, check_offset

if TYPE_CHECKING:
    from greenconn.transport.amqp.connection import AmqpLink
    from greenconn.transport.amqp.consumer import ChannelConsumer
    from greenconn.wire.acks import AckLedger

__all__ = ["QueueKinds"]

#: Queues whose kind one connection remembers.
_KINDS_KEPT: Final = 10_000
#: Tags of stream consumers, beside those that run, that one channel remembers.
_STREAMS_KEPT: Final = 1024


class QueueKinds:
    """Mixed into ``Channel``."""

    connection: AmqpLink
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
