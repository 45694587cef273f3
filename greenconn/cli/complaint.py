"""What to tell a user whose command failed: what happened, and what to do about it."""

from __future__ import annotations

from greenconn.exceptions import (
    AccessRefused,
    AMQPError,
    ConnectionBlocked,
    ContentDisallowed,
    FrameError,
    KombuError,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    Unroutable,
)

__all__ = ["complaint"]

#: Class of an error, and the remedy for it; the first that fits.
_REMEDIES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (ConnectionRefusedError, "is the broker running, and is the port right?"),
    (AccessRefused, "check user, password and permissions in the URL"),
    (NotAllowed, "check that the virtual host in the URL exists and the user may use it"),
    (NotFound, "check the name, or declare it first"),
    (PreconditionFailed, "it exists with other arguments: use those, or delete it"),
    (Unroutable, "check the name of the queue"),
    (ConnectionBlocked, "the broker has a memory or disk alarm: look at its log"),
    (FrameError, "check that the port is the broker's AMQP port"),
    (ContentDisallowed, "name the content type with --accept if you trust the sender"),
    (TimeoutError, "check host, port and firewall"),
)


def complaint(exc: BaseException) -> str | None:
    """One line for the user, or None for an error that only a developer can mend."""
    if not isinstance(exc, (OSError, AMQPError, KombuError, ValueError, KeyError, ImportError)):
        return None
    text = str(exc.args[0]) if isinstance(exc, KeyError) and exc.args else str(exc)
    text = " ".join(text.split()) or type(exc).__name__
    cause: BaseException | None = exc
    while cause is not None:
        for kind, remedy in _REMEDIES:
            if isinstance(cause, kind):
                return f"{text}: {remedy}" if remedy not in text else text
        cause = cause.__cause__
    return text
