"""Moves between the states of a life."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

__all__ = ["moved"]

#: The states of one life.
S = TypeVar("S", bound=Enum)


def moved(old: S, new: S, moves: Mapping[S, frozenset[S]], subject: str) -> S:
    """Return *new* if the table allows the move.  To stay is always allowed.

    Arguments:
        moves: the states that may follow each state.
        subject: what moves, for the message.

    Raises:
        RuntimeError: a move outside the table, so an error of this library.
    """
    if new is not old and new not in moves[old]:
        raise RuntimeError(f"{subject} cannot go from {old.value} to {new.value}")
    return new
