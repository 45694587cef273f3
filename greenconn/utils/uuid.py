"""Names that nobody else has (kombu.utils.uuid)."""

from __future__ import annotations

from greenconn.identity import (
    uuid,
)

__all__ = [
    "uuid",
]
