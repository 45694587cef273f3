"""Credentials that expire: a token, and when it must be renewed."""

from __future__ import annotations

from time import monotonic
from typing import Protocol

__all__ = ["CredentialProvider", "Token"]


class CredentialProvider(Protocol):
    """The argument of ``Connection(credential_provider=...)`` (the same as redis-py's)."""

    def get_credentials(self) -> tuple[str | None, str | None]:
        """Return user name and password, the latter a :class:`Token` if it expires.  May switch.

        Called for each attempt to connect, and again before a token expires.
        """
        ...


class Token(str):
    """A password that expires, such as an OAuth 2 token.  Its ``repr()`` does not show it.

    Where a callable password or a :class:`CredentialProvider` returns one, each connection renews it
    before it expires, without reconnecting.

    Arguments:
        secret: the text that is sent.
        expires_in: seconds from now; None: it does not expire.

    Attributes:
        expires_at: on the monotonic clock; None: never.
    """

    __slots__ = ("expires_at",)

    expires_at: float | None

    def __new__(cls, secret: str, expires_in: float | None = None) -> Token:
        token = super().__new__(cls, secret)
        token.expires_at = None if expires_in is None else monotonic() + expires_in
        return token

    @property
    def expires_in(self) -> float | None:
        """Seconds left, below 0 when it has expired; None: it does not expire."""
        return None if self.expires_at is None else self.expires_at - monotonic()

    def __reduce__(self) -> tuple[object, ...]:
        return Token, (str(self), self.expires_in)

    def __repr__(self) -> str:
        left = self.expires_in
        return "<Token>" if left is None else f"<Token: {left:.0f} s left>"
