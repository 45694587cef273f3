"""Short tasks that wait for the broker, run a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gevent import Greenlet, getcurrent

from greenconn.green.supervisor import spawn

__all__ = ["Errand", "Errands"]

#: Errands of one connection under way at once.  They wait for one broker, so more of them are not
#: quicker; and a thousand consumers that begin together need not have a thousand greenlets more.
LIMIT: Final = 32


class Errand:
    """A task: waiting, under way, or over.

    Attributes:
        greenlet: what runs it; None before.
        is_called_off: nobody wants it any more.
        is_over: it was done, or has ended in another way.
    """

    __slots__ = ("function", "greenlet", "is_called_off", "is_over", "on_over")

    def __init__(self, function: Callable[[], object], on_over: Callable[[], None]) -> None:
        self.function = function
        self.on_over = on_over
        self.greenlet: Greenlet[..., Any] | None = None
        self.is_called_off = self.is_over = False

    def call_off(self) -> None:
        """End it soon; ``on_over`` is called all the same.  Never switches."""
        if self.is_called_off or self.is_over:
            return
        self.is_called_off = True
        if self.greenlet is not None:
            self.greenlet.kill(block=False)
        else:
            self.end()

    def end(self) -> None:
        """Say that it is over.  Again: does nothing."""
        if not self.is_over:
            self.is_over = True
            self.greenlet = None
            self.on_over()


class Errands:
    """Runs errands in the order in which they came, at most :data:`LIMIT` at once."""

    __slots__ = ("_running", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[Errand] = deque()
        #: Greenlets, with what each does; None when it is about to take the next one.
        self._running: dict[Greenlet[..., Any], Errand | None] = {}

    def send(self, function: Callable[[], object], on_over: Callable[[], None]) -> Errand:
        """Have *function* called in a greenlet.  Never switches.

        Arguments:
            function: may switch, and may be interrupted.
            on_over: called when it is over, however.  Must not switch.
        """
        errand = Errand(function, on_over)
        self._waiting.append(errand)
        self._fill()
        return errand

    def _fill(self) -> None:
        if self._waiting and len(self._running) < LIMIT:
            greenlet = spawn("consumer-errand", self._run)
            self._running[greenlet] = None
            greenlet.rawlink(self._on_end)

    def _run(self) -> None:
        greenlet = getcurrent()
        assert isinstance(greenlet, Greenlet)
        while self._waiting:
            errand = self._waiting.popleft()
            if errand.is_over:
                continue
            self._running[greenlet] = errand
            errand.greenlet = greenlet
            errand.function()
            self._running[greenlet] = None
            errand.end()
            if errand.is_called_off:
                return  # the kill is on its way, and not meant for the next one

    def _on_end(self, greenlet: Greenlet[..., Any]) -> None:
        # In the hub: it found nothing more to do, or its errand was called off.
        errand = self._running.pop(greenlet, None)
        if errand is not None:
            errand.end()
        self._fill()
