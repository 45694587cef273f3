"""Isolation of culprits: items that are refused together are sent again one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["isolated"]

T = TypeVar("T")
R = TypeVar("R")


def isolated(
    items: Sequence[T],
    send: Callable[[Sequence[T]], R],
    refused: Callable[[T, Exception], R],
    is_refusal: Callable[[Exception], bool] = lambda exc: True,
) -> list[R]:
    """Return what the broker made of *items*, sent together, or each by itself where that is refused.

    May switch where *send* does.

    Arguments:
        items: at least one.
        send: sends them; either all of them count then, or none.
        refused: returns what becomes of one that is refused by itself.
        is_refusal: whether an error is for what was sent, as each is by default; others are raised.
    """
    try:
        return [send(items)]
    except Exception as exc:
        if not is_refusal(exc):
            raise
        if len(items) == 1:
            return [refused(items[0], exc)]
    return [outcome for item in items for outcome in isolated([item], send, refused, is_refusal)]
