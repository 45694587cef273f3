"""One value for each hub, so for each thread that runs gevent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gevent import get_hub
from gevent.monkey import get_original

__all__ = ["PerHub"]

T = TypeVar("T")

#: The native class: in a patched process ``threading.local`` means each greenlet.
_ThreadLocal: Any = get_original("threading", "local")


class PerHub(Generic[T]):
    """A variable with a value of its own in each hub; it goes with the thread.

    Arguments:
        make: makes the value when it is first asked for in a hub.  Must not switch.
    """

    __slots__ = ("_local", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._local = _ThreadLocal()

    def get(self) -> T:
        """Return the value of this hub, made now if there is none.  Never switches."""
        hub = get_hub()
        kept = getattr(self._local, "kept", None)
        if kept is None or kept[0] is not hub:
            kept = self._local.kept = (hub, self._make())
        kept_value: T = kept[1]
        return kept_value

    def pop(self) -> T | None:
        """Take the value of this hub out; None if there was none.  Never switches."""
        kept = getattr(self._local, "kept", None)
        self._local.kept = None
        return kept[1] if kept is not None and kept[0] is get_hub() else None
