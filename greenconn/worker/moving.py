"""Moving of waiting messages from a queue to where they are published again.

A message is acknowledged in its queue when the broker that it goes to has confirmed it, so none is lost;
one that was published when the connection is lost may be there twice.  What is left in the end is in its
queue, so that a second call goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeAlias

import gevent

from greenconn.checks import is_number
from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.log import message_fields
from greenconn.publishing.calls import publish_prepared

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.connection import Connection
    from greenconn.message import Message
    from greenconn.publishing.message import OutgoingMessage

logger = logging.getLogger("greenconn.worker")

#: Returns a message as it is published again; None leaves it where it is.
Route: TypeAlias = "Callable[[Message], OutgoingMessage | None]"

#: Messages that are published at once.
WINDOW: Final = 100
#: Seconds for publishing one message.
TIMEOUT: Final = 30.0


def count_of(channel: Channel, queue: str) -> int:
    """Return how many messages wait in *queue*.  May switch.

    Raises:
        NotFound: there is no such queue; the channel is closed.
    """
    return int(channel.queue_declare(queue, passive=True).message_count)


def look(channel: Channel, queue: str, limit: int) -> list[Message]:
    """Return the oldest messages of *queue*, which go back to it.  May switch.

    Arguments:
        limit: how many at most.

    Raises:
        NotFound: there is no such queue; the channel is closed.
    """
    messages: list[Message] = []
    try:
        while len(messages) < min(limit, count_of(channel, queue) + len(messages)):
            message = channel.basic_get(queue)
            if message is None:
                break
            messages.append(message)
        return messages
    finally:
        put_back(messages)


def move(
    channel: Channel,
    queue: str,
    connection: Connection,
    route: Route,
    *,
    limit: int | None = None,
    rate: float | None = None,
    on_moved: Callable[[int], object] | None = None,
) -> int:
    """Publish the messages that wait in *queue* as *route* says, the oldest first.  May switch.

    Those that come meanwhile are not looked at.

    Arguments:
        channel: a channel of the queue's broker, which nothing else uses.
        connection: publishes them.
        limit: how many at most; None: all.
        rate: how many a second; None: as fast as can be.
        on_moved: called with the number of those that were moved, again and again.

    Returns:
        How many were moved.

    Raises:
        ValueError: *limit* or *rate* is out of its range.
        NotFound: there is no such queue.
        OperationalError: one cannot be published; it stays, and those behind it.
        PublishRefused, TypeError, ValueError: one has a header or a property with which the broker does
            not take it; it stays.  All others were moved.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a positive integer or None, got {limit!r}")
    if rate is not None and not (is_number(rate) and rate > 0):
        raise ValueError(f"rate must be a number above 0 or None, got {rate!r}")
    window = WINDOW if rate is None else 1
    left, moved, began = count_of(channel, queue), 0, monotonic()
    kept: list[Message] = []
    refused: list[Exception] = []
    due: dict[int, tuple[Message, OutgoingMessage]] = {}  # by position among those of a window

    def settle(position: int) -> None:
        nonlocal moved
        message, _ = due.pop(position)
        message.ack()
        moved += 1

    def keep(position: int, error: Exception) -> None:
        message, _ = due.pop(position)
        kept.append(message)
        refused.append(error)
        logger.warning(
            "message %s of queue %r cannot be published again, and stays: %s",
            message.delivery_tag,
            queue,
            error_text(error),
            extra=message_fields(message, queue=queue),
        )

    try:
        while left and moved != limit:
            if rate is not None:
                gevent.sleep(max(0.0, began + moved / rate - monotonic()))
            while left and len(due) < window and moved + len(due) != limit:
                message = channel.basic_get(queue)
                if message is None:
                    left = 0
                    break
                left -= 1
                kept.append(message)
                outgoing = route(message)
                if outgoing is not None:
                    due[len(due)] = kept.pop(), outgoing
            try:
                outgoing_now = [each for _, each in due.values()]
                publish_prepared(outgoing_now, connection, Deadline(TIMEOUT), settle, keep)
            finally:
                if on_moved is not None:
                    on_moved(moved)
    finally:
        put_back([*kept, *(message for message, _ in due.values())])
    if refused:
        raise refused[0]
    return moved


def put_back(messages: list[Message]) -> None:
    """Leave messages in their queue, with no delivery counted."""
    for message in messages:
        message.put_back()
