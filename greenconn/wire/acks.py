"""The unacknowledged deliveries of a channel, and the merging of acks.

``basic.ack`` with ``multiple`` answers every outstanding delivery up to a tag, and is an error (406)
when its tag is not outstanding.  So it may be used up to a tag N only when *every* delivery with a
tag <= N has been answered: that is decided on the set of outstanding tags, never by arithmetic, since
no-ack deliveries and ``basic.get`` take tags of the same count too.

``outstanding`` is a dict of tags in the order of delivery; a tag leaves it when it is answered.  With
``lo`` the first tag left in it, all pending acks below ``lo`` become one ``multiple`` at the highest of
them; the others go singly.

Two things would break that, so the caller keeps to them: deliveries are noted in the order of their
tags, which is the order of the wire; and what ``take`` gives is written before any other answer is
noted, else a merged ack would cover a tag that is about to be rejected.

Deliveries that are put back unhandled are merged in the same way (``basic.nack``).  A quorum queue
takes at most 32 answers at once from a channel (``quorum_commands_soft_limit``); what is above waits
in the channel at the broker, and is lost when that ends.  So those that cannot be merged are taken out
in groups.
"""

from __future__ import annotations

__all__ = ["AckLedger", "TransactionLedger"]


class AckLedger:
    """Outstanding deliveries and pending acknowledgements of one channel."""

    __slots__ = ("_recovers", "outstanding", "pending", "returning")

    def __init__(self) -> None:
        self._recovers = 0
        #: Tags that need an answer, in order of delivery.
        self.outstanding: dict[int, None] = {}
        #: Tags acknowledged but not yet written to the broker.
        self.pending: list[int] = []
        #: Tags put back but not yet written to the broker.
        self.returning: set[int] = set()

    def delivered(self, tag: int) -> None:
        """Note a delivery that needs an answer; its tag is above all before."""
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

    def settle(self, tag: int) -> bool:
        """Note another answer (reject, requeue).  False if *tag* is not outstanding.

        The pending acknowledgements must have been taken.
        """
        assert not self.pending or self._recovers
        try:
            del self.outstanding[tag]
        except KeyError:
            return False
        return True

    def put_back(self, tag: int) -> bool:
        """Note that a delivery is put back unhandled.  False if *tag* is not outstanding."""
        try:
            del self.outstanding[tag]
        except KeyError:
            return False
        self.returning.add(tag)
        return True

    @property
    def is_recovering(self) -> bool:
        """Whether ``basic.recover`` was sent and not answered: no answer may be written meanwhile.

        The broker has put every delivery back by then, and would not know its tag.
        """
        return self._recovers > 0

    def begin_recover(self) -> None:
        """``basic.recover`` was written."""
        self._recovers += 1

    def end_recover(self) -> None:
        """``basic.recover-ok`` came: all that was delivered before it is delivered again."""
        self._recovers -= 1
        self.clear()

    def clear(self) -> None:
        """Nothing needs an answer any more."""
        self.outstanding.clear()
        self.pending.clear()
        self.returning.clear()

    def take(self) -> list[tuple[int, bool]]:
        """Return the pending acknowledgements as ``(tag, multiple)``; none are left."""
        pending = self.pending
        if not pending or self._recovers:
            return []
        self.pending = []
        if len(pending) == 1:
            return [(pending[0], False)]
        lowest = next(iter(self.outstanding), None)
        if self.returning:
            first = min(self.returning)
            lowest = first if lowest is None else min(first, lowest)
        if lowest is None:
            return [(max(pending), True)]
        below = [tag for tag in pending if tag < lowest]
        acks = [(tag, False) for tag in pending if tag > lowest]
        if below:
            acks.insert(0, (max(below), len(below) > 1))
        return acks

    def take_returns(self, limit: int) -> list[tuple[int, bool]]:
        """Up to *limit* answers for what was put back, as ``(tag, multiple)``.

        The pending acknowledgements must have been taken.
        """
        if not self.returning or self._recovers:
            return []
        assert not self.pending
        lowest = next(iter(self.outstanding), None)
        below = [tag for tag in self.returning if lowest is None or tag < lowest]
        answers = [(max(below), len(below) > 1)] if below else []
        self.returning.difference_update(below)
        single = sorted(self.returning)[: max(0, limit - len(answers))]
        self.returning.difference_update(single)
        return [*answers, *((tag, False) for tag in single)]


class TransactionLedger(AckLedger):
    """The ledger of a channel with transactions.

    The broker forgets an answer that is rolled back: its delivery waits for an answer again, and each
    later ``multiple`` would cover it.  So nothing is merged here, and a rollback puts the tags back.

    Arguments:
        ledger: that of the channel before ``tx.select``, with nothing pending.
    """

    __slots__ = ("_answered",)

    def __init__(self, ledger: AckLedger) -> None:
        super().__init__()
        assert not ledger.pending
        self.returning = ledger.returning
        self._recovers = ledger._recovers
        self.outstanding = ledger.outstanding
        #: Tags answered in this transaction.
        self._answered: list[int] = []

    def ack(self, tag: int) -> bool:
        """Note an acknowledgement.  False if *tag* is not outstanding."""
        if not super().ack(tag):
            return False
        self._answered.append(tag)
        return True

    def ack_up_to(self, tag: int) -> bool:
        """Note an acknowledgement of everything up to *tag*; see the base class."""
        known = len(self.pending)
        if not super().ack_up_to(tag):
            return False
        self._answered += self.pending[known:]
        return True

    def settle(self, tag: int) -> bool:
        """Note another answer (reject, requeue).  False if *tag* is not outstanding."""
        if not super().settle(tag):
            return False
        self._answered.append(tag)
        return True

    def put_back(self, tag: int) -> bool:
        """Note that a delivery is put back unhandled.  False if *tag* is not outstanding."""
        if not super().put_back(tag):
            return False
        self._answered.append(tag)
        return True

    def take_returns(self, limit: int) -> list[tuple[int, bool]]:
        """Answers for all that was put back, as ``(tag, multiple)``, none merged."""
        if self._recovers:
            return []
        returning, self.returning = sorted(self.returning), set()
        return [(tag, False) for tag in returning]

    def take(self) -> list[tuple[int, bool]]:
        """Return the pending acknowledgements as ``(tag, multiple)``, none merged; none are left."""
        if self._recovers:
            return []
        pending, self.pending = self.pending, []
        return [(tag, False) for tag in pending]

    def end_transaction(self) -> list[int]:
        """Return the tags answered since the last end; ``tx.commit`` or ``tx.rollback`` is written."""
        answered, self._answered = self._answered, []
        return answered

    def roll_back(self, answered: list[int]) -> None:
        """``tx.rollback-ok`` came: *answered*, of :meth:`end_transaction`, wait for an answer again."""
        tags = sorted({*self.outstanding, *answered})
        # In order, and in place: the channel's reader fills this very dict.
        self.outstanding.clear()
        self.outstanding.update(dict.fromkeys(tags))
