"""``greenconn.publish``: returns when the broker has the message.

All greenlets that publish over one connection share one channel in confirm mode; their messages are
pipelined, and each caller waits for the confirm of its own.  What goes wrong:

- The connection is lost: while its caller still waits, a message is sent again after the reconnect,
  in order.  It may then be there twice: at least once is what is promised.
- The channel is closed by an error of the broker (403, 404, 406): nobody can tell whose message did
  it.  New publishes use another channel; what is outstanding is sent again on a channel apart, one
  message at a time.  The one that closes that channel by itself is the culprit and gets
  ``PublishRefused``; nobody else does.
- The deadline ends: ``PublishTimeout``, and the message is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.exceptions import BatchPublishError
from greenconn.green.deadline import Deadline
from greenconn.publishing.letter import Stationery, Target
from greenconn.publishing.line import Line

__all__ = ["publish", "publish_many"]

#: Messages of ``publish_many`` that are under way at once.
WINDOW: Final = 1000


def publish(
    target: Target,
    body: Any,
    *,
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    **options: Any,
) -> None:
    """Publish a message and return when the broker has it.  May switch.

    Any number of greenlets may call this at once; they share one channel.

    Arguments:
        target: a queue by its name (looked up, and declared as a durable queue if it does not exist),
            a ``Queue`` or an ``Exchange`` (declared with their arguments).
        body: what the serializer takes.
        connection: a ``Connection``, of which one clone publishes; a URL; None is the default one.
        timeout: seconds for all of it: connecting, declaring, sending, the confirm.  None waits.
        options: ``routing_key`` (of an Exchange), ``mandatory=True``, ``delivery_mode='persistent'``,
            ``serializer``, ``compression``, ``content_type``, ``content_encoding``, ``headers``,
            ``priority``, ``expiration`` (seconds), and the properties in :data:`PROPERTIES`.

    Raises:
        PublishTimeout: the deadline ended; ``maybe_delivered`` says whether the broker may have it.
        Unroutable: no queue takes it.
        PublishNacked: the broker refused it, e.g. because the queue is full.
        PublishRefused: the broker's error 403, 404 or 406, as ``__cause__``.
        ConnectionBlocked: the broker takes nothing (memory or disk alarm).
        OperationalError: the broker refuses the login; all of the above are also this.
        EncodeError: the body cannot be serialised.
        TypeError, ValueError: wrong arguments.
    """
    stationery = Stationery(target, options)
    line = _line_of(publishing_connection(connection))
    line.deliver(stationery.letter(body), Deadline(timeout))


def publish_many(
    target: Target,
    bodies: Iterable[Any],
    *,
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    **options: Any,
) -> int:
    """Publish many messages in their order and return when the broker has all.  May switch.

    Arguments:
        bodies: serialised one by one as they are sent; a generator is fine.
        timeout: seconds for all of them together.
        target, connection, options: as for :func:`publish`.

    Returns:
        How many there were.

    Raises:
        BatchPublishError: some were not published; ``failed`` has each one's error by position.
    """
    stationery = Stationery(target, options)
    line = _line_of(publishing_connection(connection))
    deadline = Deadline(timeout)
    failed: dict[int, Exception] = {}
    count = 0
    supply = iter(bodies)
    while window := [stationery.letter(body) for body in islice(supply, WINDOW)]:
        for position, error in line.deliver_in_order(window, deadline).items():
            failed[count + position] = error
        count += len(window)
    if failed:
        first = failed[min(failed)]
        raise BatchPublishError(
            f"{len(failed)} of {count} messages were not published, the first: {first}",
            failed=failed,
        ) from first
    return count


def _line_of(connection: Connection) -> Line:
    """The line of a connection; it lives as long as that."""
    session = connection.session
    line = session.companions.get("publishing")
    if not isinstance(line, Line):
        line = session.companions["publishing"] = Line(session)
    return line
