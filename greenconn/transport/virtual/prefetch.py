"""The prefetch of a channel as kombu's programs read it: ``channel.qos``."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["PrefetchView"]


class _Channel(Protocol):
    prefetch_count: int
    prefetch_limit: int
    in_flight: int


class PrefetchView:
    """What a channel that keeps books of its own tells under the name of kombu's ``QoS``.

    Arguments:
        channel: whose prefetch and unanswered deliveries.
    """

    def __init__(self, channel: _Channel) -> None:
        self.channel = channel

    @property
    def prefetch_count(self) -> int:
        """Deliveries that may be unanswered at once; 0 is no limit."""
        return self.channel.prefetch_limit or self.channel.prefetch_count

    def can_consume(self) -> bool:
        """Return whether one more may be delivered."""
        return self.can_consume_max_estimate() != 0

    def can_consume_max_estimate(self) -> int | None:
        """Return the number of deliveries that there is room for; None: no limit."""
        limit = self.prefetch_count
        return max(limit - len(self), 0) if limit else None

    def __len__(self) -> int:
        return self.channel.in_flight

    def __bool__(self) -> bool:
        return True

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Give back what dead consumers left, where the broker needs clients for that."""
