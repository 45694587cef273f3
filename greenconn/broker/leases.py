"""Leases: what a link holds is kept from coming back as long as it lives.

Every third of a lease the store is told what is held.  Nothing else keeps a message from being given
to somebody else, so a handler may run for as long as it likes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from greenconn.green.blocking_monitor import tell_blocked
from greenconn.green.supervisor import spawn
from greenconn.green.ticker import Ticker

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.delivery import StoreDelivery
    from greenconn.broker.link import StoreLink

__all__ = ["Leases"]

logger = logging.getLogger("greenconn.broker")

#: Leases that one call renews.
RENEWALS: Final = 500


class Leases:
    """Renews what one link holds.

    Attributes:
        lost: leases that had ended before they were renewed.
    """

    __slots__ = ("__weakref__", "_greenlet", "_link", "_ticker", "lost")

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self.lost = 0
        self._ticker: Ticker | None = None
        self._greenlet: Greenlet[..., Any] | None = None

    def start(self) -> None:
        """Renew from now on.  Never switches."""
        seconds = self._link.store.lease
        if seconds is not None:
            self._ticker = Ticker(seconds / 3, self._tick, "leases")
            self._ticker.start()

    def stop(self) -> None:
        """Renew no more.  Never switches."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()
        if self._greenlet is not None:
            self._link.kill([self._greenlet])

    def _tick(self, lag: float) -> None:
        # In the hub.
        assert self._ticker is not None
        interval = self._ticker.interval
        if lag > interval:
            tell_blocked(logger, self._link.where, lag, interval)
        if self._greenlet is None:
            self._greenlet = spawn("renew", self._renew)

    def _renew(self) -> None:
        link = self._link
        try:
            held = [each for each in link.held() if each.is_held]
            late = 0
            for start in range(0, max(len(held), 1), RENEWALS):
                late += self._renew_page(held[start : start + RENEWALS])
            if late:
                self._tell(late, "before it was renewed")
        except BaseException as exc:
            link.failed(exc, "renewing leases")
            if not isinstance(exc, Exception):
                raise
        finally:
            self._greenlet = None

    def _renew_page(self, page: list[StoreDelivery]) -> int:
        """Renew some and return how many of them were lost, and not answered meanwhile."""
        gone = self._link.store.renew([each.handle for each in page])
        if not gone:
            return 0
        late = 0
        for each in page:
            # A handle may be of any kind, so that it cannot be looked up in a set.
            if each.handle in gone and each.is_held and each.is_unanswered:
                each.is_held = False
                late += 1
        return late

    def note_late(self, late: int) -> None:
        """So many answers came too late.  May switch."""
        self._tell(late, "when it was answered")

    def _tell(self, late: int, when: str) -> None:
        link = self._link
        self.lost += late
        logger.warning(
            "%s: the lease of %s s of %d messages had ended %s (the process was stopped or busy for "
            "that long): they are or will be handled once more (lease_lost)",
            link.where,
            link.store.lease,
            late,
            when,
        )
        for channel in list(link.channels.values()):
            for handler in list(channel.events.get("lease_lost", ())):
                handler(late)
