"""Credentials that expire, such as OAuth 2 tokens, and their renewal."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Protocol, TypeVar

from gevent import Timeout

from greenconn.checks import Seconds, in_seconds
from greenconn.exceptions import OperationalError, RecoverableConnectionError, error_summary

__all__ = ["CredentialProvider", "SharedLogin", "SuppliedError", "Token", "supplied"]

T = TypeVar("T")


class SuppliedError(OperationalError, RecoverableConnectionError):  # type: ignore[misc]  # amqp has no types
    """A password function, a credential provider or a TLS file failed.  ``__cause__`` is its error."""


def supplied(function: Callable[[], T]) -> T:
    """Return what *function*, which the program supplies for a login, returns.  May switch.

    Called in a greenlet that connects, never in one of the program: a ``gevent.Timeout`` here is the
    function's own.

    Raises:
        SuppliedError: the function raised an error.
    """
    try:
        return function()
    except (Exception, Timeout) as exc:
        raise SuppliedError(error_summary(exc)) from exc


class CredentialProvider(Protocol):
    """The interface of ``Connection(credential_provider=...)``, compatible with redis-py."""

    def get_credentials(self) -> tuple[str | None, str | None]:
        """Return the user name and the password.  May switch.

        Called for each connection attempt, and again before a token expires.  Return the password as a
        :class:`Token` if it expires.
        """
        ...


class SharedLogin:
    """The part of a login that a connection and all its clones have in common.

    Attributes:
        has_worked: whether one of them was open.  Until then an error of a password function, a
            credential provider or a TLS file is that of the first start, and ends it.
        secret: the secret that ``update_secret()`` has set; None before.
        userid: the user whose secret that is.
    """

    def __init__(self) -> None:
        self.has_worked = False
        self.secret: str | None = None
        self.userid: str | None = None


class Token(str):
    """A password that expires, such as an OAuth 2 token.  Its ``repr()`` does not contain the secret.

    If a callable password or a :class:`CredentialProvider` returns a token, each connection renews the
    token before it expires, without reconnecting.

    Arguments:
        secret: the secret that is sent to the broker.
        expires_in: the seconds from now until the token expires.  None means that it does not expire.

    Attributes:
        expires_at: the time of expiry on the monotonic clock, in seconds.  None means that the token
            does not expire.
    """

    __slots__ = ("expires_at",)

    expires_at: float | None

    def __new__(cls, secret: str, expires_in: Seconds | None = None) -> Token:
        token = super().__new__(cls, secret)
        token.expires_at = None if expires_in is None else monotonic() + in_seconds(expires_in)
        return token

    @property
    def expires_in(self) -> float | None:
        """The seconds until the token expires, negative once expired; None if it does not expire."""
        return None if self.expires_at is None else self.expires_at - monotonic()

    def __reduce__(self) -> tuple[object, ...]:
        return Token, (str(self), self.expires_in)

    def __repr__(self) -> str:
        left = self.expires_in
        return "<Token>" if left is None else f"<Token: {left:.0f} s left>"
