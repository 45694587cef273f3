"""Transactions, where a channel differs from amqp's."""

from __future__ import annotations

__all__ = ["Transactions"]


class Transactions:
    """What a channel does for transactions; mixed into ``Channel``.  The rest is amqp's own.

    Attributes:
        is_transactional: ``tx_select()`` was called.
    """

    is_transactional = False

    def tx_select(self) -> None:
        """Have publishes and answers wait for ``tx_commit()`` or ``tx_rollback()``.  May switch.

        The channel that takes this one's place after a loss begins with it, too; what was not
        committed by then the broker has rolled back.
        """
        super().tx_select()  # type: ignore[misc]
        self.is_transactional = True
