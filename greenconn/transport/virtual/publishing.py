"""Confirms and returns for the channels of this layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from greenconn.delays import LONGEST
from greenconn.encoding import as_text, plain_text, safe_repr
from greenconn.exceptions import (
    AMQPNotImplementedError,
    ContentTooLarge,
    PublishNacked,
    Unroutable,
)
from greenconn.green.deadline import Deadline
from greenconn.message import Message
from greenconn.transport.refusal import Method, invalid_argument
from greenconn.transport.virtual.arguments import ArgumentOf

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel


#: Kombu's form of a message that is to be sent: body, content-type, content-encoding, headers and
#: properties.
Envelope = dict[str, Any]


#: Values that cannot change, and are of no class but these.
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})


def copied(value: Any) -> Any:
    """Return *value* with the tables and lists in it made anew, and its texts of class ``str``."""
    if value.__class__ in _PLAIN:
        return value
    if isinstance(value, dict):
        return {
            name if name.__class__ is str else plain_text(name): each
            if each.__class__ in _PLAIN
            else copied(each)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [copied(each) for each in value]
    return plain_text(value)


def encoded(text: str, encoding: str | None) -> bytes:
    """Return a body of text as bytes: UTF-8 where no codec has the name *encoding*."""
    try:
        return text.encode(encoding or "utf-8")
    except LookupError:
        return text.encode()


class UndeliverableWarning(UserWarning):
    """A message had no queue to go to, and went to the queue of last resort."""


class PublishOutcome:
    """The confirm of a publish that was decided at once."""

    __slots__ = ("_error",)

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def wait(self, deadline: Deadline | None = None) -> None:
        """Return when the broker has the message.  Never switches.

        Raises:
            Unroutable, PublishNacked: it has not.
        """
        if self._error is not None:
            raise self._error


def warn_of_message(
    channel: StoreChannel[Any], message: Envelope, exchange: str, routing_key: str
) -> None:
    """Log what a message has that should count, and does not here.  Never switches."""
    properties, headers = message["properties"], message["headers"] or {}
    given = {name: properties.get(name) or None for name in ("priority", "expiration")}
    given.update((name, headers.get(name)) for name in ("x-delay", "CC", "BCC"))
    channel.warn_of_unsupported(ArgumentOf.MESSAGE, exchange or routing_key, given)


def prepared(
    body: Any,
    priority: int | None,
    content_type: str | None,
    content_encoding: str | None,
    headers: Mapping[str, Any] | None,
    properties: MutableMapping[str, Any] | None,
) -> Envelope:
    """Return kombu's form of a message: a snapshot of what may be changed later.

    Raises:
        TypeError: the body is neither text nor bytes.
    """
    own: dict[str, Any] = dict(properties or ())
    for name, value in own.items():
        if value.__class__ not in _PLAIN or name.__class__ is not str:
            own = copied(own)
            break
    own.setdefault("priority", priority or 0)
    if body.__class__ is str or isinstance(body, str):
        content_encoding = content_encoding or "utf-8"
    elif isinstance(body, (bytearray, memoryview)):
        body = bytes(body)
    elif not isinstance(body, bytes):
        raise TypeError(f"a body must be text or bytes, got {type(body).__name__}")
    if content_encoding.__class__ is not str:
        content_encoding = plain_text(content_encoding)
    if content_type.__class__ is not str:
        content_type = plain_text(content_type)
    return {
        "body": body,
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": copied(headers) if headers else {},
        "properties": own,
    }


_DONE: Final = PublishOutcome(None)


class SynchronousPublisher(ABC):
    """The publisher of one channel whose publishes are decided when they return.

    Arguments:
        channel: of the publisher.
        is_confirming: every publish tells what became of it.
    """

    #: Makes a message to publish.
    prepare: Callable[..., Envelope] = staticmethod(prepared)

    def __init__(self, channel: StoreChannel[Any], is_confirming: bool = False) -> None:
        self._channel = channel
        self._is_confirming = is_confirming

    @abstractmethod
    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> Exception | None:
        """Publish *message*, and return why the broker does not have it; None: it has.  May switch.

        Raises:
            ChannelError: the broker refuses.
        """

    def publish(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message*.  May switch, before anything is published."""
        error = self._decide(message, exchange, routing_key, mandatory, immediate)
        if error is not None:
            if self._is_confirming:
                raise error
            if isinstance(error, Unroutable):
                return_message(self._channel, message, exchange, routing_key)

    def begin(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> PublishOutcome:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        error = self._decide(message, exchange, routing_key, mandatory, immediate)
        return _DONE if error is None else PublishOutcome(error)

    def replacement(self, message: Envelope, queue: str) -> None:  # noqa: B027
        """Return None: the broker does not store a message in the place of a held one."""

    def flush(self, timeout: float | None) -> None:
        """Raise unless the channel can be used: the broker has all that was published.

        Never switches.
        """
        self._channel.check_open()

    def end(self) -> None:  # noqa: B027
        """Note that the channel has ended: nothing was begun that it would have to finish."""


def return_message(
    channel: StoreChannel[Any], message: Envelope, exchange: str, routing_key: str
) -> None:
    """Let an event give a mandatory message back that reached no queue.  Never switches."""
    channel.connection.put_return(
        partial(_call_handlers, channel),
        (unroutable(exchange, routing_key), exchange, routing_key, message),
        len(message["body"]),
        has_listener=bool(channel.events["basic_return"]),
    )


def _call_handlers(channel: StoreChannel[Any], returned: tuple[Unroutable, str, str, Any]) -> None:
    """Call the handlers of a returned message."""
    exc, exchange, routing_key, envelope = returned
    handlers: list[Callable[..., Any]] = list(channel.events["basic_return"])
    for handler in handlers:
        message = Message(
            body=as_text(envelope["body"], envelope["content-encoding"]),
            content_type=envelope["content-type"],
            content_encoding=envelope["content-encoding"],
            headers=copied(envelope["headers"]),
            properties=copied(envelope["properties"]),
            delivery_info={"exchange": exchange, "routing_key": routing_key},
        )
        handler(exc, exchange, routing_key, message)


def unroutable(exchange: str, routing_key: str) -> Unroutable:
    return Unroutable(
        f"NO_ROUTE - no queue is bound to exchange {exchange!r} for routing key {routing_key!r}",
        exchange=exchange,
        routing_key=routing_key,
    )


def route_text(exchange: str, routing_key: str) -> str:
    """Return where a message was to go, for messages."""
    return f"exchange {exchange!r}, routing key {routing_key!r}" if exchange else routing_key


def lifetime_of(expiration: Any) -> float:
    """Return the seconds that the property ``expiration`` lets a message wait, a hundred years at most.

    Raises:
        PreconditionFailed: it is no number of milliseconds from 0 up.
    """
    try:
        milliseconds = int(expiration)
    except (TypeError, ValueError, OverflowError):
        milliseconds = -1
    if milliseconds < 0:
        raise invalid_argument(
            f"invalid expiration {safe_repr(expiration)[:100]}", Method.BASIC_PUBLISH
        )
    return min(milliseconds, LONGEST * 1000) / 1000


def level_of(priority: Any, highest: int) -> int:
    """Return a priority as a number from 0 to *highest*; 0 for what is none (kombu's reading)."""
    try:
        return max(0, min(int(priority), highest))
    except (TypeError, ValueError, OverflowError):
        return 0


def queue_full(exchange: str, routing_key: str) -> PublishNacked:
    text = route_text(exchange, routing_key)
    return PublishNacked(f"a queue is full and refused the message ({text})")


def undeliverable(exchange: str, routing_key: str, queue: str) -> UndeliverableWarning:
    """Return the warning for a message that goes to *queue*, that of last resort."""
    return UndeliverableWarning(
        f"Message could not be delivered: no queue of exchange {exchange!r} for routing key "
        f"{routing_key!r}; it went to {queue!r}"
    )


def too_large(size: int, limit: int) -> ContentTooLarge:
    """Return the error of a body of *size* bytes where *limit* is the most."""
    return ContentTooLarge(f"body of {size} bytes is above max_message_size ({limit} bytes)")


def no_immediate() -> AMQPNotImplementedError:
    return AMQPNotImplementedError("NOT_IMPLEMENTED - immediate=True", Method.BASIC_PUBLISH.value)
