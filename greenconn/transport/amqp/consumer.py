"""What a channel knows of one consumer, and where its deliveries go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenconn.exceptions import ConsumerCancelled

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.transport.amqp.connection import AmqpLink
    from greenconn.transport.amqp.message import Delivery

__all__ = ["ChannelConsumer"]


class ChannelConsumer:
    """One consumer of one channel.

    Its deliveries go to a sink, or as events to whoever calls ``drain_events``.

    Arguments:
        unbounded: nothing but memory bounds what the broker sends: no acks, or no prefetch.
            The connection then counts the bytes that wait here.
    """

    __slots__ = (
        "callback",
        "deliver",
        "is_abandoned",
        "link",
        "no_ack",
        "on_cancel",
        "sink",
        "tag",
    )

    def __init__(
        self,
        link: AmqpLink,
        tag: str,
        *,
        no_ack: bool,
        unbounded: bool,
        callback: Callable[[Any], Any] | None,
        on_cancel: Callable[[str], Any] | None,
        sink: Sink | None,
    ) -> None:
        self.link = link
        self.tag = tag
        self.no_ack = no_ack
        self.callback = callback
        self.on_cancel = on_cancel
        self.sink = sink
        #: Its ``basic.consume`` was given up: deliveries go back to the queue until it is cancelled.
        self.is_abandoned = False
        self.deliver: Callable[[Delivery], None]
        if sink is not None:
            sink.taken = self._taken if unbounded else None
            self.deliver = self._to_sink_counted if unbounded else sink.deliver
        else:
            self.deliver = self._to_events_counted if unbounded else self._to_events

    # All of these run in the reader: they append, wake and return.

    def _to_events(self, message: Delivery) -> None:
        self.link.events.put((self._handle, message))

    def _to_events_counted(self, message: Delivery) -> None:
        self.link.budget.hold(len(message.raw))
        self.link.events.put((self._handle_counted, message))

    def _to_sink_counted(self, message: Delivery) -> None:
        assert self.sink is not None
        self.link.budget.hold(len(message.raw))
        self.sink.deliver(message)

    def gone(self, exc: BaseException, *, cancelled: bool = False) -> None:
        """Tell the owner that no more will come.

        Arguments:
            cancelled: the broker cancelled this one consumer; the channel lives on.
        """
        if self.is_abandoned:
            return
        if self.sink is not None:
            self.sink.cancelled(exc)
        elif cancelled and self.on_cancel is not None:
            self.link.events.put((self.on_cancel, self.tag))
        elif cancelled:
            self.link.events.put((_raise, exc))

    # In the greenlet that drains.

    def _handle(self, message: Delivery) -> None:
        if self.callback is not None:
            self.callback(message)

    def _taken(self, message: Delivery) -> None:
        self.link.budget.release(len(message.raw))

    def _handle_counted(self, message: Delivery) -> None:
        self.link.budget.release(len(message.raw))
        if self.callback is not None:
            self.callback(message)


def cancelled_error(tag: str) -> ConsumerCancelled:
    """The error for a consumer that the broker cancelled."""
    return ConsumerCancelled(f"the broker cancelled consumer {tag!r}: was its queue deleted?")


def _raise(exc: BaseException) -> None:
    raise exc
