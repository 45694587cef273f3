"""A sink that keeps what it is given, and can be waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

#: Seconds that a test waits for something that must come.
SOON = 30.0


class Sink(list[Any]):
    """Takes messages."""

    def __init__(self, on_message: Callable[[Any], object] | None = None) -> None:
        super().__init__()
        self.taken: Callable[[Any], None] | None = None
        self.lost: list[BaseException] = []
        self._on_message = on_message
        self._changed = Event()

    def deliver(self, message: Any) -> None:
        """Keep *message*."""
        self.append(message)
        if self._on_message is not None:
            self._on_message(message)
        self._changed.set()

    def requeue_unseen(self) -> None:
        """Put all back."""
        for message in self:
            message.put_back()

    def cancelled(self, exc: BaseException) -> None:
        """Keep the reason."""
        self.lost.append(exc)
        self._changed.set()

    @property
    def bodies(self) -> list[Any]:
        """What came."""
        return [each.body for each in self]

    def wait_for(self, count: int) -> None:
        """Wait until so many have come."""
        with gevent.Timeout(SOON):
            while len(self) < count:
                self._changed.wait()
                self._changed.clear()

    def wait_lost(self) -> None:
        """Wait until it was cancelled."""
        with gevent.Timeout(SOON):
            while not self.lost:
                self._changed.wait()
                self._changed.clear()
