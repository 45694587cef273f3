"""Acks and rejects: kept until the turn of the hub ends, then told the store together.

What goes to a dead-letter exchange is routed here, too, so that whoever rejects never waits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from greenconn.broker.dead_letters import dead_letter, is_cycle, target_of
from greenconn.broker.port import Answer, Claimed, Settlement
from greenconn.exceptions import NotFound
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.delivery import StoreDelivery
    from greenconn.broker.link import StoreLink

__all__ = ["Answers"]

logger = logging.getLogger("greenconn.broker")


class _Unsettled(NamedTuple):
    """One answer: of a message of *queue*, or of one that is given up for a *reason*."""

    queue: str
    answer: Answer
    dead: Claimed | None = None
    reason: str = ""


class Answers:
    """What the channels of one link have answered and the store was not told yet."""

    __slots__ = ("_alone", "_greenlet", "_link", "_pending", "_settled", "_waiters")

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        #: In order; what is being told stays in front until it was told.
        self._pending: deque[_Unsettled] = deque()
        self._greenlet: Greenlet[..., Any] | None = None
        self._settled = 0
        #: So many in front were refused together: they are told one by one.
        self._alone = 0
        #: (how many must be settled, who waits for it), in order.
        self._waiters: deque[tuple[int, Slot[None]]] = deque()

    # -- see :class:`~greenconn.broker.deliveries.Acknowledger`

    def done(self, delivery: StoreDelivery) -> None:
        """Tell the store that a delivery was handled.  Never switches."""
        self._add(_Unsettled(delivery.queue, Answer(delivery.claimed.handle, Settlement.DONE)))

    def done_late(self, tag: str) -> None:
        """Note that a delivery was handled whose link is gone.  Never switches."""
        self._link.transport.handover.ack(tag)

    def give_back(self, deliveries: Iterable[StoreDelivery]) -> None:
        """Put *deliveries* back to the heads of their queues.  Never switches."""
        for delivery in deliveries:
            if not delivery.is_held:
                continue
            claimed = delivery.claimed
            limit = self._link.directory.delivery_limit(claimed.queue)
            if limit is not None and claimed.deliveries + 1 >= limit:
                self.give_up(claimed, "delivery_limit")
            else:
                self.back(claimed.queue, claimed.handle)

    def return_unseen(self, delivery: StoreDelivery) -> None:
        """Put a delivery back that nobody has seen.  Never switches."""
        self.back(delivery.queue, delivery.claimed.handle, is_unseen=True)

    def dead_letter(self, deliveries: Iterable[StoreDelivery], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  Never switches."""
        for delivery in deliveries:
            if delivery.is_held:
                self.give_up(delivery.claimed, reason)

    # -- what was claimed

    def back(self, queue: str, handle: Any, *, is_unseen: bool = False) -> None:
        """Others may have a message.  Never switches."""
        self._add(_Unsettled(queue, Answer(handle, Settlement.BACK, is_unseen=is_unseen)))

    def give_up(self, claimed: Claimed, reason: str) -> None:
        """A message is a dead letter.  Never switches."""
        answer = Answer(claimed.handle, Settlement.REFUSED)
        self._add(_Unsettled(claimed.queue, answer, claimed, reason))

    def add(self, queue: str, answer: Answer) -> None:
        """Tell an answer of a former life.  Never switches."""
        self._add(_Unsettled(queue, answer))

    def _add(self, unsettled: _Unsettled) -> None:
        link = self._link
        if link.lost is not None:
            link.transport.handover.add(link, *_to_hand_over(unsettled))
            return
        if self._greenlet is None:
            # It runs behind all that can run now: what they answer is told with this.
            self._greenlet = spawn("settle", self._run)
        self._pending.append(unsettled)

    def flush(self, deadline: Deadline = NEVER) -> None:
        """Wait until the store was told all that was answered by now.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
            RecoverableConnectionError: the link went first.
        """
        if self._pending:
            slot: Slot[None] = Slot()
            self._waiters.append((self._settled + len(self._pending), slot))
            slot.wait(deadline)

    def unsettled(self) -> list[tuple[str, Answer]]:
        """What nobody knows to have reached the store, by queue.

        What was given up goes back: it will be rejected once more.
        """
        return [_to_hand_over(each) for each in self._pending]

    def stop(self, exc: BaseException) -> None:
        """The link is gone.  Never switches."""
        waiters, self._waiters = self._waiters, deque()
        for _, slot in waiters:
            slot.fail(exc)
        if self._greenlet is not None:
            self._link.kill([self._greenlet])

    def _run(self) -> None:
        current = self._link.current()
        if self._greenlet not in (None, current):
            return  # whoever began this one was interrupted, and another one was begun
        self._greenlet = current
        try:
            while self._pending and self._link.lost is None:
                self._settle()
        finally:
            self._greenlet = None

    def _settle(self) -> None:
        link = self._link
        count = 1 if self._alone else min(len(self._pending), link.store.settle_limit)
        batch = [self._pending[n] for n in range(count)]
        answers: list[Answer] = []
        try:
            for each in batch:
                answers.append(each.answer if each.dead is None else self._dead_lettered(each))
                if link.lost is not None:
                    return  # what is pending goes to the next life
            late = link.store.settle(answers)
        except BaseException as exc:
            link.failed(exc, "answering")
            if not isinstance(exc, Exception):
                raise
            if link.lost is not None:
                return
            if count > 1:
                self._alone = count  # one that is refused must not harm the others
                return
        else:
            if late:
                link.leases.note_late(late)
        self._alone = max(self._alone - 1, 0)
        for _ in batch:
            self._pending.popleft()
        self._settled += count
        while self._waiters and self._waiters[0][0] <= self._settled:
            self._waiters.popleft()[1].offer(None)
        self._wake(batch, answers)

    def _dead_lettered(self, each: _Unsettled) -> Answer:
        """Make a dead letter of a message; where the broker refuses that, it is tried again later."""
        assert each.dead is not None
        link = self._link
        try:
            return dead_letter_answer(link, each.dead, each.reason)
        except Exception as exc:
            link.failed(exc, "moving a dead letter")
            return each.answer._replace(settlement=Settlement.BACK, delay=link.store.lease or 0.0)

    def _wake(self, batch: list[_Unsettled], answers: list[Answer]) -> None:
        queues = {
            each.queue
            for each, answer in zip(batch, answers, strict=False)
            if answer.settlement is Settlement.BACK
        }
        queues.update(entry.queue for answer in answers for entry in answer.entries)
        for queue in queues:
            self._link.ripen(queue)


def _to_hand_over(unsettled: _Unsettled) -> tuple[str, Answer]:
    if unsettled.dead is None:
        return unsettled.queue, unsettled.answer
    return unsettled.queue, Answer(unsettled.answer.handle, Settlement.BACK)


def dead_letter_answer(link: StoreLink, claimed: Claimed, reason: str) -> Answer:
    """Return the answer that makes a dead letter of a claimed message.  May switch.

    Arguments:
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.
    """
    refused = Answer(claimed.handle, Settlement.REFUSED)
    target = target_of(
        claimed.queue, link.directory.look(claimed.queue).policy, link.options.dead_letter_queue
    )
    if target is None:
        return refused
    if claimed.envelope is None:
        return refused  # it cannot be read, and nobody could say what it was
    try:
        letter = dead_letter(claimed.envelope, claimed.queue, *target, reason)
    except Exception:  # there is nothing that an envelope of a stranger cannot be
        return refused
    try:
        queues = link.routing.routes(
            target.exchange, letter["properties"]["delivery_info"]["routing_key"], letter["headers"]
        )
    except NotFound:
        logger.error(
            "%s: dead letters of queue %r are dropped: there is no exchange %r",
            link.where,
            claimed.queue,
            target.exchange,
        )
        return refused
    deaths = letter["headers"]["x-death"]
    if reason != "rejected":
        queues = [each for each in queues if not is_cycle(each, deaths)]
    if not queues:
        return refused
    entries = link.entries(letter, queues)
    return Answer(claimed.handle, Settlement.DONE, entries=entries)
