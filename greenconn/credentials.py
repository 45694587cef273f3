"""Credentials that expire, such as OAuth 2 tokens, and their renewal."""

from __future__ import annotations

from time import monotonic
from typing import Protocol

__all__ = ["CredentialProvider", "SharedLogin", "Token"]


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
        secret: the secret that ``update_secret()`` has set; None before.
        userid: the user whose secret that is.
    """

    __slots__ = ("secret", "userid")

    def __init__(self) -> None:
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

    def __new__(cls, secret: str, expires_in: float | None = None) -> Token:
        token = super().__new__(cls, secret)
        token.expires_at = None if expires_in is None else monotonic() + expires_in
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
