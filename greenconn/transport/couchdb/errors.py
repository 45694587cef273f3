"""CouchDB's errors: amqp's and greenconn's classes, with a remedy in the text."""

from __future__ import annotations

from typing import Any, Final

from greenconn.exceptions import (
    AccessRefused,
    FrameError,
    NotAllowed,
    PublishRefused,
    RecoverableConnectionError,
    ResourceError,
)

__all__ = [
    "DocumentRefused",
    "LinkLost",
    "LoginRefused",
    "NoSuchDatabase",
    "NotCouch",
    "ServerRefuses",
    "refusal",
]


class LinkLost(RecoverableConnectionError):  # type: ignore[misc]
    """The server, or the database, cannot be used now."""


class LoginRefused(AccessRefused):  # type: ignore[misc]
    """The server does not take the user name or the password, or they may not do this."""


class NoSuchDatabase(NotAllowed):  # type: ignore[misc]
    """There is no such database, and it cannot be made."""


class NotCouch(FrameError):  # type: ignore[misc]
    """The server does not speak CouchDB's protocol."""


class ServerRefuses(ResourceError):  # type: ignore[misc]
    """The server refuses a request."""


class DocumentRefused(PublishRefused):
    """The server does not store a message."""


_REMEDIES: Final[dict[int, str]] = {
    401: "wrong user name or password",
    403: (
        "the user may not do this: it must be a member of the database, or an administrator to "
        "create one"
    ),
    413: "send less, or raise max_document_size or max_http_request_size in CouchDB's settings",
}


def refusal(status: int, reply: Any, where: str, what: str) -> Exception:
    """Return the error for a response of an unexpected status.

    Arguments:
        reply: what its body says.
        what: the operation, for the message.
    """
    said = ""
    if isinstance(reply, dict):
        said = ": ".join(str(reply[key]) for key in ("error", "reason") if reply.get(key))
    text = f"{where}: {what}: {status} {said}".rstrip()
    remedy = _REMEDIES.get(status)
    if remedy:
        text = f"{text} ({remedy})"
    if status in (401, 403):
        return LoginRefused(text)
    if status == 404 or status >= 500 or status == 429:
        # Every path that is asked for is there as long as the database is.
        return LinkLost(text)
    return ServerRefuses(text)
