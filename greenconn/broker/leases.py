"""Leases and their hand-over: the messages that a link holds are not redelivered as long as it lives.

What is held is renewed at the broker every third of a lease.  Nothing else keeps a message from being
redelivered, so a handler may run for as long as it likes.

A connection may be lost between an ack and the broker's reply, between a claim and its messages, and
while handlers run.  The next life sends every ack and reject again, which changes nothing where
the first had arrived.  It requeues the other messages at once, so that they need not wait for the end
of their lease; until then a handler may still ack them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.port import HeldMessage, Settlement, SettleRequest
from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import Ticker, log_blocked, spawn

if TYPE_CHECKING:
    from greenconn.broker.link import LeasedLink

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


class Handover:
    """Held messages of former lives, and their acks and rejects."""

    def __init__(self) -> None:
        #: The life that was begun last, until it is over: a closed connection keeps nothing of it.
        self._successor: LeasedLink | None = None
        self._requests: list[SettleRequest] = []
        #: Claims without a reply may have taken these.
        self._unconfirmed: list[HeldMessage] = []
        #: Delivery tag -> message, until it is acked.
        self._held: dict[Any, HeldMessage] = {}
        #: Of those, the ones that no handler has begun with.
        self._unhandled: set[Any] = set()

    def take(self, link: LeasedLink) -> None:
        """Take what the life of *link*, which is over, has left.  Never switches."""
        if self._successor is link:
            self._successor = None
        if not link.settler.outlives_link:
            return
        self._requests += link.settlements.unsettled()
        self._unconfirmed += link.settler.unconfirmed_claims()
        for each in link.held():
            if each.is_held:
                self._held[each.delivery_tag] = each.claimed

    def ack(self, tag: Any) -> None:
        """Acknowledge a message of a former life.  Never switches."""
        kept = self._held.pop(tag, None)
        if kept is not None:
            self._requests.append(SettleRequest(kept, Settlement.ACK))
            self._unhandled.discard(tag)

    def note_unhandled(self, tags: Iterable[Any]) -> None:
        """Note that no handler has begun with messages of a former life.  Never switches."""
        self._unhandled.update(tag for tag in tags if tag in self._held)

    def add(self, link: LeasedLink, requests: Sequence[SettleRequest]) -> None:
        """Take what was settled when the life of *link* was over.  Never switches."""
        if link.is_inherited or not link.settler.outlives_link:
            return
        successor = self._successor
        if successor is not None:
            successor.settlements.take_over(requests)
        else:
            self._requests += requests

    def left(self) -> list[HeldMessage]:
        """Return the messages that the next life requeues.  Never switches."""
        back = [each.message for each in self._requests if each.settlement is Settlement.REQUEUE]
        return [*back, *self._held.values(), *self._unconfirmed]

    def pass_on(self, link: LeasedLink) -> None:
        """Have *link* send and requeue everything.  May switch.

        What was not requeued when that fails stays for the next life.
        """
        self._successor = link
        requests, self._requests = self._requests, []
        if requests:
            link.settlements.take_over(requests)
        held, unconfirmed = dict(self._held), list(self._unconfirmed)
        if held or unconfirmed:
            begun = [each for tag, each in held.items() if tag not in self._unhandled]
            unhandled = [each for tag, each in held.items() if tag in self._unhandled]
            link.settler.reclaim(begun, unhandled, unconfirmed)
        for tag in held:
            self._held.pop(tag, None)
            self._unhandled.discard(tag)
        del self._unconfirmed[: len(unconfirmed)]
