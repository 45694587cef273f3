"""The answers to deliveries: acks, which leave together, and what puts messages back."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.serialization import dumps
from gevent import get_hub
from gevent.hub import Hub

from greenconn.exceptions import PreconditionFailed
from greenconn.wire.acks import AckLedger
from greenconn.wire.amqp import method_frame

if TYPE_CHECKING:
    from greenconn.green.writer import Writer
    from greenconn.transport.amqp.connection import AmqpLink

__all__ = ["Answering"]

_tag_and_flags = Struct(">QB")


class Answering:
    """How a channel answers deliveries; mixed into ``Channel``."""

    connection: AmqpLink
    channel_id: int
    call: Callable[..., Any]
    check_hub: Callable[[], None]
    interrupted: Callable[[str, BaseException], None]
    pass_gate: Callable[[], None]
    _gone: BaseException | None
    _hub: Hub
    _writer: Writer

    def _init_answering(self) -> None:
        self._ledger = AckLedger()

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

    def basic_reject(self, delivery_tag: int, requeue: bool, argsig: str = "Lb") -> None:
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
        """Requeue a delivery that nobody wants.  Never switches.  Answered before: does nothing."""
        if self._gone is None:
            self._reject(delivery_tag, True)

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
        """
        self._recover(requeue, abandons=False)

    def basic_recover_async(self, requeue: bool = False) -> None:
        """The same for a caller that does not wait.  May switch, before the first byte only.

        The broker is asked for a reply all the same: it tells which answers are of use no more.
        """
        self._recover(requeue, abandons=True)

    def _recover(self, requeue: bool, *, abandons: bool) -> None:
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
        """Write the acks that are pending.  Never switches; in the hub at the end of a turn."""
        if self._gone is not None:
            return
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

    def _check_answerable(self) -> None:
        if self.connection.lost is None:
            self.check_open()

    def _unknown_tag(self, tag: int) -> PreconditionFailed:
        return PreconditionFailed(
            f"unknown delivery tag {tag!r}: it was answered before, or is not of this channel",
            spec.Basic.Ack,
            reply_code=406,
        )
