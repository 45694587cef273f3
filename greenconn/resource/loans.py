"""What a pool has lent: which facade stands for what, and what becomes of one that is dropped."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from traceback import StackSummary, walk_stack
from typing import Any, Final

__all__ = ["Loan", "Loans"]

#: Frames of a trace that name the place.
DEPTH: Final = 12


class Loan(weakref.ref[Any]):
    """A facade that is out; the reference is weak, so that it can get lost.

    Attributes:
        core: what the facade stands for.
    """

    __slots__ = ("core", "key", "place")

    core: Any
    key: int
    place: StackSummary | None


class Loans:
    """Facades by identity, since they may be equal or not hashable.

    Arguments:
        on_lost: called with what was below a facade that was collected, and the place where it was
            acquired if that was traced.  It is called by the garbage collector, in any thread, in the
            middle of anything: it must only take a note.
    """

    __slots__ = ("__weakref__", "_lost", "_out")

    def __init__(self, on_lost: Callable[[Any, StackSummary | None], object]) -> None:
        out: dict[int, Loan] = {}

        def lost(loan: weakref.ref[Any]) -> None:
            assert isinstance(loan, Loan)
            if out.get(loan.key) is loan and not sys.is_finalizing():
                del out[loan.key]
                on_lost(loan.core, loan.place)

        self._out = out
        self._lost = lost

    def lend(self, facade: Any, core: Any, *, traced: bool = False) -> Loan:
        """Note that *facade* stands for *core*."""
        loan = Loan(facade, self._lost)
        loan.core = core
        loan.key = key = id(facade)
        loan.place = _place() if traced else None
        self._out[key] = loan
        return loan

    def end(self, facade: Any) -> Loan | None:
        """It was given back; None when it is not out (any more)."""
        return self._out.pop(id(facade), None)

    def out(self) -> list[Any]:
        """All facades that are out."""
        return [facade for loan in list(self._out.values()) if (facade := loan()) is not None]

    def end_all(self) -> list[Any]:
        """All end; return the facades."""
        facades = self.out()
        self._out.clear()
        return facades


def _place() -> StackSummary:
    # Without this frame, lend() and, unless a greenlet runs just that, acquire().  The lines are read
    # when somebody wants to see them.
    frame = sys._getframe(2)
    frame = frame.f_back or frame
    summary = StackSummary.extract(walk_stack(frame), limit=DEPTH, lookup_lines=False)
    summary.reverse()
    return summary
