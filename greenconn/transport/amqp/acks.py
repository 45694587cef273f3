"""The answers of a channel to its deliveries: acks, which leave together, and returns to the queue.

What is answered in a transaction may be rolled back.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from amqp import spec
from amqp.serialization import dumps
from gevent import get_hub
from gevent.hub import Hub

from greenconn.exceptions import PreconditionFailed
from greenconn.transport.refusal import no_recover_in_place
from greenconn.wire.acks import AckLedger, TransactionLedger
from greenconn.wire.amqp import method_frame

if TYPE_CHECKING:
    from greenconn.green.writer import Writer
    from greenconn.transport.amqp.port import LinkPort

__all__ = ["Answering", "Transactions"]

_tag_and_flags = Struct(">QB")
#: Deliveries that are put back at once, where each takes an answer of its own, and seconds before more
#: are: see :mod:`greenconn.wire.acks`.
RETURNS_AT_ONCE: Final = 24
RETURN_INTERVAL: Final = 0.05
#: The flags of ``basic.nack``: not multiple, requeue.
_NACK_REQUEUE: Final = 2


class Answering:
    """How a channel answers deliveries; mixed into ``Channel``."""

    connection: LinkPort
    channel_id: int
    call: Callable[..., Any]
    check_hub: Callable[[], None]
    interrupted: Callable[[str, BaseException], None]
    pass_gate: Callable[[], None]
    _gone: BaseException | None
    _hub: Hub
    _writer: Writer
    streams: set[str]

    def _init_answering(self, has_nack: bool) -> None:
        self._ledger = AckLedger()
        #: The broker knows ``basic.nack``, an extension of RabbitMQ's.
        self._nacks = has_nack
        self._return_timer: Any = None

    def check_open(self) -> None:
        raise NotImplementedError

    @property
    def oldest_unanswered(self) -> int | None:
        """The delivery tag that has waited longest for an answer; None if none does."""
        return next(iter(self._ledger.outstanding), None)

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None:
        """Acknowledge a delivery.  Never switches.

        The acks of a turn of the hub leave together at its end, merged where that is right.  For a
        delivery of a connection that is gone it does nothing: the broker delivers it again.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        if self._gone is not None:
            self._check_answerable()
            return
        ledger = self._ledger
        # The first of the turn asks for the flush at its end.
        if not ledger.pending:
            self.connection.ack_later(self)
        try:
            is_known = ledger.ack_up_to(delivery_tag) if multiple else ledger.ack(delivery_tag)
        except BaseException as exc:
            self.interrupted("an acknowledgement", exc)
            raise
        if not is_known:
            raise self._unknown_tag(delivery_tag)

    def basic_reject(self, delivery_tag: int, requeue: bool = False, argsig: str = "Lb") -> None:
        """Refuse a delivery.  May switch.

        Arguments:
            requeue: put it back, else it is dropped or goes to the dead-letter exchange.

        Raises:
            PreconditionFailed: this channel has no unanswered delivery of that tag.
            RecoverableChannelError: the channel was closed.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        if self._writer.gate:
            self.connection.gate.pass_through()
        if self._gone is not None:
            self._check_answerable()
            return
        if not self._reject(delivery_tag, requeue):
            raise self._unknown_tag(delivery_tag)

    def put_back(self, delivery_tag: int) -> None:
        """Requeue a delivery that nobody has begun with.  Never switches.

        Answered before, or the channel is gone: does nothing.  This is a ``basic.nack``, which
        RabbitMQ 4.3 does not count against the delivery limit of a quorum queue; it counts
        ``basic.reject`` and the end of a channel.
        """
        if self._gone is not None:
            return
        if not self._nacks:
            self._reject(delivery_tag, True)
            return
        if not self._ledger.returning:
            self.connection.ack_later(self)
        self._ledger.put_back(delivery_tag)

    def finish_returns(self) -> None:
        """Write all that was put back: the channel is about to be closed.  Never switches.

        What is left unanswered comes back with the end of the channel, which counts as a delivery of
        it.  Rejecting it first counts the same, and lets the others go back in one answer.
        """
        self._write_acks()
        ledger = self._ledger
        are_many = len(ledger.returning) > RETURNS_AT_ONCE or self._return_timer is not None
        if are_many and len(ledger.outstanding) < RETURNS_AT_ONCE and not self.streams:
            for tag in list(ledger.outstanding):
                self._reject(tag, True)
        self._write_returns(len(ledger.returning))

    def _flush_returns(self) -> None:
        # In the hub, when its timer has ended, too.
        self._stop_returning()
        if self._gone is not None:
            return
        self._write_returns(RETURNS_AT_ONCE)
        if self._ledger.returning and not self._ledger.is_recovering:
            self._return_timer = self._hub.loop.timer(RETURN_INTERVAL)
            self._return_timer.start(self.flush_acks)

    def _write_returns(self, limit: int) -> None:
        try:
            for tag, multiple in self._ledger.take_returns(limit):
                flags = _NACK_REQUEUE | multiple
                self._writer.write(
                    method_frame(self.channel_id, spec.Basic.Nack, _tag_and_flags.pack(tag, flags))
                )
        except BaseException as exc:
            self.interrupted("a negative acknowledgement", exc)
            raise

    def _stop_returning(self) -> None:
        timer, self._return_timer = self._return_timer, None
        if timer is not None:
            timer.close()

    def give_credit(self, delivery_tag: int) -> None:
        """Answer a delivery of a stream that nobody wants.  Never switches.  Again: does nothing."""
        if self._gone is None:
            if not self._ledger.pending:
                self.connection.ack_later(self)
            self._ledger.ack(delivery_tag)

    def _reject(self, tag: int, requeue: bool) -> bool:
        """False if *tag* is not outstanding."""
        ledger = self._ledger
        if ledger.pending:
            self.flush_acks()
        frame = method_frame(self.channel_id, spec.Basic.Reject, _tag_and_flags.pack(tag, requeue))
        try:
            if not ledger.settle(tag):
                return False
            if not ledger.is_recovering:
                self._writer.write(frame)
        except BaseException as exc:
            self.interrupted("a rejection", exc)
            raise
        return True

    def basic_recover(self, requeue: bool = False) -> None:
        """Have all unanswered deliveries of this channel delivered again.  May switch.

        Answers given before the broker's reply are dropped, since their messages come again.

        Raises:
            AMQPNotImplementedError: *requeue* is false, and this is a RabbitMQ, which would end the
                connection of all channels.
        """
        self._recover(requeue, abandons=False)

    def basic_recover_async(self, requeue: bool = False) -> None:
        """The same for a caller that does not wait.  May switch, before the first byte only.

        The broker is asked for a reply all the same: it tells which answers are of use no more.
        """
        self._recover(requeue, abandons=True)

    def _recover(self, requeue: bool, *, abandons: bool) -> None:
        if not requeue and self.connection.server_properties.get("product") == "RabbitMQ":
            raise no_recover_in_place()
        self.pass_gate()
        self.flush_acks()
        self._ledger.begin_recover()
        self.call(
            spec.Basic.Recover,
            dumps("b", (requeue,)),
            wait=spec.Basic.RecoverOk,
            on_reply=lambda reply: self._ledger.end_recover(),
            abandons=abandons,
        )

    def flush_acks(self) -> None:
        """Write the acks that are pending, and what is put back.  Never switches.

        In the hub at the end of a turn.
        """
        if self._gone is not None:
            return
        self._write_acks()
        if self._ledger.returning:
            self._flush_returns()

    def _write_acks(self) -> None:
        try:
            for tag, multiple in self._ledger.take():
                self._writer.write(
                    method_frame(
                        self.channel_id, spec.Basic.Ack, _tag_and_flags.pack(tag, multiple)
                    )
                )
        except BaseException as exc:
            self.interrupted("an acknowledgement", exc)
            raise

    def flush_answers(self) -> None:
        """Return when all answers to deliveries have been given to the socket.  May switch.

        Where the connection is gone it does nothing: the broker delivers again what it has not heard of.

        Raises:
            TimeoutError: the broker took too little within ``blocked_timeout`` seconds.
        """
        if self._gone is None:
            self.flush_acks()
            self.connection.drain_writer(None)

    def _check_answerable(self) -> None:
        if self.connection.lost is None:
            self.check_open()

    def _unknown_tag(self, tag: int) -> PreconditionFailed:
        return PreconditionFailed(
            f"unknown delivery tag {tag!r}: it was answered before, or is not of this channel",
            spec.Basic.Ack,
            reply_code=406,
        )


class Transactions:
    """What a channel does for transactions; mixed into ``Channel``.

    Attributes:
        is_transactional: ``tx_select()`` was called.
    """

    is_transactional = False

    call: Callable[..., Any]
    check_open: Callable[[], None]
    flush_acks: Callable[[], None]
    pass_gate: Callable[[], None]
    _ledger: AckLedger

    def tx_select(self) -> None:
        """Have publishes and answers wait for ``tx_commit()`` or ``tx_rollback()``.  May switch.

        The channel that takes this one's place after a loss begins with it, too; what was not
        committed by then the broker has rolled back.
        """
        self.check_open()
        self.pass_gate()
        self.flush_acks()
        if not isinstance(self._ledger, TransactionLedger):
            # With the write: what another greenlet answers from now on is part of a transaction.
            self._ledger = TransactionLedger(self._ledger)
        self.call(spec.Tx.Select, b"", wait=spec.Tx.SelectOk)
        self.is_transactional = True

    def tx_commit(self) -> None:
        """Have the broker do what was published and answered since the last end.  May switch."""
        self._end_transaction()
        self.call(spec.Tx.Commit, b"", wait=spec.Tx.CommitOk)

    def tx_rollback(self) -> None:
        """Have the broker forget what was published and answered since the last end.  May switch.

        The deliveries that were answered wait for an answer again: their messages can be
        acknowledged or rejected once more.
        """
        answered = self._end_transaction()
        self.call(
            spec.Tx.Rollback,
            b"",
            wait=spec.Tx.RollbackOk,
            on_reply=lambda reply: self._roll_back(answered),
        )

    def _end_transaction(self) -> list[int]:
        """Write the answers that belong to this transaction; the caller writes its end at once."""
        self.check_open()
        self.pass_gate()
        self.flush_acks()
        ledger = self._ledger
        return ledger.end_transaction() if isinstance(ledger, TransactionLedger) else []

    def _roll_back(self, answered: list[int]) -> None:
        # In the reader: it holds, also if its caller was killed meanwhile.
        if isinstance(self._ledger, TransactionLedger):
            self._ledger.roll_back(answered)

    def is_rolled_back(self, delivery_tag: int) -> bool:
        """Whether a delivery that was answered waits for an answer again.  Never switches."""
        return self.is_transactional and delivery_tag in self._ledger.outstanding
