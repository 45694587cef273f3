"""Messages of one consumer, for greenlets that wait for them without ``drain_events``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from greenconn.exceptions import ConsumerCancelled
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox, take_any

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.messaging.consumer import Consumer
    from greenconn.transport.base import Link


class ConsumerInbox:
    """The messages that were delivered and not taken yet (a :class:`~greenconn.abc.Sink`).

    Deliveries come straight here, not by way of ``drain_events``, so that no other greenlet which
    drains the same connection takes them out of the reach of who waits for them.

    Arguments:
        consumer: whose deliveries they are; it must not have begun to consume.
        no_ack: they need no ack, so they are never redelivered.
    """

    def __init__(self, consumer: Consumer, no_ack: bool) -> None:
        self.inbox: Inbox[Any] = Inbox()
        self.taken: Callable[[Any], None] | None = None
        #: Why no more will come, until it was raised.
        self.over: BaseException | None = None
        self._consumer = consumer
        self._no_ack = no_ack

    def deliver(self, message: Message) -> None:
        # In the reader: nothing here may switch.
        self.inbox.put(message)

    def cancelled(self, exc: BaseException) -> None:
        # In the reader: nothing here may switch.
        if isinstance(exc, ConsumerCancelled):
            self._consumer._subscriptions.placed.clear()
        elif not self._no_ack:
            # They are requeued, and could not be acked any more; but no handler has seen them.
            for message in self.inbox.clear():
                self._took(message)
                with suppress(Exception):
                    message.put_back()
        channel = self._consumer._channel
        is_recovered = getattr(channel.connection, "lost", None) is not None
        if not is_recovered and not self.inbox.waiting:
            self.over = exc
        self.inbox.fail(exc)

    def forget(self) -> None:
        """After a fork, in the child: what came is the parent's, and so are those who wait."""
        self.inbox = Inbox()
        self.taken = self.over = None

    def check(self) -> None:
        """Raise, once, why no more will come, if all that came was taken.

        Raises:
            ConnectionError, ChannelError: what ended the consumer.
        """
        if self.over is not None and not len(self.inbox):
            exc, self.over = self.over, None
            raise exc

    def next_event(self, link: Link, deadline: Deadline) -> Callable[[], Any]:
        """Wait for a message or another event of *link*, and return what handles it.  May switch.

        Callbacks of other consumers run meanwhile, as they do in ``drain_events``.

        Raises:
            TimeoutError: nothing came before the deadline.
            ConnectionError, ChannelError: what ended the link or the consumer.
        """
        inbox, item = take_any((self.inbox, link.events), deadline)
        if inbox is self.inbox:
            return partial(self._hand_over, item)
        function, argument = item
        return partial(function, argument)

    def hand_over_next(self) -> bool:
        """Have the consumer take the oldest message; whether there was one.  May switch."""
        if not len(self.inbox):
            return False
        self._hand_over(self.inbox.get(Deadline(0.0)))
        return True

    def requeue_unseen(self) -> None:
        """Requeue the messages that were not taken.  May switch.

        Messages that need no ack cannot be requeued; they are dropped.  A broker that lends
        messages requeues them when the channel closes, since they were not taken.
        """
        while len(self.inbox):
            message = self.inbox.get(Deadline(0.0))
            if not self._no_ack:
                self._took(message)
                with suppress(Exception):
                    message.put_back()

    def _hand_over(self, message: Message) -> None:
        """Have the consumer decode *message* and call its callbacks."""
        self._took(message)
        self._consumer._receive_callback(message)

    def _took(self, message: Message) -> None:
        if self.taken is not None:
            self.taken(message)
