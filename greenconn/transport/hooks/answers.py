"""Answers to what was taken through hooks: told at once, by whoever gives them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from greenconn.broker.answers import Answers
from greenconn.broker.holding import Disposition, HoldingLink
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
        except BaseException:
            self._hold(delivery)
            raise

    def give_back(self, deliveries: Iterable[Any]) -> None:
        """Put *deliveries* back into their queues."""
        for delivery in self._told(deliveries, Settlement.BACK):
            self._waking.ripen(delivery.queue)

    def dead_letter(self, deliveries: Iterable[Any], reason: str) -> None:
        """Drop *deliveries*."""
        for _ in self._told(deliveries, Settlement.REFUSED):
            pass

    def _told(self, deliveries: Iterable[Any], settlement: Settlement) -> Iterator[Any]:
        """Tell what becomes of each, and yield it then; those that were not told are held again."""
        left = deque(deliveries)
        try:
            while left:
                left[0].settle(settlement)
                yield left.popleft()
        finally:
            for each in left:
                self._hold(each)

    def _hold(self, delivery: Any) -> None:
        """Hold a delivery again whose answer was not told."""
        link = self._waking
        if link.lost is None:
            delivery.channel.deliveries.unanswered[delivery.delivery_tag] = delivery
        else:
            back = Disposition(delivery.claimed, Settlement.BACK)
            link.handover.add(link, (), [back])
