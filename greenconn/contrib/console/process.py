"""The handlers, consumers and schedules of this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from gevent import getcurrent
from greenlet import greenlet

from greenconn.contrib.console.broker import queue_names
from greenconn.debug import places_of
from greenconn.listeners import DeliverEvent, HandledEvent, Listener
from greenconn.service.periodic import periodic_calls
from greenconn.worker.consumer import ConsumerGreenlet, running_consumers

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.service.app import App
    from greenconn.service.periodic import PeriodicCalls

#: Handlers that are shown, and functions of each, the innermost first.
MOST: Final = 500
PLACES: Final = 3
#: Files of the library that call a handler.
_CALLERS: Final = ("greenconn/listeners.py", "worker/handling.py", "worker/ordering.py")


@dataclass(frozen=True)
class RunningHandler:
    """A handler that runs now."""

    event: DeliverEvent
    greenlet: greenlet
    began_at: float
    """The time on the monotonic clock."""

    @property
    def message(self) -> Message:
        """The message, or the first one of its batch."""
        return self.event.messages[0]

    @property
    def seconds(self) -> float:
        """The seconds for which it has run."""
        return monotonic() - self.began_at

    @property
    def key(self) -> str:
        """A name of it in this process."""
        return f"{id(self.event):x}"

    @property
    def place(self) -> str:
        """The place in the code where it waits."""
        frame = self.greenlet.gr_frame
        if frame is None:
            return "runs now"
        places = places_of(frame)
        own = takewhile(lambda each: not each.startswith(_CALLERS), places)
        return " < ".join(list(own)[:PLACES] or places[:1])


class HandlerWatch(Listener):
    """The handlers that run in this process, by what the library notifies.  Nothing here switches."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[DeliverEvent, greenlet, float]] = {}

    def on_deliver(self, event: DeliverEvent) -> None:
        """Note that a handler begins."""
        self._running[id(event)] = (event, getcurrent(), monotonic())

    def on_handled(self, event: HandledEvent) -> None:
        """Note that a handler has ended."""
        self._running.pop(id(event.delivery), None)

    def running(self) -> list[RunningHandler]:
        """Return the handlers that run, the longest first."""
        # One whose greenlet has ended was killed, and its end was not notified.
        for key in [key for key, (_, runner, _) in self._running.items() if runner.dead]:
            del self._running[key]
        # A schedule holds its token until it is due; the page of schedules shows when.
        waiting = {
            queue
            for each, calls in _schedule_consumers()
            if not calls.is_calling
            for queue in queue_names(each)
        }
        found = (each for each in list(self._running.values()) if each[0].queue not in waiting)
        return [RunningHandler(*each) for each in islice(found, MOST)]

    def interrupt(self, key: str) -> RunningHandler | None:
        """Interrupt the handler with this key, and return it; None: it does not run any more."""
        for each in self.running():
            if each.key == key and any(
                consumer.interrupt(each.message) for consumer in running_consumers()
            ):
                return each
        return None


def consumers_of(queue: str) -> list[ConsumerGreenlet]:
    """Return the consumers of a queue in this process."""
    return [each for each in running_consumers() if queue in queue_names(each)]


def handler_of(consumer: ConsumerGreenlet) -> str:
    """Return the name of the function that a consumer calls."""
    function = consumer.lifecycle.options.handler
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    return f"{module}.{name}" if module and name else type(function).__name__


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule, as far as this process knows it."""

    name: str
    schedule: str
    next_at: float | None
    """Seconds since 1970, as the last one."""

    last_at: float | None
    state: str


def _schedule_consumers() -> Iterator[tuple[ConsumerGreenlet, PeriodicCalls]]:
    for each in running_consumers():
        calls = periodic_calls(each)
        if calls is not None:
            yield each, calls


def schedules(app: App | None) -> Iterator[ScheduleRow]:
    """Yield the schedules of an application, by name."""
    calls = {own.name: own for _, own in _schedule_consumers()}
    declared = {} if app is None else app.schedules
    for name, schedule in sorted(declared.items()):
        own = calls.get(name)
        if own is None:
            state = "not started in this process"
        elif own.is_calling:
            state = "running"
        else:
            state = "leader" if own.is_leader else "another process is the leader"
        last = None if own is None else own.last
        yield ScheduleRow(name, repr(schedule), schedule.following(time()), last, state)
