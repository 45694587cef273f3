"""Torture tests: the handlers of an application, with every kill, duplicate and reordering, from a seed.

A broker delivers at least once: it delivers again what was not acknowledged, and a process may die
anywhere.  A torture test runs the same few messages through the handlers again and again, each time with
other faults, and checks each time that the outcome is right::

    from greenconn.torture import torture

    with torture(app, seed=7, reset=orders.clear) as run:
        run.publish("orders", {"id": 1})
        run.check(lambda: orders == {1: "paid"})

The block only records what is published and what must hold.  At its end the *histories* are run, on
the in-memory broker and the clock of :mod:`greenconn.testing`.  The first one has no fault.  It finds
the points of the handlers where a fault can come: each switch of greenlets, each publish, each
statement of a database.  Then come all histories with one fault, then those with two, and so on, up to
*histories*; where there are more of them, the seed draws a sample.

The first history that fails is made as short as possible, and is raised as a :class:`TortureFailure`
whose text is a story in the order of time, with the one line that repeats it.

With pytest, load this module as a plugin in ``conftest.py`` and request the fixture ``torture``, which
is the function with the options of the command line (``--torture-seed``, ``--torture-histories``,
``--torture-replay``)::

    pytest_plugins = ["greenconn.torture"]
"""

from __future__ import annotations

import copy
import inspect
import linecache
import logging
import os
import random
import signal
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from random import Random
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import gevent
from gevent import GreenletExit, Timeout, get_hub, getcurrent

from greenconn.checks import Seconds, in_seconds, is_number
from greenconn.clocks import CLOCK
from greenconn.encoding import safe_repr
from greenconn.exceptions import ConnectionForced, error_text
from greenconn.green.hub import PerHub
from greenconn.listeners import (
    LISTENERS,
    DeadLetterEvent,
    DeliverEvent,
    HandledEvent,
    Listener,
    PublishEvent,
    RetryEvent,
)
from greenconn.schemas import schema_of
from greenconn.service.app import App
from greenconn.service.periodic import spawn_periodic
from greenconn.testing import PERIODIC, Kind, MemoryBroker, checked_seconds
from greenconn.transport import memory
from greenconn.worker.dispatch import is_parked
from greenconn.worker.handling import FAILURES, HandlerTimeout
from greenconn.worker.options import begin_of

if TYPE_CHECKING:
    from greenconn.message import Message
    from greenconn.publishing.publisher import Target
    from greenconn.worker.options import ConsumerOptions

__all__ = ["FAULTS", "Report", "Torture", "TortureFailure", "torture"]

#: Faults at a point of a handler, with the verb of their story.
AT_POINT: Final = {
    "kill": "killed",
    "reconnect": "disconnected",
    "overlap": "paused",
    "timeout": "timed out",
    "stall": "stalled",
    "restart": "restarted",
    "broker": "restarted",
}
#: Faults of a message that a handler has handled, and of messages that are published.
OF_CALL: Final = ("redeliver",)
OF_MESSAGE: Final = ("duplicate", "late", "reorder")

#: The faults, the most frequent ones in production first.
FAULTS: Final = (
    "kill",
    "redeliver",
    "duplicate",
    "reconnect",
    "overlap",
    "timeout",
    "reorder",
    "late",
    "stall",
    "restart",
    "broker",
)
#: The faults whose handler waits until the others have done what they can.
HOLDING: Final = frozenset({"overlap", "stall", "reconnect", "broker", "restart"})
#: The point behind a handler that has returned, before its message is acknowledged.
END: Final = 0
#: Faults of one history, at most.
DEPTH: Final = 4
#: Calls of handlers in one history, at most.
CALLS: Final = 300
#: Histories after which the broker is made anew.
FRESH: Final = 2000
#: Seconds by the clock from one history to the next: what is remembered for a while is forgotten.
BETWEEN: Final = 10 * 86_400.0
#: Seconds by the clock that one history may take, and for which a handler is stalled.
LONGEST: Final = 30 * 86_400.0
STALL: Final = 30.0
#: Seconds by the clock after which a message is delivered late.
LATE: Final = 3600.0
#: Runs that are spent on making a history shorter.
SHRINKS: Final = 300
#: Characters of a body in a story.
BODY: Final = 60

#: Folders of code that is not the program's.
_FOREIGN: Final = tuple(
    {
        os.path.dirname(os.path.abspath(__file__)) + os.sep,
        *(
            sysconfig.get_path(name) + os.sep
            for name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
        "<",
    }
)


class Fault(NamedTuple):
    """A fault of a history.

    Attributes:
        kind: one of :data:`FAULTS`.
        number: of the call of a handler; for duplicates, late and reordered ones, of the message.
        point: of that call, from 1; :data:`END` is behind the handler.
    """

    kind: str
    number: int
    point: int = END

    def __str__(self) -> str:
        if self.kind not in AT_POINT:
            return f"{self.kind} {self.number}"
        return f"{self.kind} {self.number}.{'end' if self.point == END else self.point}"

    @property
    def place(self) -> tuple[int, float]:
        """Its place in the order of calls and points."""
        return self.number, float("inf") if self.point == END else self.point


class History(NamedTuple):
    """The steps that are taken, by their numbers, and the faults."""

    steps: tuple[int, ...]
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        steps = ",".join(map(str, self.steps))
        return f"{steps}: {', '.join(map(str, self.faults))}".rstrip()

    @property
    def length(self) -> int:
        """The number of its steps and faults."""
        return len(self.steps) + len(self.faults)


#: A history without steps.
_NOTHING: Final = History(())


def _parsed(text: str) -> History:
    """Return the history that was printed as *text*.

    Raises:
        ValueError: *text* is none.
    """
    try:
        steps, _, faults = text.partition(":")
        found = []
        for part in filter(None, map(str.strip, faults.split(","))):
            kind, place = part.split()
            if kind not in FAULTS:
                raise ValueError(kind)
            number, _, point = place.partition(".")
            found.append(Fault(kind, int(number), int(point) if point not in ("", "end") else END))
        return History(tuple(map(int, steps.split(","))), tuple(found))
    except ValueError:
        raise ValueError(
            f"replay must be a history as a failure prints it, such as '1: kill 1.2', got {text!r}"
        ) from None


class Step(NamedTuple):
    """Something that a test does: it publishes a message, calls a function, or lets time pass."""

    run: Callable[..., object]
    text: str
    is_publish: bool = False


class Point(NamedTuple):
    """A point of a call.

    Attributes:
        can_wait: whether greenlets switch there, so that others can run meanwhile.
        has_begun: False while the message waits for its turn.
    """

    can_wait: bool
    has_begun: bool


class Call:
    """The call of a handler with a message, in one history.

    Attributes:
        number: of the call, from 1.
        message: the message, or the first one of a batch.
        points: the points that it came to.
        hold: the fault for which it waits until the others have done what they can; None: for none.
        has_ended: it has returned or raised.
        is_handled: it has returned.
        is_spared: nothing more may happen to it: it was killed, or commits.
    """

    __slots__ = (
        "_torture",
        "greenlet",
        "handler",
        "has_ended",
        "held_at",
        "hold",
        "is_handled",
        "is_inside",
        "is_spared",
        "message",
        "number",
        "options",
        "pending",
        "points",
        "queue",
    )

    def __init__(self, torture: Torture, number: int, event: DeliverEvent) -> None:
        self._torture = torture
        self.number = number
        self.message: Any = event.messages[0]
        self.queue = event.queue
        self.handler = str(event.handler).rpartition(".")[2]
        self.greenlet: Any = getcurrent()
        self.options: ConsumerOptions | None = None
        self.points: list[Point] = []
        self.hold: str | None = None
        self.held_at = 0.0
        #: The arguments of the switch that it waits for; None: its event has not come.
        self.pending: tuple[Any, ...] | None = None
        self.is_inside = False
        self.has_ended = self.is_handled = self.is_spared = False
        # Called by gevent where this greenlet switches to the hub, and by who wakes it.
        greenlet: Any = self.greenlet
        greenlet.switch_out = self._switch_out
        greenlet.switch = self._switch

    def _switch_out(self) -> None:
        if not self.is_inside and self.hold is None:
            self._torture.at_point(self, can_wait=True)

    def _switch(self, *args: Any) -> Any:
        if self.hold is not None:
            self.pending = args
            return None
        return type(self.greenlet).switch(self.greenlet, *args)

    def wait(self) -> None:
        """Wait here until it is released.  May switch."""
        self.is_inside, self.pending = True, ()
        try:
            get_hub().switch()
        finally:
            self.is_inside, self.hold = False, None

    def release(self) -> None:
        """End the hold.  Never switches."""
        self.hold = None
        if self.pending is not None:
            args, self.pending = self.pending, None
            get_hub().loop.run_callback(self._resume, args)

    def _resume(self, args: tuple[Any, ...]) -> None:
        # In the hub.
        if not self.greenlet.dead and self.greenlet.gr_frame is not None:
            type(self.greenlet).switch(self.greenlet, *args)

    def end(self) -> None:
        """Leave its greenlet to the next call."""
        self.has_ended = True
        self.greenlet.__dict__.pop("switch_out", None)
        self.greenlet.__dict__.pop("switch", None)

    @property
    def place(self) -> str:
        """The place in the program where it waits."""
        return self.place_of(self.greenlet.gr_frame)

    def place_of(self, frame: FrameType | None) -> str:
        """Return the line of the handler's own file that *frame* was called by, if there is one."""
        code = getattr(inspect.unwrap(self.function or _place_of), "__code__", None)
        home, found = getattr(code, "co_filename", None), frame
        while found is not None and found.f_code.co_filename != home:
            found = found.f_back
        return _place_of(frame if found is None else found)

    @property
    def function(self) -> Any:
        """The handler."""
        return None if self.options is None else self.options.handler


class Outcome(NamedTuple):
    """The outcome of a history.

    Attributes:
        calls: of handlers.
        error: why it has failed; None: it has not.
    """

    calls: list[Call]
    error: BaseException | None


class Stuck(Exception):
    """A handler does not end, or messages are left for ever.

    Arguments:
        text: which, and where.
        is_slow: it took real time to find that.
    """

    def __init__(self, text: str, *, is_slow: bool = False) -> None:
        super().__init__(text)
        self.is_slow = is_slow


class _ReturnedFalse(AssertionError):
    """A check has returned False."""


class _Blocked(BaseException):
    """Raised in a handler that has kept the hub for too long."""


class TortureFailure(AssertionError):
    """A history whose check failed, or whose handlers did not end.

    Attributes:
        story: the lines of the story, in the order of time.
        history: the history, for ``replay``.
        faults: its faults, a kind, the number of a call or message, and the point of the call.
        steps: the number of published messages, other steps and faults.
        seed: the seed with which it was found.
        histories: the number of histories until it was found.
        error: the exception of the check, or what became of the handler.
    """

    def __init__(
        self,
        text: str,
        *,
        story: Iterable[str] = (),
        history: History = _NOTHING,
        seed: int = 0,
        histories: int = 0,
        error: BaseException | None = None,
    ) -> None:
        super().__init__(text)
        self.story = list(story)
        self.history = str(history)
        self.faults = history.faults
        self.steps = history.length
        self.seed = seed
        self.histories = histories
        self.error = error


class Report(NamedTuple):
    """The histories that were run without a failure.

    Attributes:
        histories: the number of histories.
        calls: the number of calls of handlers.
        points: the number of points of the handlers in the history without a fault.
        depth: the number of faults in the largest histories.
        is_complete: whether all histories of that depth were run, and not a sample of them.
        seconds: the real time that it took.
    """

    histories: int
    calls: int
    points: int
    depth: int
    is_complete: bool
    seconds: float


def torture(
    app: App,
    *,
    seed: int = 0,
    histories: int = 1000,
    faults: Iterable[str] = FAULTS,
    reset: Callable[[], Any] | None = None,
    forget: Callable[[], object] | None = None,
    processes: int = 2,
    deadline: Seconds = 5.0,
    replay: str | None = None,
) -> Torture:
    """Return a torture test of the handlers of *app*, as a context manager.

    Arguments:
        app: the application; its consumers run on an in-memory broker.
        seed: draws the sample where there are more histories than *histories*.
        histories: the maximum number of histories.
        faults: the faults that may occur, of :data:`FAULTS`.
        reset: called before each history, so that each begins with the same state.  It may return a
            context manager, or be a generator function, which ends after the check, such as a
            transaction that is rolled back.  None: with Django, a savepoint of each transaction that
            the test is in; else nothing.
        forget: called when a process is restarted, to drop what a process has in its memory.
        processes: the number of processes that run the application, each with its own connection.
            An application with a schedule runs in one.
        deadline: the maximum of real seconds for a history.
        replay: run only this history, as the text of a failure prints it.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """
    return Torture(
        app,
        seed=seed,
        histories=histories,
        faults=faults,
        reset=reset,
        forget=forget,
        processes=processes,
        deadline=deadline,
        replay=replay,
    )


class Torture(Listener):
    """A torture test: the steps, the checks, and the histories that are run with them.

    Arguments: see :func:`torture`.

    Attributes:
        broker: the :class:`~greenconn.testing.MemoryBroker` of the history that runs, for checks.
        report: the :class:`Report` of the histories, after them.
        repeat: the beginning of the line that repeats a history.
    """

    def __init__(
        self,
        app: App,
        *,
        seed: int = 0,
        histories: int = 1000,
        faults: Iterable[str] = FAULTS,
        reset: Callable[[], Any] | None = None,
        forget: Callable[[], object] | None = None,
        processes: int = 2,
        deadline: Seconds = 5.0,
        replay: str | None = None,
    ) -> None:
        if not isinstance(app, App):
            raise TypeError(f"app must be a greenconn.App, got {app!r}")
        for name, value in (("histories", histories), ("processes", processes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        chosen = (faults,) if isinstance(faults, str) else tuple(faults)
        unknown = [each for each in chosen if each not in FAULTS]
        if unknown:
            raise ValueError(f"faults must be of {', '.join(FAULTS)}, got {unknown[0]!r}")
        for name, function in (("reset", reset), ("forget", forget)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a callable, or None, got {function!r}")
        self._app = app
        self._seed = seed
        self._limit = histories
        self._faults = tuple(each for each in FAULTS if each in chosen)
        self._reset = reset
        self._forget = forget
        self._processes = processes
        self._deadline = in_seconds(deadline)
        if not is_number(self._deadline) or not self._deadline > 0:
            raise ValueError(f"deadline must be a number of seconds above 0, got {deadline!r}")
        self._replay = None if replay is None else _parsed(replay)
        self._steps: list[Step] = []
        self._checks: list[Callable[[], object]] = []
        self.report: Report | None = None
        self.repeat = "torture(app, replay={!r})"
        self._progress: Callable[[int], object] | None = None
        # Of the broker that runs
        self._broker: MemoryBroker | None = None
        self._stack = ExitStack()
        self._shadows: list[App] = []
        self._options: dict[str, ConsumerOptions] = {}
        self._in_transactions: set[str] = set()
        self._count = 0
        # Of the history that runs
        self._at: dict[tuple[int, int], str] = {}
        self._calls: list[Call] = []
        self._running: dict[Any, Call] = {}
        self._actions: deque[Callable[[], object]] = deque()
        self._numbers: dict[Any, int] = {}
        self._entries: dict[int, Any] = {}
        #: Numbers of messages without an id, which have not come yet, by their queues.
        self._unnamed: dict[str, deque[int]] = {}
        self._next_number = 0
        self._redelivered: set[int] = set()
        self._story: list[str] | None = None
        self._is_apart = False
        self._total_calls = 0

    def __repr__(self) -> str:
        return f"<Torture of {self._app!r}: {len(self._steps)} steps, seed {self._seed}>"

    def __enter__(self) -> Torture:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if exc_type is None:
            self.explore()

    @property
    def broker(self) -> MemoryBroker:
        """The broker of the history that runs.

        Raises:
            RuntimeError: no history runs.
        """
        if self._broker is None:
            raise RuntimeError(
                "broker must be asked for in a check or a call, while a history runs"
            )
        return self._broker

    # Recording

    def publish(self, target: Target, body: Any, **options: Any) -> None:
        """Have a message published in each history.

        Arguments:
            target, body, options: as for :meth:`greenconn.App.publish`.
        """
        number = len(self._steps) + 1
        name = target if isinstance(target, str) else getattr(target, "name", target)

        def run() -> None:
            message_id = options.get("message_id", f"torture-{self._count}-{number}")
            self._numbers[message_id] = number
            self._app.publish(target, copy.deepcopy(body), **{**options, "message_id": message_id})

        self._steps.append(Step(run, f"message {number} to {name}: {_short(body)}", True))

    def call(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Have a function called in each history, for example one that publishes.

        Arguments:
            function, args, kwargs: the function and its arguments.
        """
        if not callable(function):
            raise TypeError(f"function must be a callable, got {function!r}")
        name = getattr(function, "__name__", repr(function))
        self._steps.append(Step(lambda: function(*args, **kwargs), f"{name}()"))

    def advance(self, seconds: Seconds) -> None:
        """Have all that waits done, and then the clock moved, in each history.

        Arguments:
            seconds: the seconds, at least 0, or a timedelta.
        """
        number = checked_seconds(seconds)
        self._steps.append(Step(lambda: self._advance(number), f"{number:g} s passed"))

    def check(self, function: Callable[[], object]) -> None:
        """Have a function called after each history: it fails if it raises, or returns False.

        Without any, a history fails if a message is given up.

        Arguments:
            function: called without arguments.
        """
        if not callable(function):
            raise TypeError(f"function must be a callable, got {function!r}")
        self._checks.append(function)

    # Exploring

    def explore(self, progress: Callable[[int], object] | None = None) -> Report:
        """Run the histories.  May switch.

        Arguments:
            progress: called after each history with the number of those that were run.

        Returns:
            The report, if none has failed.

        Raises:
            RuntimeError: nothing was published or called.
            TortureFailure: a history has failed.
        """
        if not self._steps:
            raise RuntimeError("nothing is published or called: use run.publish() in the block")
        began, self._count, self._total_calls = perf_counter(), 0, 0
        self._progress = progress
        with self._quiet():
            try:
                depth, points, is_complete = self._explore()
            finally:
                self._close()
        self.report = Report(
            self._count,
            self._total_calls,
            points,
            depth,
            is_complete,
            perf_counter() - began,
        )
        return self.report

    def _explore(self) -> tuple[int, int, bool]:
        """Run the histories, and return their depth, the points of the first, and if these are all."""
        draw = Random(self._seed)
        first = History(tuple(range(1, len(self._steps) + 1)))
        if self._replay is not None:
            first = self._replay
            if not all(0 < each <= len(self._steps) for each in first.steps):
                raise ValueError(
                    f"replay must have steps up to {len(self._steps)}, got {str(first)!r}"
                )
        outcome = self._tried(first)
        points = sum(len(call.points) for call in outcome.calls)
        if self._replay is not None:
            return len(first.faults), points, True
        level = [(first, list(self._extensions(first, outcome)))]
        for depth in range(1, DEPTH + 1):
            total, left = sum(len(each) for _, each in level), self._limit - self._count
            chosen = range(total) if total <= left else sorted(draw.sample(range(total), left))
            following = []
            for history in _chosen(level, chosen):
                outcome = self._tried(history)
                if depth < DEPTH:
                    following.append((history, list(self._extensions(history, outcome))))
            if total > left or depth == DEPTH:
                return depth, points, total <= left
            if not any(each for _, each in following):
                return depth, points, True
            level = following
        raise AssertionError("unreachable")

    def _tried(self, history: History) -> Outcome:
        """Run a history.

        Raises:
            TortureFailure: it has failed.
        """
        outcome = self._run(history)
        if isinstance(outcome.error, Stuck) and outcome.error.is_slow:
            outcome = self._run(history)  # the machine may have been held up, once
        self._total_calls += len(outcome.calls)
        if self._progress is not None:
            self._progress(self._count)
        if outcome.error is not None:
            raise self._failure(history, outcome.error) from None
        return outcome

    def _extensions(self, history: History, outcome: Outcome) -> Iterator[Fault]:
        """Yield the faults that may be added to a history, behind those that it has."""
        found = list(self._all_extensions(history, outcome))
        ranks: dict[str, int] = {kind: rank for rank, kind in enumerate(self._faults)}
        found = [each for each in found if each.kind in ranks]
        return iter(sorted(found, key=lambda each: ranks[each.kind]))

    def _all_extensions(self, history: History, outcome: Outcome) -> Iterator[Fault]:
        behind = max(
            (each.place for each in history.faults if each.kind not in OF_MESSAGE), default=(0, 0.0)
        )
        for call in outcome.calls:
            number, options = call.number, call.options
            is_safe = call.queue in self._in_transactions
            has_timeout = options is not None and options.handler_timeout is not None
            ends = call.is_handled and not is_safe
            for index, point in enumerate(call.points, 1):
                if (number, index) <= behind:
                    continue
                if point.has_begun:
                    yield Fault("kill", number, index)
                yield Fault("reconnect", number, index)
                if has_timeout:
                    yield Fault("timeout", number, index)
                if point.can_wait:
                    if len(outcome.calls) > 1:
                        yield Fault("overlap", number, index)
                        yield Fault("stall", number, index)
                    yield Fault("restart", number, index)
                    yield Fault("broker", number, index)
            if ends and (number, float("inf")) > behind:
                if options is None or not options.keeps_order:
                    # In order, the next one has begun, and would not outlive the process either.
                    yield Fault("kill", number)
                    yield Fault("restart", number)
                yield Fault("reconnect", number)
                if options is None or not (options.keeps_order or options.no_ack):
                    yield Fault("redeliver", number)
        yield from self._of_messages(history, outcome)

    def _of_messages(self, history: History, outcome: Outcome) -> Iterator[Fault]:
        former = [each for each in history.faults if each.kind in OF_MESSAGE]
        by_number = {self._number_of(call.message): call for call in outcome.calls}
        steps = [each for each in history.steps if self._steps[each - 1].is_publish]
        for position, number in enumerate(steps):
            call = by_number.get(number)
            options = None if call is None else call.options
            keeps_order = options is not None and options.keeps_order
            is_safe = call is not None and call.queue in self._in_transactions
            made = [] if is_safe else [Fault("duplicate", number)]
            if call is not None and not keeps_order and not is_safe:
                made.append(Fault("late", number))
            if position + 1 < len(steps) and not keeps_order:
                made.append(Fault("reorder", number))
            for fault in made:
                if not former or (fault.kind, fault.number) > (former[-1].kind, former[-1].number):
                    yield fault

    # Failing

    def _failure(self, history: History, error: BaseException) -> TortureFailure:
        """Return the failure of a history, which is made as short as possible first."""
        found, at = history, self._count
        is_slow = isinstance(error, Stuck) and error.is_slow
        if history.faults and self._replay is None and not is_slow:
            found, error = self._shrunk(history, error)
        story: list[str] = []
        self._story = story
        again = self._run(found)
        self._story = None
        if again.error is None:
            note = (
                "\n\nIt passed when it was run again: something that decides is left over from the "
                "history before it (see reset), or waits in reality."
            )
        else:
            error, note = again.error, ""
        if not found.faults:
            is_apart = len(found.steps) > 1 and not self._fails(found.steps, apart=True)
            why = ", as their handlers run at the same time" if is_apart else " alone"
            note += f"\n\nThere is no fault in it: it fails for the messages{why}."
        what = "A handler did not end" if isinstance(error, Stuck) else "A check failed"
        lines = [f"{number:3}. {line}" for number, line in enumerate(story, 1)]
        text = (
            f"{what} after {found.length} steps (history {at}, seed {self._seed}):\n\n"
            + "\n".join(lines)
            + f"\n     {_seen(error)}\n\nRepeat it: {self._line_of(found)}{note}"
        )
        return TortureFailure(
            text,
            story=story,
            history=found,
            seed=self._seed,
            histories=at,
            error=error,
        )

    def _line_of(self, history: History) -> str:
        return self.repeat.format(str(history))

    def _shrunk(self, history: History, error: BaseException) -> tuple[History, BaseException]:
        """Return the shortest history that fails, of those that lack something of *history*."""
        left = SHRINKS
        shorter = True
        while shorter:
            shorter = False
            for smaller in _shorter(history):
                left -= 1
                if left < 0:
                    return history, error
                if len(smaller.steps) < len(history.steps) and self._fails(smaller.steps):
                    continue  # the checks are not meant for these alone
                outcome = self._run(smaller)
                if outcome.error is not None:
                    history, error, shorter = smaller, outcome.error, True
                    break
        return history, error

    def _fails(self, steps: tuple[int, ...], *, apart: bool = False) -> bool:
        """Return whether the checks fail for *steps* without a fault.

        Arguments:
            apart: take each step when the handlers of the one before it have ended.
        """
        self._is_apart = apart
        try:
            return self._run(History(steps)).error is not None
        finally:
            self._is_apart = False

    # One history

    def _run(self, history: History) -> Outcome:
        """Run a history, and return its outcome.  May switch."""
        if self._broker is None or self._count % FRESH == FRESH - 1 or self._is_periodic:
            self._open()
        broker = self._broker
        assert broker is not None
        self._count += 1
        self._at = {
            (each.number, each.point): each.kind for each in history.faults if each.kind in AT_POINT
        }
        self._redelivered = {each.number for each in history.faults if each.kind == "redeliver"}
        calls: list[Call] = []
        self._calls = calls
        self._numbers, self._entries = {}, {}
        self._unnamed = {}
        self._next_number = len(self._steps)
        self._actions.clear()
        random.seed(self._seed)
        CLOCK.jitter = Random(0).random
        error: BaseException | None = None
        limit = Timeout(self._deadline, ref=False)
        limit.start()
        try:
            with self._fresh_state(), _Alarm(self._deadline):
                try:
                    self._run_steps(history)
                except (Stuck, _Blocked) as exc:
                    error = self._stuck(exc)
                else:
                    error = self._checked()
        except Timeout as exc:
            if exc is not limit:
                raise
            error = self._stuck(None)
        finally:
            limit.close()
        if isinstance(error, Stuck):
            self._close()
        else:
            self._clear()
        return Outcome(calls, error)

    def _run_steps(self, history: History) -> None:
        steps = list(history.steps)
        publishes = [each for each in steps if self._steps[each - 1].is_publish]
        for fault in history.faults:
            if fault.kind == "reorder" and fault.number in publishes[:-1]:
                following = publishes[publishes.index(fault.number) + 1]
                one, two = steps.index(fault.number), steps.index(following)
                steps[one], steps[two] = steps[two], steps[one]
                self._tell(f"reordered    message {following} before message {fault.number}")
        duplicates = {each.number for each in history.faults if each.kind == "duplicate"}
        for number in steps:
            step = self._steps[number - 1]
            verb = "published" if step.is_publish else "called"
            self._tell(f"{verb:12} {step.text}")
            step.run()
            if self._is_apart:
                self._until_idle()
            if number in duplicates:
                self._tell(f"duplicated   message {number}: published twice")
                step.run()
        self._until_idle()
        for fault in history.faults:
            if fault.kind == "late" and fault.number in self._entries:
                self._advance(LATE)
                self._tell(f"redelivered  message {fault.number}, an hour later: its ack was lost")
                self._put_back(self._entries[fault.number])
                self._until_idle()

    def _checked(self) -> BaseException | None:
        """Return why a check fails; None: none does."""
        for check in self._checks or [self._check_dead]:
            try:
                result = check()
            except (Exception, Timeout) as exc:
                return exc
            if result is False:
                return _ReturnedFalse(_source_of(check))
        return None

    def _check_dead(self) -> None:
        dead = self.broker._recorder.dead
        assert not dead, f"{len(dead)} messages were given up, the first one by {dead[0].error!r}"

    # Running

    def _until_idle(self) -> None:
        """Run until no message waits.

        Raises:
            Stuck: that does not come.
        """
        broker = self.broker
        clock = broker.clock
        last = clock.now() + LONGEST
        while True:
            if len(self._calls) > CALLS:
                names = sorted({each.handler for each in self._calls})
                raise Stuck(f"handlers were called more than {CALLS} times: {', '.join(names)}")
            if broker._settle():
                continue
            if self._actions:
                self._actions.popleft()()
            elif self._release():
                pass
            elif broker._is_waited_for():
                if clock.now() > last:
                    raise Stuck(f"messages are left after {LONGEST / 86400:g} days by the clock")
                clock.next_at()  # which leaves out those that were stopped
                clock.run_next()
            elif self._release(also_stalled=True):
                pass
            elif broker._left() or broker._busy_services():
                if broker._waits() <= broker._watched and not broker._busy_services():
                    raise Stuck(self._waiting())
                broker._wait_for_loop()
            else:
                return

    def _advance(self, seconds: float) -> None:
        self._until_idle()
        clock = self.broker.clock
        end = clock.now() + seconds
        while (at := clock.next_at()) is not None and at <= end:
            clock.run_next()
            self._until_idle()
        clock.move(max(end - clock.now(), 0.0))

    def _release(self, *, also_stalled: bool = False) -> bool:
        """Let the handler that has been held longest go on; False: none is held.  Never switches."""
        for call in self._running.values():
            if call.hold == "stall":
                is_over = self.broker.clock.now() >= call.held_at + STALL
                if not (also_stalled or is_over) and self._others_wait():
                    continue
            elif call.pending is None:
                call.hold = None  # if it is held, it waits for its own event
                continue
            elif call.hold is None:
                continue
            self._tell(f"{'resumed':12} {call.handler} in call {call.number}")
            call.release()
            return True
        return False

    def _others_wait(self) -> bool:
        """Return whether others than a stalled handler have something to do later."""
        broker = self.broker
        return bool(
            broker.clock.armed_by_kind[Kind.MESSAGE]
            or any(queue.has_timed for queue in broker._broker.queues.values())
        )

    def _waiting(self) -> str:
        """Return which handlers wait, and where."""
        found = [
            f"handler {each.handler} waits for ever in call {each.number}, {each.place}"
            for each in self._running.values()
            if each.greenlet.gr_frame is not None
        ]
        return "; ".join(found) or f"messages are left: {'; '.join(self.broker._left())}"

    def _stuck(self, exc: BaseException | None) -> Stuck:
        """Return the error of a history that did not end."""
        if isinstance(exc, Stuck):
            return exc
        if isinstance(exc, _Blocked):
            return Stuck(f"{exc} within deadline={self._deadline:g} s", is_slow=True)
        return Stuck(f"{self._waiting()}, within deadline={self._deadline:g} s", is_slow=True)

    # Faults

    def at_point(self, call: Call, *, can_wait: bool) -> None:
        """Note that a call has come to a point, and do what the history has there.  May switch.

        Raises:
            GreenletExit, Timeout: what is thrown into the handler.
        """
        if call.is_spared:
            return
        call.points.append(Point(can_wait, not is_parked(call.message)))
        fault = self._at.get((call.number, len(call.points)))
        # Nothing kills the wait for a turn but the end of its process, which takes the others back, too.
        if fault is not None and (fault != "kill" or call.points[-1].has_begun):
            self._do(fault, call, can_wait=can_wait)

    def _do(self, fault: str, call: Call, *, can_wait: bool = True, is_end: bool = False) -> None:
        if self._story is not None:
            place = "after it returned" if is_end else call.place_of(sys._getframe(2))
            self._tell(f"{AT_POINT[fault]:12} {self._what(fault, call)}, {place}")
        call.is_spared = fault in ("kill", "restart")
        if fault == "kill":
            raise GreenletExit
        if fault == "timeout":
            assert call.options is not None
            raise HandlerTimeout(call.options.handler_timeout or 0.0)
        run_callback = get_hub().loop.run_callback
        end = partial(
            call.message.channel.connection.end, ConnectionForced("CONNECTION_FORCED - torture")
        )
        if not can_wait:
            end()  # of the other faults there is none at such a point
            return
        call.hold, call.held_at, call.pending = fault, self.broker.clock.now(), None
        if fault == "reconnect":
            run_callback(end)
        elif fault == "broker":
            run_callback(memory.restart, self.broker._name)
        elif fault == "restart":
            self._actions.append(lambda: self._restart(call))

    def _what(self, fault: str, call: Call) -> str:
        subject = f"{call.handler} in call {call.number}"
        if fault == "reconnect":
            return f"its process while {subject} waited"
        if fault == "broker":
            return f"the broker while {subject} waited"
        if fault == "restart":
            return f"its process in {subject}"
        return subject

    def _restart(self, call: Call) -> None:
        """Kill the process of a call, and start another one.  May switch."""
        shadow = next(
            (
                shadow
                for shadow in self._shadows
                if any(
                    each.lifecycle.dispatcher.runs_in(call.greenlet) for each in shadow.consumers
                )
            ),
            self._shadows[0],
        )
        consumers = shadow.consumers
        for each in consumers:
            each.kill(block=False)
        for running in list(self._running.values()):
            if any(each.lifecycle.dispatcher.runs_in(running.greenlet) for each in consumers):
                running.hold, running.is_spared = None, True
        while not all(each.ready() for each in consumers):
            if not self.broker._settle():
                gevent.sleep(0)
        if self._forget is not None:
            self._forget()
        shadow.start()
        self._until_ready(shadow)
        # The new consumers' own timers: a handler has begun before there was a time without one.
        self.broker._watched = max(self.broker._watched, self.broker._waits())

    def _put_back(self, entry: Any) -> None:
        """Have the broker deliver again what was acknowledged.  Never switches."""
        queue = entry.queue
        queue.put_back([entry])
        queue.settle()

    # Events

    def on_publish(self, event: PublishEvent) -> None:
        """Note a message; where a handler publishes is a point."""
        if not self._is_ours(event.connection):
            return
        call = self._running.get(getcurrent())
        if call is not None and not call.is_inside:
            # As on a broker elsewhere, whose publisher confirm is waited for.
            self.at_point(call, can_wait=True)
            if call.hold is not None:
                call.wait()
        message_id = event.properties.get("message_id")
        if message_id is None or message_id not in self._numbers:
            self._next_number += 1
            target = event.exchange or event.routing_key
            if message_id is None:
                self._unnamed.setdefault(target, deque()).append(self._next_number)
            else:
                self._numbers[message_id] = self._next_number
            by = "" if call is None else f", by {call.handler} in call {call.number}"
            self._tell(f"{'published':12} message {self._next_number} to {target}{by}")

    def on_deliver(self, event: DeliverEvent) -> None:
        """Begin a call."""
        if event.handler is None or not self._is_ours(event.connection):
            return
        call = Call(self, len(self._calls) + 1, event)
        call.options = self._options.get(event.queue)
        self._calls.append(call)
        self._running[call.greenlet] = call
        message: Any
        for message in event.messages:
            self._entries[self._number_of(message, event.queue)] = message.entry
        if self._story is not None and not event.queue.startswith(PERIODIC):
            which = ", ".join(map(self._name_of, event.messages))
            again = " again" if call.message.redelivered else ""
            self._tell(f"{'delivered':12} {which}{again} to {call.handler} (call {call.number})")

    def on_handled(self, event: HandledEvent) -> None:
        """End a call; that is a point, too.

        Raises:
            GreenletExit, Timeout: what is thrown in before the message is acknowledged.
        """
        call = self._running.get(getcurrent())
        if call is None or call.message is not event.delivery.messages[0]:
            return
        is_ended = call.has_ended
        call.end()
        try:
            if event.error is None and not is_ended:
                self._end_call(call)
            elif isinstance(event.error, FAILURES):
                self._tell(f"{'failed':12} call {call.number}: {_described(event.error)}")
        finally:
            self._running.pop(call.greenlet, None)

    def _end_call(self, call: Call) -> None:
        call.is_handled = True
        number = call.number
        self._tell(f"{'handled':12} {self._name_of(call.message)} (call {number})")
        fault = self._at.get((number, END))
        if fault is not None and call.queue not in self._in_transactions:
            self._do(fault, call, is_end=True)
            if call.hold is not None:
                call.wait()
        if number in self._redelivered:
            get_hub().loop.run_callback(self._redeliver, call)

    def _redeliver(self, call: Call) -> None:
        # In the hub, when the message was acknowledged.
        message = call.message
        if message.acknowledged and message._state != "REQUEUED":
            self._tell(f"{'redelivered':12} {self._name_of(message)}: its ack was lost")
            self._put_back(message.entry)

    def on_retry(self, event: RetryEvent) -> None:
        """Tell of a retry."""
        if self._is_ours(event.connection):
            self._tell(f"{'retried':12} {self._name_of(event.message)} in {event.delay:.3g} s")

    def on_dead_letter(self, event: DeadLetterEvent) -> None:
        """Tell of a message that is given up."""
        if self._is_ours(event.connection):
            self._tell(f"{'given up':12} {self._name_of(event.message)}: {_described(event.error)}")

    def _is_ours(self, connection: str) -> bool:
        return self._broker is not None and self._broker._name in connection

    def _name_of(self, message: Message) -> str:
        return f"message {self._number_of(message)}"

    def _number_of(self, message: Message, queue: str = "") -> int:
        """Return the number of a message; one without an id is known by its place at the broker."""
        delivered: Any = message
        key = message.properties.get("message_id") or delivered.entry
        number = self._numbers.get(key)
        if number is None:
            unnamed = self._unnamed.get(queue)
            if unnamed:
                number = unnamed.popleft()
            else:
                self._next_number += 1
                number = self._next_number
            self._numbers[key] = number
        return number

    def _tell(self, line: str) -> None:
        if self._story is not None:
            self._story.append(line)

    def _before_statement(self, *args: Any) -> None:
        """Note that a handler is about to run a statement of a database."""
        call = self._running.get(getcurrent())
        if call is not None and not call.has_ended:
            self.at_point(call, can_wait=False)

    # The state

    @contextmanager
    def _fresh_state(self) -> Iterator[None]:
        """Begin and end the state of a history."""
        with ExitStack() as stack:
            if self._reset is None:
                _enter_django(stack)
            elif inspect.isgeneratorfunction(self._reset):
                stack.enter_context(contextmanager(self._reset)())
            else:
                found = self._reset()
                stack.enter_context(found if hasattr(found, "__enter__") else nullcontext())
            yield

    def _open(self) -> None:
        """Start the application on a new broker.  May switch."""
        self._close()
        app, self._stack = self._app, ExitStack()
        registrations = [self._outside(each) for each in app._registrations]
        first = copy.copy(app)
        first._registrations, first._consumers = registrations, PerHub(list)
        self._stack.callback(setattr, app, "_connections", app._connections)
        self._stack.callback(setattr, app, "_clock", app._clock)
        broker = self._broker = self._stack.enter_context(first.testing())
        app._connections, app._clock = None, broker.clock
        self._shadows = [first]
        # The others would stand by at each schedule, which never ends.
        for _ in range(1, 1 if self._is_periodic else self._processes):
            other = copy.copy(first)
            other._consumers, other._services = PerHub(list), []
            other._connections = PerHub(broker.connection)
            other.start()
            self._shadows.append(other)
        broker.clock.follow(None)
        broker._is_running = True
        for shadow in self._shadows:
            self._until_ready(shadow)
        self._options = {}
        for each in first.consumers:
            options = each.lifecycle.options
            for queue in options.queues:
                self._options[queue if isinstance(queue, str) else queue.name] = options
        LISTENERS.add(self)
        self._stack.callback(LISTENERS.remove, self)
        _watch_statements(self._stack, self._before_statement)

    def _until_ready(self, shadow: App) -> None:
        while not all(each.lifecycle.is_confirmed for each in shadow.consumers):
            if not self.broker._settle():
                if any(each.ready() for each in shadow.consumers):
                    shadow.wait_ready(0)  # raises why
                    return
                if self.broker.clock.next_at() is None:
                    gevent.sleep(0)
                else:
                    self.broker.clock.run_next()
        self.broker._settle()

    def _outside(self, registration: Any) -> Any:
        """Return a registration whose transaction is begun here, as the broker is in memory."""
        given = registration.options.get("transaction")
        if given is None:
            return registration
        options = {
            name: each for name, each in registration.options.items() if name != "transaction"
        }
        schema = schema_of(registration.function)
        if schema is not None:
            options.setdefault("schema", schema)
        queues = registration.queue
        for queue in [queues] if isinstance(queues, str) or hasattr(queues, "name") else queues:
            self._in_transactions.add(queue if isinstance(queue, str) else queue.name)
        function = self._in_transaction(registration.function, given)
        return type(registration)(
            spawn=registration.spawn,
            queue=queues,
            function=function,
            options=options,
            url=registration.url,
        )

    def _in_transaction(self, handler: Callable[..., Any], given: Any) -> Callable[[Any, Any], Any]:
        """Return *handler* as ``transaction=`` calls it, for a message that is in no database."""
        begin = begin_of(given)

        @wraps(handler)
        def handle(body: Any, message: Message) -> Any:
            with begin() as (_, arguments):
                result = handler(body, message, *arguments)
                if not message.channel.is_open:
                    raise GreenletExit  # it is redelivered: what was written is undone
                # Else the commit acknowledges it, which cannot be separated from the rest.
                self._running[getcurrent()].is_spared = True
                return result

        del handle.__wrapped__  # it has two arguments
        return handle

    @property
    def _is_periodic(self) -> bool:
        return any(each.spawn is spawn_periodic for each in self._app._registrations)

    def _clear(self) -> None:
        """Drop what a history has left, for the next one, which is to run as if it were the first."""
        broker = self.broker
        links = {}
        for index, shadow in enumerate(self._shadows):
            for each in shadow.consumers:
                lifecycle = each.lifecycle
                links[lifecycle.session.life.link] = index
                for worker in lifecycle.group.pool._idle:
                    worker.streak = 0
        # In the order of the processes, whichever was served or has connected last.  A restart of the
        # broker ends their links in this order, in which they come back.
        for link in sorted(links, key=links.__getitem__):
            broker._broker.links.pop(link, None)
            broker._broker.links[link] = None
        for queue in broker._broker.queues.values():
            if queue.store.count or queue.delayed:
                queue.purge()
            if len(queue.consumers) > 1:
                ordered = sorted(
                    queue.consumers, key=lambda each: links.get(each.channel.connection, 0)
                )
                queue.consumers = dict.fromkeys(ordered)
                for consumer in ordered:
                    queue._turns.discard(consumer)
                for consumer in ordered[:1] if queue.policy.is_single_active else ordered:
                    queue._turns.add(consumer)
        broker._broker._published = 0
        recorder = broker._recorder
        recorder.ended.clear()
        recorder.dead.clear()
        recorder._failed.clear()
        recorder._last.clear()
        broker.clock._now += BETWEEN

    def _close(self) -> None:
        """Stop the application, also handlers that do not end.  May switch."""
        broker, self._broker = self._broker, None
        if broker is None:
            return
        for call in list(self._running.values()):
            call.end()
            call.greenlet.kill(block=False)
        self._running.clear()
        broker._is_running = False
        self._stack.close()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Log nothing, and leave the generator of random numbers as it was."""
        level, state = logging.root.manager.disable, random.getstate()
        try:
            logging.disable(logging.CRITICAL)
            yield
        finally:
            random.setstate(state)
            logging.disable(level)


def _chosen(
    level: list[tuple[History, list[Fault]]], positions: Iterable[int]
) -> Iterator[History]:
    """Yield the histories of *level* at *positions*, each with one fault more."""
    wanted = iter(positions)
    at = next(wanted, None)
    begin = 0
    for history, faults in level:
        while at is not None and at < begin + len(faults):
            yield History(history.steps, (*history.faults, faults[at - begin]))
            at = next(wanted, None)
        begin += len(faults)


def _shorter(history: History) -> Iterator[History]:
    """Yield the histories that have one fault or one step less."""
    for fault in history.faults if len(history.faults) > 1 else ():
        yield History(history.steps, tuple(each for each in history.faults if each != fault))
    if len(history.steps) > 1:
        for step in history.steps:
            steps = tuple(each for each in history.steps if each != step)
            faults = tuple(
                each
                for each in history.faults
                if each.kind not in OF_MESSAGE or each.number != step
            )
            yield History(steps, faults)
            # The calls of that message are missing, too.
            yield History(
                steps,
                tuple(
                    each._replace(number=each.number - 1)
                    if each.kind not in OF_MESSAGE and each.number > 1
                    else each
                    for each in faults
                ),
            )


class _Alarm:
    """The end of a handler that keeps the hub to itself, by the signal ALRM.

    It does nothing in other threads than the main one, and where the program uses the signal.

    Arguments:
        seconds: real time until then.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_set = False

    def __enter__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
            self._is_set = True
            signal.signal(signal.SIGALRM, self._ring)
            # A little later than the deadline, which ends all that waits.
            signal.setitimer(signal.ITIMER_REAL, self._seconds + 0.5)

    def __exit__(self, *exc_info: object) -> None:
        if self._is_set:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        raise _Blocked(f"a handler kept the hub to itself, {_place_of(frame)}")


def _uses_django() -> bool:
    """Return whether there may be connections of Django: it can be imported without settings."""
    if "django.db" not in sys.modules:
        return False
    from django.conf import settings

    return bool(settings.configured)


def _enter_django(stack: ExitStack) -> None:
    """Begin a savepoint of each transaction of Django that the test is in."""
    if not _uses_django():
        return
    from django.db import connections, transaction

    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            alias = connection.alias
            stack.enter_context(transaction.atomic(using=alias))
            stack.callback(transaction.set_rollback, True, using=alias)


def _watch_statements(stack: ExitStack, function: Callable[..., None]) -> None:
    """Have *function* called before each statement and commit of SQLAlchemy and Django."""
    if "sqlalchemy" in sys.modules:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        # Where nothing has begun yet: else it would give the connection up, and a database in memory.
        for name in ("before_execute", "commit"):
            event.listen(Engine, name, function)
            stack.callback(event.remove, Engine, name, function)
    if _uses_django():
        from django.db import connections

        def before(execute: Callable[..., Any], *args: Any) -> Any:
            function()
            return execute(*args)

        for connection in connections.all(initialized_only=True):
            connection.execute_wrappers.append(before)
            stack.callback(connection.execute_wrappers.remove, before)


def _place_of(frame: FrameType | None) -> str:
    """Return the line of the program that runs in *frame*, or has called what does."""
    found = frame
    while found is not None and found.f_code.co_filename.startswith(_FOREIGN):
        found = found.f_back
    found = found or frame
    if found is None:
        return "nowhere"
    name, line = found.f_code.co_filename, found.f_lineno
    text = linecache.getline(name, line).strip()
    shown = os.path.relpath(name)
    shown = name if shown.startswith("..") else shown
    return f"at {shown}:{line} in {found.f_code.co_name}: {text}".rstrip(": ")


def _source_of(check: Callable[[], object]) -> str:
    """Return the text of a check that has returned False."""
    code = getattr(check, "__code__", None)
    if code is None:
        return f"{check!r} returned False"
    text = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return f"it returned False: {text}"


def _seen(error: BaseException) -> str:
    """Return what a check saw."""
    if isinstance(error, Stuck):
        return str(error)
    lines = _described(error).splitlines()
    return "check failed: " + "\n     ".join(lines)


def _described(error: BaseException | None) -> str:
    if error is None:
        return ""
    name, text = type(error).__name__, error_text(error, str)
    if isinstance(error, _ReturnedFalse):
        return text
    return f"{name}: {text}" if text else name


def _short(body: Any) -> str:
    text = safe_repr(body)
    return text if len(text) <= BODY else f"{text[: BODY - 3]}..."


try:
    import pytest
except ImportError:  # pragma: no cover - programs may test with something else
    pass
else:

    def pytest_addoption(parser: pytest.Parser) -> None:
        """Add the options of torture tests."""
        group = parser.getgroup("greenconn")
        group.addoption(
            "--torture-seed",
            type=int,
            metavar="N",
            help="Seed of torture tests, instead of theirs.",
        )
        group.addoption(
            "--torture-histories",
            type=int,
            metavar="N",
            help="Maximum number of histories of each torture test, instead of theirs.",
        )
        group.addoption(
            "--torture-replay",
            metavar="HISTORY",
            help="Run only this history, as the failure of a torture test prints it.",
        )

    @pytest.fixture(name="torture")
    def torture_fixture(request: pytest.FixtureRequest) -> Callable[..., Torture]:
        """Return :func:`torture` with the options of the command line."""
        config = request.config

        def begin(app: App, **options: Any) -> Torture:
            for name in ("seed", "histories", "replay"):
                value = config.getoption(f"--torture-{name}", None)
                if value is not None:
                    options[name] = value
            made = torture(app, **options)
            made.repeat = f"pytest {request.node.nodeid!r} --torture-replay {{!r}}"
            return made

        return begin
