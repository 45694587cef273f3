"""Which sessions of a thread are in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from greenconn.green.perhub import PerHub

if TYPE_CHECKING:
    from greenconn.session.session import Session

__all__ = ["ended", "sessions_in_use", "used"]

_in_use: Final[PerHub[WeakSet[Session]]] = PerHub(WeakSet)


def sessions_in_use() -> list[Session]:
    """The sessions of this thread that were used and not closed since.  Never switches."""
    return list(_in_use.get())


def used(session: Session) -> None:
    """Note the first use of *session* in this thread.  Never switches."""
    _in_use.get().add(session)


def ended(session: Session) -> None:
    """Note that *session* was closed, or forgotten after a fork.  Never switches."""
    _in_use.get().discard(session)
