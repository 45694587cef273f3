"""The hub: one real turn of it, and the hub an object belongs to."""

from __future__ import annotations

from threading import enumerate as enumerate_threads  # for messages only: none is started
from threading import main_thread
from typing import Any, Final

from gevent import get_hub

from greenconn.exceptions import WrongHub

__all__ = ["Home", "turn"]

CLONE: Final = "give each thread a connection of its own (Connection.clone())"


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
    """The hub (so the thread) that an object belongs to from its first use."""

    __slots__ = ("hub",)

    def __init__(self) -> None:
        self.hub: Any = get_hub()

    def check(self, what: object, remedy: str = CLONE) -> None:
        """Raise unless the caller runs on this hub.

        Arguments:
            what: the object, for the message.
            remedy: what to do about it, for the message.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        hub = get_hub()
        if hub is not self.hub:
            raise WrongHub(
                f"{what!r} belongs to thread {_thread_of(self.hub)} and was used from thread "
                f"{_thread_of(hub)}: {remedy}"
            )


def _thread_of(hub: Any) -> str:
    """The name of a hub's thread.  (``current_thread`` would register threads and greenlets.)"""
    if hub.main_hub:
        return repr(main_thread().name)
    for thread in enumerate_threads():
        if thread.ident == hub.thread_ident:
            return repr(thread.name)
    return str(hub.thread_ident)
