"""The consumers of a thread: those that run, and those that the broker refused."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.perhub import PerHub
from greenconn.worker.state import ConsumerState

if TYPE_CHECKING:
    from greenconn.worker.consumer import ConsumerGreenlet

__all__ = ["Failure", "enter", "failures", "forget_failures", "running_consumers"]

#: Failures that are kept; the oldest are forgotten.
KEPT: Final = 100


class Failure:
    """A consumer that the broker refused for good.

    Attributes:
        error: class and text of the error, without its traceback, which would hold much.
        stats: what it had done until then.
        addresses: see ``Broker.addresses``.
    """

    __slots__ = ("addresses", "error", "stats")

    def __init__(self, error: str, stats: dict[str, Any], addresses: Hashable) -> None:
        self.error = error
        self.stats = stats
        self.addresses = addresses


class _Roster:
    __slots__ = ("failures", "running")

    def __init__(self) -> None:
        self.running: set[ConsumerGreenlet] = set()
        #: By the name of the consumer.
        self.failures: dict[str, Failure] = {}

    def leave(self, consumer: ConsumerGreenlet) -> None:
        # In the hub.
        self.running.discard(consumer)
        conductor = consumer.conductor
        if conductor.state is ConsumerState.FAILED:
            error = conductor.error
            self.failures[conductor.plan.name or ""] = Failure(
                f"{type(error).__name__}: {error}", consumer.stats(), conductor.addresses
            )
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


def failures() -> dict[str, Failure]:
    """Consumers of this thread that the broker refused for good, by their names.  Never switches."""
    return dict(_roster.get().failures)


def forget_failures(addresses: Hashable) -> None:
    """Forget those of the broker at *addresses*, which is gone.  Never switches."""
    roster = _roster.get()
    kept = {name: each for name, each in roster.failures.items() if each.addresses != addresses}
    roster.failures = kept
