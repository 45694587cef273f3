"""Which consumer it was for whose silence the broker has closed a channel.

RabbitMQ closes the channel of a delivery that is not answered within its consumer timeout (30 min), and
does not say which delivery it was.  It is the one that has waited longest.
"""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from greenconn.exceptions import PreconditionFailed
from greenconn.worker.line import Line

__all__ = ["Overdue", "overdue_in"]

logger = logging.getLogger("greenconn.worker")

#: RabbitMQ's words.
_TIMED_OUT: Final = "delivery acknowledgement on channel"


class Overdue(NamedTuple):
    """A delivery that was not answered in time."""

    queue: str
    delivery_tag: Any
    is_handled: bool
    cause: BaseException

    def log(self) -> None:
        """Tell whose it was.  May switch."""
        logger.error(
            "delivery %s of queue %r %s for longer than the broker waits for an answer; its channel "
            "was closed with all consumers on it, and the message comes again: %s",
            self.delivery_tag,
            self.queue,
            "was in its handler" if self.is_handled else "waited for a handler",
            self.cause,
        )


def overdue_in(
    line: Line, queue: str, tag: str, channel: Any, exc: BaseException
) -> Overdue | None:
    """The delivery that the broker has waited for, if consumer *tag* has it; never switches.

    Arguments:
        line: the consumer's messages.
        queue: where they are from.
        exc: why the channel was closed.
    """
    if not isinstance(exc, PreconditionFailed) or _TIMED_OUT not in str(exc):
        return None
    oldest = getattr(channel, "oldest_unanswered", None)
    for message, is_handled in line.unanswered():
        if (
            message.channel is channel
            and message.delivery_tag == oldest
            and message.delivery_info.get("consumer_tag") == tag
        ):
            return Overdue(queue, oldest, is_handled, exc)
    return None
