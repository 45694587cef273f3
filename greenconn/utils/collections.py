"""Containers with keys that say when they are equal (kombu.utils.collections)."""

from __future__ import annotations

from greenconn.caching import (
    EqualityDict,
    HashedSeq,
    eqhash,
)

__all__ = [
    "EqualityDict",
    "HashedSeq",
    "eqhash",
]
