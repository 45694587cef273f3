"""MongoDB's errors: pymongo's classes, mapped to those of greenconn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymongo import errors

from greenconn.exceptions import AccessRefused, AMQPError, RecoverableConnectionError
from greenconn.url import mask_secrets

__all__ = ["LinkLost", "LoginRefused", "ReplyLate", "refusals_in", "translated_error"]

#: The server's numbers for: you may not, and: who are you; what Atlas says for the latter.
_NOT_LOGGED_IN: Final = 18
_ACCESS_DENIED: Final = (13, _NOT_LOGGED_IN, 8000)


class LinkLost(RecoverableConnectionError, errors.AutoReconnect):  # type: ignore[misc]
    """The servers cannot be reached, or none of them takes writes."""

    def __init__(self, text: str = "") -> None:
        errors.AutoReconnect.__init__(self, text)
        AMQPError.__init__(self, text)
        self.args = (text,)  # what copies are made of

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


class ReplyLate(LinkLost, TimeoutError):
    """The server did not respond in time."""


class LoginRefused(AccessRefused, errors.OperationFailure):  # type: ignore[misc]
    """The server does not take the user name or the password, or does not let this user do that."""

    def __init__(self, text: str = "") -> None:
        errors.OperationFailure.__init__(self, text, _NOT_LOGGED_IN)
        AMQPError.__init__(self, text)
        self.args = (text,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


def translated_error(exc: errors.PyMongoError, where: str) -> Exception | None:
    """Return the error to raise instead of one of pymongo's; None: that itself.

    Arguments:
        where: the server's URL, password masked.
    """
    if isinstance(exc, (errors.NetworkTimeout, errors.ExecutionTimeout)):
        return ReplyLate(f"{where}: no reply in time ({_text(exc)})")
    if isinstance(exc, errors.ConnectionFailure):
        cause = exc.__cause__
        if isinstance(cause, errors.OperationFailure):
            return _refused(where, cause)
        return LinkLost(f"{where}: {_text(exc)}")
    if isinstance(exc, errors.OperationFailure) and exc.code in _ACCESS_DENIED:
        return _refused(where, exc)
    return None


def refusals_in(exc: errors.BulkWriteError) -> dict[int, Exception]:
    """Return, by their place, why some of many writes were refused.

    Raises:
        BulkWriteError: none was, but they are not stored as safely as was asked for.
    """
    details: Mapping[str, Any] = exc.details or {}
    refused: list[Mapping[str, Any]] = list(details.get("writeErrors", ()))
    if not refused:
        raise exc
    return {
        each["index"]: errors.OperationFailure(each.get("errmsg", "refused"), each.get("code"))
        for each in refused
    }


def _refused(where: str, exc: errors.OperationFailure) -> Exception:
    remedy = "check user name, password, authSource and the user's roles"
    return LoginRefused(f"{where}: {_text(exc)} ({remedy})")


def _text(exc: BaseException) -> str:
    # What is said of each server, without the state of the whole topology behind it.
    return mask_secrets(str(exc).partition(", Timeout:")[0].partition(", full error:")[0])
