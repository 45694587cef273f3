"""The greenlets of the library: each is spawned here, has a name, and logs its errors.

It is also where one is ended, by who began it.  Code of ours may be ended wherever it switches; a
library that was written for threads is not made for that, and would leave, for one, a socket that is
just being connected to the garbage collector.  So calls of such are *shielded*: the end comes when
they have returned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import gevent
from gevent import GreenletExit, getcurrent

from greenconn.green import fork

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
        fork.register(_shield)
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
        if self.greenlet is None:
            # It runs behind all that can run now.
            self._greenlet = spawn(self._name, self._run)

    def end(self) -> None:
        """End the greenlet, unless it is the one that calls.  Never switches."""
        greenlet = self.greenlet
        if greenlet is not None and greenlet is not getcurrent():
            self._greenlet = None
            end(greenlet)

    def _run(self) -> None:
        running = current()
        if self.greenlet not in (None, running):
            return
        self._greenlet = running
        try:
            self._function()
        finally:
            if self._greenlet is running:
                self._greenlet = None
