"""The unacknowledged deliveries of one channel.

Theory.  A delivery is in :attr:`Deliveries.unacked` from its hand-over to a consumer, or its return by
``basic_get``, until it is settled: acked, requeued, dead-lettered or dropped.  The rules:

- A delivery is taken out of ``unacked`` before the acknowledger is called, so that it is settled once,
  even if another greenlet acks it while a dead letter is published.  After a failure the deliveries
  that were not sent are put back, and can be settled again.
- A delivery of a consumer that acks counts against the prefetch of the consumer and of its channel.
  Whatever settles it ends in :meth:`Deliveries._free` (or its copy in the hot path of ``ack``), which
  counts it off and wakes the consumers that have room again.
- A delivery of a consumer with ``no_ack`` counts nowhere.  It is here because the broker may hold the
  message (``is_held``) until the program takes it, which acks it.  ``multiple`` does not include it.
- Messages that no handler has seen are requeued when their consumer stops.  Their tags are passed as
  *unhandled*, since a redelivery of them must not count as a failed attempt.
- On a lost link nothing can be sent.  An ack is left to the hand-over, which sends it on the next link;
  rejects and requeues do nothing, since the next link requeues all messages that are not acked.

Cost: an ack changes one dict and two counters; the acknowledger sends the acks of a turn together.

Leases: the messages that a link holds are not redelivered as long as it lives.  What is held is renewed
at the broker every third of a lease.  Nothing else keeps a message from being redelivered, so a handler
may run for as long as it likes.

A connection may be lost between an ack and the broker's reply, between a claim and its messages, and
while handlers run.  The next life sends every ack and reject again, which changes nothing where
the first had arrived.  It requeues the other messages at once, so that they need not wait for the end
of their lease; until then a handler may still ack them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from gevent import get_hub

from greenconn.broker.consuming import Consumer
from greenconn.broker.errors import Method, no_recover_in_place, unknown_delivery_tag
from greenconn.broker.port import HeldMessage, Settlement, SettleRequest
from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import Ticker, log_blocked, spawn

if TYPE_CHECKING:
    from typing import TypeAlias

    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.envelope import Delivery
    from greenconn.transport.memory.broker import Message

    DeliveredMessage: TypeAlias = Delivery | Message
    from greenconn.broker.link import LeasedLink


logger = logging.getLogger("greenconn.broker")


class Acknowledger(Protocol):
    """The sender of the acks, requeues and rejects of one link.

    Its methods never switch, save where they say so and where the hooks of a kombu transport do.
    """

    def ack(self, delivery: Any) -> None:
        """Acknowledge a delivery."""

    def ack_late(self, tag: Any) -> None:
        """Acknowledge a delivery of a lost link."""

    def unhandled_late(self, tags: Iterable[Any]) -> None:
        """Note that no handler has begun with deliveries whose link is gone."""

    def requeue(self, deliveries: Iterable[Any], unhandled: Collection[Any] = ()) -> None:
        """Requeue deliveries, each at the head of its queue.

        Arguments:
            unhandled: tags of the deliveries that no handler has seen.  They do not count as an
                attempt, if the broker distinguishes that.
        """

    def requeue_unseen(self, delivery: Any) -> None:
        """Requeue a delivery that no handler has seen."""

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        """Publish deliveries to the dead-letter exchange of their queue, or drop them.  May switch.

        Arguments:
            reason: the reason in the ``x-death`` header, as "rejected".
        """


class Deliveries:
    """The unacknowledged deliveries of one channel.

    Arguments:
        channel: the channel, whose prefetch they count against.
        acknowledger: the acknowledger of its link.

    Attributes:
        unacked: delivery tags -> deliveries, in the order of delivery.
    """

    __slots__ = ("_acknowledger", "_channel", "_hub", "_link", "_prefetch", "unacked")

    def __init__(self, channel: StoreChannel[Any], acknowledger: Acknowledger) -> None:
        self._channel = channel
        self._link = channel.connection
        self._hub = channel.connection.hub_affinity.hub
        self._prefetch = channel.prefetch
        self._acknowledger = acknowledger
        self.unacked: dict[Any, Any] = {}

    def hold(self, consumer: Consumer, delivery: Any) -> None:
        """Add a delivery to a consumer of this channel.  Never switches."""
        self.unacked[delivery.delivery_tag] = delivery
        if not consumer.no_ack:
            consumer.unacked += 1
            prefetch = self._prefetch
            prefetch.in_flight += 1
            if prefetch.limit:
                consumer.turn = prefetch.next_turn(consumer.turn)

    # -- acks, requeues and rejects

    def ack(self, tag: Any, multiple: bool) -> None:
        """Acknowledge a delivery.  Never switches.

        Arguments:
            tag: its delivery tag.
            multiple: whether to acknowledge all deliveries up to it, too; with tag 0 all.

        Raises:
            PreconditionFailed: the channel has no unacknowledged delivery with that tag.
            RecoverableChannelError: the channel was closed.
            WrongHub: called from another thread.
        """
        if get_hub() is not self._hub or self._channel.cause is not None:
            if self._link.lost is not None:  # its channels are closed, too
                self._acknowledger.ack_late(tag)
                return
            self._channel.check_open()
        if multiple:
            self._ack_all(self._up_to(tag))
            return
        delivery = self.unacked.get(tag)
        if delivery is None:
            raise unknown_delivery_tag(tag, Method.BASIC_ACK)
        try:
            del self.unacked[tag]
            if delivery.is_held:
                self._acknowledger.ack(delivery)
            consumer = delivery.consumer
            if consumer is not None and not consumer.no_ack:
                consumer.unacked -= 1
                prefetch = self._prefetch
                prefetch.in_flight -= 1
                if prefetch.limit:
                    self._channel.serve()
                elif consumer.is_parked:
                    consumer.wake()
        except BaseException as exc:
            if not self._link.settling_may_fail:
                self._link.interrupted(exc)
            raise

    def replace(self, tag: Any, queue: str, replace: Callable[[Any], object]) -> bool:
        """Call *replace* with a delivery from *queue*, which settles it.  Never switches.

        Returns:
            False: the broker does not hold it for this channel any more, and nothing was done.
        """
        delivery = self.unacked.get(tag)
        if (
            self._link.lost is not None
            or delivery is None
            or not delivery.is_held
            or delivery.queue != queue
        ):
            return False
        del self.unacked[tag]
        replace(delivery)
        self._free([delivery])
        return True

    def reject(self, tag: Any, requeue: bool, *, multiple: bool = False) -> None:
        """Reject a delivery.  May switch.

        Arguments:
            tag: its delivery tag.
            requeue: whether to requeue it; otherwise it is dead-lettered or dropped.
            multiple: whether to reject all deliveries up to it, too; with tag 0 all.

        Raises:
            PreconditionFailed: the channel has no unacknowledged delivery with that tag.
            RecoverableChannelError: the channel was closed.
            WrongHub: called from another thread.
        """
        if self._link.lost is not None:
            return
        self._channel.check_open()
        if multiple:
            self._refuse(self._up_to(tag), requeue)
            return
        delivery = self.unacked.get(tag)
        if delivery is None:
            raise unknown_delivery_tag(tag, Method.BASIC_REJECT)
        self._refuse([delivery], requeue)

    def requeue_unseen(self, tag: Any) -> None:
        """Requeue a delivery that no handler has seen.  May switch.

        If it was settled before, or the channel or the link is gone, nothing is done.

        Raises:
            WrongHub: called from another thread.
        """
        if self._link.lost is not None:
            self._acknowledger.unhandled_late((tag,))
            return
        if self._channel.cause is not None:
            return
        self._channel.check_open()
        delivery = self.unacked.get(tag)
        if delivery is not None:
            self._refuse([delivery], True, (tag,))

    def recover(self, requeue: bool) -> None:
        """Requeue all unacknowledged deliveries.  Never switches.

        Arguments:
            requeue: must be true.

        Raises:
            AMQPNotImplementedError: *requeue* is false, which RabbitMQ does not implement either.
        """
        if not requeue:
            raise no_recover_in_place()
        unhandled: list[Any] = []
        for consumer in self._channel.consumers.values():
            if not consumer.no_ack:
                unhandled += consumer.backlog
                consumer.forget_backlog()
        self._refuse(self._up_to(0), True, _tags(unhandled))

    def taken(self, tag: Any) -> None:
        """Settle a delivery of a ``no_ack`` consumer, as the program took it.  Never switches."""
        delivery = self.unacked.pop(tag, None)
        if delivery is not None and delivery.is_held and self._link.lost is None:
            self._acknowledger.ack(delivery)

    def settled(self, tag: Any) -> None:
        """Remove a delivery that was settled by other means.  Never switches."""
        delivery = self.unacked.pop(tag, None)
        if delivery is not None:
            self._free([delivery])

    def _ack_all(self, deliveries: list[Any]) -> None:
        try:
            self._free(self._acked_each(deliveries))
        except BaseException as exc:
            if not self._link.settling_may_fail:
                self._link.interrupted(exc)
            raise

    def _acked(self, delivery: Any) -> Any:
        if delivery.is_held and self._link.lost is None:
            self._acknowledger.ack(delivery)
        return delivery

    def _acked_each(self, deliveries: Iterable[Any]) -> Iterator[Any]:
        """Ack and yield each delivery; if one fails, it and the rest stay unacked."""
        left = deque(deliveries)
        for each in left:
            self.unacked.pop(each.delivery_tag, None)
        try:
            while left:
                self._acked(left[0])
                yield left.popleft()
        finally:
            for each in left:
                self.unacked[each.delivery_tag] = each

    def _refuse(
        self, deliveries: list[Any], requeue: bool, unhandled: Collection[Any] = ()
    ) -> None:
        try:
            for each in deliveries:
                self.unacked.pop(each.delivery_tag, None)
            if requeue:
                self._acknowledger.requeue(deliveries, unhandled)
            else:
                self._acknowledger.dead_letter(deliveries, "rejected")
            self._free(deliveries)
        except BaseException as exc:
            if self._link.settling_may_fail:
                # The acknowledger has put back those that it did not settle.
                self._free([each for each in deliveries if each.delivery_tag not in self.unacked])
            else:
                for each in deliveries:
                    self.unacked.setdefault(each.delivery_tag, each)
                self._link.interrupted(exc)
            raise

    def _free(self, deliveries: Iterable[Any]) -> None:
        """Count settled deliveries off the prefetch, and wake the consumers that have room again."""
        freed: dict[Consumer, None] = {}
        try:
            for delivery in deliveries:
                consumer = delivery.consumer
                if consumer is not None and not consumer.no_ack:
                    consumer.unacked -= 1
                    self._prefetch.in_flight -= 1
                    freed[consumer] = None
        finally:
            if self._prefetch.limit:
                self._channel.serve()
            for consumer in freed:
                consumer.wake()

    def _up_to(self, tag: Any) -> list[Any]:
        """Return all deliveries up to *tag*, or all for tag 0, save those without acks."""
        unacked = self.unacked
        tags = [
            name
            for name, each in unacked.items()
            if each.consumer is None or not each.consumer.no_ack
        ]
        if tag:
            if tag not in tags:
                raise unknown_delivery_tag(tag, Method.BASIC_ACK)
            del tags[tags.index(tag) + 1 :]
        return [unacked[each] for each in tags]

    # -- the end of consumers

    def stop(self, consumer: Consumer) -> None:
        """Stop a cancelled consumer and requeue its unseen messages.  Never switches."""
        unseen = self._unseen(consumer)
        self._refuse(unseen, True, _tags(unseen))

    def recall(self, consumer: Consumer) -> bool:
        """Requeue what became events of a consumer and was not drained; False: nothing.

        Never switches.
        """
        backlog = [self.unacked.get(each.delivery_tag) for each in consumer.backlog]
        found = [each for each in backlog if each is not None]
        if found:
            consumer.forget_backlog()
            self._refuse(found, True, _tags(found))
        return bool(found)

    def drop(self, consumer: Consumer) -> None:
        """Stop a consumer of a deleted queue and drop its unseen messages.  Never switches."""
        self._free(self._acked_each(self._unseen(consumer)))

    def _unseen(self, consumer: Consumer) -> list[Any]:
        """Stop a consumer, and return its deliveries that no handler has seen."""
        found = (self.unacked.get(each.delivery_tag) for each in consumer.stop())
        return [each for each in found if each is not None]

    def release(self, consumers: Iterable[Consumer]) -> None:
        """Stop *consumers* and requeue all deliveries, as the channel is closed.  Never switches."""
        unseen = _tags([each for consumer in consumers for each in consumer.stop()])
        if self._link.lost is None:
            deliveries = list(self.unacked.values())
            self.unacked.clear()
            self._acknowledger.requeue(deliveries, unseen)
        else:
            self._acknowledger.unhandled_late(unseen)


def _tags(deliveries: Iterable[Any]) -> set[Any]:
    return {each.delivery_tag for each in deliveries}


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
        held = [each for each in link.held() if each.is_held]
        for start in range(0, max(len(held), 1), RENEWALS):
            self._under_way += 1
            part = held[start : start + RENEWALS]
            link.settler.renew([each.handle for each in part], partial(self._renewed, part))

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
            self._note_lost(link.held(), outcome)
        return not outcome

    def _renewed(self, asked: Collection[Any], outcome: Any) -> None:
        link = self._link
        self._under_way -= 1
        if isinstance(outcome, Exception):
            error = link.settler.error(outcome, "")
            if link.lost is None:
                spawn(
                    "log",
                    logger.error,
                    "%s: renewing leases: %s",
                    link.where,
                    error_text(error),
                    extra={"connection": link.where},
                )
        elif outcome:
            # These alone are compared: a handle may be of any kind, so that no set can look it up.
            asked = set(asked)
            self._note_lost((each for each in link.held() if each in asked), outcome)

    def _note_lost(self, held: Iterable[Any], handles: Any) -> None:
        late = 0
        consumers: dict[Consumer, None] = {}
        for each in held:
            if each.is_held and each.handle in handles:
                each.is_held = False
                late += 1
                if each.consumer is not None:
                    consumers[each.consumer] = None
        if late:
            self.note_late(late, consumers)

    def note_late(self, late: int, consumers: Iterable[Consumer] = ()) -> None:
        """Note that so many messages, of these consumers, are not held any more.  Never switches."""
        self.lost += late
        spawn("lease-lost", self._call_handlers, late, consumers)

    def _call_handlers(self, late: int, consumers: Iterable[Consumer]) -> None:
        link = self._link
        # Others handle them, and later ones: a handler that began with one now would be behind.
        for consumer in consumers:
            if consumer.sink is not None:
                consumer.sink.requeue_unseen()
        logger.warning(
            "%s: the lease (%g s) of %d messages expired before their acks, as the process was stopped "
            "or busy for longer, so they are redelivered, unless their queue was deleted (lease_lost)",
            link.where,
            link.settler.lease or 0.0,
            late,
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
