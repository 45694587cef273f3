"""Declarations of several entities on one channel, without a wait for each reply.

A channel that can pipeline (``can_pipeline``) handles requests in order, and closes at the first that it
refuses.  So the error is that of the oldest request without a reply, as if each had been waited for.

Some entities are declared one by one, after the replies to those before them: those with
``on_declared``, which gets the reply; those that the broker names; and those of subclasses, whose
methods may use what the channel returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from greenconn.entity.exchange import Exchange, binding
from greenconn.entity.queue import Queue
from greenconn.exceptions import ChannelError, ConnectionError
from greenconn.session.topology import IN_FLIGHT

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from greenconn.abc import Channel
    from greenconn.session.topology import PipeliningChannel

#: Methods that a program may have replaced on an entity itself.
_METHODS: Final = frozenset(("bind", "bind_to", "declare", "queue_bind", "queue_declare"))


class Declarations:
    """Declarations in their order; a context manager.

    What has no reply at its end, as when the greenlet was killed, is abandoned: the broker may
    carry it out.

    Arguments:
        channel: where to declare; None: each entity on its own channel, one by one.

    Attributes:
        replies: what the broker said of each :meth:`queue_declare`: name, messages and consumers.
    """

    def __init__(self, channel: Channel | None) -> None:
        self._channel = channel
        self._pipeline: Any = None
        # Of the type: a program's stand-in for a channel has every attribute.
        if getattr(type(channel), "can_pipeline", False):
            self._pipeline = cast("PipeliningChannel", channel).pipeline()
        self.replies: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pipeline is not None:
            self._pipeline.__exit__(kind, exc, traceback)

    def declare(self, entity: Any) -> None:
        """Declare an exchange, or a queue with its exchange and bindings.  May switch.

        Raises:
            ChannelError: the broker refused this one or an earlier one, which the error names.
            ConnectionError: the connection is gone.
            TimeoutError: the broker did not reply in time.
        """
        if self._waits_for(entity):
            self.finish()
            entity.declare(channel=self._channel)
        else:
            self._send(entity.declare)

    def queue_declare(self, queue: Any, **how: bool) -> None:
        """Declare a queue alone.  May switch.

        Arguments:
            how: arguments of ``Queue.queue_declare``.

        Raises:
            Exception: as :meth:`declare`.
        """
        if self._waits_for(queue):
            self.finish()
            self.replies.append(queue.queue_declare(channel=self._channel, **how))
        else:
            self._send(queue.queue_declare, **how)

    def finish(self) -> None:
        """Wait for all replies.  May switch.

        Raises:
            Exception: as :meth:`declare`.
        """
        self._receive(0)

    def _waits_for(self, entity: Any) -> bool:
        return self._pipeline is None or not _needs_no_reply(entity)

    def _send(self, declare: Any, **how: bool) -> None:
        try:
            declare(channel=self._channel, nowait=self._pipeline, **how)
        except (ChannelError, ConnectionError):
            # The channel may have been closed because of an earlier request: that has the reason.
            self.finish()
            raise
        self._receive(IN_FLIGHT)

    def _receive(self, limit: int) -> None:
        """Wait until at most *limit* requests have no reply."""
        pipeline = self._pipeline
        while pipeline is not None and pipeline.due > limit:
            self.replies.append(pipeline.receive())


def declare_pipelined(entity: Any, channel: Channel) -> None:
    """Declare *entity*, whose requests are sent together where the channel can.  May switch.

    Raises:
        Exception: as :meth:`Declarations.declare`.
    """
    with Declarations(channel) as declarations:
        declarations.declare(entity)
        declarations.finish()


def _needs_no_reply(entity: Any) -> bool:
    """Return whether *entity* is declared in the same way without the replies."""
    if type(entity) is Exchange:
        return _METHODS.isdisjoint(vars(entity))
    return (
        type(entity) is Queue
        and bool(entity.name)
        and entity._named_on is None
        and entity.on_declared is None
        and _METHODS.isdisjoint(vars(entity))
        and (entity.exchange is None or _needs_no_reply(entity.exchange))
        and all(
            type(each) is binding
            and _METHODS.isdisjoint(vars(each))
            and (each.exchange is None or _needs_no_reply(each.exchange))
            for each in entity.bindings
        )
    )
