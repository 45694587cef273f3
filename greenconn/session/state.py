"""The states of a session, and the moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

__all__ = ["MOVES", "SessionState", "moved"]


class SessionState(Enum):
    """Where a logical connection is in its life."""

    #: No link, and nobody asks for one: never used, lost without anything to restore, or dropped.
    IDLE = "idle"
    #: An attempt to open a link is under way or about to begin.
    OPENING = "opening"
    #: There is a link, and everything that belongs on it is there.
    OPEN = "open"
    #: A link was lost and what belonged on it is being brought back, in the background.
    RECOVERING = "recovering"
    #: Closed by the user; explicit use opens it again.
    CLOSED = "closed"


MOVES: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    SessionState.IDLE: frozenset({SessionState.OPENING, SessionState.CLOSED}),
    SessionState.OPENING: frozenset(
        {
            SessionState.OPEN,
            # Members of a former life wait for the link that was just opened.
            SessionState.RECOVERING,
            SessionState.IDLE,
            SessionState.CLOSED,
        }
    ),
    SessionState.OPEN: frozenset({SessionState.RECOVERING, SessionState.IDLE, SessionState.CLOSED}),
    SessionState.RECOVERING: frozenset(
        {
            SessionState.OPEN,
            # The last member left, or the broker refuses us, while somebody else still asks.
            SessionState.OPENING,
            SessionState.IDLE,
            SessionState.CLOSED,
        }
    ),
    # IDLE: pointed at another broker.
    SessionState.CLOSED: frozenset({SessionState.OPENING, SessionState.IDLE}),
}


def moved(old: SessionState, new: SessionState) -> SessionState:
    """Return *new* if the table allows the move.  To stay is always allowed.

    Raises:
        RuntimeError: a move outside the table, so an error of this library.
    """
    if new is not old and new not in MOVES[old]:
        raise RuntimeError(f"a session cannot go from {old.value} to {new.value}")
    return new
