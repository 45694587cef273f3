"""Lists of values in statements.

Each step of a statement lets go of Python's lock and has to wait for it, which takes long where the
main thread is busy; so what can be one statement for many rows is one.  The number of values is rounded
up, so that few texts of statements occur and each is compiled once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

__all__ = ["CHUNK", "chunks", "in_list", "rows_of"]

#: Values in one statement, at most.
CHUNK: Final = 512


@lru_cache(64)
def _marks(count: int) -> str:
    return f"({', '.join('?' * count)})"


def in_list(values: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the text behind ``IN`` and the values for it; at most :data:`CHUNK`, at least one."""
    size = 1 << (len(values) - 1).bit_length()
    return _marks(size), [*values, *[values[-1]] * (size - len(values))]


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut *values* into what one statement takes."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def rows_of(rows: Sequence[tuple[Any, ...]], limit: int) -> Iterator[tuple[str, list[Any]]]:
    """Return texts behind ``VALUES`` and the values for them, in pieces of powers of two.

    Arguments:
        limit: a power of two; rows in one piece, at most.
    """
    start = 0
    while start < len(rows):
        size = limit
        while size > len(rows) - start:
            size >>= 1
        piece = rows[start : start + size]
        start += size
        yield _row_marks(len(piece[0]), size), [value for row in piece for value in row]


@lru_cache(64)
def _row_marks(width: int, count: int) -> str:
    return ", ".join([_marks(width)] * count)
