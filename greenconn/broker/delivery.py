"""A message that was claimed from a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.broker.dead_letters import DELIVERY_COUNT
from greenconn.broker.port import Claimed
from greenconn.transport.virtual.delivery import Delivery
from greenconn.transport.virtual.envelope import Contents, contents_in

if TYPE_CHECKING:
    from greenconn.transport.virtual.life import ChannelLife

__all__ = ["StoreDelivery"]


class StoreDelivery(Delivery):
    """A delivery of what was *claimed*.

    Attributes:
        handle: the store's name for it.
        deliveries: how often it was delivered before, as far as the store can tell.
    """

    __slots__ = ("claimed",)

    def __init__(
        self,
        channel: ChannelLife,
        tag: str,
        number: int,
        claimed: Claimed,
        consumer: Any = None,
    ) -> None:
        super().__init__(
            channel, tag, number, claimed.raw, claimed.queue, consumer, claimed.waiting
        )
        self.claimed = claimed

    @property
    def handle(self) -> Any:
        return self.claimed.handle

    @property
    def deliveries(self) -> int:
        return self.claimed.deliveries

    @property
    def is_unanswered(self) -> bool:
        """Whether its channel still waits for an answer."""
        return self.channel.deliveries.unanswered.get(self.delivery_tag) is self

    def _contents(self) -> Contents:
        contents = contents_in(self.claimed.envelope)
        if self.claimed.deliveries:
            headers = {**contents.headers, DELIVERY_COUNT: self.claimed.deliveries}
            return contents._replace(headers=headers)
        return contents

    @property
    def redelivered(self) -> bool:
        return self.claimed.deliveries > 0
