"""The delivery for which a broker has waited in vain, when it says so and when it does not.

RabbitMQ waits for the answer to a delivery no longer than its consumer timeout (30 min), and does not
say which delivery it was: the one that has waited longest.  Up to 4.2 it closes the channel.
4.3 has the timeout for quorum queues only: it cancels the consumer, without a reason, and puts back
what that has not answered.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenconn.entity.existence import ensure_queue_exists
from greenconn.exceptions import NotFound, PreconditionFailed, is_unavailable
from greenconn.green.deadline import Deadline
from greenconn.worker.dispatch import Dispatcher
from greenconn.worker.handling import Handling

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.session.session import Session

__all__ = ["CancelledConsumer", "OverdueDelivery", "find_overdue"]

logger = logging.getLogger("greenconn.worker")

#: RabbitMQ's words.
_TIMED_OUT: Final = "delivery acknowledgement on channel"

#: The first RabbitMQ that cancels a consumer for its consumer timeout.
_CANCELS_SINCE: Final = (4, 3)


class OverdueDelivery(NamedTuple):
    """A delivery that was not answered in time, as it is logged."""

    queue: str
    delivery_tag: Any
    is_handled: bool
    handler: str
    outcome: str

    def log(self) -> None:
        """Log whose it was.  May switch."""
        logger.error(
            "delivery %s of queue %r %s for longer than the broker's consumer timeout; %s",
            self.delivery_tag,
            self.queue,
            f"was in its handler {self.handler}"
            if self.is_handled
            else f"waited for its handler {self.handler}",
            self.outcome,
        )


def find_overdue(
    dispatcher: Dispatcher, handler: str, queue: str, tag: str, channel: Channel, exc: BaseException
) -> OverdueDelivery | None:
    """Return the delivery that the broker has waited for, if consumer *tag* has it.  Never switches.

    Arguments:
        dispatcher: the consumer's messages.
        handler: its name.
        queue: where they are from.
        exc: why the channel was closed.
    """
    if not isinstance(exc, PreconditionFailed) or _TIMED_OUT not in str(exc):
        return None
    oldest = getattr(channel, "oldest_unanswered", None)
    for message, is_handled in dispatcher.unanswered():
        if message.delivery_tag == oldest and _is_of(message, tag, channel):
            outcome = (
                f"its channel was closed with all consumers, and the message is redelivered: {exc}"
            )
            return OverdueDelivery(queue, oldest, is_handled, handler, outcome)
    return None


def _is_of(message: Message, tag: str, channel: Channel) -> bool:
    return message.channel is channel and message.delivery_info.get("consumer_tag") == tag


class CancelledConsumer:
    """A consumer that the broker has cancelled, and what waits here for its handler.

    If its queue was deleted, these are the last copies of their messages, and are handled.  If the
    queue is there, the broker has taken them back, so they are given up here.  The broker does not
    say which it is, so the queue is looked for.

    Nothing switches while this is made, in the reader.

    Arguments:
        dispatcher: the consumer's messages; those of this life are taken out.
        handling: answers them.
        queue, tag, channel: what it consumed, and where.
    """

    __slots__ = ("_channel", "_dispatcher", "_handling", "_held", "_overdue", "_queue")

    def __init__(
        self, dispatcher: Dispatcher, handling: Handling, queue: str, tag: str, channel: Channel
    ) -> None:
        self._dispatcher = dispatcher
        self._handling = handling
        self._queue = queue
        self._channel = channel
        self._overdue = self._oldest(tag)
        self._held = [] if handling.is_no_ack else dispatcher.drop(channel, tag)

    def _oldest(self, tag: str) -> OverdueDelivery | None:
        version = getattr(self._channel.connection, "server_version", None)
        if version is None or version < _CANCELS_SINCE or self._handling.is_no_ack:
            return None
        unanswered = [
            (message.delivery_tag, is_handled)
            for message, is_handled in self._dispatcher.unanswered()
            if _is_of(message, tag, self._channel) and not message.acknowledged
        ]
        if not unanswered:
            return None
        outcome = (
            "the broker cancelled the consumer and requeued its unacked messages, which a new "
            "one gets: ack sooner, lower the prefetch_count, or raise consumer_timeout "
            "or the queue's x-consumer-timeout"
        )
        return OverdueDelivery(self._queue, *min(unanswered), self._handling.name, outcome)

    def resolve(self, session: Session) -> None:
        """Find out why it was cancelled, and handle its messages or give them up.  May switch."""
        if self._channel.is_open and not self._is_queue_there(session):
            session.topology.queue_deleted(self._queue)
            held, self._held = self._held, []
            self._dispatcher.put_dropped(message for message, _ in held)
            return
        if self._channel.is_open and self._overdue is not None:
            overdue, self._overdue = self._overdue, None
            overdue.log()
        self.give_back()

    def _is_queue_there(self, session: Session) -> bool:
        try:
            ensure_queue_exists(session, self._queue, Deadline(), passive=True)
        except NotFound as exc:
            return bool(is_unavailable(exc))
        except Exception as exc:
            logger.debug("checking queue %r: %s", self._queue, exc)
        return True

    def give_back(self) -> None:
        """Put the messages back; a broker that has done so already ignores that.  May switch."""
        while self._held:
            message, _ = self._held.pop()
            self._handling.give_back(message, has_begun=False)
