"""The greenlet that looks for messages at a broker which cannot push them.

It asks only for queues whose consumers have room, in turn, and goes on while it finds something.
When it found nothing it sleeps for the polling interval, or until somebody has room again or
publishes here.  While nobody consumes, or nobody has room, it does not run at all.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Protocol

from gevent import Greenlet
from gevent.event import Event

from greenconn.green.hub import turn
from greenconn.green.supervisor import spawn

__all__ = ["Poller"]

#: Seconds of polling without a wait before the hub gets a turn.
PACE = 0.005


class _Polled(Protocol):
    def has_room(self) -> bool: ...

    def poll(self) -> bool: ...


class Poller:
    """Polls for the channels of one link.

    Arguments:
        interval: seconds between two looks when there was nothing; None and 0: the looks themselves
            wait.
        fail: told of the error that ended it.
    """

    def __init__(self, interval: float | None, fail: Any) -> None:
        self.interval = interval
        self._fail = fail
        self._channels: dict[_Polled, None] = {}
        self._wanted = Event()
        self._greenlet: Greenlet[..., Any] | None = None

    def add(self, channel: _Polled) -> None:
        """Poll for *channel*, whose consumer has room.  Never switches."""
        self._channels[channel] = None
        self.wake()
        if self._greenlet is None:
            self._greenlet = spawn("poll", self._run)

    def wake(self) -> None:
        """Look now: there may be something.  Never switches."""
        self._wanted.set()

    def stop(self) -> None:
        """End it.  Never switches."""
        self._channels.clear()
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    def _run(self) -> None:
        try:
            self._poll_while_wanted()
        except Exception as exc:
            self._greenlet = None
            self._fail(exc)

    def _poll_while_wanted(self) -> None:
        turned_at = monotonic()
        while True:
            self._wanted.clear()
            if self._look():
                if monotonic() - turned_at > PACE:
                    turn()
                    turned_at = monotonic()
            elif self._channels:
                if self.interval:
                    self._wanted.wait(self.interval)
                else:
                    turn()
                turned_at = monotonic()
            else:
                # Nobody has room.  No switch since the last look, so no call was missed.
                self._greenlet = None
                return

    def _look(self) -> bool:
        """Poll once for each channel; True when something was found."""
        found = False
        for channel in list(self._channels):
            if not channel.has_room():
                self._channels.pop(channel, None)
            elif channel.poll():
                found = True
        return found
