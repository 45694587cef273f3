"""Leases: the messages that a link holds are not redelivered as long as it lives.

What is held is renewed at the broker every third of a lease.  Nothing else keeps a message from being
redelivered, so a handler may run for as long as it likes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.green.ticker import Ticker, log_blocked

if TYPE_CHECKING:
    from greenconn.broker.leased_link import LeasedLink


logger = logging.getLogger("greenconn.broker")

#: Leases that one call renews.
RENEWALS: Final = 500


class Leases:
    """Renews what one link holds.

    Attributes:
        lost: messages whose lease had ended before it was renewed, or before they were settled.
    """

    def __init__(self, link: LeasedLink) -> None:
        self._link = link
        self.lost = 0
        self._ticker: Ticker | None = None
        #: Calls without a reply.
        self._under_way = 0

    def start(self) -> None:
        """Renew from now on.  A second call does nothing.  Never switches."""
        interval = self._link.settler.renewal_interval
        if interval is not None and self._ticker is None:
            self._ticker = Ticker(interval, self._tick, "leases")
            self._ticker.start()

    def stop(self) -> None:
        """Renew no more.  Never switches."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def _tick(self, lag: float) -> None:
        # In the hub.
        assert self._ticker is not None
        link, interval = self._link, self._ticker.interval
        if lag > interval:
            log_blocked(logger, link.where, lag, interval)
        if not self._under_way:
            self.renew()
        link.settlements.repeat()

    def renew(self) -> None:
        """Tell the broker what is held.  Never switches."""
        link = self._link
        handles = [each.handle for each in link.held() if each.is_held]
        for start in range(0, max(len(handles), 1), RENEWALS):
            self._under_way += 1
            link.settler.renew(handles[start : start + RENEWALS], self._renewed)

    def confirm(self, handle: Any, deadline: Deadline) -> bool:
        """Renew the lease of one message, and return whether it had not ended.  May switch.

        Raises:
            TimeoutError: the broker has not replied before the deadline.
            Exception: it refuses.
        """
        link, slot = self._link, Slot[Any]()
        link.settler.renew([handle], slot.offer)
        outcome = slot.wait(deadline)
        if isinstance(outcome, Exception):
            raise link.settler.error(outcome, "renewing a lease")
        if outcome:
            self._note_lost(outcome)
        return not outcome

    def _renewed(self, outcome: Any) -> None:
        link = self._link
        self._under_way -= 1
        if isinstance(outcome, Exception):
            error = link.settler.error(outcome, "renewing leases")
            if link.lost is None:
                spawn(
                    "log",
                    logger.error,
                    "%s",
                    error_text(error),
                    extra={"connection": self._link.where},
                )
        elif outcome:
            self._note_lost(outcome)

    def _note_lost(self, handles: Any) -> None:
        late = 0
        for each in self._link.held():
            # A handle may be of any kind, so that it cannot be looked up in a set.
            if each.is_held and each.handle in handles:
                each.is_held = False
                late += 1
        if late:
            self._note(late, "before it was renewed")

    def note_late(self, late: int) -> None:
        """Note that so many acks came too late.  Never switches."""
        self._note(late, "before they were acknowledged")

    def _note(self, late: int, when: str) -> None:
        self.lost += late
        spawn("lease-lost", self._call_handlers, late, when)

    def _call_handlers(self, late: int, when: str) -> None:
        link = self._link
        logger.warning(
            "%s: the lease (%g s) of %d messages expired %s, as the process was stopped or busy "
            "for longer, so they are redelivered (lease_lost)",
            link.where,
            link.settler.lease or 0.0,
            late,
            when,
            extra={"connection": link.where},
        )
        for channel in list(link.channels.values()):
            for handler in list(channel.events.get("lease_lost", ())):
                handler(late)
