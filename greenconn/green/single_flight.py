"""Single flight: concurrent requests for the same work share one execution."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from greenlet import GreenletExit, getcurrent

from greenconn.exceptions import OperationalError, error_text
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from gevent import Greenlet


T = TypeVar("T")


class _Flight:
    """One execution, and those who wait for its outcome in the order in which they came."""

    __slots__ = ("error", "greenlet", "result", "traceback", "waiters", "waits_for")

    def __init__(self) -> None:
        self.waiters: dict[Slot[None], None] = {}
        self.greenlet: Greenlet[..., Any] | None = None
        self.result: Any  # only without an error
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None
        #: The flight that the greenlet of this one waits for.
        self.waits_for: _Flight | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its greenlet has ended, also where a signal kept that from saying so."""
        return self.greenlet is not None and self.greenlet.dead

    def drop_error(self) -> None:
        """Drop the error, whose traceback refers back here, when it is not needed any more."""
        self.error = self.traceback = None


class SingleFlight:
    """Callers that ask for the same key at the same time share one execution.

    It runs in a greenlet of its own: killing a caller, or all of them, does not cancel it, and each
    caller waits with a deadline of its own.  The next call after its end begins another.

    Arguments:
        name: of the greenlets, for the logs.
    """

    __slots__ = ("_flights", "_name")

    def __init__(self, name: str = "flight") -> None:
        self._name = name
        self._flights: dict[Hashable, _Flight] = {}

    def is_running(self, key: Hashable) -> bool:
        """Return whether an execution for *key* is under way."""
        return key in self._flights

    def run(
        self, key: Hashable, function: Callable[[], T], deadline: Deadline | float | None = None
    ) -> T:
        """Return what *function* returns, here or for the caller that came first.  May switch.

        Arguments:
            key: which executions are the same.
            function: called without arguments unless one for *key* is under way.
            deadline: seconds or a deadline; it bounds this caller's wait, not the execution.

        Raises:
            TimeoutError: the deadline ended first; the execution goes on.
            RuntimeError: called from within the execution that it would wait for.
            OperationalError: the greenlet that ran *function* was killed.
            BaseException: what *function* raised; every caller gets the same object.
        """
        flight = self._flights.get(key)
        mine = self._flight_of_caller()
        if flight is None or flight.has_ended:
            flight = _Flight()
            flight.greenlet = spawn(self._name, self._fly, key, flight, function)
            # Behind it, so that a signal between the two leaves no flight that never ends.
            self._flights[key] = flight
        elif mine is not None:
            _check_circle(key, flight, mine)
        slot: Slot[None] = Slot()
        flight.waiters[slot] = None
        if mine is not None:
            mine.waits_for = flight
        try:
            slot.wait(Deadline.of(deadline))
        finally:
            flight.waiters.pop(slot, None)
            if mine is not None:
                mine.waits_for = None
        error, traceback = flight.error, flight.traceback
        if error is None:
            return cast(T, flight.result)
        if not flight.waiters:
            flight.drop_error()
        try:
            # Each caller begins with the traceback of the flight, not with another caller's.
            raise error.with_traceback(traceback)
        finally:
            del error, traceback

    def forget(self) -> None:
        """Drop the executions in progress, in the child of a fork, where no greenlet waits for them."""
        self._flights = {}

    def _flight_of_caller(self) -> _Flight | None:
        current = getcurrent()
        for flight in self._flights.values():
            if flight.greenlet is current:
                return flight
        return None

    def _fly(self, key: Hashable, flight: _Flight, function: Callable[[], Any]) -> None:
        try:
            flight.result = function()
        except (GreenletExit, SystemExit, KeyboardInterrupt) as exc:
            # These are for the greenlet that they hit, not for those who wait for it.
            flight.error = OperationalError(
                f"{self._name} for {key!r} was killed ({error_text(exc, repr)})"
            )
            raise
        except BaseException as exc:
            flight.error = exc
            flight.traceback = exc.__traceback__
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            for slot in flight.waiters:
                slot.offer(None)
            if not flight.waiters:
                flight.drop_error()


def _check_circle(key: Hashable, flight: _Flight, mine: _Flight) -> None:
    seen: _Flight | None = flight
    while seen is not None:
        if seen is mine:
            raise RuntimeError(
                f"the execution for {key!r} would wait for itself, as it was started from within"
            )
        seen = seen.waits_for
