"""Every error that greenconn raises.

The tree is kombu's: :class:`KombuError` is the base, and the replies of an AMQP broker are the classes
of the ``amqp`` package itself, so ``except amqp.exceptions.NotFound`` and
``except greenconn.exceptions.NotFound`` are one and the same.  Errors of our own derive from
:class:`OperationalError` and also from the class that today's code would catch.
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


#: What RabbitMQ says of a queue that is there, but whose node or leader is not: of any queue up to 3.13;
#: of a classic queue of 4; of a stream, whose replica on a node takes a moment after its declaration.
_UNAVAILABLE: Final = (
    "down or inaccessible",
    "process is stopped by supervisor",
    "replica on the local node",
)


def raise_error(exc: BaseException) -> None:
    """Raise *exc*: for an event whose drainer is to get it."""
    raise exc


def is_unavailable(exc: BaseException) -> bool:
    """Return whether the queue of a 404 or a 406 is there, but cannot be used now (RabbitMQ's words)."""
    text = str(exc)
    is_of_queue = isinstance(exc, (NotFound, PreconditionFailed))
    return is_of_queue and any(each in text for each in _UNAVAILABLE)


class KombuError(Exception):
    """Common base of the errors that are not the broker's own replies."""


GreenconnError = KombuError


class OperationalError(KombuError):
    """An error of the network, the broker or a limit: trying later may help."""


class SerializationError(KombuError):
    """A body could not be serialised or deserialised."""


class EncodeError(SerializationError):
    """A body could not be encoded."""


class DecodeError(SerializationError):
    """A body could not be decoded."""


class NotBoundError(KombuError):
    """An entity that is not bound to a channel was asked to talk to the broker."""


class MessageStateError(KombuError):
    """A message was acknowledged, rejected or requeued a second time."""


class LimitExceeded(OperationalError):
    """A pool has no free resource.  (An OperationalError here, so that one clause catches it.)"""


class ConnectionLimitExceeded(LimitExceeded):
    """A pool has no free connection."""


class ChannelLimitExceeded(LimitExceeded):
    """A pool has no free channel."""


class VersionMismatch(KombuError):
    """An installed library has a version that cannot be used."""


class SerializerNotInstalled(KombuError):
    """The serializer that was asked for is not there."""


class ContentDisallowed(SerializerNotInstalled):
    """The content type of a message is not among the accepted ones."""


class BatchPublishError(OperationalError):
    """Some messages of a batch could not be published.

    Attributes:
        failed: the error of each that was not, by its position in the batch, from 0.
        taken: how many messages were looked at: when nothing more can be published, the rest is not.
    """

    def __init__(
        self, *args: object, failed: Mapping[int, Exception] | None = None, taken: int = 0
    ) -> None:
        super().__init__(*args)
        self.failed: Mapping[int, Exception] = failed or {}
        self.taken = taken


class InconsistencyError(ConnectionError):  # type: ignore[misc]
    """The broker's data do not hold what they should."""


class HttpError(Exception):
    """A broker that speaks HTTP answered with an error."""

    def __init__(self, code: int, message: str | None = None, response: object = None) -> None:
        self.code = code
        self.message = message
        self.response = response
        super().__init__(code, message, response)

    def __str__(self) -> str:
        return f"HTTP {self.code}: {self.message}"


class ManagementError(OperationalError, HttpError):
    """The broker's management API refused a request.

    Attributes:
        code: the HTTP status: 401 login, 403 permission, 404 no such thing.
        message: what it said.
    """


class PublishTimeout(OperationalError, TimeoutError):
    """The deadline of a publish ended before the broker confirmed.

    Attributes:
        maybe_delivered: True when the message had left, so that the broker may have it.
    """

    def __init__(self, message: str, *, maybe_delivered: bool) -> None:
        super().__init__(message)
        self.maybe_delivered = maybe_delivered


class PublishNacked(OperationalError, MessageNacked):  # type: ignore[misc]
    """The broker refused the message with ``basic.nack``."""


class Unroutable(OperationalError, ChannelError):  # type: ignore[misc]
    """A mandatory message reached no queue (``basic.return``).

    Attributes:
        exchange, routing_key: where the message was sent.
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
    """The broker closed the channel because of this message; ``__cause__`` has its reply."""


class ConnectionBlocked(OperationalError, TimeoutError):
    """The broker blocked the connection (memory or disk alarm) for longer than the call waits."""


class WrongHub(OperationalError, RuntimeError):
    """An object was used from another thread (another gevent hub) than the one it belongs to."""


class ReplyTimeout(OperationalError, TimeoutError):
    """The reply of an rpc server did not come in time; the call may have been carried out."""


class RemoteError(OperationalError):
    """The function that an rpc server called raised.

    Attributes:
        remote_type: qualified name of the remote exception's class.
        remote_traceback: the remote traceback as text, or None when the server does not send it.
    """

    def __init__(
        self, message: str, *, remote_type: str = "", remote_traceback: str | None = None
    ) -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback


#: Errors that ``ensure`` and ``autoretry`` never repeat, although some are also ``OSError`` by class.
NEVER_REPEATED: tuple[type[Exception], ...] = (
    PublishTimeout,
    PublishNacked,
    Unroutable,
    PublishRefused,
    ConnectionBlocked,
    ReplyTimeout,
    WrongHub,
)
