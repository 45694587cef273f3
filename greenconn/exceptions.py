"""Exceptions.

The hierarchy is that of kombu.  :class:`KombuError` is the base class.  An error reply of an AMQP broker
is raised as the class of the ``amqp`` package: ``amqp.exceptions.NotFound`` and
``greenconn.exceptions.NotFound`` are the same class.  The exceptions that greenconn adds derive from
:class:`OperationalError` and from the class that a program written for kombu catches in the same case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, NoReturn

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
    "BodyTooLarge",
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
    "is_denied_feature",
    "is_unavailable",
    "missing_entity",
    "reraise",
]

#: The built-in exception; ``socket.timeout`` is the same class since Python 3.10.
TimeoutError = TimeoutError


def reraise(
    tp: type[BaseException], value: BaseException, tb: TracebackType | None = None
) -> NoReturn:
    """Raise *value* with the traceback *tb*.  Kept for programs that import it from kombu."""
    if value.__traceback__ is not tb:
        raise value.with_traceback(tb)
    raise value


#: Characters of an error's text that are kept.
LONGEST_TEXT: Final = 1000


def error_text(exc: object, show: Callable[[Any], str] = str) -> str:
    """Return the text of an error of any class, of which ``__str__`` may raise an error, too.

    Arguments:
        show: ``str`` or ``repr``.

    Returns:
        At most 1,000 characters, which UTF-8 can encode.
    """
    try:
        text = str.__getitem__(show(exc), slice(LONGEST_TEXT))
    except Exception as failure:
        text = f"{show.__name__}() of {type(exc).__name__} raised {type(failure).__name__}"
    return escaped(text)[:LONGEST_TEXT]


def error_reason(exc: BaseException) -> str:
    """Return the text of an error, or its class if it has none."""
    return error_text(exc) or type(exc).__name__


def error_summary(exc: BaseException | None) -> str:
    """Return the class of an error with its text, where it has one."""
    text = error_text(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def escaped(text: str) -> str:
    """Return *text* with backslash escapes for what UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


#: Parts of RabbitMQ's reply texts for a queue that exists, but whose node or leader is unavailable: any
#: queue up to 3.13; a classic queue in 4; a stream whose replica on this node is still being created.
_UNAVAILABLE: Final = (
    "down or inaccessible",
    "process is stopped by supervisor",
    "replica on the local node",
)


def raise_error(exc: BaseException) -> None:
    """Raise *exc*.  Used as the callback of an event, to raise an error in the greenlet that drains."""
    raise exc


def is_unavailable(exc: BaseException) -> bool:
    """Return whether *exc* is a 404 or 406 for a queue that exists but is temporarily unavailable."""
    text = str(exc)
    is_of_queue = isinstance(exc, (NotFound, PreconditionFailed))
    return is_of_queue and any(each in text for each in _UNAVAILABLE)


#: RabbitMQ's reply text for what does not exist, and that of our own stores.
_MISSING: Final = re.compile(r"no (exchange|queue) '(.*)' in vhost '")


def missing_entity(exc: BaseException) -> tuple[str, str]:
    """Return the kind, ``exchange`` or ``queue``, and the name that the text of a 404 has.

    Both are empty where the text does not tell.
    """
    found = _MISSING.search(str(exc))
    return ("", "") if found is None else (found[1], found[2])


#: The beginning of RabbitMQ's reply text for a deprecated feature that is not permitted.
_DENIED_FEATURE: Final = "Feature `"


def is_denied_feature(exc: BaseException) -> bool:
    """Return whether *exc* is a 541 for a deprecated feature that the broker does not permit.

    Unlike other internal errors it does not pass.
    """
    return isinstance(exc, InternalError) and _DENIED_FEATURE in str(exc)


class KombuError(Exception):
    """The base class of all exceptions except the error replies of a broker."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled and copied without a call of __init__, which may take other arguments than args.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    kind: type[BaseException], args: tuple[object, ...], attributes: Mapping[str, object]
) -> BaseException:
    """Return a copied or unpickled error."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


GreenconnError = KombuError


class OperationalError(KombuError):
    """A network error, a broker error or an exceeded limit.  A retry may succeed."""


class SerializationError(KombuError):
    """A message body could not be serialized or deserialized."""


class EncodeError(SerializationError):
    """A message body could not be encoded."""


class DecodeError(SerializationError):
    """A message body could not be decoded."""


class BodyTooLarge(DecodeError):
    """The body of a received message is above ``max_message_size``, and was not kept.

    The broker still holds the message until it is acknowledged or rejected.
    """


class NotBoundError(KombuError):
    """An operation requires an entity that is bound to a channel."""


class MessageStateError(KombuError):
    """The message was already acknowledged, rejected or requeued."""


class LimitExceeded(OperationalError):
    """The pool has no free resource."""


class ConnectionLimitExceeded(LimitExceeded):
    """The pool has no free connection."""


class ChannelLimitExceeded(LimitExceeded):
    """The pool has no free channel."""


class AlreadyQueued(KombuError):
    """A message with the same unique key is in the queue already; this one was not published.

    Attributes:
        key: the argument ``unique``.
        message_id: the id of the message that has the key.
    """

    def __init__(self, *args: object, key: str = "", message_id: str = "") -> None:
        super().__init__(*args)
        self.key = key
        self.message_id = message_id


class VersionMismatch(KombuError):
    """The version of an installed library is not supported."""


class SerializerNotInstalled(KombuError):
    """The serializer is not registered, or the package that it requires is not installed."""


class ContentDisallowed(SerializerNotInstalled):
    """The consumer does not accept the content type of the message."""


class BatchPublishError(OperationalError):
    """Some messages of a batch could not be published.

    Attributes:
        failed: a mapping of positions in the batch, counted from 0, to the errors of the messages that
            were not published.
        taken: the number of messages that were attempted.  The batch ends early if the connection is
            lost.
    """

    def __init__(
        self, *args: object, failed: Mapping[int, Exception] | None = None, taken: int = 0
    ) -> None:
        super().__init__(*args)
        self.failed: Mapping[int, Exception] = failed or {}
        self.taken = taken


class InconsistencyError(ConnectionError):  # type: ignore[misc]
    """The state of the broker is not as expected, for example a queue is in use on another node."""


class HttpError(Exception):
    """An error response of a broker that is accessed over HTTP.

    Attributes:
        code: the HTTP status code.
        message: the error text of the broker, or None if it sent none.
        response: the HTTP response object.
    """

    def __init__(self, code: int, message: str | None = None, response: object = None) -> None:
        self.code = code
        self.message = message
        self.response = response
        super().__init__(code, message, response)

    def __str__(self) -> str:
        return f"HTTP {self.code}: {self.message}"


class ManagementError(OperationalError, HttpError):
    """An error response of the broker's management API.

    Attributes:
        code: the HTTP status code: 401 for wrong credentials, 403 for a missing permission, 404 for an
            object that does not exist.
        message: the reason in the response.
    """


class PublishTimeout(OperationalError, TimeoutError):
    """The deadline of the publish passed before the broker confirmed the message.

    Attributes:
        maybe_delivered: whether the message was sent.  If True, the broker may have received it, and
            publishing it again may create a duplicate.
    """

    def __init__(self, message: str, *, maybe_delivered: bool) -> None:
        super().__init__(message)
        self.maybe_delivered = maybe_delivered


class PublishNacked(OperationalError, MessageNacked):  # type: ignore[misc]
    """The broker rejected the message with a negative publisher confirm (``basic.nack``).

    Attributes:
        has_reason: whether the broker sent a reason.  The AMQP protocol has no field for one.
    """

    def __init__(self, message: str, *, has_reason: bool = True) -> None:
        super().__init__(message)
        self.has_reason = has_reason


class Unroutable(OperationalError, ChannelError):  # type: ignore[misc]
    """The broker returned a mandatory message because it was routed to no queue (``basic.return``).

    Attributes:
        exchange, routing_key: the arguments with which the message was published.
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
    """The broker closed the channel because of this message.  ``__cause__`` is the error reply."""


class ConnectionBlocked(OperationalError, TimeoutError):
    """The broker blocked the connection (memory or disk alarm) for longer than the timeout."""


class WrongHub(OperationalError, RuntimeError):
    """An object was used in a thread (gevent hub) other than the one that it belongs to."""


class ReplyTimeout(OperationalError, TimeoutError):
    """The reply of the RPC server did not arrive in time.  The call may have been executed."""


class RemoteError(OperationalError):
    """The function on the RPC server raised an exception.

    Attributes:
        remote_type: the qualified name of the remote exception's class.
        remote_traceback: the remote traceback as text, or None if the server does not send tracebacks.
    """

    def __init__(
        self, message: str, *, remote_type: str = "", remote_traceback: str | None = None
    ) -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback


#: Exceptions after which ``ensure`` and ``autoretry`` never retry, even if they derive from ``OSError``:
#: the operation may already have succeeded, or a retry would fail again.
NEVER_REPEATED: tuple[type[Exception], ...] = (
    PublishTimeout,
    PublishNacked,
    Unroutable,
    PublishRefused,
    ConnectionBlocked,
    ReplyTimeout,
    WrongHub,
)
