"""The states of a consumer, and the moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import Final

__all__ = ["ENDS", "MOVES", "ConsumerState", "Wish", "moved"]


class ConsumerState(Enum):
    """Where a consumer is in its life."""

    #: The broker has not confirmed it yet.
    STARTING = "starting"
    #: The broker has confirmed it, on all its queues.
    RUNNING = "running"
    #: A queue, a channel or the connection was lost; it is being brought back.
    RECOVERING = "recovering"
    #: Cancelled by ``pause()``; running handlers go on.
    PAUSED = "paused"
    #: Cancelled for good; running handlers finish.
    STOPPING = "stopping"
    #: Ended in good order.
    STOPPED = "stopped"
    #: Ended because the broker refuses it for good.
    FAILED = "failed"
    #: Ended by ``kill()``.
    KILLED = "killed"


#: From here there is no way back.
ENDS: Final = frozenset({ConsumerState.STOPPED, ConsumerState.FAILED, ConsumerState.KILLED})

MOVES: Final[Mapping[ConsumerState, frozenset[ConsumerState]]] = {
    ConsumerState.STARTING: frozenset(
        {ConsumerState.RUNNING, ConsumerState.PAUSED, ConsumerState.STOPPING, *ENDS}
    ),
    ConsumerState.RUNNING: frozenset(
        {ConsumerState.RECOVERING, ConsumerState.PAUSED, ConsumerState.STOPPING, *ENDS}
    ),
    ConsumerState.RECOVERING: frozenset(
        {ConsumerState.RUNNING, ConsumerState.PAUSED, ConsumerState.STOPPING, *ENDS}
    ),
    # STARTING: resumed.
    ConsumerState.PAUSED: frozenset({ConsumerState.STARTING, ConsumerState.STOPPING, *ENDS}),
    ConsumerState.STOPPING: ENDS,
    ConsumerState.STOPPED: frozenset(),
    ConsumerState.FAILED: frozenset(),
    ConsumerState.KILLED: frozenset(),
}


def moved(old: ConsumerState, new: ConsumerState) -> ConsumerState:
    """Return *new* if the table allows the move.  To stay is always allowed.

    Raises:
        RuntimeError: a move outside the table, so an error of this library.
    """
    if new is not old and new not in MOVES[old]:
        raise RuntimeError(f"a consumer cannot go from {old.value} to {new.value}")
    return new


class Wish(IntEnum):
    """What a consumer was last asked to be; from STOP on there is no way back."""

    RUN = 0
    PAUSE = 1
    STOP = 2
    #: End at once: the time of ``stop(timeout)`` is up.
    END = 3
