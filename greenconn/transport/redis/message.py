"""A message that came out of Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.broker.dead_letters import DELIVERY_COUNT
from greenconn.broker.port import Claimed
from greenconn.jsoncodec import loads
from greenconn.transport.virtual import envelope
from greenconn.transport.virtual.envelope import Contents, contents_of
from greenconn.transport.virtual.publishing import Envelope

if TYPE_CHECKING:
    from greenconn.transport.virtual.channel import ChannelPort

__all__ = ["Delivery"]


class Delivery(envelope.Delivery):
    """A message as it lies in the list.

    Arguments:
        field: under which it is held, which is its delivery tag too.
        raw: the envelope.

    Attributes:
        is_broadcast: it came from a fan-out channel, and nothing holds it.
        is_repeated: a consumer of this connection has given it back.
    """

    __slots__ = ("is_broadcast", "is_repeated")

    def __init__(
        self,
        channel: ChannelPort | None,
        field: str,
        number: int,
        raw: bytes,
        queue: str,
        consumer: Any = None,
        waiting: int | None = None,
        is_broadcast: bool = False,
    ) -> None:
        super().__init__(channel, field, number, raw, queue, consumer, waiting)
        self.is_broadcast = is_broadcast
        self.is_held = not is_broadcast
        self.is_repeated = False

    def given_to(self, consumer: Any) -> Delivery:
        """Return the same for a consumer; for messages of fan-out, which have no channel before."""
        given = Delivery(
            consumer.channel,
            self.delivery_tag,
            self.number,
            self.raw,
            self.queue,
            consumer,
            is_broadcast=True,
        )
        given.is_repeated = self.is_repeated
        return given

    @property
    def claimed(self) -> Claimed:
        """Return the claim, which outlives the link."""
        return Claimed(self.queue, None, self.handle)

    @property
    def envelope(self) -> Envelope | None:
        """As it was stored; None where it cannot be read."""
        try:
            found = loads(self.raw)
        except (ValueError, TypeError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def deliveries(self) -> int:
        """Return the number of earlier deliveries, as far as the message tells."""
        known = self.headers.get(DELIVERY_COUNT)
        return known if isinstance(known, int) and known > 0 else 0

    def _contents(self) -> Contents:
        return contents_of(self.raw)

    @property
    def redelivered(self) -> bool:
        if self.is_repeated:
            return True
        info = self.properties.get("delivery_info") or {}
        return bool(info.get("redelivered") or self.headers.get("redelivered"))
