"""Import of objects by name (kombu.utils.imports)."""

from __future__ import annotations

from greenconn.importing import (
    symbol_by_name,
)

__all__ = [
    "symbol_by_name",
]
