"""The functions ``greenconn.publish`` and ``publish_many``, which return after the broker's confirm.

All greenlets that publish over one connection share one channel in confirm mode.  Their messages are
pipelined, and each caller waits for the publisher confirm of its own message.  Failures are handled as
follows:

- The connection is lost.  A message whose caller still waits is sent again after the reconnect, in
order.  The broker may then have it twice: delivery is at least once.  - The broker closes the channel
with an error (403, 404, 406).  The error does not name the message that caused it.  New messages are
published on another channel.  The outstanding messages are sent again on a separate channel, one at a
time.  A message that closes that channel on its own caused the error, and its caller gets
``PublishRefused``; the other callers do not.  - The deadline passes.  The caller gets
``PublishTimeout``, and the message is not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from greenconn.checks import Seconds
from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.exceptions import BatchPublishError, PreconditionFailed, PublishRefused
from greenconn.green.deadline import Deadline
from greenconn.publishing.batch import PublishBatch
from greenconn.publishing.message import PublishOptions, Target
from greenconn.publishing.publisher import Publisher

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.publishing.message import OutgoingMessage, PublishArguments

__all__ = ["publish", "publish_many", "publish_prepared", "publisher_of"]


def publish(
    target: Target,
    body: Any,
    *,
    connection: Connection | str | None = None,
    timeout: Seconds | None = 30.0,
    **options: Unpack[PublishArguments],
) -> None:
    """Publish a message and return when the broker has confirmed it.  May switch.

    Any number of greenlets may publish concurrently; they share one channel.  While the caller waits,
    the message is sent again after each loss of the connection, so the broker may receive a duplicate
    (at least once).

    Arguments:
        target: the target of the message: the name of a queue, a ``Queue`` or an ``Exchange``.  A
            ``Queue`` or an ``Exchange`` is declared with its arguments.  A queue given by name is used
            as it is.  If it does not exist and a consumer of this thread is about to declare it, the
            call waits for that; otherwise the option *declare* decides.
        body: content of the message, of a type that the serializer can encode.
        connection: a ``Connection``, of which one clone publishes, or a URL.  None uses the default
            connection.
        timeout: maximum seconds for connecting, declaring, sending and the confirm together.  None waits
            until the broker is available; from then on the ``confirm_timeout``, ``blocked_timeout`` and
            ``reply_timeout`` of the connection apply (30 s each by default).
        options: further options.

            ``declare``: whether to declare a queue that is given by name and does not exist, as a
            durable queue.  False raises ``Unroutable`` instead.  Default: None, which uses the argument
            of :func:`greenconn.configure`, or False if that is None.

            ``routing_key``: routing key for an ``Exchange``.

            ``mandatory``: whether publishing raises ``Unroutable`` if no queue receives the message.
            Default: True.

            ``delivery_mode``: ``'persistent'`` or ``'transient'``.  Default: the mode of the
            ``Exchange``, else ``'persistent'``.

            ``serializer``, ``compression``: names of the serializer and of the compression of the body.

            ``content_type``, ``content_encoding``: content type and encoding of a body that is already
            serialised.

            ``headers``: dict of message headers.

            ``priority``: priority of the message, 0 to 255.

            ``expires``: maximum seconds that the message waits in the queue.  ``expiration``, kombu's
            name of this option, is also accepted.

            ``delay``: seconds until the message reaches the queue.  RabbitMQ supports whole seconds
            only; fractions are rounded up.

            ``app_id``, ``cluster_id``, ``correlation_id``, ``message_id``, ``reply_to``, ``timestamp``,
            ``type``, ``user_id``: message properties.

    Raises:
        PublishTimeout: the deadline passed before the confirm; ``maybe_delivered`` says whether the
            broker may have the message.
        Unroutable: no queue received the message, or the named queue does not exist.
        PublishNacked: the broker rejected the message, for example because the queue is full.
        PublishRefused: the broker closed the channel with error 403, 404 or 406, which is the
            ``__cause__``.
        ConnectionBlocked: the broker accepts no messages (memory or disk alarm); it does not have this
            one.
        OperationalError: the broker refused the login, or the connection was closed during the call.
            Base class of all errors above.
        EncodeError: the body cannot be serialised.
        WrongHub: the connection belongs to another thread.
        TypeError, ValueError: an argument is invalid.

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
    timeout: Seconds | None = 30.0,
    **options: Unpack[PublishArguments],
) -> int:
    """Publish many messages in order and return when the broker has confirmed all of them.  May switch.

    The messages are pipelined: at most 1000 messages or 4 MiB are unconfirmed at a time.

    Arguments:
        target: the target of all messages, as for :func:`publish`.
        bodies: iterable of message bodies, which may be a generator.  Each body is serialised when it is
            sent.
        connection: as for :func:`publish`.
        timeout: maximum seconds for all messages together.  None waits without limit, as for
            :func:`publish`.
        options: options for all messages, as for :func:`publish`.

    Returns:
        The number of messages.

    Raises:
        BatchPublishError: some messages were not published; ``failed`` maps the position of each one to
            its error.  If publishing could not continue, for example because the deadline passed, the
            bodies after the first ``taken`` were not processed.
        Exception: *bodies* raised it; all messages before were published.
        TypeError, ValueError: an argument is invalid.
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


def publish_prepared(
    messages: Sequence[OutgoingMessage],
    connection: Connection,
    deadline: Deadline,
    on_confirmed: Callable[[int], object],
    on_refused: Callable[[int, Exception], object] | None = None,
) -> None:
    """Publish messages that are serialised already, each to its own target, in their order.  May switch.

    Arguments:
        messages: few enough to be under way at once.
        connection: publishes them.
        on_confirmed: called with the position of each that the broker has, also where an error follows.
        on_refused: called with the position and the error of each that cannot be sent as it is, whatever
            the broker has: a header or a property is not allowed.  None: the first one is raised.

    Raises:
        Exception: why the first of those could not be published.  What goes to another target than that
            one, and comes after it, is not sent.
    """
    publisher = publisher_of(connection)
    for _, group in groupby(enumerate(messages), key=_address_of):
        pairs = list(group)
        batch = PublishBatch(publisher, connection.session, pairs[0][1].options, deadline)
        try:
            batch.send([message for _, message in pairs])
        finally:
            # Where this greenlet was killed: what is not confirmed by now may be at the broker or not.
            for n, (position, _) in enumerate(pairs):
                if batch.is_confirmed(n):
                    on_confirmed(position)
        for n, error in sorted(batch.failed.items()):
            if on_refused is None or not _is_of_message(error):
                raise error
            on_refused(pairs[n][0], error)


def _is_of_message(error: Exception) -> bool:
    """Return whether *error* is about a header or a property of the message."""
    cause = error.__cause__ if isinstance(error, PublishRefused) else error
    return isinstance(cause, (PreconditionFailed, TypeError, ValueError))


def _address_of(pair: tuple[int, OutgoingMessage]) -> tuple[Target, str]:
    options = pair[1].options
    return options.target, options.routing_key


def publisher_of(connection: Connection) -> Publisher:
    """Return the publisher of a connection, which exists as long as its session.  Never switches."""
    session = connection.session
    publisher = session.services.publisher
    if not isinstance(publisher, Publisher):
        publisher = session.services.publisher = Publisher(session)
    return publisher
