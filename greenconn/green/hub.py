"""The hub: one real turn of it, and the hub an object belongs to."""

from __future__ import annotations

import os
from threading import current_thread  # a name for messages only: no thread is started or locked

from gevent import get_hub

from greenconn.exceptions import WrongHub

__all__ = ["Home", "turn"]


def turn() -> None:
    """Let every other greenlet that can run do so, after a poll for I/O.  May switch.

    ``gevent.sleep(0)`` polls only each 50th time and ``gevent.idle()`` starves beside a spinning
    greenlet, so this is a timer of no length at the lowest priority.
    """
    hub = get_hub()
    timer = hub.loop.timer(0, 0, True, -1)
    try:
        hub.wait(timer)
    finally:
        timer.close()


class Home:
    """The hub (so the thread and the process) that an object belongs to from its first use."""

    __slots__ = ("hub", "pid", "thread")

    def __init__(self) -> None:
        self.hub = get_hub()
        self.pid = os.getpid()
        self.thread = current_thread().name

    def check(self, what: object) -> None:
        """Raise unless the caller runs on this hub.

        Arguments:
            what: the object, for the message.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        if get_hub() is not self.hub:
            raise WrongHub(
                f"{what!r} belongs to thread {self.thread!r} and was used from thread "
                f"{current_thread().name!r}: give each thread a connection of its own "
                f"(Connection.clone())"
            )
