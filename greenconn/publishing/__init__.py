"""The functions ``greenconn.publish`` and ``publish_many``, which return after the broker's confirm.

All greenlets that publish over one connection share one channel in confirm mode.  Their messages are
pipelined, and each caller waits for the publisher confirm of its own message.  Failures are handled as
follows:

- The connection is lost.  A message whose caller still waits is sent again after the reconnect, in
  order.  The broker may then have it twice: delivery is at least once.
- The broker closes the channel with an error (403, 404, 406).  The error does not name the message that
  caused it.  New messages are published on another channel.  The outstanding messages are sent again on
  a separate channel, one at a time.  A message that closes that channel on its own caused the error, and
  its caller gets ``PublishRefused``; the other callers do not.
- The deadline passes.  The caller gets ``PublishTimeout``, and the message is not sent again.

``publish_many`` serializes and sends its messages in windows, limited in number and bytes: all messages
of a window are sent before the first confirm is waited for.  Each message ends in one of three ways:
confirmed, failed with an error of its own, or left over because the channel or the connection was lost.
What is left over is sent again; after an error that closed the channel, one message at a time, since any
of them may have caused it.  What was returned since the node of its queue is away is left over, too,
until it is back.  A failed message does not stop the others; a deadline or a broker that is unavailable
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final

from greenconn.checks import Seconds, shows
from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, publishing_connection
from greenconn.entity.queue import Queue, ShardedQueue
from greenconn.exceptions import (
    NEVER_REPEATED,
    BatchPublishError,
    ConnectionBlocked,
    EncodeError,
    IrrecoverableConnectionError,
    LimitExceeded,
    OperationalError,
    PreconditionFailed,
    PublishNacked,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.listeners import LISTENERS
from greenconn.publishing.publisher import (
    DEFAULTS,
    OutgoingMessage,
    PublishArguments,
    Publisher,
    PublishOptions,
    Target,
)
from greenconn.session.session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.abc import Channel
    from greenconn.limits.admission import Key, PublishClaims, Until


__all__ = ["publish", "publish_many"]


#: Messages that are under way at once, and bytes in their bodies.
WINDOW: Final = 1000
WINDOW_BYTES: Final = 4 * 2**20

#: Errors of one message that say nothing about the next one.
_OF_ONE: Final = (PublishNacked, PublishRefused, Unroutable)
_ENDED: Final = Deadline(0.0)


class PublishBatch:
    """The messages of one ``publish_many``.

    Arguments:
        publisher: the way to the broker.
        session: of the connection that publishes.
        options: what the messages have in common.
        deadline: for all of them.
        claims: their unique or debounced keys; None: they have none.

    Attributes:
        taken: how many bodies were taken.
        failed: the errors of those that were not published, by position.
        is_given_up: nothing more can be published: the deadline ended, the broker takes nothing.
    """

    def __init__(
        self,
        publisher: Publisher,
        session: Session,
        options: PublishOptions,
        deadline: Deadline,
        claims: PublishClaims | None = None,
    ) -> None:
        self.taken = 0
        self.failed: dict[int, Exception] = {}
        self.is_given_up = False
        self._publisher = publisher
        self._session = session
        self._options = options
        self._deadline = deadline
        #: Publishes of the window without a confirm, by position.
        self._left: dict[int, OutgoingMessage] = {}
        #: Errors of a message that cannot be sent, where each has headers and properties of its own.
        self._unsendable: tuple[type[Exception], ...] = ()
        #: Why the broker refused some of them, which it may take later.
        self._nacked: dict[int, PublishNacked] = {}
        self._claims = claims
        #: Messages of the window that have an end, and their errors, where they have keys.
        self._ended: list[tuple[OutgoingMessage, BaseException | None]] = []

    def publish(self, bodies: Iterable[Any]) -> None:
        """Publish a message for each of *bodies*, until it has to be given up.  May switch.

        Raises:
            Exception: what *bodies* raised; what it had given before is published.
        """
        supply = iter(bodies)
        is_more = True
        while is_more and not self.is_given_up:
            try:
                is_more = self._serialize(supply)
            except Exception:
                self._publish_window()
                raise
            self._publish_window()
        if self.is_given_up and isinstance(bodies, Sized):
            last = self.failed[max(self.failed)]
            for position in range(self.taken, len(bodies)):
                self.failed[position] = _unsent(last)
            self.taken = len(bodies)

    def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """Publish messages that are serialised already, as one window.  May switch."""
        self._unsendable = (TypeError, ValueError)
        for message in messages:
            self._observe(message)
        self._left.update(enumerate(messages, self.taken))
        self.taken += len(messages)
        self._publish_window()

    def is_confirmed(self, position: int) -> bool:
        """Return whether the broker has the message at *position*."""
        return position < self.taken and position not in self._left and position not in self.failed

    def _serialize(self, supply: Iterator[Any]) -> bool:
        """Serialise the next window; False when that is the last one."""
        size, claims = 0, self._claims
        keys: list[str] = []
        try:
            for body in supply:
                position = self.taken
                self.taken += 1
                try:
                    message = self._options.message(body)
                    if claims is not None:
                        keys.append(claims.key_of(body))
                except EncodeError as exc:
                    self.failed[position] = exc
                    continue
                except Exception as exc:
                    if claims is None:
                        raise
                    self.failed[position] = exc
                    continue
                if claims is None:
                    self._observe(message)
                self._left[position] = message
                size += len(message.body)
                if len(self._left) >= WINDOW or size >= WINDOW_BYTES:
                    return True
            return False
        finally:
            if claims is not None and self._left:
                self._claim(claims, keys)

    def _claim(self, claims: PublishClaims, keys: list[str]) -> None:
        """Take the keys of the window, and fail what does not get its own.  May switch."""
        positions = list(self._left)
        try:
            failed = claims.begin(list(self._left.values()), keys, self._deadline)
        except BaseException as exc:
            if not isinstance(exc, Exception) or is_thrown(exc):
                self._left.clear()
                raise
            failed = dict.fromkeys(range(len(positions)), exc)
        for number, error in failed.items():
            self.failed[positions[number]] = error
            del self._left[positions[number]]
        for message in self._left.values():
            self._observe(message)

    def _publish_window(self) -> None:
        left, deadline = self._left, self._deadline
        of_one: tuple[type[Exception], ...] = (*_OF_ONE, *self._unsendable)
        lasting: tuple[type[BaseException], ...] = (
            OperationalError,
            *self._publisher.lasting_errors,
        )
        try:
            self._publisher.retry(self._publish_pipelined, deadline)
            # An error closed the channel of those that are left, and may be about any of them.
            while left:
                position = next(iter(left))
                try:
                    self._publisher.publish(left[position], deadline)
                except of_one as exc:
                    self._settle(position, exc)
                    if isinstance(exc, PublishNacked):
                        self._fail_nacked()
                else:
                    self._settle(position, None)
        except BaseException as exc:
            if not isinstance(exc, lasting) or is_thrown(exc):
                for message in left.values():
                    self._end(message, exc)
                raise
            self._give_up(exc)
        finally:
            if self._claims is not None:
                ended, self._ended = self._ended, []
                self._claims.end(ended)
        self._nacked.clear()

    def _observe(self, message: OutgoingMessage) -> None:
        if (observers := LISTENERS.publishing) is not None:
            message.observe(observers, self._publisher.label)

    def _fail_nacked(self) -> None:
        """Fail the others that the queue refused: it is full."""
        for position, exc in self._nacked.items():
            if position in self._left:
                self._settle(position, exc)

    def _give_up(self, exc: BaseException) -> None:
        """Nothing more can be published, because of *exc*."""
        self.is_given_up = True
        is_final = isinstance(exc, OperationalError) and not isinstance(
            exc, (TimeoutError, LimitExceeded)
        )
        for position, message in self._left.items():
            is_blocked = isinstance(exc, ConnectionBlocked) and not message.maybe_delivered
            if is_final or is_blocked:
                assert isinstance(exc, Exception)
                self.failed[position] = exc
            else:
                error = self._publisher.timed_out(message, self._deadline, exc)
                error.__cause__ = exc
                self.failed[position] = error
            self._end(message, self.failed[position])
        self._left.clear()

    def _publish_pipelined(self) -> None:
        """Send all that are left, and take those out that were confirmed.  May switch."""
        left, publisher = self._left, self._publisher
        if not left or any(message.is_isolated for message in left.values()):
            return
        try:
            publisher.ensure_target(self._options, self._deadline)
            channel = publisher.shared_channel(self._deadline)
            begun, error = self._begin_all(channel)
        except IrrecoverableConnectionError:
            self._isolate(left)
            raise
        error = self._collect(begun) or error
        if self._nacked:
            publisher.retire(channel)  # another one may reach the queue
        if error is not None:
            raise error

    def _begin_all(self, channel: Channel) -> tuple[dict[int, Any], BaseException | None]:
        """Send; what was sent, and the error that ended it if not all could be."""
        begun: dict[int, Any] = {}
        broker = self._session.broker
        lost: tuple[type[BaseException], ...] = (*broker.connection_errors, ConnectionBlocked)
        for position, message in list(self._left.items()):
            try:
                begun[position] = message.begin(channel, self._deadline)
            except _OF_ONE as exc:
                self._settle(position, exc)
            except broker.channel_errors as exc:
                if not channel.is_open:
                    self._isolate([position])
                    break
                refused = PublishRefused(f"cannot publish to {self._options}: {exc}")
                refused.__cause__ = exc
                self._settle(position, refused)
            except lost as exc:
                if is_thrown(exc):
                    raise
                return begun, exc
            except self._unsendable as exc:
                self._settle(position, exc)
        return begun, None

    def _collect(self, begun: dict[int, Any]) -> BaseException | None:
        """Wait for the confirms; an error of the connection, if there was one."""
        error: BaseException | None = None
        returned: dict[int, Unroutable] = {}
        deadline, broker, publisher = self._deadline, self._session.broker, self._publisher
        for position, confirm in begun.items():
            try:
                confirm.wait(deadline)
                self._settle(position, None)
            except PublishTimeout as exc:
                self._settle(position, exc)
                self.is_given_up = True
                deadline = _ENDED  # what was confirmed meanwhile still counts
            except Unroutable as exc:
                returned[position] = exc
            except NEVER_REPEATED as exc:
                if isinstance(exc, PublishNacked) and publisher.may_pass(exc, self._options):
                    self._nacked[position] = exc
                    self._isolate([position])
                else:
                    self._settle(position, exc)
            except broker.channel_errors:
                self._isolate([position])
            except broker.connection_errors as exc:
                if is_thrown(exc):
                    raise
                error = exc
                if isinstance(exc, IrrecoverableConnectionError):
                    self._isolate([position])
        return error or self._check_returned(returned)

    def _check_returned(self, returned: dict[int, Unroutable]) -> TimeoutError | None:
        """Fail the messages that reached no queue, or return why they wait for theirs.  May switch."""
        if not returned:
            return None
        try:
            self._publisher.check_return(
                next(iter(returned.values())), self._options, self._deadline
            )
        except TimeoutError as away:
            if is_thrown(away):
                raise
            return away
        for position, exc in returned.items():
            self._settle(position, exc)
        return None

    def _isolate(self, positions: Iterable[int]) -> None:
        for position in positions:
            self._left[position].is_isolated = True

    def _settle(self, position: int, exc: Exception | None) -> None:
        self._end(self._left.pop(position), exc)
        if exc is not None:
            self.failed[position] = exc
            self._publisher.note_failure(exc, self._options)

    def _end(self, message: OutgoingMessage, error: BaseException | None) -> None:
        """Tell the listeners what became of *message*, if there are some."""
        if self._claims is not None:
            self._ended.append((message, error))
        if message.observation is not None:
            message.observation.end(error)


def _unsent(exc: Exception) -> Exception:
    """Return the error of a message that was not even serialised, because of that of an earlier one."""
    if isinstance(exc, PublishTimeout):
        unsent = PublishTimeout(f"not sent: {exc}", maybe_delivered=False)
        unsent.__cause__ = exc.__cause__
        return unsent
    return exc


@shows(PublishArguments, defaults=lambda: DEFAULTS)
def publish(
    target: Target | ShardedQueue,
    body: Any,
    *,
    connection: Connection | str | None = None,
    timeout: Seconds | None = 30.0,
    transaction: Any = None,
    unique: str | None = None,
    until: Until | None = None,
    debounce: str | None = None,
    **options: Unpack[PublishArguments],
) -> None:
    """Publish a message and return when the broker has confirmed it.  May switch.

    Any number of greenlets may publish concurrently; they share one channel.  While the caller waits,
    the message is sent again after each loss of the connection, so the broker may receive a duplicate
    (at least once).

    Arguments:
        target: the target of the message: the name of a queue, a ``Queue``, a sharded queue, an
            ``Exchange`` or a ``Broadcast``.  All but names are declared with their arguments.  A queue
            given by name is used as it is.  If it does not exist and a consumer of this thread is about
            to declare it, the call waits for that; otherwise the option *declare* decides.
        body: content of the message, of a type that the serializer can encode.
        connection: a ``Connection``, of which one clone publishes, or a URL.  None uses the default
            connection.
        timeout: maximum seconds for connecting, declaring, sending and the confirm together.  None waits
            until the broker is available; from then on the ``confirm_timeout``, ``blocked_timeout`` and
            ``reply_timeout`` of the connection apply (30 s each by default).
        transaction: with a broker in PostgreSQL, an open transaction of the same database: a connection
            of psycopg, a ``Session`` or ``Connection`` of SQLAlchemy, or the alias of a database of
            Django.  The message is a row of it: rolled back, there never was a message; committed,
            consumers get it.  The call returns when the row is written.
        unique: a key of which only one message is in the queue at a time.
        until: when the key is free again: ``'handled'``, the default: when its message is acknowledged,
            discarded or a dead letter; ``'started'``: when its handler is first called; or a number of
            seconds, or a timedelta, from now.
        debounce: a key of a burst of messages, each of which comes *delay* seconds after its publish:
            only the last one is handled.
        options: further options.

            ``declare``: whether to declare a queue that is given by name and does not exist, as a
            durable queue.  False raises ``Unroutable`` instead.  Default: None, which uses the argument
            of :func:`greenconn.configure`, or False if that is None.

            ``routing_key``: routing key for an ``Exchange``.

            ``mandatory``: whether publishing raises ``Unroutable`` if no queue receives the message.
            Default: True, but for a ``Broadcast``.

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

            ``at``: time at which the message reaches the queue, instead of *delay*: a datetime with a
            time zone.  In the past, the message is published without a delay.

            ``app_id``, ``cluster_id``, ``correlation_id``, ``message_id``, ``reply_to``, ``timestamp``,
            ``type``, ``user_id``: message properties.

    Raises:
        AlreadyQueued: a message with the key *unique* is in the queue already.
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
    has_key = unique is not None or debounce is not None or until is not None
    if isinstance(target, ShardedQueue):
        if has_key:
            raise _sharded(target)
        target, options = target.routed(body, options)  # type: ignore[assignment]
    message = PublishOptions.of(target, options).message(body)
    publisher = publisher_of(publishing_connection(connection))
    if has_key:
        claims = _claims(
            connection, target, unique, until, debounce, message.options, transaction, is_many=False
        )
        _publish_claimed(publisher, message, body, claims, deadline)
    elif transaction is None:
        publisher.publish(message, deadline)
    else:
        publisher.publish_in(transaction, [message], deadline)


def _claims(
    connection: Connection | str | None,
    target: Target,
    unique: Key | None,
    until: Until | None,
    debounce: Key | None,
    options: PublishOptions,
    transaction: object,
    *,
    is_many: bool,
) -> PublishClaims:
    """Return the keys of a call.

    Raises:
        TypeError, ValueError: an option is wrong, or there is no store of limits.
    """
    from greenconn.limits.admission import PublishClaims

    return PublishClaims(
        consuming_connection(connection),
        target,
        unique,
        until,
        debounce,
        options.delay,
        transaction,
        is_many=is_many,
    )


def _sharded(target: ShardedQueue) -> ValueError:
    return ValueError(
        f"unique and debounce must be None for {target!r}, as each of its shards is a queue of its own: "
        f"publish to a single queue"
    )


def _publish_claimed(
    publisher: Publisher,
    message: OutgoingMessage,
    body: Any,
    claims: PublishClaims,
    deadline: Deadline,
) -> None:
    failed = claims.begin([message], [claims.key_of(body)], deadline)
    if failed:
        raise failed[0]
    error: BaseException | None = None
    try:
        publisher.publish(message, deadline)
    except BaseException as exc:
        error = exc
        raise
    finally:
        claims.end([(message, error)])


@shows(PublishArguments, defaults=lambda: DEFAULTS)
def publish_many(
    target: Target | ShardedQueue,
    bodies: Iterable[Any],
    *,
    connection: Connection | str | None = None,
    timeout: Seconds | None = 30.0,
    transaction: Any = None,
    unique: Callable[[Any], str] | None = None,
    until: Until | None = None,
    debounce: Callable[[Any], str] | None = None,
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
        transaction: as for :func:`publish`.  An error is raised as by :func:`publish`.
        unique, debounce: as for :func:`publish`, but functions that return the key of a body.
        until: as for :func:`publish`.
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
    publisher = publishing_connection(connection)
    has_keys = unique is not None or debounce is not None or until is not None
    if isinstance(target, ShardedQueue):
        if has_keys:
            raise _sharded(target)
        return _publish_to_shards(target, bodies, publisher, deadline, transaction, options)
    common = PublishOptions(target, options)
    claims: PublishClaims | None = None
    if has_keys:
        claims = _claims(
            connection, target, unique, until, debounce, common, transaction, is_many=True
        )
    if transaction is not None:
        return _publish_many_in(transaction, publisher_of(publisher), common, bodies, deadline)
    batch = PublishBatch(publisher_of(publisher), publisher.session, common, deadline, claims)
    batch.publish(bodies)
    _check_failed(batch.failed, batch.taken, is_given_up=batch.is_given_up)
    return batch.taken


def _check_failed(failed: dict[int, Exception], taken: int, *, is_given_up: bool) -> None:
    """Raise :class:`BatchPublishError` if messages were not published."""
    if failed:
        first = min(failed)
        end = ", the others were not checked" if is_given_up else ""
        raise BatchPublishError(
            f"{len(failed)} of {taken} messages were not published{end}; "
            f"the first, number {first}: {failed[first]}",
            failed=failed,
            taken=taken,
        ) from failed[first]


def _publish_to_shards(
    sharded: ShardedQueue,
    bodies: Iterable[Any],
    connection: Connection,
    deadline: Deadline,
    transaction: object,
    options: Mapping[str, Any],
) -> int:
    """Publish messages to the shards of their keys, a window of them at once.  May switch."""
    publisher, supply, taken = publisher_of(connection), enumerate(bodies), 0
    failed: dict[int, Exception] = {}
    while window := list(islice(supply, WINDOW)):
        taken += len(window)
        shards: dict[str, tuple[Queue, dict[int, OutgoingMessage]]] = {}
        for position, body in window:
            try:
                queue, own = sharded.routed(body, options)
                message = PublishOptions.of(queue, own).message(body)
            except EncodeError as exc:
                failed[position] = exc
            else:
                shards.setdefault(queue.name, (queue, {}))[1][position] = message
        for queue, messages in shards.values():
            if transaction is not None:
                publisher.publish_in(transaction, list(messages.values()), deadline)
                continue
            common = PublishOptions.of(queue, options)
            batch = PublishBatch(publisher, connection.session, common, deadline)
            batch.send(list(messages.values()))
            positions = list(messages)
            failed.update((positions[n], exc) for n, exc in batch.failed.items())
            if batch.is_given_up:
                _check_failed(failed, taken, is_given_up=True)
    _check_failed(failed, taken, is_given_up=False)
    return taken


def _publish_many_in(
    transaction: object,
    publisher: Publisher,
    options: PublishOptions,
    bodies: Iterable[Any],
    deadline: Deadline,
) -> int:
    count = size = 0
    window: list[OutgoingMessage] = []
    for body in bodies:
        message = options.message(body)
        window.append(message)
        count += 1
        size += len(message.body)
        if len(window) >= WINDOW or size >= WINDOW_BYTES:
            publisher.publish_in(transaction, window, deadline)
            window, size = [], 0
    if window:
        publisher.publish_in(transaction, window, deadline)
    return count


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
