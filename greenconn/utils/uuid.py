"""Unique ids (kombu.utils.uuid)."""

from __future__ import annotations

from greenconn.identity import (
    uuid,
)

__all__ = [
    "uuid",
]
