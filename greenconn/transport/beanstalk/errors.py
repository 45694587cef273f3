"""Beanstalk's errors: amqp's and greenconn's classes, with a remedy in the text."""

from __future__ import annotations

from typing import Final

from greenconn.exceptions import (
    FrameError,
    PublishNacked,
    PublishRefused,
    RecoverableChannelError,
    RecoverableConnectionError,
    ResourceError,
)
from greenconn.wire.beanstalk import Reply

__all__ = [
    "DeclarationRefused",
    "JobTooBig",
    "LinkLost",
    "NotBeanstalk",
    "ServerRefuses",
    "refusal",
    "too_big",
]


class LinkLost(RecoverableConnectionError):  # type: ignore[misc]
    """The connection to the server is gone."""


class NotBeanstalk(FrameError):  # type: ignore[misc]
    """The server does not speak beanstalk's protocol."""


class JobTooBig(PublishRefused):
    """The message is larger than the server's limit for a job."""


class DeclarationRefused(RecoverableChannelError):  # type: ignore[misc]
    """The server stores no declarations of queues now; see :class:`ServerRefuses`."""


class ServerRefuses(PublishNacked):
    """The server takes no messages now: it has no memory left, or is being drained."""


#: Replies that mean bytes changed on their way, or a very old server.
_OUT_OF_STEP: Final = frozenset({b"BAD_FORMAT", b"UNKNOWN_COMMAND", b"EXPECTED_CRLF"})

_REMEDIES: Final[dict[bytes, str]] = {
    b"DRAINING": "the server is in drain mode (SIGUSR1) and accepts no new messages: restart it",
    b"OUT_OF_MEMORY": "the server is out of memory: consume, or give it more",
    b"BURIED": "the server is out of memory: consume, or give it more",
    b"INTERNAL_ERROR": "look at the server's log",
}


def too_big(size: int, limit: int, where: str) -> str:
    """Return the message of the error for a body that is too large."""
    return (
        f"{where}: a message must have at most {limit} bytes with its envelope, got {size}: send "
        f"less, or start beanstalkd with a larger limit, as -z {max(size, 2 * limit)}"
    )


def refusal(reply: Reply, where: str, what: str) -> Exception:
    """Return the error for a reply that was not expected.

    Arguments:
        what: the operation, for the message.
    """
    word = reply.word.decode()
    if reply.word in _OUT_OF_STEP:
        return LinkLost(
            f"{where}: {what}: {word} (the command was damaged on its way, or the server is older "
            f"than beanstalkd 1.10)"
        )
    remedy = _REMEDIES.get(reply.word)
    if remedy is None:
        return NotBeanstalk(f"{where}: {what}: unexpected reply {word}")
    kind: type[Exception] = ResourceError if word == "INTERNAL_ERROR" else ServerRefuses
    return kind(f"{where}: {what}: {word} ({remedy})")
