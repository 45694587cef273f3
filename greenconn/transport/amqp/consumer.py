"""What a channel knows of one consumer, and where its deliveries go."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from greenconn.exceptions import ConsumerCancelled
from greenconn.green.slot import Slot

if TYPE_CHECKING:
    from greenconn.abc import Sink
    from greenconn.transport.amqp.connection import AmqpLink
    from greenconn.transport.amqp.message import Delivery

__all__ = ["ChannelConsumer", "ConsumerState"]


class ConsumerState(Enum):
    """The life of a consumer; each state may lead to those after it."""

    #: ``basic.consume`` was written; its caller waits and gets what goes wrong.
    STARTING = auto()
    #: The broker confirmed it.
    RUNNING = auto()
    #: The caller was killed while it waited: what comes goes back to the queue, and the tag stays
    #: taken until the broker has answered the cancel.
    ABANDONED = auto()
    #: ``basic.cancel`` was written and nobody waits for the answer: the tag may be used again.
    CANCELLED = auto()


#: Asked for with each delivery, and members of an Enum are not looked up for nothing.
_ABANDONED: Final = ConsumerState.ABANDONED


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
        "is_ending",
        "link",
        "no_ack",
        "on_cancel",
        "queue",
        "sink",
        "state",
        "tag",
        "watchers",
    )

    def __init__(
        self,
        link: AmqpLink,
        tag: str,
        queue: str,
        *,
        no_ack: bool,
        unbounded: bool,
        callback: Callable[[Any], Any] | None,
        on_cancel: Callable[[str], Any] | None,
        sink: Sink | None,
    ) -> None:
        self.link = link
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.callback = callback
        self.on_cancel = on_cancel
        self.sink = sink
        self.state = ConsumerState.STARTING
        #: The broker was told to end it.
        self.is_ending = False
        #: Those who wait until it is no longer starting, or until it has ended.
        self.watchers: list[Slot[None]] = []
        self.deliver: Callable[[Delivery], None]
        if sink is not None:
            sink.taken = self._taken if unbounded else None
            self.deliver = self._to_sink_counted if unbounded else sink.deliver
        else:
            self.deliver = self._to_events_counted if unbounded else self._to_events

    def count(self) -> None:
        """From now on nothing but memory bounds what the broker sends.  Never switches.

        What goes to a sink is not counted: its owner asks for that when it begins to consume.
        """
        if self.deliver == self._to_events:
            self.deliver = self._to_events_counted

    @property
    def is_event(self) -> bool:
        """Whether those who drain wait for its deliveries."""
        return self.sink is None and self.state is ConsumerState.RUNNING

    def leave(self, state: ConsumerState) -> None:
        """Nobody wants it any more: what still comes goes back to the queue.  Never switches."""
        self.state = state
        self.deliver = self._refuse
        self.sink = None  # it may hold much, and this stays as long as the tag is known
        self.tell_watchers()

    def tell_watchers(self) -> None:
        """Something has changed.  Never switches."""
        for slot in self.watchers:
            slot.offer(None)
        self.watchers.clear()

    def give_back(self) -> None:
        """Have its sink put back what nobody has begun with; the broker sends no more.  May switch."""
        if self.sink is not None:
            self.sink.give_back()

    def give_back_event(self, function: Callable[[Any], Any], message: Delivery) -> None:
        """Put back a delivery that waited among the events of the connection.  Never switches.

        Arguments:
            function: the event's, which tells whether the delivery was counted.
        """
        if function == self._handle_counted:
            self._taken(message)
        message.put_back()

    # All of these run in the reader: they append, wake and return.

    def start(self, reply: object = None) -> None:
        """The broker confirmed it."""
        if self.state is ConsumerState.STARTING:
            self.state = ConsumerState.RUNNING
            self.tell_watchers()

    def _refuse(self, message: Delivery) -> None:
        if not self.no_ack:
            message.put_back()

    def _to_events(self, message: Delivery) -> None:
        self.link.events.put((self._handle, message))

    def _to_events_counted(self, message: Delivery) -> None:
        self.link.budget.hold(message.size)
        self.link.events.put((self._handle_counted, message))

    def _to_sink_counted(self, message: Delivery) -> None:
        assert self.sink is not None
        self.link.budget.hold(message.size)
        self.sink.deliver(message)

    def gone(self, exc: BaseException, *, cancelled: bool = False) -> None:
        """Tell the owner that no more will come.

        Arguments:
            cancelled: the broker cancelled this one consumer; the channel lives on.
        """
        self.tell_watchers()
        if self.state is not ConsumerState.RUNNING:
            return  # the caller of ``basic_consume`` is told, or nobody cares
        if self.sink is not None:
            self.sink.cancelled(exc)
        elif cancelled and self.on_cancel is not None:
            self.link.events.put((self.on_cancel, self.tag))
        elif cancelled:
            self.link.events.put((_raise, exc))

    # In the greenlet that drains.

    def _handle(self, message: Delivery) -> None:
        if self.state is _ABANDONED:
            self._refuse(message)
        elif self.callback is not None:
            self.callback(message)

    def _taken(self, message: Delivery) -> None:
        self.link.budget.release(message.size)

    def _handle_counted(self, message: Delivery) -> None:
        self.link.budget.release(message.size)
        self._handle(message)


def cancelled_error(tag: str) -> ConsumerCancelled:
    """The error for a consumer that the broker cancelled."""
    return ConsumerCancelled(
        f"the broker cancelled consumer {tag!r}: its queue was deleted or is not there at the moment, "
        f"or a message of a quorum queue was not answered within its consumer timeout (RabbitMQ 4.3)"
    )


def _raise(exc: BaseException) -> None:
    raise exc
