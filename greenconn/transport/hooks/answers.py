"""Answers to what was taken through hooks: told at once, by whoever gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

from greenconn.broker.answers import Answers
from greenconn.broker.holding import HoldingLink
from greenconn.broker.port import Settlement

__all__ = ["HookAnswers"]

_DONE: Final = Settlement.DONE


class WakingLink(HoldingLink, Protocol):
    """A link that is woken when there may be messages."""

    def ripen(self, queue: str) -> None:
        """Note that a queue may have messages.  Never switches."""


class HookAnswers(Answers):
    """The answers of one link's channels.

    It may switch, as the hooks may, and raises what they raise: the delivery is unanswered then.  Only
    what nobody has seen is put back by a greenlet, as in the base class.
    """

    __slots__ = ("_waking",)

    def __init__(self, link: WakingLink) -> None:
        super().__init__(link)
        self._waking = link

    def done(self, delivery: Any) -> None:
        """Tell that a delivery was handled."""
        try:
            delivery.settle(_DONE)
        except Exception:
            _hold(delivery)
            raise

    def give_back(self, deliveries: Iterable[Any]) -> None:
        """Put *deliveries* back into their queues."""
        for delivery in deliveries:
            _tell(delivery, Settlement.BACK)
            self._waking.ripen(delivery.queue)

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        """Drop *deliveries*."""
        for delivery in deliveries:
            _tell(delivery, Settlement.REFUSED)


def _tell(delivery: Any, settlement: Settlement) -> None:
    try:
        delivery.settle(settlement)
    except Exception:
        _hold(delivery)
        raise


def _hold(delivery: Any) -> None:
    delivery.channel.deliveries.unanswered[delivery.delivery_tag] = delivery
