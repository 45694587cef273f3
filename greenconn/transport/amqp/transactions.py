"""Transactions of a channel: what is answered in one may be rolled back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amqp import spec

from greenconn.wire.acks import AckLedger, TransactionLedger

__all__ = ["Transactions"]


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
