"""Ctrl-C: it ends the command, instead of raising in whichever greenlet runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gevent import get_hub
from greenlet import getcurrent, greenlet

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGINT raises KeyboardInterrupt in the calling greenlet; in the main thread only."""
    caller, loop = getcurrent(), get_hub().loop

    def interrupt(number: int, frame: FrameType | None) -> None:
        if getcurrent() is caller:
            raise KeyboardInterrupt
        # In the hub, or in a greenlet whose work it would spoil.
        loop.run_callback_threadsafe(_throw, caller)

    try:
        before: Any = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _throw(caller: greenlet) -> None:
    caller.throw(KeyboardInterrupt)
