"""Cached properties (kombu.utils.objects)."""

from __future__ import annotations

from greenconn.caching import (
    cached_property,
)

__all__ = [
    "cached_property",
]
