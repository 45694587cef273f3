"""The consumers of a thread: those that run, and those that the broker refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from greenconn.green.perhub import PerHub
from greenconn.worker.state import ConsumerState

if TYPE_CHECKING:
    from greenconn.worker.consumer import ConsumerGreenlet

__all__ = ["enter", "failures", "running_consumers"]

#: Failures that are kept; the oldest are forgotten.
KEPT: Final = 100


class _Roster:
    __slots__ = ("failures", "running")

    def __init__(self) -> None:
        self.running: set[ConsumerGreenlet] = set()
        #: Name of a consumer -> what the broker refused it for.
        self.failures: dict[str, str] = {}

    def leave(self, consumer: ConsumerGreenlet) -> None:
        # In the hub.
        self.running.discard(consumer)
        conductor = consumer.conductor
        if conductor.state is ConsumerState.FAILED:
            error = conductor.error
            self.failures[conductor.plan.name or ""] = f"{type(error).__name__}: {error}"
            while len(self.failures) > KEPT:
                del self.failures[next(iter(self.failures))]


_roster: Final[PerHub[_Roster]] = PerHub(_Roster)


def enter(consumer: ConsumerGreenlet) -> None:
    """Take *consumer* in until it ends; a failure of its namesake is forgotten.  Never switches."""
    roster = _roster.get()
    roster.running.add(consumer)
    roster.failures.pop(consumer.conductor.plan.name or "", None)
    consumer.rawlink(roster.leave)


def running_consumers() -> list[ConsumerGreenlet]:
    """The consumers of this thread that have not ended.  Never switches."""
    return list(_roster.get().running)


def failures() -> dict[str, str]:
    """Consumers of this thread that the broker refused for good: name -> error.  Never switches."""
    return dict(_roster.get().failures)
