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
    "ServerRefuses",
    "TableTooBig",
    "refusal",
    "too_big",
]


class LinkLost(RecoverableConnectionError):  # type: ignore[misc]
    """The connection to the server is gone."""


class NotBeanstalk(FrameError):  # type: ignore[misc]
    """What answers does not speak beanstalk's protocol."""


class JobTooBig(PublishRefused):
    """The server takes no message as large as this one."""


class TableTooBig(ResourceError):  # type: ignore[misc]
    """The server takes no job as large as the list of an exchange's bindings has become."""


class ServerRefuses(PublishNacked):
    """The server takes no messages now: it has no memory left, or is being drained."""


#: Replies that only bytes changed on their way, or a very old server, can be the cause of.
_OUT_OF_STEP: Final = frozenset({b"BAD_FORMAT", b"UNKNOWN_COMMAND", b"EXPECTED_CRLF"})

_REMEDIES: Final[dict[bytes, str]] = {
    b"DRAINING": "it is in drain mode (SIGUSR1) and takes no new messages: restart it to end that",
    b"OUT_OF_MEMORY": "it has no memory left: consume, or give it more",
    b"BURIED": "it has no memory left: consume, or give it more",
    b"INTERNAL_ERROR": "its log says why",
}


def too_big(size: int, limit: int, where: str) -> str:
    """What to say of a body that is too large."""
    return (
        f"{where}: the message has {size} bytes in its envelope, and the server takes at most {limit} "
        f"a job: send less, or start beanstalkd with a larger limit, as -z {max(size, 2 * limit)}"
    )


def refusal(reply: Reply, where: str, what: str) -> Exception:
    """The error that a reply stands for which is not one that was expected.

    Arguments:
        what: the operation, for the message.
    """
    word = reply.word.decode()
    if reply.word in _OUT_OF_STEP:
        return LinkLost(
            f"{where}: {what}: {word} (what we sent did not arrive as we sent it, or this server is "
            f"older than beanstalkd 1.10)"
        )
    remedy = _REMEDIES.get(reply.word)
    if remedy is None:
        return NotBeanstalk(f"{where}: {what}: {word} is no answer to that")
    kind: type[Exception] = ResourceError if word == "INTERNAL_ERROR" else ServerRefuses
    return kind(f"{where}: {what}: {word} ({remedy})")
