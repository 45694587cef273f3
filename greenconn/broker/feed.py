"""What gives the messages of one queue to its consumers on one link."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenconn.broker.delivery import StoreDelivery
from greenconn.broker.port import Claimed
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.turns import Turns

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.claiming import Claimer
    from greenconn.broker.link import StoreLink

__all__ = ["Feed"]


class Feed:
    """One queue and its consumers.

    Arguments:
        link: knows the queue.
        queue: its name.
        claimer: takes its messages.

    Attributes:
        coming: consumers that are about to be.
        consumers: in the order in which they came.
        is_dry: there was less than was wanted, and nobody has said since that there is more.
    """

    __slots__ = (
        "_claimer",
        "_link",
        "_reserved",
        "_turns",
        "coming",
        "consumers",
        "is_dry",
        "queue",
    )

    def __init__(self, link: StoreLink, queue: str, claimer: Claimer) -> None:
        self._link = link
        self._claimer = claimer
        self.queue = queue
        self.coming = 0
        self.consumers: dict[Consumer, None] = {}
        self.is_dry = False
        self._turns = Turns()
        #: Places under the limits of channels that a claim under way may fill.
        self._reserved: list[tuple[StoreChannel[Any], int]] = []

    def __repr__(self) -> str:
        state = "dry" if self.is_dry else "wet"
        return f"<Feed {self.queue!r}: {state}, {len(self.consumers)} consumers>"

    @property
    def is_used(self) -> bool:
        """Whether somebody consumes, or is about to."""
        return bool(self.consumers or self.coming)

    # -- consumers

    def join(self, consumer: Consumer) -> None:
        """Add a consumer.  Never switches."""
        self.consumers[consumer] = None
        # What it was when nobody listened says nothing.
        self.is_dry = False
        consumer.wake()

    def leave(self, consumer: Consumer) -> None:
        """Remove a consumer: the next one may become the single active one.  Never switches."""
        self.consumers.pop(consumer, None)
        self._turns.discard(consumer)
        if self.consumers:
            next(iter(self.consumers)).wake()

    def resume(self, consumer: Consumer) -> None:
        """A consumer that had no room has some again.  Never switches."""
        if consumer in self.consumers and self._may_serve(consumer):
            self._turns.add(consumer)
            self._claimer.want(self)

    def _may_serve(self, consumer: Consumer) -> bool:
        return next(iter(self.consumers)) is consumer or not self._link.directory.is_single_active(
            self.queue
        )

    def serve(self) -> None:
        """There may be room again under the limit of a channel.  Never switches."""
        self._claimer.want(self)

    def ripen(self) -> None:
        """There may be messages.  Never switches."""
        self.is_dry = False
        self._claimer.want(self)

    # -- messages

    @property
    def has_rivals(self) -> bool:
        """Whether the room reserved here may be missing elsewhere."""
        return any(len(channel.consumers) > 1 for channel, _ in self._reserved)

    def reserve(self, most: int, others: int = 0) -> int:
        """Reserve room for messages and return for how many.  Never switches.

        Arguments:
            others: queues that are still to come, and may need room on the same channels.
        """
        room = 0
        for consumer in self._turns.ready():
            own = min(consumer.room, most - room)
            prefetch = consumer.prefetch
            if prefetch.limit and not consumer.no_ack:
                channel = consumer.channel
                behind = min(others, len(channel.consumers) - 1)
                own = prefetch.reserve(min(own, prefetch.share(behind)))
                self._reserved.append((channel, own))
            room += own
            if room >= most:
                break
        return room

    def release(self) -> set[StoreChannel[Any]]:
        """The claim is over; returns the channels that have more room now.  Never switches."""
        reserved, self._reserved = self._reserved, []
        for channel, count in reserved:
            channel.prefetch.release(count)
        return {channel for channel, count in reserved if count}

    def deliver(self, claimed: Claimed) -> None:
        """Hand over what was claimed.  Never switches."""
        link = self._link
        limit = link.directory.delivery_limit(self.queue)
        if limit is not None and claimed.deliveries >= limit:
            link.answers.bury(claimed, "delivery_limit")
            return
        consumer = self._turns.take()
        if consumer is None:
            # It was cancelled meanwhile, and nobody has seen this.
            link.answers.back(claimed.queue, claimed.handle, is_unseen=True)
            return
        channel = consumer.channel
        number = link.take_number()
        delivery = StoreDelivery(channel, link.tag(number), number, claimed, consumer)
        channel.deliveries.hold(consumer, delivery)
        consumer.hand_over(delivery, delivery)
        if consumer.is_parked and consumer.has_room():
            self._turns.add(consumer)
