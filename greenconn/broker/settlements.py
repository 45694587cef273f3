"""Acks, requeues and rejects: kept until the turn of the hub ends, then sent to the broker together.

A message is held from its claim until it is settled.  Nothing waits for the reply to an ack: a callback
runs when the broker has it.  The parts that are the same for all brokers (settlements, leases,
dead letters, the hand-over to the next life) know a broker as a :class:`MessageSettler`.

Dead letters are routed here, in a greenlet, so that a reject never waits and is not interrupted
half-way.

What the broker refuses without giving the messages back (Redis cannot write to its disk, a right was
taken away) is sent again whenever the leases are renewed.

For a store whose calls block, a greenlet of :class:`StoreSettler` calls it behind all that can
run when the first ack or reject of a turn comes, so that those of the other greenlets go with it.
"""

from __future__ import annotations

import logging
from binascii import b2a_base64
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Protocol

from greenconn.broker.dead_letters import dead_letter_entries
from greenconn.broker.envelope import Envelope
from greenconn.broker.port import (
    Claimed,
    Disposition,
    Done,
    Entry,
    HeldMessage,
    Settlement,
    SettleRequest,
)
from greenconn.exceptions import error_text
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Progress
from greenconn.green.supervisor import OnDemand, spawn
from greenconn.identity import uuid
from greenconn.jsoncodec import dumps

if TYPE_CHECKING:
    from greenconn.broker.envelope import Delivery
    from greenconn.broker.link import LeasedLink, StoreLink


class MessageSettler(Protocol):
    """The commands of one link about messages that it holds.

    Nothing here switches but :meth:`reclaim`.  *done* is called once, for acks in the order in which
    they were given; not when the broker is lost: what was sent then is sent again by the next life,
    which changes nothing where it had arrived.

    Attributes:
        ack_limit: handles that one call may have.
        lease: seconds that a message is held without renewal; None: as long as the link lives.
        outlives_link: the next life of a connection can settle what this one has claimed.
        renewal_interval: seconds between two renewals; None: there is nothing to renew.
    """

    @property
    def lease(self) -> float | None: ...
    @property
    def renewal_interval(self) -> float | None: ...
    @property
    def ack_limit(self) -> int: ...
    @property
    def outlives_link(self) -> bool: ...

    def ack(self, handles: Sequence[Any], done: Done) -> None:
        """Acknowledge messages."""

    def parts(self, dispositions: Sequence[Disposition]) -> Iterable[Sequence[Disposition]]:
        """Cut what one turn has brought into what :meth:`settle` takes, in the order for it."""

    def settle(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them."""

    def return_unheld(self, delivery: Any) -> None:
        """Requeue a delivery that is not held, where that can be done."""

    def unread(self, message: HeldMessage) -> Envelope:
        """Return the envelope of a dead letter that cannot be read; an empty one: it moves as it is."""

    def postpone(self, message: HeldMessage) -> Disposition | None:
        """Return what becomes of a message that cannot become a dead letter now.

        None: it stays held, and it is tried again when the leases are renewed.
        """

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew, and say that the link lives, also with none.

        *done* gets the handles whose leases had ended, None, or an Exception.
        """

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return messages that claims without a reply may have taken; only their handles count.

        Asked for when the link ends.
        """

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have claimed.  May switch."""

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run."""

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception that an outcome stands for; what ends the link ends it."""

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since the outcome of what was sent is unknown."""


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

    def ack(self, delivery: Delivery) -> None:
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

    def requeue(self, deliveries: Iterable[Delivery], unhandled: Collection[Any] = ()) -> None:
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

    def dead_letter(self, deliveries: Iterable[Delivery], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them.  Never switches."""
        for delivery in deliveries:
            if delivery.is_held:
                self.give_up(delivery, reason)

    def forget(self, delivery: Delivery) -> None:
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


_REQUEST: Final = itemgetter(0)


class _SettleBatch:
    """Settlements of one call: the number that the store has not got yet, and its callback."""

    __slots__ = ("done", "late", "left")

    def __init__(self, count: int, done: Done) -> None:
        self.left = count
        self.done = done
        self.late = 0


class StoreSettler:
    """See :class:`~greenconn.broker.settlements.MessageSettler`."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._store = link.store
        self.ack_limit = link.store.settle_limit
        self.outlives_link = link.store.outlives_link
        #: To be called when the turn ends.
        self._due: list[Callable[[], None]] = []
        #: Requests, the queues that may have messages then, and their group, in order;
        #: what is on its way stays in front until it has arrived.
        self._pending: deque[tuple[SettleRequest, Iterable[str], _SettleBatch]] = deque()
        self._settling = OnDemand("settle", self._settle)
        self._progress = Progress()
        #: So many in front were refused together: they are sent one by one.
        self._alone = 0
        self._renewals: deque[tuple[Sequence[Any], Done]] = deque()
        self._renewing = OnDemand("renew", self._renew)

    @property
    def lease(self) -> float | None:
        """Seconds that a claim lasts; None: as long as the store's connection."""
        return self._store.lease

    @property
    def renewal_interval(self) -> float | None:
        """Seconds between two renewals."""
        lease = self._store.lease
        return None if lease is None else lease / 3

    @property
    def is_busy(self) -> bool:
        """Whether some requests have not reached the store."""
        return self._settling.greenlet is not None

    # -- see :class:`~greenconn.broker.settlements.MessageSettler`

    def ack(self, handles: Sequence[Any], done: Done) -> None:
        """Acknowledge messages.  Never switches."""
        part = _SettleBatch(len(handles), done)
        for each in handles:
            self._pending.append((SettleRequest(each, Settlement.ACK), (), part))
        self._settling.start()

    def parts(self, dispositions: Sequence[Disposition]) -> Iterable[Sequence[Disposition]]:
        """Cut what one turn has brought into what one call may settle."""
        limit = self._store.settle_limit
        return [dispositions[at : at + limit] for at in range(0, len(dispositions), limit)]

    def settle(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them.  Never switches."""
        part = _SettleBatch(len(dispositions), done)
        for each in dispositions:
            message, settlement, delay, entries, is_unseen, is_unhandled = each
            request = SettleRequest(
                message.handle, settlement, delay, entries, is_unseen, is_unhandled
            )
            queues = [entry.queue for entry in entries]
            if settlement is Settlement.REQUEUE:
                queues.append(message.queue)
            self._pending.append((request, queues, part))
        self._settling.start()

    def return_unheld(self, delivery: Any) -> None:
        """Do nothing: its lease has ended, so that it is back."""

    def unread(self, message: HeldMessage) -> Envelope:
        """Return an envelope with what cannot be read as its body."""
        body = message.raw or dumps(message.envelope).encode()
        encoding = self._store.body_encoding
        return {
            "body": b2a_base64(body, newline=False).decode() if encoding else body,
            "content-type": None,
            "content-encoding": None,
            "headers": {},
            "properties": {"body_encoding": encoding, "delivery_tag": uuid()},
        }

    def postpone(self, message: HeldMessage) -> Disposition:
        """Requeue a message after a lease; it is dead-lettered again then."""
        return Disposition(message, Settlement.REQUEUE, delay=self._store.lease or 0.0)

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        self._renewals.append((handles, done))
        self._renewing.start()

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return messages that claims without a reply may have taken.  Never switches."""
        return [Claimed(queue, None, handle) for queue, handle in self._store.unconfirmed_claims()]

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have claimed.  Never switches."""
        dispositions = [Disposition(each, Settlement.REQUEUE) for each in held]
        dispositions += [
            Disposition(each, Settlement.REQUEUE, is_unhandled=True) for each in unhandled
        ]
        dispositions += [
            Disposition(each, Settlement.REQUEUE, is_unseen=True) for each in unconfirmed
        ]
        self._link.settlements.take_over((), dispositions)

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run.  Never switches."""
        self._settling.start()
        self._due.append(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return *outcome*, which is never a failure: those are logged where they come from."""
        return outcome

    def interrupted(self, exc: BaseException) -> None:
        """End the link.  Never switches."""
        self._link.failed(exc, "settling messages")

    # -- the store's side

    def wait(self, deadline: Deadline = NEVER) -> None:
        """Wait until the store has all acks and rejects up to now.  May switch.

        Raises:
            TimeoutError: it was not before the deadline.
            RecoverableConnectionError: the link went first.
        """
        self._progress.wait(len(self._pending), deadline)

    def stop(self, exc: BaseException) -> None:
        """End, since the link is gone.  Never switches."""
        self._progress.fail(exc)
        self._pending.clear()
        self._renewals.clear()
        self._settling.end()
        self._renewing.end()

    def _settle(self) -> None:
        # It runs behind all that could run when it was started: their acks leave with these.
        while (self._due or self._pending) and self._link.lost is None:
            due, self._due = self._due, []
            for callback in due:
                callback()
            if self._pending:
                self._settle_batch()

    def _settle_batch(self) -> None:
        """Settle as many requests as one call may have.  May switch."""
        link = self._link
        count = 1 if self._alone else min(len(self._pending), self._store.settle_limit)
        batch = list(islice(self._pending, count))
        late: int | None = None
        try:
            late = self._store.settle(list(map(_REQUEST, batch)))
        except BaseException as exc:
            link.failed(exc, "settling messages")
            if not isinstance(exc, Exception):
                raise
            if link.lost is not None:
                return
            if count > 1:
                self._alone = count  # one that is refused must not harm the others
                return
        if link.lost is not None:
            return  # with the reply: the next life settles again what this one held
        self._alone = max(self._alone - 1, 0)
        batch[-1][2].late += late or 0
        for _ in batch:
            self._pending.popleft()
        try:
            for _, _, part in batch:
                part.left -= 1
                if not part.left:
                    part.done(part.late or None)
        finally:
            self._progress.advance(count)
        for _, queues, _ in batch:
            for queue in queues:
                link.wake(queue)

    def _renew(self) -> None:
        while self._renewals and self._link.lost is None:
            handles, done = self._renewals.popleft()
            gone: Sequence[Any] = ()
            try:
                gone = self._store.renew(handles)
            except BaseException as exc:
                self._link.failed(exc, "renewing leases")
                if not isinstance(exc, Exception):
                    raise
            done(gone)
