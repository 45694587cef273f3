"""Messages whose handler failed, sent to where they wait: their queue after a delay, or dead letters.

Each is published as it was, with what is known of the failure in headers, and acknowledged when the
broker has confirmed that.  So none is lost, and one is there twice only if the process or the connection
ends between the two.  Where the broker can store a delayed message in the place of the one that
failed, in one step, none is there twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timezone
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Final

from greenconn.compression import compress
from greenconn.defaults import publishing_connection
from greenconn.delays import DELAY
from greenconn.encoding import safe_repr
from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.listeners import LISTENERS, url_of
from greenconn.log import message_fields
from greenconn.publishing.calls import publisher_of
from greenconn.publishing.message import OutgoingMessage, PublishOptions

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.message import Message

logger = logging.getLogger("greenconn.worker")

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


class FailedMessages:
    """The messages of one consumer whose handler failed.

    Arguments:
        connection: the consumer's.
        can_wait: returns whether the broker may hold a message of its queue until a retry.
    """

    __slots__ = ("_can_wait", "_connection", "_has_warned", "_is_unable")

    def __init__(self, connection: Connection, can_wait: Callable[[Any], bool]) -> None:
        self._connection = connection
        self._can_wait = can_wait
        self._is_unable = self._has_warned = False

    def can_delay(self, message: Message) -> bool:
        """Return whether the broker may hold a message, as far as this is known before it is asked."""
        headers = message.headers
        return (
            not self._is_unable
            and self._can_wait(message)
            # RabbitMQ would end the delay for the one, and send copies for the others.
            and message.properties.get("expiration") is None
            and "CC" not in headers
            and "BCC" not in headers
        )

    def delay(self, message: Message, queue: str, attempts: int, delay: float) -> bool:
        """Have the broker deliver a message again in *delay* seconds; False: it does not.  May switch.

        Arguments:
            message: one that :meth:`can_delay`.
            attempts: how often its handler has failed.
        """
        options = PublishOptions(queue, {"delay": delay, **priority_of(message)})
        outgoing = resent(message, options, _failure_headers(message, attempts))
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
                "retries of queue %r wait in this process: %s",
                queue,
                error_text(exc),
                extra=message_fields(message, queue=queue),
            )
        except Exception as exc:
            if message.channel.is_open:
                logger.warning(
                    "a retry of queue %r waits in this process: %s",
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
        publisher = publisher_of(publishing_connection(self._connection))
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


def _traceback_of(exc: BaseException) -> str:
    """Return the end of the traceback, as text that each broker can store."""
    try:
        text = "".join(format_exception(exc))[-LONGEST_TRACEBACK:]
    except Exception:  # of what the program has made of its error
        text = error_text(exc)
    return text.encode("utf-8", "backslashreplace").decode()


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
    headers, info = dict(message.headers), message.delivery_info
    if attempts:
        headers[ATTEMPTS] = attempts
    headers.setdefault(FIRST_FAILURE, _now())
    headers.setdefault(EXCHANGE, info.get("exchange") or "")
    headers.setdefault(ROUTING_KEY, info.get("routing_key") or "")
    return headers
