"""Exceptions.

The hierarchy is kombu's: :class:`KombuError` is the base class, and an error reply of an AMQP broker is
raised as the class of the ``amqp`` package: ``amqp.exceptions.NotFound`` and
``greenconn.exceptions.NotFound`` are the same.  The classes that greenconn adds derive from
:class:`OperationalError`, and from the class that a program written for kombu catches in that case.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Final, NoReturn

from amqp.exceptions import (
    AccessRefused,
    AMQPError,
    AMQPNotImplementedError,
    ChannelError,
    ChannelNotOpen,
    ConnectionError,
    ConnectionForced,
    ConsumerCancelled,
    ContentTooLarge,
    FrameError,
    FrameSyntaxError,
    InternalError,
    InvalidCommand,
    InvalidPath,
    IrrecoverableChannelError,
    IrrecoverableConnectionError,
    MessageNacked,
    NoConsumers,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceError,
    ResourceLocked,
    UnexpectedFrame,
)

__all__ = [
    "NEVER_REPEATED",
    "AMQPError",
    "AMQPNotImplementedError",
    "AccessRefused",
    "BatchPublishError",
    "ChannelError",
    "ChannelLimitExceeded",
    "ChannelNotOpen",
    "ConnectionBlocked",
    "ConnectionError",
    "ConnectionForced",
    "ConnectionLimitExceeded",
    "ConsumerCancelled",
    "ContentDisallowed",
    "ContentTooLarge",
    "DecodeError",
    "EncodeError",
    "FrameError",
    "FrameSyntaxError",
    "GreenconnError",
    "HttpError",
    "InconsistencyError",
    "InternalError",
    "InvalidCommand",
    "InvalidPath",
    "IrrecoverableChannelError",
    "IrrecoverableConnectionError",
    "KombuError",
    "LimitExceeded",
    "ManagementError",
    "MessageNacked",
    "MessageStateError",
    "NoConsumers",
    "NotAllowed",
    "NotBoundError",
    "NotFound",
    "OperationalError",
    "PreconditionFailed",
    "PublishNacked",
    "PublishRefused",
    "PublishTimeout",
    "RecoverableChannelError",
    "RecoverableConnectionError",
    "RemoteError",
    "ReplyTimeout",
    "ResourceError",
    "ResourceLocked",
    "SerializationError",
    "SerializerNotInstalled",
    "TimeoutError",
    "UnexpectedFrame",
    "Unroutable",
    "VersionMismatch",
    "WrongHub",
    "is_unavailable",
    "reraise",
]

#: ``socket.timeout`` is this same class since Python 3.10.
TimeoutError = TimeoutError


def reraise(
    tp: type[BaseException], value: BaseException, tb: TracebackType | None = None
) -> NoReturn:
    """Raise *value* with traceback *tb* (kombu's helper, kept for programs that import it)."""
    if value.__traceback__ is not tb:
        raise value.with_traceback(tb)
    raise value


#: Parts of RabbitMQ's reply texts for a queue that exists, but whose node or leader is unavailable: any
#: queue up to 3.13; a classic queue in 4; a stream whose replica on this node is still being created.
_UNAVAILABLE: Final = (
    "down or inaccessible",
    "process is stopped by supervisor",
    "replica on the local node",
)


def raise_error(exc: BaseException) -> None:
    """Raise *exc*, as the callback of an event that reports it to the greenlet that drains."""
    raise exc


def is_unavailable(exc: BaseException) -> bool:
    """Return whether a 404 or 406 is about a queue that exists but is not available now."""
    text = str(exc)
    is_of_queue = isinstance(exc, (NotFound, PreconditionFailed))
    return is_of_queue and any(each in text for each in _UNAVAILABLE)


class KombuError(Exception):
    """The base class of all errors but the broker's error replies."""


GreenconnError = KombuError


class OperationalError(KombuError):
    """An error of the network or the broker, or an exceeded limit.  A retry may succeed."""


class SerializationError(KombuError):
    """A body could not be serialized or deserialized."""


class EncodeError(SerializationError):
    """A body could not be encoded."""


class DecodeError(SerializationError):
    """A body could not be decoded."""


class NotBoundError(KombuError):
    """An operation on an entity that is not bound to a channel."""


class MessageStateError(KombuError):
    """A message that was already acknowledged, rejected or requeued."""


class LimitExceeded(OperationalError):
    """A pool has no free resource."""


class ConnectionLimitExceeded(LimitExceeded):
    """A pool has no free connection."""


class ChannelLimitExceeded(LimitExceeded):
    """A pool has no free channel."""


class VersionMismatch(KombuError):
    """An installed library has an unsupported version."""


class SerializerNotInstalled(KombuError):
    """A serializer is not registered, or the package that it needs is not installed."""


class ContentDisallowed(SerializerNotInstalled):
    """The content type of a message is not accepted."""


class BatchPublishError(OperationalError):
    """Some messages of a batch could not be published.

    Attributes:
        failed: positions in the batch, from 0 -> the errors of the messages that were not published.
        taken: the number of messages that were tried; the batch ends early if the connection is lost.
    """

    def __init__(
        self, *args: object, failed: Mapping[int, Exception] | None = None, taken: int = 0
    ) -> None:
        super().__init__(*args)
        self.failed: Mapping[int, Exception] = failed or {}
        self.taken = taken


class InconsistencyError(ConnectionError):  # type: ignore[misc]
    """The state of the broker is not the expected one, as for a queue that another node uses."""


class HttpError(Exception):
    """An error reply of a broker that is accessed over HTTP.

    Attributes:
        code: the HTTP status.
        message: the error text of the broker, or None.
        response: the response object.
    """

    def __init__(self, code: int, message: str | None = None, response: object = None) -> None:
        self.code = code
        self.message = message
        self.response = response
        super().__init__(code, message, response)

    def __str__(self) -> str:
        return f"HTTP {self.code}: {self.message}"


class ManagementError(OperationalError, HttpError):
    """An error reply of the broker's management API.

    Attributes:
        code: the HTTP status: 401 wrong login, 403 no permission, 404 not found.
        message: the reason that the broker gave.
    """


class PublishTimeout(OperationalError, TimeoutError):
    """The deadline of a publish passed before the broker confirmed the message.

    Attributes:
        maybe_delivered: whether the message was sent, so that the broker may have it.
    """

    def __init__(self, message: str, *, maybe_delivered: bool) -> None:
        super().__init__(message)
        self.maybe_delivered = maybe_delivered


class PublishNacked(OperationalError, MessageNacked):  # type: ignore[misc]
    """The broker refused the message with ``basic.nack``.

    Attributes:
        has_reason: whether the broker said why; AMQP cannot.
    """

    def __init__(self, message: str, *, has_reason: bool = True) -> None:
        super().__init__(message)
        self.has_reason = has_reason


class Unroutable(OperationalError, ChannelError):  # type: ignore[misc]
    """A mandatory message reached no queue (``basic.return``).

    Attributes:
        exchange, routing_key: the arguments of the publish.
    """

    def __init__(
        self, message: str, *, code: int = 312, exchange: str = "", routing_key: str = ""
    ) -> None:
        super().__init__(message)
        self.reply_text = message
        self.reply_code = code
        self.method_sig = (60, 50)
        self.method_name = "Basic.return"
        self.exchange = exchange
        self.routing_key = routing_key

    def __str__(self) -> str:
        return str(self.reply_text)


class PublishRefused(OperationalError):
    """The broker closed the channel because of this message; ``__cause__`` is its reply."""


class ConnectionBlocked(OperationalError, TimeoutError):
    """The broker blocked the connection (memory or disk alarm) for longer than the call waits."""


class WrongHub(OperationalError, RuntimeError):
    """An object was used from a thread (a gevent hub) other than its own."""


class ReplyTimeout(OperationalError, TimeoutError):
    """The reply of an rpc server did not arrive in time; the call may have been executed."""


class RemoteError(OperationalError):
    """The remote function raised an exception.

    Attributes:
        remote_type: the qualified name of the class of the remote exception.
        remote_traceback: the remote traceback as text, or None if the server does not send it.
    """

    def __init__(
        self, message: str, *, remote_type: str = "", remote_traceback: str | None = None
    ) -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback


#: Errors after which ``ensure`` and ``autoretry`` never retry, although some are an ``OSError``: the
#: operation may have been done, or would fail again.
NEVER_REPEATED: tuple[type[Exception], ...] = (
    PublishTimeout,
    PublishNacked,
    Unroutable,
    PublishRefused,
    ConnectionBlocked,
    ReplyTimeout,
    WrongHub,
)
