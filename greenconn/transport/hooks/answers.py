"""Answers to what was taken through hooks: told at once, by whoever gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from greenconn.broker.answers import Answers
from greenconn.broker.port import Settlement

__all__ = ["HookAnswers"]


class HookAnswers(Answers):
    """What the channels of one link answer.

    It may switch, as the hooks may, and raises what they raise: the delivery is unanswered then.  Only
    what nobody has seen is put back by a greenlet, as in the base class.
    """

    __slots__ = ()

    def done(self, delivery: Any) -> None:
        """Tell that a delivery was handled."""
        self._tell(delivery, Settlement.DONE)

    def give_back(self, deliveries: Iterable[Any]) -> None:
        """Put *deliveries* back into their queues."""
        for delivery in deliveries:
            self._tell(delivery, Settlement.BACK)
            self._link.ripen(delivery.queue)

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        """Drop *deliveries*."""
        for delivery in deliveries:
            self._tell(delivery, Settlement.REFUSED)

    def _tell(self, delivery: Any, settlement: Settlement) -> None:
        try:
            delivery.settle(settlement)
        except Exception:
            delivery.channel.deliveries.unanswered[delivery.delivery_tag] = delivery
            raise
