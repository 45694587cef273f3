"""States of a life, and the moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar


class State(Enum):
    """The base class of the states of one life.

    They are compared by identity, so that is their hash too: that of ``Enum`` is a function in Python.
    """

    __hash__ = object.__hash__


#: The states of one life.
S = TypeVar("S", bound=State)


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
