"""The greenlets of the library: each is spawned here, has a name, and logs its errors.

Here are also its periodic calls, which measure how long the hub was blocked, and by which handler.

It is also where one is ended, by who began it.  Code of ours may be ended wherever it switches; a
library that was written for threads is not made for that, and would leave, for one, a socket that is
just being connected to the garbage collector.  So calls of such are *shielded*: the end comes when
they have returned.

Also the states of a life, and the moves between them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from logging import Logger
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import gevent
from gevent import GreenletExit, get_hub, getcurrent

from greenconn.green.hub import forget_at_fork, weakly
from greenconn.listeners import LISTENERS, HubBlockedEvent, notify


class State(Enum):
    """The base class of the states of one life.

    They are compared by identity, so that is their hash too: that of ``Enum`` is a function in Python.
    """

    __hash__ = object.__hash__


#: The states of one life.
S = TypeVar("S", bound=State)


def moved(old: S, new: S, moves: Mapping[S, frozenset[S]], subject: str) -> S:
    """Return *new* if the table allows the move.  To stay is always allowed.

    Arguments:
        moves: the states that may follow each state.
        subject: what moves, for the message.

    Raises:
        RuntimeError: a move outside the table, so an error of this library.
    """
    if new is not old and new not in moves[old]:
        raise RuntimeError(f"{subject} cannot go from {old.value} to {new.value}")
    return new


T = TypeVar("T")

logger = logging.getLogger("greenconn.green")

if TYPE_CHECKING:
    from gevent import Greenlet
else:

    class Greenlet(gevent.Greenlet):
        """A greenlet that does not record the stack of its spawner.

        All are spawned below, and their names say for what.  Finding the lines of ten frames would be
        most of the work of making one.
        """

        __slots__ = ()

        spawning_stack_limit = 0


def spawn(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Greenlet[..., Any]:
    """Start a greenlet called ``greenconn:<name>``.

    What it raises unexpectedly is logged once under ``greenconn.green`` and ends it, with None as its
    value; being killed is an ordinary end.
    """
    greenlet: Greenlet[..., Any] = Greenlet(_guarded, name, function, args, kwargs)
    greenlet.name = f"greenconn:{name}"
    greenlet.start()
    return greenlet


def current() -> Greenlet[..., Any]:
    """Return the greenlet that runs, which was begun by :func:`spawn`.  Never switches."""
    return cast("Greenlet[..., Any]", getcurrent())


def _guarded(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception:
        logger.exception("greenlet %r failed", name)
        return None


class _Shield:
    """The greenlets that are within a shielded call, and whether they are to end behind it."""

    def __init__(self) -> None:
        self.inside: dict[Any, bool] = {}
        self.is_registered = False

    def forget(self) -> None:
        """End the greenlets in the child of a fork: they wait for what belongs to the parent."""
        self.inside.clear()


_shield: Final = _Shield()


def shielded(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call *function*, and let :func:`end` wait for its end.  May switch.

    For calls that end by themselves before long, in a greenlet of the library.
    """
    if not _shield.is_registered:
        _shield.is_registered = True
        forget_at_fork(_shield)
    inside, current = _shield.inside, getcurrent()
    inside[current] = False
    try:
        return function(*args, **kwargs)
    finally:
        if inside.pop(current, False):
            raise GreenletExit


def end(greenlet: Greenlet[..., Any]) -> None:
    """Kill a greenlet of the library, or let it go when its shielded call returns.  Never switches."""
    inside = _shield.inside
    if greenlet in inside:
        inside[greenlet] = True
    else:
        greenlet.kill(block=False)


def end_all(greenlets: Iterable[Greenlet[..., Any]]) -> None:
    """End greenlets of the library, but not the one that runs.  Never switches."""
    running = getcurrent()
    for each in list(greenlets):
        if each is not running:
            end(each)


class OnDemand:
    """A function that runs in one greenlet at a time, which is started when there is work.

    An asynchronous exception may interrupt the caller of :meth:`start` between the spawn and its note,
    so that a later call starts a second greenlet: the one that begins first does the work.  One that is
    killed before it has begun counts as ended.

    Arguments:
        name: of the greenlet.
        function: does all the work that there is, and returns when there is none.  Between its last
            check and its end it must not switch, or what comes meanwhile waits for the next start.
    """

    __slots__ = ("_function", "_greenlet", "_name")

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self._name = name
        self._function = function
        self._greenlet: Greenlet[..., Any] | None = None

    @property
    def greenlet(self) -> Greenlet[..., Any] | None:
        """The greenlet that runs or is about to; None: there is none."""
        greenlet = self._greenlet
        return None if greenlet is None or greenlet.dead else greenlet

    def start(self) -> None:
        """Start the greenlet unless there is one.  Never switches."""
        greenlet = self._greenlet
        if greenlet is None or greenlet.dead:
            # It runs behind all that can run now.
            self._greenlet = spawn(self._name, self._run)
            self._greenlet.rawlink(self._ended)

    def end(self) -> None:
        """End the greenlet, unless it is the one that calls.  Never switches."""
        greenlet = self.greenlet
        if greenlet is not None and greenlet is not getcurrent():
            self._greenlet = None
            end(greenlet)

    def _ended(self, greenlet: Greenlet[..., Any]) -> None:
        # In the hub.  What a signal has ended, perhaps before it began, has left work.
        if greenlet.exception is not None:
            self.start()

    def _run(self) -> None:
        running: Any = getcurrent()
        greenlet = self._greenlet
        if greenlet is not None and greenlet is not running and not greenlet.dead:
            return
        self._greenlet = running
        try:
            self._function()
        finally:
            if self._greenlet is running:
                self._greenlet = None


#: A tick is late if it comes more than this many intervals after the one before.
LATE = 1.5


class Gathered(Generic[T]):
    """Items that a function gets together, in a greenlet, some seconds after the first of them came.

    Arguments:
        seconds: between the two.
        function: gets the items, and may switch.  If it is a method, its object is not kept alive.
        name: of the greenlet.

    Attributes:
        items: those that it will get.
    """

    def __init__(self, seconds: float, function: Callable[[set[T]], object], name: str) -> None:
        self.items: set[T] = set()
        self._seconds = seconds
        self._function = weakly(function)
        self._timer: Any = None
        self._task = OnDemand(name, self._run)

    def add(self, items: Iterable[T]) -> None:
        """Add items.  Never switches."""
        self.items.update(items)
        if self.items and self._timer is None:
            self._timer = get_hub().loop.timer(self._seconds, ref=False)
            self._timer.start(weakly(self._on_time), update=True)

    def stop(self) -> None:
        """Drop the items.  Never switches."""
        self.items.clear()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _on_time(self) -> None:
        # In the hub.
        timer, self._timer = self._timer, None
        timer.close()
        self._task.start()

    def _run(self) -> None:
        # Those whose time came while the function ran have no timer any more.
        while self.items and self._timer is None:
            items, self.items = self.items, set()
            self._function(items)


class Ticker:
    """A timer that calls ``function(lag)`` in the hub every *interval* seconds.

    After the hub was blocked there is a single tick, not one for each missed interval, and the next one
    comes a whole interval later.  The timer keeps neither the process alive nor the object whose
    method *function* is.

    Arguments:
        interval: seconds between ticks, above 0.
        function: called in the hub with the seconds by which the tick is late, or 0.0 (see
            :data:`LATE`); it must not switch.  If it raises, the ticks continue; the first error of
            a series is logged.
        name: the name in the log.

    Raises:
        ValueError: *interval* is not above 0.
    """

    def __init__(self, interval: float, function: Callable[[float], object], name: str) -> None:
        if not interval > 0.0:
            raise ValueError(f"interval of ticker {name!r} must be above 0 s, got {interval!r}")
        self.interval = interval
        self.name = name
        #: Seconds by which the last tick was late.
        self.lag = 0.0
        self._function = weakly(function)
        self._timer: Any = None
        self._last: float  # set with the timer, as the next is
        self._failed: bool  # whether the last call failed

    @property
    def is_running(self) -> bool:
        """Whether the ticker was started and not stopped."""
        return self._timer is not None

    def start(self) -> None:
        """Start; the first tick comes after one interval.  A second call does nothing."""
        if self._timer is None:
            self.lag = 0.0
            self._failed = False
            self._last = monotonic()
            self._timer = get_hub().loop.timer(self.interval, self.interval, ref=False)
            self._timer.start(self._tick, update=True)

    def stop(self) -> None:
        """Stop, so that there are no more ticks.  A second call does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _tick(self) -> None:
        # In the hub.
        timer = self._timer
        if timer is None:
            return
        now = monotonic()
        passed = now - self._last
        self._last = now
        self.lag = passed - self.interval if passed > LATE * self.interval else 0.0
        if self.lag:
            timer.again(self._tick, update=True)
        try:
            self._function(self.lag)
        except Exception as exc:
            if not self._failed:
                self._failed = True
                # In a greenlet, since a log handler may switch.
                spawn("log", _log, self.name, exc)
        else:
            self._failed = False

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<Ticker {self.name!r}: {self.interval:g} s, {state}>"


def _log(name: str, exc: Exception) -> None:
    logger.error(
        "ticker %r: the function failed; it is called again after the next interval",
        name,
        exc_info=exc,
    )


#: Changes that are remembered: as many as may follow a block before the hub's timers run.
REMEMBERED: Final = 64


class HandlerHistory:
    """The handler that was called last, and those before it.

    When a blocked hub gets its turn again, the code that blocked it has switched away.  So those who
    call handlers note each just before the call, which costs a message one comparison.  Nothing tells
    when a handler waits and other code runs: the handler that was called last before the hub was blocked
    is named.

    Before a call::

        if HANDLERS.handler is not handler:
            HANDLERS.change(handler, name_of(handler))

    Attributes:
        handler: the handler, or None if none was called.
    """

    def __init__(self) -> None:
        self.handler: Callable[..., Any] | None = None
        self._name = ""
        self._since = 0.0
        self._told_until = 0.0
        #: Name, beginning and end.  Names, since a handler may hold much and be gone.
        self._periods: deque[tuple[str, float, float]] = deque(maxlen=REMEMBERED)

    def change(self, handler: Callable[..., Any], name: str) -> None:
        """Note that *handler* is called from now on.

        Arguments:
            name: what :func:`name_of` returns for it; many handlers in turn need it for each message.
        """
        now = monotonic()
        if self.handler is not None:
            self._periods.append((self._name, self._since, now))
        self.handler, self._name = handler, name
        self._since = now

    def shares_within(self, start: float, end: float) -> dict[str, float]:
        """Return the seconds of a time that each handler had, by name.

        Arguments:
            start, end: on the monotonic clock.
        """
        shares: dict[str, float] = {}
        periods = list(self._periods)
        if self.handler is not None:
            periods.append((self._name, self._since, end))
        for name, began, ended in periods:
            share = min(ended, end) - max(began, start)
            if share > 0.0:
                shares[name] = shares.get(name, 0.0) + share
        return shares

    def name_within(self, start: float, end: float) -> str | None:
        """Return the name of the handler that had most of a time; None: none had any."""
        shares = self.shares_within(start, end)
        return max(shares, key=lambda name: shares[name]) if shares else None

    def tell_blocked(self, start: float, end: float) -> None:
        """Tell the listeners that the hub was blocked; once, of all who notice.  In the hub."""
        if (calls := LISTENERS.hub_blocked) is not None and start >= self._told_until:
            self._told_until = end
            event = HubBlockedEvent(end - start, self.shares_within(start, end))
            spawn("listener", notify, calls, event)


#: That of this process.
HANDLERS: Final = HandlerHistory()


def log_blocked(logger: Logger, where: str, lag: float, interval: float) -> None:
    """Have it logged that the hub was blocked, and in which handler.  In the hub; never switches.

    Arguments:
        where: the broker's URL with the password masked.
        lag: seconds by which a tick came late.
        interval: of its ticker.
    """
    now = monotonic()
    HANDLERS.tell_blocked(now - lag, now)
    handler = HANDLERS.name_within(now - lag - interval, now)
    spawn(
        "log",
        logger.warning,
        "the hub was blocked for %.1f s, %s had to wait; %s: let long computations yield with "
        "gevent.sleep(0), or run them in a thread pool",
        lag,
        where,
        f"the last handler called was {handler}" if handler else "no handler was called",
        extra={"connection": where},
    )


def name_of(function: Any) -> str:
    """Module and name of a function, or of the class of what can be called."""
    function = getattr(function, "func", function)  # a partial
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"
