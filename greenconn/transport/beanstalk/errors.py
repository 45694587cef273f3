"""Beanstalk's refusals: amqp's and greenconn's classes, in words that say what to do."""

from __future__ import annotations

from typing import Final

from greenconn.exceptions import (
    FrameError,
    PublishNacked,
    PublishRefused,
    RecoverableConnectionError,
    ResourceError,
)
from greenconn.wire.beanstalk import Reply

__all__ = [
    "JobTooBig",
    "LinkLost",
    "NotBeanstalk",
    "RecordTooBig",
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


class RecordTooBig(ResourceError):  # type: ignore[misc]
    """The list of an exchange's bindings is larger than the server's limit for a job."""


class ServerRefuses(PublishNacked):
    """The server takes no messages now: it has no memory left, or is being drained."""


#: Replies that mean bytes changed on their way, or a very old server.
_OUT_OF_STEP: Final = frozenset({b"BAD_FORMAT", b"UNKNOWN_COMMAND", b"EXPECTED_CRLF"})

_REMEDIES: Final[dict[bytes, str]] = {
    b"DRAINING": "it is in drain mode (SIGUSR1) and takes no new messages: restart it to end that",
    b"OUT_OF_MEMORY": "it has no memory left: consume, or give it more",
    b"BURIED": "it has no memory left: consume, or give it more",
    b"INTERNAL_ERROR": "its log says why",
}


def too_big(size: int, limit: int, where: str) -> str:
    """Return the message of the error for a body that is too large."""
    return (
        f"{where}: the message has {size} bytes in its envelope, and the server takes at most {limit} "
        f"a job: send less, or start beanstalkd with a larger limit, as -z {max(size, 2 * limit)}"
    )


def refusal(reply: Reply, where: str, what: str) -> Exception:
    """Return the error for a reply that was not expected.

    Arguments:
        what: the operation, for the message.
    """
    word = reply.word.decode()
    if reply.word in _OUT_OF_STEP:
        return LinkLost(
            f"{where}: {what}: {word} (the command was changed on its way, or this server is "
            f"older than beanstalkd 1.10)"
        )
    remedy = _REMEDIES.get(reply.word)
    if remedy is None:
        return NotBeanstalk(f"{where}: {what}: unexpected reply {word}")
    kind: type[Exception] = ResourceError if word == "INTERNAL_ERROR" else ServerRefuses
    return kind(f"{where}: {what}: {word} ({remedy})")
