"""MongoDB's errors: pymongo's classes, and those of ours that mean the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pymongo import errors

from greenconn.exceptions import AccessRefused, AMQPError, RecoverableConnectionError
from greenconn.url import mask_secrets

__all__ = ["LinkLost", "LoginRefused", "ReplyLate", "mapped"]

#: The server's numbers for: who are you, and: you may not.
_UNAUTHORIZED: Final = 13
_NOT_LOGGED_IN: Final = 18
#: What Atlas says for a login that it does not know.
_ATLAS: Final = 8000


class LinkLost(RecoverableConnectionError, errors.AutoReconnect):  # type: ignore[misc]
    """The servers cannot be reached, or none of them takes writes."""

    def __init__(self, text: str = "") -> None:
        errors.AutoReconnect.__init__(self, text)
        AMQPError.__init__(self, text)
        self.args = (text,)  # what copies are made of

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


class ReplyLate(LinkLost, TimeoutError):
    """The server did not answer in time."""


class LoginRefused(AccessRefused, errors.OperationFailure):  # type: ignore[misc]
    """The server does not take the user name or the password, or does not let this user do that."""

    def __init__(self, text: str = "") -> None:
        errors.OperationFailure.__init__(self, text, _NOT_LOGGED_IN)
        AMQPError.__init__(self, text)
        self.args = (text,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"


@contextmanager
def mapped(where: str) -> Iterator[None]:
    """Turn pymongo's errors into ours.

    Arguments:
        where: the server's URL, password masked.
    """
    try:
        yield
    except (errors.NetworkTimeout, errors.ExecutionTimeout) as exc:
        raise ReplyLate(f"{where}: no answer in time ({_text(exc)})") from exc
    except errors.ConnectionFailure as exc:
        cause = exc.__cause__
        if isinstance(cause, errors.OperationFailure):
            raise _refused(where, cause) from exc
        raise LinkLost(f"{where}: {_text(exc)}") from exc
    except errors.OperationFailure as exc:
        if exc.code in (_UNAUTHORIZED, _NOT_LOGGED_IN, _ATLAS):
            raise _refused(where, exc) from exc
        raise


def _refused(where: str, exc: errors.OperationFailure) -> Exception:
    remedy = "check user name, password, authSource and the user's roles"
    return LoginRefused(f"{where}: {_text(exc)} ({remedy})")


def _text(exc: BaseException) -> str:
    # What is said of each server, without the state of the whole topology behind it.
    return mask_secrets(str(exc).partition(", Timeout:")[0].partition(", full error:")[0])
