"""``greenconn.publish``: returns when the broker has the message.

All greenlets that publish over one connection share one channel in confirm mode; their messages are
pipelined, and each caller waits for the confirm of its own.  What goes wrong:

- The connection is lost: while its caller still waits, a message is sent again after the reconnect,
  in order.  It may then be there twice: at least once is what is promised.
- The channel is closed by an error of the broker (403, 404, 406): it is unknown whose message did
  it.  New publishes use another channel; what is outstanding is sent again on a channel apart, one
  message at a time.  The one that closes that channel by itself is the culprit and gets
  ``PublishRefused``; the others do not.
- The deadline ends: ``PublishTimeout``, and the message is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.exceptions import BatchPublishError
from greenconn.green.deadline import Deadline
from greenconn.publishing.batch import PublishBatch
from greenconn.publishing.message import PublishOptions, Target
from greenconn.publishing.publisher import Publisher

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.publishing.message import PublishArguments

__all__ = ["publish", "publish_many", "publisher_of"]


def publish(
    target: Target,
    body: Any,
    *,
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    **options: Unpack[PublishArguments],
) -> None:
    """Publish a message and return when the broker has it.  May switch.

    Any number of greenlets may call this at once; they share one channel.  While a caller waits, its
    message is sent again after each loss of the connection: it may then arrive twice.

    Arguments:
        target: a queue by its name, a ``Queue`` or an ``Exchange`` (declared with their arguments).
            A queue by its name is looked up and used as it is.  If it does not exist, a consumer of
            this thread that is about to declare it is waited for; else see *declare*.
        body: what the serializer takes.
        connection: a ``Connection``, of which one clone publishes; a URL; None is the default one.
        timeout: seconds for all of it: connecting, declaring, sending, the confirm.  None waits until
            the broker is there; then the connection's own ``confirm_timeout``, ``blocked_timeout``
            and ``reply_timeout`` hold (30 s each).
        options: ``declare`` (of a queue by its name that does not exist: True declares a durable queue,
            False is ``Unroutable``; None, the default, is the argument of :func:`greenconn.configure`,
            else False), ``routing_key`` (of an Exchange), ``mandatory=True``,
            ``delivery_mode='persistent'``, ``serializer``, ``compression``, ``content_type`` (of a
            body that is serialised already), ``content_encoding``, ``headers``, ``priority`` (0 to
            255), ``expires`` (seconds that it may wait in the queue; kombu says ``expiration``),
            ``delay`` (seconds until it reaches the queue; RabbitMQ has whole ones, rounded up), and the
            properties ``app_id``, ``cluster_id``, ``correlation_id``, ``message_id``, ``reply_to``,
            ``timestamp``, ``type``, ``user_id``.

    Raises:
        PublishTimeout: the deadline ended; ``maybe_delivered`` says whether the broker may have it.
        Unroutable: no queue takes it, or the one that was named does not exist.
        PublishNacked: the broker refused it, e.g. because the queue is full.
        PublishRefused: the broker's error 403, 404 or 406, as ``__cause__``.
        ConnectionBlocked: the broker takes nothing (memory or disk alarm); it has not the message.
        OperationalError: the broker refuses the login, or the connection was closed meanwhile; all of
            the above are also this.
        EncodeError: the body cannot be serialised.
        WrongHub: the connection belongs to another thread.
        TypeError, ValueError: wrong arguments.

    Example::

        greenconn.publish("mail", {"to": "ada@example.org"})
        greenconn.publish(Exchange("events", type="topic"), {"id": 7}, routing_key="user.new")
    """
    deadline = Deadline(timeout)
    message = PublishOptions.of(target, options).message(body)
    publisher_of(publishing_connection(connection)).publish(message, deadline)


def publish_many(
    target: Target,
    bodies: Iterable[Any],
    *,
    connection: Connection | str | None = None,
    timeout: float | None = 30.0,
    **options: Unpack[PublishArguments],
) -> int:
    """Publish many messages in their order and return when the broker has all.  May switch.

    They are pipelined: a thousand are under way at once, or 4 MiB.

    Arguments:
        bodies: serialised one by one as they are sent; a generator is fine.
        timeout: seconds for all of them together.
        target, connection, options: as for :func:`publish`.

    Returns:
        How many there were.

    Raises:
        BatchPublishError: some were not published; ``failed`` has each one's error by position.  When
            nothing more could be published (the deadline ended, say), those after the first
            ``taken`` were not looked at.
        Exception: what *bodies* raised; all that it had given before was published.
        TypeError, ValueError: wrong arguments.
    """
    deadline = Deadline(timeout)
    common = PublishOptions(target, options)
    publisher = publishing_connection(connection)
    batch = PublishBatch(publisher_of(publisher), publisher.session, common, deadline)
    batch.publish(bodies)
    failed = batch.failed
    if failed:
        first = min(failed)
        end = ", the others were not checked" if batch.is_given_up else ""
        raise BatchPublishError(
            f"{len(failed)} of {batch.taken} messages were not published{end}; "
            f"the first, number {first}: {failed[first]}",
            failed=failed,
            taken=batch.taken,
        ) from failed[first]
    return batch.taken


def publisher_of(connection: Connection) -> Publisher:
    """Return the publisher of a connection; it lives as long as that.  Never switches."""
    session = connection.session
    publisher = session.services.publisher
    if not isinstance(publisher, Publisher):
        publisher = session.services.publisher = Publisher(session)
    return publisher
