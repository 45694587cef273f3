"""Rate limits (kombu.utils.limits)."""

from __future__ import annotations

from time import monotonic

from greenconn import limits

__all__ = [
    "TokenBucket",
]


class TokenBucket(limits.TokenBucket):
    """A token bucket whose clock the tests of a program may replace in this module, as kombu's."""

    def _now(self) -> float:
        return monotonic()
