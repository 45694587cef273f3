"""Rate limits (kombu.utils.limits)."""

from __future__ import annotations

from time import monotonic

from greenconn import mixins

__all__ = [
    "TokenBucket",
]


class TokenBucket(mixins.TokenBucket):
    """A token bucket whose clock the tests of a program may replace in this module, as kombu's."""

    def _now(self) -> float:
        return monotonic()
