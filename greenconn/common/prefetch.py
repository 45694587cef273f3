"""A prefetch that changes while messages are handled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gevent.lock import RLock

from greenconn.log import get_logger

__all__ = ["PREFETCH_COUNT_MAX", "QoS"]

#: The largest prefetch that the protocol can say.
PREFETCH_COUNT_MAX: Final = 0xFFFF

logger = get_logger("greenconn.common")


class QoS:
    """A prefetch that changes now and then, and is told to the broker when its owner finds time.

    :meth:`increment_eventually` and :meth:`decrement_eventually` may be called from anywhere;
    :meth:`update` by who may talk to the broker.

    Arguments:
        callback: called as ``callback(prefetch_count=...)``: ``consumer.qos``, ``channel.basic_qos``.
        initial_value: messages; 0 or None is no limit, and stays so.
        max_prefetch: the limit never grows above it; None is no bound.

    Attributes:
        value: the wanted limit.
        prev: the limit that the broker was told last.
    """

    prev: int | None = None

    def __init__(
        self,
        callback: Callable[..., Any],
        initial_value: int | None,
        max_prefetch: int | None = None,
    ) -> None:
        self.callback = callback
        self.value = initial_value or 0
        self.max_prefetch = max_prefetch
        #: Held for no longer than it takes to count, so that nobody waits for the broker here.
        self._counting = RLock()
        #: Held while the broker is told, so that ``prev`` is what it heard last.
        self._telling = RLock()

    def increment_eventually(self, n: int = 1) -> int:
        """Raise the wanted limit by *n*, if there is one; return it."""
        with self._counting:
            if self.value:
                value = self.value + max(n, 0)
                self.value = value if self.max_prefetch is None else min(value, self.max_prefetch)
            return self.value

    def decrement_eventually(self, n: int = 1) -> int:
        """Lower the wanted limit by *n*, to no less than 1, if there is one; return it."""
        with self._counting:
            if self.value:
                self.value = max(self.value - n, 1)
            return self.value

    def set(self, pcount: int) -> int:
        """Tell the broker that the limit is *pcount*, unless it knows; return it.  May switch."""
        with self._telling:
            if pcount != self.prev:
                told = pcount
                if pcount > PREFETCH_COUNT_MAX:
                    logger.warning(
                        "prefetch_count %d is above %d: no limit is set", pcount, PREFETCH_COUNT_MAX
                    )
                    told = 0
                logger.debug("prefetch_count: %d", told)
                self.callback(prefetch_count=told)
                self.prev = pcount
        return pcount

    def update(self) -> int:
        """Tell the broker the wanted limit; return it.  May switch."""
        with self._telling:
            return self.set(self.value)
