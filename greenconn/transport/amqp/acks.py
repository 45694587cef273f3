"""Acks, rejects and requeues of the deliveries of a channel; the acks of a turn are sent together.

``basic.ack`` with ``multiple`` acknowledges every outstanding delivery up to a tag, and is an error
(406) when its tag is not outstanding.  So it may be used up to a tag N only when *every* delivery with
a tag <= N is settled (acknowledged, rejected or requeued): that is decided on the set of outstanding
tags, never by arithmetic, since no-ack deliveries and ``basic.get`` take tags of the same count too.

``outstanding`` is a dict of tags in the order of delivery; a tag leaves it when it is settled.  With
``lo`` the first tag left in it, all pending acks below ``lo`` become one ``multiple`` at the highest of
them; the others are sent singly.

Two things would break that, so the caller keeps to them: deliveries are noted in the order of their
tags, which is the order of the wire; and what ``take_acks`` returns is written before another delivery
is settled, else a merged ack would cover a tag that is about to be rejected.

Deliveries that are requeued unhandled are merged in the same way (``basic.nack``).  A quorum queue
accepts at most 32 of them at once from a channel (``quorum_commands_soft_limit``); what is above waits
in the channel at the broker, and is lost when that ends.  So those that cannot be merged are taken out
in groups.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp import spec

from greenconn.wire.amqp import ack_frame, method_frame

if TYPE_CHECKING:
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.amqp.link import AmqpLink

_tag_and_flags = Struct(">QB")
#: Requeues that are sent at once, where each takes a method of its own, and seconds before more are.
REQUEUES_AT_ONCE: Final = 24
REQUEUE_INTERVAL: Final = 0.05
#: The flags of ``basic.nack``: not multiple, requeue.
_NACK_REQUEUE: Final = 2


class Acks:
    """The acks, rejects and requeues of one channel.

    Arguments:
        channel: the channel.
        link: the connection of the channel.
        has_nack: the broker knows ``basic.nack``, an extension of RabbitMQ's.

    Attributes:
        ledger: which deliveries are outstanding, and which acks and requeues are not yet written.
    """

    __slots__ = ("_channel", "_has_nack", "_link", "_number", "_timer", "_writer", "ledger")

    def __init__(self, channel: Channel, link: AmqpLink, has_nack: bool) -> None:
        self.ledger = AckTracker()
        self._channel = channel
        self._number = channel.channel_id
        self._link = link
        self._writer = link.writer
        self._has_nack = has_nack
        #: Until more of the requeues are written.
        self._timer: Any = None

    def reject(self, tag: int, requeue: bool) -> bool:
        """Write a rejection.  False if *tag* is not outstanding.  Never switches."""
        ledger = self.ledger
        if ledger.pending:
            self.flush()
        frame = method_frame(self._number, spec.Basic.Reject, _tag_and_flags.pack(tag, requeue))
        try:
            if not ledger.reject(tag):
                return False
            if not ledger.is_recovering:
                self._writer.write(frame)
        except BaseException as exc:
            self._link.interruption = exc
            self._channel.interrupted("a rejection", exc)
            raise
        return True

    def requeue_unseen(self, tag: int) -> None:
        """Requeue a delivery that no handler has seen.  Never switches.

        Settled before, or the channel is gone: does nothing.  This is a ``basic.nack``, which
        RabbitMQ 4.3 does not count against the delivery limit of a quorum queue; it counts
        ``basic.reject`` and the end of a channel.
        """
        if self._channel.cause is not None:
            return
        if not self._has_nack:
            self.reject(tag, True)
            return
        if not self.ledger.requeued:
            self._writer.before_flush(self.flush)
        self.ledger.requeue(tag)

    def give_credit(self, tag: int) -> None:
        """Ack a delivery of a stream that no handler has seen, so that the broker sends the next one.

        Never switches.  A second call does nothing.
        """
        if self._channel.cause is None:
            if not self.ledger.pending:
                self._writer.before_flush(self.flush)
            self.ledger.ack(tag)

    def flush(self) -> None:
        """Write the pending acks, and the requeues.  Never switches.

        In the hub at the end of a turn.
        """
        if self._channel.cause is not None:
            return
        self._write_acks()
        if self.ledger.requeued:
            self._flush_requeues()

    def finish_requeues(self, *, rejects_rest: bool) -> None:
        """Write all requeues: the channel is about to be closed.  Never switches.

        Arguments:
            rejects_rest: the broker requeues what is outstanding at the end of the channel, and counts
                that as a delivery of it.  Rejecting it first counts the same, and lets the others be
                requeued by one ``basic.nack``.
        """
        self._write_acks()
        ledger = self.ledger
        are_many = len(ledger.requeued) > REQUEUES_AT_ONCE or self._timer is not None
        if are_many and len(ledger.outstanding) < REQUEUES_AT_ONCE and rejects_rest:
            for tag in list(ledger.outstanding):
                self.reject(tag, True)
        self._write_requeues(len(ledger.requeued))

    def end(self) -> None:
        """Write no more: the channel is gone.  Never switches."""
        self.stop()
        self.ledger.pending.clear()
        self.ledger.requeued.clear()

    def stop(self) -> None:
        """Drop the timer.  Never switches."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def begin_transactions(self) -> None:
        """Record settlements from now on, for a rollback.  A second call does nothing."""
        if not isinstance(self.ledger, TransactionAckTracker):
            self.ledger = TransactionAckTracker(self.ledger)

    def end_transaction(self) -> list[int]:
        """Return the tags settled in this transaction, whose end is written next."""
        ledger = self.ledger
        return ledger.end_transaction() if isinstance(ledger, TransactionAckTracker) else []

    def roll_back(self, settled: list[int]) -> None:
        """Have *settled* be outstanding again.  In the reader."""
        if isinstance(self.ledger, TransactionAckTracker):
            self.ledger.roll_back(settled)

    def _write_acks(self) -> None:
        try:
            for tag, multiple in self.ledger.take_acks():
                self._writer.write(ack_frame(self._number, tag, multiple))
        except BaseException as exc:
            self._link.interruption = exc
            self._channel.interrupted("an acknowledgement", exc)
            raise

    def _flush_requeues(self) -> None:
        # In the hub, when its timer has ended, too.
        self.stop()
        if self._channel.cause is not None:
            return
        self._write_requeues(REQUEUES_AT_ONCE)
        if self.ledger.requeued and not self.ledger.is_recovering:
            self._timer = self._link.hub_affinity.hub.loop.timer(REQUEUE_INTERVAL)
            self._timer.start(self.flush)

    def _write_requeues(self, limit: int) -> None:
        try:
            for tag, multiple in self.ledger.take_requeues(limit):
                flags = _NACK_REQUEUE | multiple
                self._writer.write(
                    method_frame(self._number, spec.Basic.Nack, _tag_and_flags.pack(tag, flags))
                )
        except BaseException as exc:
            self._link.interruption = exc
            self._channel.interrupted("a negative acknowledgement", exc)
            raise


class AckTracker:
    """The outstanding deliveries of one channel, and its acks and requeues that are not yet written."""

    __slots__ = ("_recovers", "outstanding", "pending", "requeued")

    def __init__(self) -> None:
        self._recovers = 0
        #: Tags of the deliveries that must be settled, in order of delivery.
        self.outstanding: dict[int, None] = {}
        #: Tags that are acknowledged, whose ack is not written.
        self.pending: list[int] = []
        #: Tags that are requeued unhandled, whose nack is not written.
        self.requeued: set[int] = set()

    def delivered(self, tag: int) -> None:
        """Note a delivery that must be settled; its tag is above all before."""
        self.outstanding[tag] = None

    def ack(self, tag: int) -> bool:
        """Note an acknowledgement.  False if *tag* is not outstanding."""
        try:
            del self.outstanding[tag]
        except KeyError:
            return False
        self.pending.append(tag)
        return True

    def ack_up_to(self, tag: int) -> bool:
        """Note an acknowledgement of everything up to *tag*.  False if *tag* is not outstanding.

        Tag 0 is everything, of which there may be nothing.
        """
        if tag and tag not in self.outstanding:
            return False
        tags = [each for each in self.outstanding if not tag or each <= tag]
        for each in tags:
            del self.outstanding[each]
        self.pending.extend(tags)
        return True

    def reject(self, tag: int) -> bool:
        """Note a rejection.  False if *tag* is not outstanding.

        The pending acknowledgements must have been taken.
        """
        assert not self.pending or self._recovers
        try:
            del self.outstanding[tag]
        except KeyError:
            return False
        return True

    def requeue(self, tag: int) -> bool:
        """Note that a delivery is requeued unhandled.  False if *tag* is not outstanding."""
        try:
            del self.outstanding[tag]
        except KeyError:
            return False
        self.requeued.add(tag)
        return True

    @property
    def is_recovering(self) -> bool:
        """Whether ``basic.recover-ok`` is awaited: no ack, reject or nack may be written meanwhile.

        The broker has requeued every delivery by then, and would not know its tag.
        """
        return self._recovers > 0

    def begin_recover(self) -> None:
        """Note that ``basic.recover`` was written."""
        self._recovers += 1

    def end_recover(self) -> None:
        """Note ``basic.recover-ok``: all that was delivered before it is delivered again."""
        self._recovers -= 1
        self.clear()

    def clear(self) -> None:
        """Forget all deliveries: none has to be settled any more."""
        self.outstanding.clear()
        self.pending.clear()
        self.requeued.clear()

    def take_acks(self) -> list[tuple[int, bool]]:
        """Return the pending acknowledgements as ``(tag, multiple)``; none are left."""
        pending = self.pending
        if not pending or self._recovers:
            return []
        self.pending = []
        if len(pending) == 1:
            return [(pending[0], False)]
        lowest = next(iter(self.outstanding), None)
        if self.requeued:
            first = min(self.requeued)
            lowest = first if lowest is None else min(first, lowest)
        if lowest is None:
            return [(max(pending), True)]
        below = [tag for tag in pending if tag < lowest]
        acks = [(tag, False) for tag in pending if tag > lowest]
        if below:
            acks.insert(0, (max(below), len(below) > 1))
        return acks

    def take_requeues(self, limit: int) -> list[tuple[int, bool]]:
        """Return at most *limit* requeues as ``(tag, multiple)``; the others stay.

        The pending acknowledgements must have been taken.
        """
        if not self.requeued or self._recovers:
            return []
        assert not self.pending
        lowest = next(iter(self.outstanding), None)
        below = [tag for tag in self.requeued if lowest is None or tag < lowest]
        merged = [(max(below), len(below) > 1)] if below else []
        self.requeued.difference_update(below)
        single = sorted(self.requeued)[: max(0, limit - len(merged))]
        self.requeued.difference_update(single)
        return [*merged, *((tag, False) for tag in single)]


class TransactionAckTracker(AckTracker):
    """The ledger of a channel with transactions.

    The broker forgets an ack, reject or nack that is rolled back: its delivery is outstanding again, and
    each later ``multiple`` would cover it.  So nothing is merged here, and a rollback restores the tags.

    Arguments:
        ledger: that of the channel before ``tx.select``, with nothing pending.
    """

    __slots__ = ("_settled",)

    def __init__(self, ledger: AckTracker) -> None:
        super().__init__()
        assert not ledger.pending
        self.requeued = ledger.requeued
        self._recovers = ledger._recovers
        self.outstanding = ledger.outstanding
        #: Tags settled in this transaction.
        self._settled: list[int] = []

    def ack(self, tag: int) -> bool:
        """Note an acknowledgement.  False if *tag* is not outstanding."""
        if not super().ack(tag):
            return False
        self._settled.append(tag)
        return True

    def ack_up_to(self, tag: int) -> bool:
        """Note an acknowledgement of everything up to *tag*; see the base class."""
        known = len(self.pending)
        if not super().ack_up_to(tag):
            return False
        self._settled += self.pending[known:]
        return True

    def reject(self, tag: int) -> bool:
        """Note a rejection.  False if *tag* is not outstanding."""
        if not super().reject(tag):
            return False
        self._settled.append(tag)
        return True

    def requeue(self, tag: int) -> bool:
        """Note that a delivery is requeued unhandled.  False if *tag* is not outstanding."""
        if not super().requeue(tag):
            return False
        self._settled.append(tag)
        return True

    def take_requeues(self, limit: int) -> list[tuple[int, bool]]:
        """Return all requeues as ``(tag, multiple)``, none merged, whatever the limit."""
        if self._recovers:
            return []
        requeued, self.requeued = sorted(self.requeued), set()
        return [(tag, False) for tag in requeued]

    def take_acks(self) -> list[tuple[int, bool]]:
        """Return the pending acknowledgements as ``(tag, multiple)``, none merged; none are left."""
        if self._recovers:
            return []
        pending, self.pending = self.pending, []
        return [(tag, False) for tag in pending]

    def end_transaction(self) -> list[int]:
        """Return the tags settled since the last end; ``tx.commit`` or ``tx.rollback`` is written."""
        settled, self._settled = self._settled, []
        return settled

    def roll_back(self, settled: list[int]) -> None:
        """Note ``tx.rollback-ok``: *settled*, of :meth:`end_transaction`, are outstanding again."""
        tags = sorted({*self.outstanding, *settled})
        # In order, and in place: the channel's reader fills this very dict.
        self.outstanding.clear()
        self.outstanding.update(dict.fromkeys(tags))
