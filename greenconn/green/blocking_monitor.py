"""A monitor of the running handlers, which names the one that blocked the hub.

When a blocked hub gets its turn again, the code that blocked it has long switched away, and nothing
tells what it was.  So those who call handlers note each, just before they call it.  To ask whether it
is another than before is all that this costs a message; only a change is written down.

Nothing tells when a handler waits and other code of the program runs: what is named is the handler
that was called last before the hub was blocked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from logging import Logger
from time import monotonic
from typing import Any, Final

from greenconn.green.supervisor import spawn
from greenconn.listeners import LISTENERS, HubBlockedEvent, notify

#: Changes that are remembered: as many as may follow a block before the hub's timers run.
REMEMBERED: Final = 64


class HandlerHistory:
    """The handler that was called last, and those before it.

    Before a call::

        if HANDLERS.handler is not handler:
            HANDLERS.change(handler)

    Attributes:
        handler: the handler, or None if none was called.
    """

    def __init__(self) -> None:
        self.handler: Callable[..., Any] | None = None
        self._since = 0.0
        self._told_until = 0.0
        #: Name, beginning and end.  Names, since a handler may hold much and be gone.
        self._periods: deque[tuple[str, float, float]] = deque(maxlen=REMEMBERED)

    def change(self, handler: Callable[..., Any]) -> None:
        """Note that *handler* is called from now on."""
        now = monotonic()
        if self.handler is not None:
            self._periods.append((name_of(self.handler), self._since, now))
        self.handler = handler
        self._since = now

    def shares_within(self, start: float, end: float) -> dict[str, float]:
        """Return the seconds of a time that each handler had, by name.

        Arguments:
            start, end: on the monotonic clock.
        """
        shares: dict[str, float] = {}
        periods = list(self._periods)
        if self.handler is not None:
            periods.append((name_of(self.handler), self._since, end))
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
