"""Interrupting a greenlet at each of its switches, or between any two bytecodes, one after the other."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import gevent
from gevent import get_hub
from greenlet import getcurrent, greenlet, settrace

#: How many switches a function may make before the test is considered endless.
MANY = 500


class Interruption(Exception):
    """What is thrown in: by class neither an error of ours nor one that anybody expects.

    An ``Exception``, as a ``gevent.Timeout`` with an error of the program's own is: whoever catches
    all of those takes it for a failure of what he does.
    """


class OwnTimeout(TimeoutError):
    """What ``gevent.Timeout(seconds, TimeoutError)`` throws: by class a failure of the network."""


#: What users throw into greenlets: the end by ``kill``, and a timeout of their own.
INTERRUPTIONS: tuple[Callable[[], BaseException], ...] = (
    gevent.GreenletExit,
    Interruption,
    OwnTimeout,
    lambda: gevent.Timeout(None),
)


class Run:
    """One run of a function in a greenlet that is interrupted at its n-th switch.

    Arguments:
        number: of the switch, from 1; 0 interrupts nothing.
        delay: when the interruption comes.  0: from the hub, as soon as it has switched away; 1: behind
            the callbacks that wait there already, one of which may have woken it; n: n - 1 turns of the
            hub later, each of which looks at the sockets.  It does not come when the greenlet runs
            again before: that is for the next switch.
    """

    def __init__(
        self, function: Callable[[], Any], number: int, error: BaseException, delay: int = 0
    ) -> None:
        self.switches = 0
        #: Whether it came to the interruption.
        self.was_interrupted = False
        #: What the function returned or raised.
        self.result: Any = None
        self.raised: BaseException | None = None
        #: What is thrown in.
        self.error = error
        self._number = number
        self._delay = delay
        self._function = function
        self._greenlet: gevent.Greenlet[..., None] = gevent.Greenlet(self._guarded)

    def run(self, timeout: float = 60.0) -> Run:
        """Run to the end.  May switch."""
        former = settrace(self._trace)
        try:
            self._greenlet.start()
            self._greenlet.join(timeout)
        finally:
            settrace(former)
        if not self._greenlet.dead:
            self._greenlet.kill(block=False)
            raise AssertionError("the function did not end after it was interrupted")
        return self

    def _guarded(self) -> None:
        try:
            self.result = self._function()
        except BaseException as exc:
            self.raised = exc

    def _trace(self, event: str, ends: tuple[greenlet, greenlet]) -> None:
        if ends[0] is self._greenlet and not self._greenlet.dead:
            self.switches += 1
            if self.switches == self._number:
                self._later(self._delay)

    def _later(self, delay: int) -> None:
        loop = get_hub().loop
        if not delay:
            loop.run_callback(self._interrupt)
        elif delay == 1:
            loop.run_callback(self._later, 0)
        else:
            # As green.hub.yield_to_hub(): behind the sockets that are ready.
            turn = loop.timer(0, 0, True, -1)

            def turned() -> None:
                turn.close()
                self._later(delay - 1)

            turn.start(turned)

    def _interrupt(self) -> None:
        # As gevent's own kill: from the hub.
        if self.switches == self._number and self._waits:
            self.was_interrupted = True
            self._greenlet.throw(self.error)

    @property
    def _waits(self) -> bool:
        return not self._greenlet.dead and self._greenlet.gr_frame is not None


def interruptions(
    function: Callable[[], Any], delays: tuple[int, ...] = (0, 1, 2)
) -> Iterator[Run]:
    """Run *function* again and again, each time interrupted at another switch in another way.

    It ends after the runs that came to their end before they were interrupted.
    """
    for make in INTERRUPTIONS:
        for delay in delays:
            for number in range(1, MANY):
                run = Run(function, number, make(), delay).run()
                yield run
                if not run.was_interrupted and run.switches < number:
                    break
            else:
                raise AssertionError(f"more than {MANY} switches")


class Signal(BaseException):
    """What the handler of a signal raises, as ``KeyboardInterrupt``, wherever the program is."""


class SignalAt:
    """Runs a function with a :class:`Signal` before its n-th bytecode.

    Only bytecodes of the package, in the greenlet that calls ``run`` or ``begin``, are counted.

    Arguments:
        number: of the bytecode.
        within: parts of the paths of the files that are meant, of which one is enough.
        between_calls: whether to count all bytecodes, also those before which Python runs no handler.
            False leaves the first of each function, and those behind a call of what is not written in
            Python.
    """

    def __init__(
        self, number: int, within: tuple[str, ...] = ("/greenconn/",), between_calls: bool = True
    ) -> None:
        #: Bytecodes until the signal; above 0 behind the run: it has not come to that.
        self.left = number
        self._within = within
        self._between_calls = between_calls
        self._greenlet = getcurrent()
        #: The latest bytecode of each function that runs.
        self._latest: dict[FrameType, str] = {}
        #: To which a function has just returned.
        self._returned_to: FrameType | None = None

    def begin(self) -> None:
        """Count from here on, in the greenlet that calls this and in what has called it."""
        self._greenlet = getcurrent()
        frame = sys._getframe(1).f_back
        while frame is not None:
            if self._is_meant(frame):
                frame.f_trace = self._each
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
            frame = frame.f_back
        sys.settrace(self._begin)

    def end(self) -> None:
        """Count no more.  In any greenlet."""
        sys.settrace(None)
        self._latest.clear()

    def _is_here(self) -> bool:
        return getcurrent() is self._greenlet

    def _is_meant(self, frame: FrameType) -> bool:
        return any(each in frame.f_code.co_filename for each in self._within)

    def run(self, function: Callable[[], Any]) -> BaseException | None:
        """Run *function*, and return what it raised."""
        former = sys.gettrace()
        sys.settrace(self._begin)
        try:
            function()
        except BaseException as exc:
            return exc
        finally:
            sys.settrace(former)
            self._latest.clear()
            self._returned_to = None
        return None

    def _begin(self, frame: FrameType, event: str, arg: object) -> Any:
        if not self._is_meant(frame) or not self._is_here():
            return None
        # First the function: Python 3.13 traces no bytecodes of a frame that has none yet.
        frame.f_trace = self._each
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._each

    def _each(self, frame: FrameType, event: str, arg: object) -> Any:
        if not self._is_here():
            return self._each
        if event == "return":
            self._latest.pop(frame, None)
            self._returned_to = frame.f_back
        elif event == "opcode" and (self._between_calls or self._is_checked(frame)):
            self.left -= 1
            if self.left == 0:
                raise Signal  # which ends the tracing, too
        return self._each

    def _is_checked(self, frame: FrameType) -> bool:
        """Return whether Python looks for signals before the next bytecode of *frame*."""
        before = self._latest.get(frame)
        self._latest[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        has_returned, self._returned_to = self._returned_to is frame, None
        return before is None or (before.startswith("CALL") and not has_returned)


class SignalInLibrary(SignalAt):
    """The same in the greenlets of the library, in what is called from :meth:`begin` on."""

    def begin(self) -> None:
        """Count from here on."""
        sys.settrace(self._begin)

    def _is_here(self) -> bool:
        return getattr(getcurrent(), "name", "").startswith("greenconn:")


def signals(
    function: Callable[[], Any],
    *,
    first: int = 1,
    step: int = 1,
    within: tuple[str, ...] = ("/greenconn/",),
    between_calls: bool = True,
) -> Iterator[BaseException | None]:
    """Run *function* again and again, with a :class:`Signal` before another bytecode each time.

    Between two runs the caller looks what has become of it.

    Arguments:
        first, step: which bytecodes.
        within, between_calls: see :class:`SignalAt`.

    Yields:
        What the run raised; it ends behind the run that came to its end before the signal.
    """
    if sys.version_info[:2] == (3, 12):
        # It traces no bytecodes of a function that it has not traced before.
        SignalAt(sys.maxsize, within).run(function)
    number = first
    while True:
        run = SignalAt(number, within, between_calls)
        yield run.run(function)
        if run.left > 0:
            return
        number += step
