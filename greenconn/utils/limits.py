"""Rate limits (kombu.utils.limits)."""

from __future__ import annotations

from greenconn.limits import (
    TokenBucket,
)

__all__ = [
    "TokenBucket",
]
