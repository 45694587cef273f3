"""Messages whose handler failed: sent to where they wait, looked at, and published again.

A handler may choose what becomes of its message by the exception that it raises: :class:`RetryLater`,
:class:`Discard` or :class:`DeadLetter`.

They wait in their queue, delayed, until a retry; or as dead letters.  Each is published as it was, with
what is known of the failure in headers, and acknowledged when the broker has confirmed that.  So none is
lost, and one is there twice only if the process or the connection ends between the two.  Where the
broker can store a delayed message in the place of the one that failed, in one step, none is there twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from time import monotonic
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gevent import sleep
from gevent.lock import BoundedSemaphore

from greenconn.checks import Seconds, in_seconds, is_number
from greenconn.compression import compress
from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, publishing_connection
from greenconn.delays import DELAY, seconds_until
from greenconn.encoding import safe_repr
from greenconn.entity import Queue
from greenconn.entity.declaration import declare_uncounted
from greenconn.entity.queue import DEAD
from greenconn.exceptions import KombuError, NotFound, error_summary, error_text, escaped
from greenconn.green.deadline import Deadline
from greenconn.limits import WAITED, waited_of
from greenconn.listeners import LISTENERS, url_of
from greenconn.log import message_fields
from greenconn.publishing import publish_prepared, publisher_of
from greenconn.publishing.publisher import OutgoingMessage, PublishOptions
from greenconn.worker.options import QueueLike

if TYPE_CHECKING:
    from types import TracebackType

    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.session.session import Session
    from greenconn.worker.lifecycle import ConsumerLifecycle

logger = logging.getLogger("greenconn.worker")

#: Returns a message as it is published again; None leaves it where it is.
Route: TypeAlias = "Callable[[Message], OutgoingMessage | None]"

#: How often its handler has failed.
ATTEMPTS: Final = "x-greenconn-attempts"
#: When it did so first: UTC, ISO 8601.
FIRST_FAILURE: Final = "x-greenconn-first-failure"
#: Where the message was published to, before it was sent again.
EXCHANGE: Final = "x-greenconn-exchange"
ROUTING_KEY: Final = "x-greenconn-routing-key"
#: Of a dead letter: its queue, ``failed`` or ``undecodable``, the class of the error and its text.
QUEUE: Final = "x-greenconn-queue"
REASON: Final = "x-greenconn-reason"
ERROR: Final = "x-greenconn-error"
TEXT: Final = "x-greenconn-error-text"
#: The end of its traceback.
TRACEBACK: Final = "x-greenconn-traceback"
#: What calls a handler.  Its lines in a traceback are the same for each failure.
_CALLERS: Final = frozenset(
    f"greenconn.{name}" for name in ("service.rpc", "worker.handling", "worker.ordering")
)
FAILURE_HEADERS: Final = frozenset(
    {ATTEMPTS, FIRST_FAILURE, EXCHANGE, ROUTING_KEY, QUEUE, REASON, ERROR, TEXT, TRACEBACK}
)

#: Seconds for sending one; then it waits in this process.
SENDING_TIMEOUT: Final = 10.0
#: Characters of an exchange or a routing key that are believed; AMQP has no longer ones.
LONGEST_ROUTE: Final = 255
#: Attempts that are believed: any publisher can write the header.
MOST_ATTEMPTS: Final = 1_000_000
#: Characters of a traceback that are kept.
LONGEST_TRACEBACK: Final = 2000
#: Properties that a message gets anew, or that have an argument of their own.
NOT_COPIED: Final = frozenset(
    {
        "application_headers",
        "body_encoding",
        "content_encoding",
        "content_type",
        "delivery_info",
        "delivery_tag",
        "priority",
    }
)
#: Headers that the broker would obey again.
OBEYED: Final = (DELAY, "CC", "BCC")
#: Headers of the broker about dead letters.
_DEATHS: Final = ("x-death", "x-first-death-", "x-last-death-")
_LEFT_OUT: Final = FAILURE_HEADERS.union(OBEYED, (WAITED,))
#: Seconds for which an answer is taken to hold: policies and exchanges may change.
DLX_KEPT: Final = 30.0
#: Queues that are remembered: programs may generate names.
MOST_DLX_KNOWN: Final = 1000
#: Seconds for which the management API is not asked again after it did not answer.
UNANSWERED: Final = 300.0
#: Seconds for an answer of the management API.
MANAGEMENT_TIMEOUT: Final = 2.0
#: Seconds until the management API has the first statistics of a new queue, and a margin.
STATISTICS_INTERVAL: Final = 6.0
#: Seconds for an answer of the broker.
DLX_TIMEOUT: Final = 10.0
_DLX: Final = "dead-letter-exchange"
_DLX_KEY: Final = "dead-letter-routing-key"
#: Seconds of the shortest and of the longest wait that a handler may ask for.
SHORTEST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 365 * 86_400.0
#: Messages that are published at once.
WINDOW: Final = 100
#: Seconds for publishing one message.
MOVE_TIMEOUT: Final = 30.0


class HandlerOutcome(KombuError):
    """The base class of the exceptions by which a handler chooses what becomes of its message."""


class RetryLater(HandlerOutcome):
    """Raised by a handler that is to be called again with its message after a delay.

    The broker holds the message, as for ``Retry(hold="broker")``, and delivers it again when the delay
    is over, never earlier.  What the broker cannot hold waits in the process.

    Arguments:
        delay: seconds, or a timedelta; at most a year.  Less than 1 s is taken as 1 s, so that a message
            that is always sent back keeps neither the process nor the broker busy.
        at: time of the next call, instead of *delay*: a datetime with a time zone.
        counts: whether this call is one of the ``tries`` of ``retry``: without one left, the message is
            given up as after a failure.  Without ``retry`` there is no limit.

    Attributes:
        delay, at, counts: the arguments, *delay* in seconds; one of *delay* and *at* is None.

    Raises:
        TypeError, ValueError: an argument is invalid.

    Example::

        if response.status_code == 429:
            raise greenconn.RetryLater(float(response.headers["Retry-After"]))
    """

    def __init__(
        self, delay: Seconds | None = None, *, at: datetime | None = None, counts: bool = False
    ) -> None:
        if (delay is None) is (at is None):
            raise TypeError(
                f"RetryLater must have either delay or at, got delay={safe_repr(delay)} and at={at!r}"
            )
        if not isinstance(counts, bool):
            raise TypeError(f"counts must be True or False, got {safe_repr(counts)}")
        seconds: Any = in_seconds(delay) if at is None else seconds_until(at)
        if not is_number(seconds) or seconds > LONGEST_WAIT or (seconds < 0 and at is None):
            name, given = ("delay", delay) if at is None else ("at", at)
            raise ValueError(
                f"{name} must be at least 0 and at most {LONGEST_WAIT:.0f} seconds (a year) from now, "
                f"got {safe_repr(given)}"
            )
        self.delay = float(seconds) if at is None else None
        self.at = at
        self.counts = counts
        when = f"in {seconds:g} s" if at is None else f"at {at.isoformat()}"
        super().__init__(f"the handler is called again {when}")

    def seconds_left(self) -> float:
        """Return the seconds until the next call, if they were asked for now."""
        left = self.delay if self.at is None else seconds_until(self.at)
        assert left is not None
        return max(left, SHORTEST_WAIT)


class Discard(HandlerOutcome):
    """Raised by a handler whose message is of no use: it is acknowledged, and the reason is logged.

    Arguments:
        reason: text for the log.
    """


class DeadLetter(HandlerOutcome):
    """Raised by a handler with a message that no retry helps: it becomes a dead letter now.

    The message goes where it would after its last attempt, also with ``on_error="requeue"`` or
    ``"discard"``.  A function as ``on_error`` is called.

    Arguments:
        reason: text for the log and the headers of the dead letter.
    """


class FailedMessages:
    """The messages of one consumer whose handler failed."""

    __slots__ = ("_consumer", "_is_unable")

    def __init__(self, consumer: ConsumerLifecycle) -> None:
        self._consumer = consumer
        self._is_unable = False

    def can_delay(self, message: Message) -> bool:
        """Return whether the broker may hold a message, as far as this is known before it is asked."""
        headers = message.headers
        return (
            not self._is_unable
            and self._consumer.outlives_consumer(message)
            # RabbitMQ would end the delay for the one, and send copies for the others.
            and message.properties.get("expiration") is None
            and "CC" not in headers
            and "BCC" not in headers
        )

    def delay(self, message: Message, queue: str, attempts: int, delay: float) -> bool:
        """Have the broker deliver a message again in *delay* seconds; False: it does not.  May switch.

        Arguments:
            message: one that :meth:`can_delay`.
            attempts: how often its handler has failed; 0: it has asked for the delay.
        """
        if attempts:
            headers = _failure_headers(message, attempts)
        else:
            # By this header its consumer knows that the message was sent again.
            headers = {ATTEMPTS: 0, **_route_headers(message)}
        return self._hold(message, queue, headers, delay)

    def put_off(self, message: Message, queue: str, delay: float) -> bool:
        """Have the broker deliver a message again in *delay* seconds for a limit.  May switch.

        That counts as no attempt.

        Arguments:
            message: one that :meth:`can_delay`.

        Returns:
            Whether the broker has it.
        """
        headers = {**_route_headers(message), WAITED: waited_of(message) + 1}
        return self._hold(message, queue, headers, delay)

    def _hold(self, message: Message, queue: str, headers: dict[str, Any], delay: float) -> bool:
        options = PublishOptions(queue, {"delay": delay, **priority_of(message)})
        outgoing = resent(message, options, headers)
        try:
            if (observers := LISTENERS.publishing) is not None:
                observed = outgoing.observe(observers, url_of(message.channel))
                observed.run(self._store_retry, outgoing, message)
            else:
                self._store_retry(outgoing, message)
        except ValueError as exc:
            # The transport has no delays; the next message need not try.
            self._is_unable = True
            logger.info(
                "delayed messages of queue %r wait in this process: %s",
                queue,
                error_text(exc),
                extra=message_fields(message, queue=queue),
            )
        except Exception as exc:
            if message.channel.is_open:
                logger.warning(
                    "a delayed message of queue %r waits in this process: %s",
                    queue,
                    error_text(exc),
                    extra=message_fields(message, queue=queue),
                )
        else:
            return True
        return False

    def dead_letter(
        self, message: Message, queue: str, target: str, attempts: int, exc: BaseException
    ) -> bool:
        """Publish a message to the queue of dead letters, and return whether it is there.  May switch.

        Arguments:
            target: that queue, which is declared if it does not exist.
            attempts: how often its handler has failed; 0: its body could not be decoded.
        """
        try:
            headers = _failure_headers(message, attempts)
            for name in OBEYED:
                headers.pop(name, None)
            headers[QUEUE] = queue
            headers[REASON] = "failed" if attempts else "undecodable"
            headers[ERROR] = f"{type(exc).__module__}.{type(exc).__qualname__}"
            headers[TEXT] = error_text(exc)
            headers[TRACEBACK] = _traceback_of(exc)
            options = PublishOptions(target, {"declare": True, **priority_of(message)})
            outgoing = resent(message, options, headers)
            assert outgoing.own is not None
            # It does not expire there, and it is this user who publishes it.
            outgoing.own.pop("expiration", None)
            outgoing.own.pop("user_id", None)
            self._publish(outgoing)
        except Exception as failure:
            logger.error(
                "a failed message of queue %r cannot be stored in queue %r, and stays: %s",
                queue,
                target,
                error_text(failure),
                extra=message_fields(message, queue=queue),
            )
            return False
        return True

    def _store_retry(self, outgoing: OutgoingMessage, message: Message) -> None:
        if not outgoing.replace(message):
            self._publish(outgoing)

    def _publish(self, outgoing: OutgoingMessage) -> None:
        publisher = publisher_of(publishing_connection(self._consumer.connection))
        publisher.publish(outgoing, Deadline(SENDING_TIMEOUT))


def attempts_of(message: Message) -> int:
    """Return how often a message failed before it was sent again."""
    known = message.headers.get(ATTEMPTS)
    return min(known, MOST_ATTEMPTS) if type(known) is int and known > 0 else 0


def note_failure(message: Message) -> None:
    """Note when a message that is retried in this process failed first."""
    message.headers.setdefault(FIRST_FAILURE, _now())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def own_traceback(exc: BaseException) -> TracebackType | None:
    """Return the traceback without the functions that call the handler; all, if they have failed."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in _CALLERS:
        trace = trace.tb_next
    return trace or exc.__traceback__


def _traceback_of(exc: BaseException) -> str:
    """Return the end of the traceback, as text that each broker can store."""
    try:
        text = "".join(format_exception(type(exc), exc, own_traceback(exc)))[-LONGEST_TRACEBACK:]
    except Exception:  # of what the program has made of its error
        text = error_text(exc)
    return escaped(text)


def restore_route(message: Message) -> None:
    """Have a message that was sent again say where it was published to at first."""
    headers = message.headers
    for name, header in (("exchange", EXCHANGE), ("routing_key", ROUTING_KEY)):
        route = headers.get(header)  # any publisher can write it
        if isinstance(route, str) and len(route) <= LONGEST_ROUTE:
            message.delivery_info[name] = route


def resent(message: Message, options: PublishOptions, headers: dict[str, Any]) -> OutgoingMessage:
    """Return a received message as it is published again, with its properties and other headers."""
    body = message.body
    compression = headers.get("compression")
    if compression and not message.errors:  # else it could not be unpacked, and is as it was
        body, _ = compress(body, compression)
    properties = message.properties
    kind: Any = getattr(message, "content_type", None)
    encoding: Any = getattr(message, "content_encoding", None)
    outgoing = OutgoingMessage(options, _sendable(body, encoding), kind, encoding, headers)
    outgoing.own = {name: each for name, each in properties.items() if name not in NOT_COPIED}
    return outgoing


def _sendable(body: Any, encoding: Any) -> Any:
    """Return a received body as text that *encoding* can encode, or as bytes."""
    if isinstance(body, (bytes, bytearray, memoryview)):
        return body
    if not isinstance(body, str):  # of an envelope that another program has written
        body = "" if body is None else safe_repr(body)
    try:
        body.encode(encoding or "utf-8")
    except (LookupError, TypeError, ValueError):
        return body.encode("utf-8", "surrogatepass")
    return body


def priority_of(message: Message) -> dict[str, Any]:
    """Return the option of a publish that gives a message its priority again."""
    priority = message.properties.get("priority")
    return {"priority": priority} if isinstance(priority, int) and 0 <= priority <= 255 else {}


def _failure_headers(message: Message, attempts: int) -> dict[str, Any]:
    headers = _route_headers(message)
    if attempts:
        headers[ATTEMPTS] = attempts
    headers.setdefault(FIRST_FAILURE, _now())
    return headers


def _route_headers(message: Message) -> dict[str, Any]:
    headers, info = dict(message.headers), message.delivery_info
    headers.setdefault(EXCHANGE, info.get("exchange") or "")
    headers.setdefault(ROUTING_KEY, info.get("routing_key") or "")
    return headers


class DeadLetterExchanges:
    """The dead-letter exchanges of the queues that one connection consumes from, as far as known.

    A store knows them of each queue.  RabbitMQ tells them to no client of AMQP: they are known from the
    arguments with which this program declared the queue, and from the management API, which also knows
    those of a policy.  A message of a queue that has none, or whose exchange does not exist, must not be
    rejected: the broker would drop it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        #: By the queue: whether it has one that exists, and until when that is believed.
        self._known: dict[str, tuple[bool, float]] = {}
        #: Many handlers may fail at once: one asks.
        self._lock = BoundedSemaphore(1)
        #: Before, the management API is not asked.
        self._asks_at = 0.0

    def has(self, queue: str, message: Message, arguments: Mapping[str, Any]) -> bool:
        """Return whether a rejected message goes to the dead-letter exchange of its queue.  May switch.

        Arguments:
            arguments: of the queue, as far as they are known.
        """
        ask = getattr(message.channel, "has_dead_letters", None)
        try:
            if ask is not None:
                key = message.delivery_info.get("routing_key") or ""
                return bool(ask(queue, key, message.headers))
            if self._session.broker.transport.driver_type != "amqp":
                return arguments.get(f"x-{_DLX}") is not None  # a transport of others
            if (known := self._recall(queue)) is None:
                with self._lock:
                    if (known := self._recall(queue)) is None:
                        known = self._find(queue, arguments)
                        if len(self._known) >= MOST_DLX_KNOWN:
                            self._known.clear()
                        self._known[queue] = known, monotonic() + DLX_KEPT
            return known
        except Exception as exc:
            logger.warning(
                "whether queue %r has a dead-letter exchange is not known: %s",
                queue,
                error_summary(exc),
                extra=message_fields(message, queue=queue),
            )
            return False

    def _recall(self, queue: str) -> bool | None:
        """Return what is known of *queue*; None: nothing, any more."""
        found, until = self._known.get(queue, (False, 0.0))
        return found if monotonic() < until else None

    def _find(self, queue: str, arguments: Mapping[str, Any]) -> bool:
        """Return whether RabbitMQ has a dead-letter exchange for *queue*.  May switch."""
        exchange, key = arguments.get(f"x-{_DLX}"), arguments.get(f"x-{_DLX_KEY}")
        if exchange is None and self._asks_at <= monotonic():
            try:
                exchange, key = self._ask_management(queue)
            except Exception as exc:
                self._asks_at = monotonic() + UNANSWERED
                logger.info(
                    "whether a policy gives queue %r a dead-letter exchange is not known: %s",
                    queue,
                    error_text(exc),
                    extra={"queue": queue, "connection": self._session.broker.label},
                )
        return isinstance(exchange, str) and self._exists(queue, exchange, key)

    def _ask_management(self, queue: str) -> tuple[Any, Any]:
        """Return the dead-letter exchange and routing key of a queue; None: it has none.  May switch.

        Raises:
            Exception: the management API does not answer, or not so.
        """
        broker = self._session.broker
        manager = broker.transport.get_manager(timeout=MANAGEMENT_TIMEOUT)
        vhost, end = broker.info()["virtual_host"], monotonic() + STATISTICS_INTERVAL
        while True:
            found = manager.get_queue(vhost, queue)
            arguments = found["arguments"]
            if f"x-{_DLX}" in arguments:
                return arguments[f"x-{_DLX}"], arguments.get(f"x-{_DLX_KEY}")
            policy = found.get("effective_policy_definition")
            if policy is not None:
                policy = dict(policy)  # a list if it is empty, of older versions
                return policy.get(_DLX), policy.get(_DLX_KEY)
            # The queue is new: the policy comes with its first statistics.
            if monotonic() >= end:
                raise LookupError("the management API tells of no policies")
            sleep(0.25)

    def _exists(self, queue: str, exchange: str, key: Any) -> bool:
        """Return whether a dead letter of *queue* would not come back or be dropped.  May switch."""
        run, deadline = self._session.utility.run, Deadline(DLX_TIMEOUT)
        try:
            if exchange:
                run(
                    lambda channel: channel.exchange_declare(exchange, "direct", passive=True),
                    deadline,  # of which the broker checks nothing but the name
                )
            elif isinstance(key, str) and key and key != queue:
                run(lambda channel: declare_uncounted(channel, queue=key, passive=True), deadline)
            else:
                return False  # it would come back
        except NotFound:
            return False
        return True


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
        # Counted once: some brokers count all messages for it.
        for _ in range(min(limit, count_of(channel, queue))):
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

    A message is acknowledged in its queue when the broker that it goes to has confirmed it, so none is
    lost; one that was published when the connection is lost may be there twice.  The others are still in
    their queue, so a second call goes on.  Those that come meanwhile are not looked at.

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
    _check_limit(limit)
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
                sleep(max(0.0, began + moved / rate - monotonic()))
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
                publish_prepared(outgoing_now, connection, Deadline(MOVE_TIMEOUT), settle, keep)
            finally:
                if on_moved is not None:
                    on_moved(moved)
    finally:
        put_back([*kept, *(message for message, _ in due.values())])
    if refused:
        raise refused[0]
    return moved


def discard(
    channel: Channel,
    queue: str,
    where: Callable[[Message], object],
    *,
    limit: int | None = None,
    on_discarded: Callable[[int], object] | None = None,
) -> int:
    """Delete messages that wait in *queue*, the oldest first.  May switch.

    Those that come meanwhile are not looked at.

    Arguments:
        channel: a channel of the queue's broker, which nothing else uses.
        where: called with each message; one for which it returns something false stays.
        limit: how many at most; None: all.
        on_discarded: called with the number of those that were deleted, after each.

    Returns:
        How many were deleted.

    Raises:
        ValueError: *limit* is out of its range.
        NotFound: there is no such queue.
    """
    _check_limit(limit)
    kept: list[Message] = []
    discarded = 0
    try:
        for _ in range(count_of(channel, queue)):
            message = channel.basic_get(queue)
            if message is None:
                break
            kept.append(message)
            if where(message):
                kept.pop().ack()
                discarded += 1
                if on_discarded is not None:
                    on_discarded(discarded)
                if discarded == limit:
                    break
    finally:
        put_back(kept)
    return discarded


def _check_limit(limit: int | None) -> None:
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a positive integer or None, got {limit!r}")


def forwarded(message: Message, target: str, *, declare: bool = False) -> OutgoingMessage:
    """Return a received message as it is published to another queue, with all that it has.

    Arguments:
        declare: declare *target* (durable) if it does not exist.
    """
    options = PublishOptions(target, {**priority_of(message), "declare": declare})
    headers = {name: each for name, each in message.headers.items() if name not in OBEYED}
    return resent(message, options, headers)


def put_back(messages: list[Message]) -> None:
    """Leave messages in their queue, with no delivery counted."""
    for message in messages:
        message.put_back()


@dataclass(frozen=True)
class DeadLetterEntry:
    """A dead letter, and why it is one."""

    queue: str | None
    """The queue that it was consumed from; None: not known."""

    reason: str | None
    """``failed``, ``undecodable``, or the broker's reason: ``rejected``, ``expired``, ``maxlen``,
    ``delivery_limit``."""

    error: str | None
    """The class of the error."""

    text: str | None
    """The text of the error."""

    traceback: str | None
    """The end of the traceback of the error."""

    attempts: int
    """How often its handler was called; 0: not known."""

    first_failure: str | None
    """When it failed first: UTC, ISO 8601."""

    message: Message
    """The message: ``payload``, ``headers``, ``properties``...  It cannot be acknowledged."""


class DeadLetters:
    """The dead letters of one queue: those that ``spawn_consumer`` has made, and those of the broker,
    where the queue's dead-letter exchange leads to the same queue.

    Arguments:
        queue: its name.
        name: of the queue of its dead letters.
        connection: is used for all calls.
    """

    def __init__(self, queue: str, name: str, connection: Connection) -> None:
        self.queue = queue
        self.name = name
        self._connection = connection

    def __repr__(self) -> str:
        return f"<DeadLetters of {self.queue!r} in {self.name!r}>"

    def count(self) -> int:
        """Return how many wait.  May switch."""
        with self._connection.channel() as channel:
            return self._count(channel)

    def look(self, limit: int = 10) -> list[DeadLetterEntry]:
        """Return the oldest ones, which stay where they are.  May switch.

        Arguments:
            limit: how many at most.
        """
        with self._connection.channel() as channel:
            try:
                return [dead_letter_of(each) for each in look(channel, self.name, limit)]
            except NotFound:
                return []  # no message has failed yet

    def replay(
        self,
        where: Callable[[DeadLetterEntry], object] | None = None,
        *,
        limit: int | None = None,
        rate: float | None = None,
        target: str | None = None,
        on_replayed: Callable[[int], object] | None = None,
    ) -> int:
        """Publish dead letters to their queue again, the oldest first.  May switch.

        Each is acknowledged when the broker has confirmed it there, so none is lost.  Those that become
        dead letters again meanwhile are not taken a second time.  Those of another queue stay, unless
        there is a *target*: any publisher can write the header that names the queue.

        Arguments:
            where: called with each; one for which it returns something false stays.
            limit: how many at most; None: all.
            rate: how many a second; None: as fast as can be.
            target: the name of another queue to publish all of them to; it must exist, as theirs must.
            on_replayed: called with the number of those that were published, again and again.

        Returns:
            How many were published.

        Raises:
            ValueError: *limit* or *rate* is out of its range.
            OperationalError: one cannot be published; it stays, as those behind it.
            PublishRefused, TypeError, ValueError: one has a header or a property with which the broker
                does not take it; it stays.  All others were published.
        """
        others: dict[str, int] = {}

        def route(message: Message) -> OutgoingMessage | None:
            letter = dead_letter_of(message)
            if where is not None and not where(letter):
                return None
            if target is None and letter.queue is not None and letter.queue != self.queue:
                others[letter.queue] = others.get(letter.queue, 0) + 1
                return None
            options = PublishOptions(target or self.queue, priority_of(message))
            return resent(message, options, fresh_headers(message))

        publishing = publishing_connection(self._connection)
        with self._connection.channel() as channel:
            try:
                return move(
                    channel, self.name, publishing, route,
                    limit=limit, rate=rate, on_moved=on_replayed,
                )  # fmt: skip
            except NotFound:
                return 0  # no message has failed yet
            finally:
                if others:
                    logger.warning(
                        "%d dead letters in queue %r are of other queues (%s) and were not replayed: "
                        "replay them by the name of their queue, or name a target",
                        sum(others.values()),
                        self.name,
                        ", ".join(map(repr, islice(others, 3))),
                        extra={"queue": self.name},
                    )

    def delete(
        self,
        where: Callable[[DeadLetterEntry], object],
        *,
        limit: int | None = None,
        on_deleted: Callable[[int], object] | None = None,
    ) -> int:
        """Delete dead letters, the oldest first.  May switch.

        Arguments:
            where: called with each; one for which it returns something false stays.
            limit: how many at most; None: all.
            on_deleted: called with the number of those that were deleted, again and again.

        Returns:
            How many were deleted.
        """
        with self._connection.channel() as channel:
            try:
                return discard(
                    channel, self.name, lambda message: where(dead_letter_of(message)),
                    limit=limit, on_discarded=on_deleted,
                )  # fmt: skip
            except NotFound:
                return 0  # no message has failed yet

    def purge(self) -> int:
        """Delete those that wait, and return how many there were.  May switch."""
        with self._connection.channel() as channel:
            if not self._count(channel):
                return 0
            return channel.queue_purge(self.name) or 0

    def _count(self, channel: Channel) -> int:
        try:
            return count_of(channel, self.name)
        except NotFound:
            return 0  # no message has failed yet


def dead_letters(
    queue: QueueLike, *, name: str | None = None, connection: Connection | str | None = None
) -> DeadLetters:
    """Return the dead letters of a queue.  Never switches.

    Arguments:
        queue: its name, or a ``Queue``.
        name: of the queue of its dead letters; None: ``<queue>.dead``, or where the arguments of a
            ``Queue`` lead to.
        connection: a ``Connection``, a URL, or None for the default one.

    Example::

        dead = greenconn.dead_letters("mail")
        for letter in dead.look():
            print(letter.reason, letter.error, letter.text, letter.message.payload)
        dead.replay(lambda letter: letter.error == "builtins.TimeoutError", rate=10)
    """
    text = queue.name if isinstance(queue, Queue) else queue
    if not isinstance(text, str) or not text:
        raise ValueError(f"queue must be the name of a queue or a Queue with one, got {queue!r}")
    if name is None and isinstance(queue, Queue):
        name = queue.dead_letter_queue or (queue.queue_arguments or {}).get(
            "x-dead-letter-routing-key"
        )
    return DeadLetters(text, name or f"{text}{DEAD}", consuming_connection(connection))


def dead_letter_of(message: Message) -> DeadLetterEntry:
    """Return what the headers of a message say about its failure."""
    headers = message.headers
    death = _first_death(message)

    def text(name: str, default: object = None) -> str | None:
        value = headers.get(name, default)
        return value if isinstance(value, str) else None

    return DeadLetterEntry(
        queue=text(QUEUE, death.get("queue")),
        reason=text(REASON, death.get("reason")),
        error=text(ERROR),
        text=text(TEXT),
        traceback=text(TRACEBACK),
        attempts=attempts_of(message),
        first_failure=text(FIRST_FAILURE),
        message=message,
    )


def _first_death(message: Message) -> dict[str, Any]:
    """Return the latest entry of ``x-death``, which the broker writes; empty where there is none."""
    deaths = message.headers.get("x-death")
    found = deaths[0] if isinstance(deaths, list) and deaths else None
    return found if isinstance(found, dict) else {}


def fresh_headers(message: Message) -> dict[str, Any]:
    """Return the headers of a dead letter without what they tell of its failure."""
    death = _first_death(message)
    headers = {
        name: value
        for name, value in message.headers.items()
        if name not in _LEFT_OUT and not str(name).startswith(_DEATHS)
    }
    keys = death.get("routing-keys")
    key = keys[0] if isinstance(keys, list) and keys else ""
    for name, known in ((EXCHANGE, death.get("exchange")), (ROUTING_KEY, key)):
        value = message.headers.get(name, known)
        headers[name] = value if isinstance(value, str) else ""  # any publisher can write it
    headers[ATTEMPTS] = 0
    return headers
