"""The errors of AWS, as amqp's classes, under kombu's names where it has one."""

from __future__ import annotations

from typing import Final

from greenconn.exceptions import (
    AccessRefused,
    KombuError,
    NotAllowed,
    NotFound,
    OperationalError,
    PreconditionFailed,
    RecoverableConnectionError,
    ResourceLocked,
)

__all__ = [
    "EXPIRED",
    "REFUSED",
    "AccessDeniedQueueException",
    "DoesNotExistQueueException",
    "InvalidQueueException",
    "LinkLost",
    "LoginRefused",
    "ServiceBusy",
    "UnableToSubscribeQueueToTopicException",
    "UnableToUnsubscribeQueueFromTopicException",
    "UndefinedExchangeException",
    "UndefinedQueueException",
    "as_error",
    "is_busy",
    "short",
]


class UndefinedQueueException(NotAllowed, KombuError):  # type: ignore[misc]
    """Predefined queues are in use, and this is none of them."""


class UndefinedExchangeException(NotAllowed, KombuError):  # type: ignore[misc]
    """Predefined exchanges are in use, and this is none of them."""


class InvalidQueueException(PreconditionFailed, KombuError):  # type: ignore[misc]
    """AWS takes a name, an attribute or a message not as it is."""


class AccessDeniedQueueException(AccessRefused, KombuError):  # type: ignore[misc]
    """The account may not do this."""


class DoesNotExistQueueException(NotFound, KombuError):  # type: ignore[misc]
    """There is no such queue or topic."""


class UnableToSubscribeQueueToTopicException(InvalidQueueException):
    """A topic does not take a queue as its subscriber."""


class UnableToUnsubscribeQueueFromTopicException(InvalidQueueException):
    """A topic does not let a subscriber go."""


class LoginRefused(AccessRefused, KombuError):  # type: ignore[misc]
    """There are no credentials, or AWS does not take them."""


class QueueDeletedRecently(ResourceLocked, KombuError):  # type: ignore[misc]
    """A queue of this name was deleted a moment ago."""


class LinkLost(RecoverableConnectionError, KombuError):  # type: ignore[misc]
    """AWS cannot be reached, or does not respond."""


class ServiceBusy(OperationalError):
    """AWS throttles us, or fails to serve, and went on so for as long as we tried."""


#: What ends one request, and neither the link nor other requests.
REFUSED: Final = (
    AccessDeniedQueueException,
    DoesNotExistQueueException,
    InvalidQueueException,
    LoginRefused,
    QueueDeletedRecently,
    ServiceBusy,
    UndefinedExchangeException,
    UndefinedQueueException,
)

#: The end of an error code -> its class, and the remedy.
_CLASSES: Final[dict[str, tuple[type[Exception], str]]] = {
    "NonExistentQueue": (DoesNotExistQueueException, ""),
    "QueueDoesNotExist": (DoesNotExistQueueException, ""),
    "NotFound": (DoesNotExistQueueException, ""),
    "NotFoundException": (DoesNotExistQueueException, ""),
    "AccessDenied": (
        AccessDeniedQueueException,
        "the policy of the account or queue must allow it",
    ),
    "AccessDeniedException": (
        AccessDeniedQueueException,
        "the policy of the account must allow it",
    ),
    "AuthorizationError": (AccessDeniedQueueException, "the policy of the account must allow it"),
    "KmsAccessDenied": (AccessDeniedQueueException, "the key of the queue must be usable"),
    "ExpiredToken": (LoginRefused, "the temporary credentials have expired"),
    "ExpiredTokenException": (LoginRefused, "the temporary credentials have expired"),
    "InvalidClientTokenId": (LoginRefused, "the access key or session token is not valid"),
    "UnrecognizedClientException": (LoginRefused, "the access key is unknown"),
    "InvalidSecurity": (LoginRefused, "the signature does not match the request"),
    "InvalidAccessKeyId": (LoginRefused, "the access key is unknown"),
    "InvalidSignatureException": (LoginRefused, "the secret key is wrong, or the clock"),
    "SignatureDoesNotMatch": (LoginRefused, "the secret key is wrong, or the clock"),
    "MissingAuthenticationToken": (LoginRefused, "no credentials were sent"),
    "RequestExpired": (LoginRefused, "the clock is wrong"),
    "QueueDeletedRecently": (QueueDeletedRecently, "wait 60 s before it is created again"),
}

#: Ends of error codes that mean: later, perhaps.
_BUSY: Final = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "KmsThrottled",
        "OverLimit",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "ServiceUnavailable",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)

#: Error codes after which new credentials may help.
EXPIRED: Final = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"}
)

#: Characters of a message of AWS that are shown: a wrong signature comes with all that was signed.
_SHOWN: Final = 300


def is_busy(status: int, code: str) -> bool:
    """Return whether the same request may succeed later."""
    return status >= 500 or status == 429 or short(code) in _BUSY


def short(code: str) -> str:
    """Return an error code without its namespace."""
    return code.rpartition(".")[2].rpartition("#")[2]


def as_error(where: str, action: str, code: str, message: str) -> Exception:
    """Return the exception for an error reply.

    Arguments:
        where: host and port.
        action: what was asked for, with the name of the queue where there is one.
    """
    said = message.partition("\n")[0][:_SHOWN] or "no reason given"
    cls, remedy = _CLASSES.get(short(code), (InvalidQueueException, ""))
    if code.endswith("TooLong") or "must be shorter than" in said:
        remedy = "the limit of the queue is below max_message_size: split it, or raise the limit"
    text = f"{where}: {action}: {said} ({short(code)})"
    return cls(f"{text}; {remedy}" if remedy else text)
