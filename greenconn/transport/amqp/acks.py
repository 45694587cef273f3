"""Acks, rejects and requeues of the deliveries of a channel; the acks of a turn are sent together."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp import spec

from greenconn.wire.acks import AckTracker, TransactionAckTracker
from greenconn.wire.amqp import ack_frame, method_frame

if TYPE_CHECKING:
    from greenconn.transport.amqp.channel import Channel
    from greenconn.transport.amqp.link import AmqpLink

_tag_and_flags = Struct(">QB")
#: Requeues that are sent at once, where each takes a method of its own, and seconds before more are:
#: see :mod:`greenconn.wire.acks`.
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
            self._link.ack_later(self.flush)
        self.ledger.requeue(tag)

    def give_credit(self, tag: int) -> None:
        """Ack a delivery of a stream that no handler has seen, so that the broker sends the next one.

        Never switches.  A second call does nothing.
        """
        if self._channel.cause is None:
            if not self.ledger.pending:
                self._link.ack_later(self.flush)
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
            self._channel.interrupted("a negative acknowledgement", exc)
            raise
