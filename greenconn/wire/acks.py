"""The unacknowledged deliveries of a channel, and the merging of acks.

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
