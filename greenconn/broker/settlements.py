"""Acks and rejects: kept until the turn of the hub ends, then sent to the broker together.

Dead letters are routed here, in a greenlet, so that a reject never waits and is not interrupted
half-way.

What the broker refuses without giving the messages back (Redis cannot write to its disk, a right was
taken away) is sent again whenever the leases are renewed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from greenconn.broker.dead_letters import dead_letter_entries
from greenconn.broker.port import Entry, Settlement
from greenconn.broker.settlement_port import Disposition, HeldDelivery, HeldMessage
from greenconn.exceptions import error_text
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Progress
from greenconn.green.supervisor import OnDemand, spawn

if TYPE_CHECKING:
    from greenconn.broker.leased_link import LeasedLink


logger = logging.getLogger("greenconn.broker")


class Settlements:
    """The acks, requeues and rejects of one link that are not sent yet.

    Arguments:
        link: has the ``settler`` that they are sent with.
    """

    def __init__(self, link: LeasedLink) -> None:
        self._link = link
        self._settler = link.settler
        #: Handles of acked messages, and the dispositions of others, in this turn.
        self._acks: list[Any] = []
        self._dispositions: list[Disposition] = []
        self._is_due = False
        #: What was sent and has no reply yet: handles in order, dispositions by number.
        self._sent_acks: deque[Sequence[Any]] = deque()
        self._sent_dispositions: dict[int, Sequence[Disposition]] = {}
        self._part = 0
        self._refused_acks: list[Any] = []
        self._refused_dispositions: list[Disposition] = []
        #: What is given up and why, in order; what is being routed stays in front.
        self._to_dead_letter: deque[tuple[HeldMessage, str]] = deque()
        self._postponed: list[tuple[HeldMessage, str]] = []
        self._routing = OnDemand("dead-letters", self._route)
        self._routing_progress = Progress()

    @property
    def is_routing(self) -> bool:
        """Whether dead letters are being routed."""
        return self._routing.greenlet is not None

    @property
    def is_answered(self) -> bool:
        """Whether all acks and dispositions that were sent have a reply."""
        return not (self._sent_acks or self._sent_dispositions)

    @property
    def refused(self) -> int:
        """The number of acks and rejects that the broker has refused, and that are sent again."""
        return len(self._refused_acks) + len(self._refused_dispositions) + len(self._postponed)

    # -- see :class:`~greenconn.broker.deliveries.Acknowledger`

    def ack(self, delivery: HeldDelivery) -> None:
        """Acknowledge a delivery.  Never switches."""
        self._acks.append(delivery.handle)
        if not self._is_due:
            self._schedule()

    def ack_late(self, tag: Any) -> None:
        """Acknowledge a delivery of a link that is lost.  Never switches."""
        self._link.handover.ack(tag)

    def unhandled_late(self, tags: Iterable[Any]) -> None:
        """Note that no handler has begun with deliveries whose link is gone.  Never switches."""
        self._link.handover.note_unhandled(tags)

    def requeue(self, deliveries: Iterable[HeldDelivery], unhandled: Collection[Any] = ()) -> None:
        """Requeue *deliveries*, at the heads of their queues.  Never switches.

        Arguments:
            unhandled: tags of those with which no handler has begun: they do not count as delivered.
        """
        for delivery in deliveries:
            if not delivery.is_held:
                self._settler.return_unheld(delivery)
                continue
            if delivery.delivery_tag in unhandled:
                self.settle(Disposition(delivery, Settlement.REQUEUE, is_unhandled=True))
                continue
            limit = self._link.directory.delivery_limit(delivery.queue)
            if limit is not None and delivery.deliveries + 1 >= limit:
                self.give_up(delivery, "delivery_limit")
            else:
                self.settle(Disposition(delivery, Settlement.REQUEUE))

    def replace(self, entries: Sequence[Entry], message: HeldMessage) -> None:
        """Store *entries* in the place of a message.  Never switches."""
        self.settle(Disposition(message, Settlement.ACK, entries=entries))

    def requeue_unseen(self, message: HeldMessage) -> None:
        """Requeue a message that no handler has seen.  Never switches."""
        self.settle(Disposition(message, Settlement.REQUEUE, is_unseen=True))

    def dead_letter(self, deliveries: Iterable[HeldDelivery], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  Never switches."""
        for delivery in deliveries:
            if delivery.is_held:
                self.give_up(delivery, reason)

    def forget(self, delivery: HeldDelivery) -> None:
        """Stop holding a delivery.  Never switches."""
        if delivery.is_held:
            delivery.is_held = False
            self.ack(delivery)

    # -- what leaves

    def settle(self, disposition: Disposition) -> None:
        """Send the disposition of a message when this turn ends.  Never switches."""
        self._dispositions.append(disposition)
        if not self._is_due:
            self._schedule()

    def take_over(self, acks: Sequence[Any], dispositions: Sequence[Disposition]) -> None:
        """Send what former lives have left.  Never switches."""
        self._acks += acks
        self._dispositions += dispositions
        if not self._is_due:
            self._schedule()

    def _schedule(self) -> None:
        link = self._link
        if link.lost is not None:
            acks, self._acks = self._acks, []
            dispositions, self._dispositions = self._dispositions, []
            link.handover.add(link, acks, dispositions)
            return
        self._settler.at_turn_end(self.flush)
        self._is_due = True

    def flush(self) -> None:
        """Send what this turn has brought.  Never switches; called when a turn ends."""
        self._is_due = False
        settler = self._settler
        try:
            acks, self._acks = self._acks, []
            limit = settler.ack_limit
            for start in range(0, len(acks), limit):
                self._send_acks(acks[start : start + limit])
            if self._dispositions:
                dispositions, self._dispositions = self._dispositions, []
                for part in settler.parts(dispositions):
                    self._send(part)
        except BaseException as exc:
            settler.interrupted(exc)
            raise

    def repeat(self) -> None:
        """Send again what was refused.  Never switches."""
        acks, self._refused_acks = self._refused_acks, []
        limit = self._settler.ack_limit
        for start in range(0, len(acks), limit):
            self._send_acks(acks[start : start + limit])
        dispositions, self._refused_dispositions = self._refused_dispositions, []
        for each in dispositions:
            self._send([each])  # by itself: it may be another one's fault
        postponed, self._postponed = self._postponed, []
        for message, reason in postponed:
            self.give_up(message, reason)

    def _send_acks(self, handles: Sequence[Any]) -> None:
        self._sent_acks.append(handles)
        self._settler.ack(handles, self._acked)

    def _send(self, dispositions: Sequence[Disposition]) -> None:
        self._part = part = self._part + 1
        self._sent_dispositions[part] = dispositions
        self._settler.settle(dispositions, partial(self._settled, part))

    def _acked(self, outcome: Any) -> None:
        if outcome is not None and self._is_refused(outcome, len(self._sent_acks[0])):
            if self._link.lost is not None:
                return
            self._refused_acks += self._sent_acks[0]
        self._sent_acks.popleft()

    def _settled(self, part: int, outcome: Any) -> None:
        dispositions = self._sent_dispositions[part]
        if outcome is not None and self._is_refused(outcome, len(dispositions)):
            if self._link.lost is not None:
                return
            self._refused_dispositions += dispositions
        del self._sent_dispositions[part]

    def _is_refused(self, outcome: Any, count: int) -> bool:
        """Return whether what was sent must be sent again."""
        if not isinstance(outcome, Exception):
            self._link.note_late(outcome)
            return False
        error = self._settler.error(outcome, "settling messages")
        if self._link.lost is None:
            spawn(
                "log",
                logger.error,
                "%s: %d acks or rejects are sent again later: %s",
                self._link.where,
                count,
                error_text(error),
                extra={"connection": self._link.where},
            )
        return True

    # -- dead letters

    def give_up(self, message: HeldMessage, reason: str) -> None:
        """Make a dead letter of a message, or drop it.  Never switches."""
        link = self._link
        if link.lost is not None:
            # It is requeued, and dead-lettered again by who gets it.
            link.handover.add(link, (), [Disposition(message, Settlement.REQUEUE)])
            return
        self._to_dead_letter.append((message, reason))
        self._routing.start()

    def _route(self) -> None:
        while self._to_dead_letter and self._link.lost is None:
            self._route_next()

    def _route_next(self) -> None:
        message, reason = self._to_dead_letter[0]
        disposition = self._dead_lettered(message, reason)
        if self._link.lost is not None:
            return  # the next life requeues it
        self._to_dead_letter.popleft()
        if disposition is None:
            self._postponed.append((message, reason))
        else:
            self.settle(disposition)
        self._routing_progress.advance(1)

    def _dead_lettered(self, message: HeldMessage, reason: str) -> Disposition | None:
        try:
            entries = dead_letter_entries(self._link, message, reason)
        except Exception as exc:
            self._link.failed(exc, "dead-lettering a message")
            return self._settler.postpone(message)
        if entries:
            return Disposition(message, Settlement.ACK, entries=entries)
        return Disposition(message, Settlement.REJECT)

    def wait_routed(self, deadline: Deadline = NEVER) -> None:
        """Wait until what was given up by now has left as well.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
            RecoverableConnectionError: the link went first.
        """
        self._routing_progress.wait(len(self._to_dead_letter), deadline)
        self.before_call()

    def before_call(self) -> None:
        """Send requeues before a call to the broker that would count them.  Never switches."""
        if self._dispositions:
            self.flush()

    # -- the end

    def unsettled(self) -> tuple[list[Any], list[Disposition]]:
        """Return what may not have reached the broker: handles of acks, and dispositions.

        Dead letters under way are requeued: the next life dead-letters them again.
        """
        acks = [each for page in self._sent_acks for each in page]
        dispositions = [each for part in self._sent_dispositions.values() for each in part]
        dying = [
            Disposition(message, Settlement.REQUEUE)
            for message, _ in (*self._postponed, *self._to_dead_letter)
        ]
        return (
            [*acks, *self._refused_acks, *self._acks],
            [*dispositions, *self._refused_dispositions, *self._dispositions, *dying],
        )

    def stop(self, exc: BaseException) -> None:
        """Send nothing more, as the link is gone.  Never switches."""
        self._is_due = False  # what comes now is the next life's at once
        self._routing_progress.fail(exc)
        self._to_dead_letter.clear()
        self._routing.end()
