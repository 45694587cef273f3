"""A message that was claimed from a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.broker.dead_letters import DELIVERY_COUNT
from greenconn.broker.port import Claimed
from greenconn.transport.virtual.envelope import Contents, Delivery, contents_in
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.transport.virtual.channel import ChannelPort

__all__ = ["StoreDelivery"]


class StoreDelivery(Delivery):
    """A delivery of what was *claimed*.

    Attributes:
        envelope: as it was stored; None where it cannot be read.
        deliveries: how often it was delivered before, as far as the store can tell.
    """

    __slots__ = ("claimed",)

    def __init__(
        self,
        channel: ChannelPort,
        tag: str,
        number: int,
        claimed: Claimed,
        consumer: Any = None,
    ) -> None:
        super().__init__(
            channel, tag, number, claimed.raw, claimed.queue, consumer, claimed.waiting
        )
        self.claimed = claimed
        self.handle = claimed.handle

    @property
    def envelope(self) -> Envelope | None:
        return self.claimed.envelope

    @property
    def deliveries(self) -> int:
        return self.claimed.deliveries

    def _contents(self) -> Contents:
        contents = contents_in(self.claimed.envelope)
        if self.claimed.deliveries:
            headers = {**contents.headers, DELIVERY_COUNT: self.claimed.deliveries}
            return contents._replace(headers=headers)
        return contents

    @property
    def redelivered(self) -> bool:
        return self.claimed.deliveries > 0 or super().redelivered
