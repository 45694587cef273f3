"""Containers whose keys define their own equality (kombu.utils.collections)."""

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
