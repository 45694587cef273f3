"""The prefetch of a channel: how many of its deliveries may be unanswered, and how many are."""

from __future__ import annotations

from typing import Any

__all__ = ["Prefetch", "PrefetchView"]


class Prefetch:
    """The bounds of a channel's deliveries, and how much of them is in use.

    Attributes:
        count: unanswered deliveries for each consumer started from now on; 0 is no limit.
        limit: unanswered deliveries for all consumers of the channel; 0 is no limit.
        in_flight: unanswered deliveries of all its consumers now.
        reserved: places under ``limit`` that claims under way may fill.
        is_divided: a claim leaves places under ``limit`` to the other queues of the channel.
        is_flowing: deliveries have not been stopped by ``flow(False)``.
    """

    __slots__ = (
        "_last_turn",
        "count",
        "in_flight",
        "is_divided",
        "is_flowing",
        "limit",
        "reserved",
    )

    def __init__(self) -> None:
        #: The highest turn of its consumers.
        self._last_turn = 0
        self.is_divided = True
        self.count = self.limit = self.in_flight = self.reserved = 0
        self.is_flowing = True

    def reserve(self, count: int) -> int:
        """Reserve places for *count* messages; return how many there are.  Never switches."""
        if self.limit:
            count = max(0, min(count, self.limit - self.in_flight - self.reserved))
            self.reserved += count
        return count

    def share(self, others: int) -> int:
        """Return the places for one consumer where *others* of its channel come behind it."""
        free = self.limit - self.in_flight - self.reserved
        return max(-(-free // (others + 1)) if self.is_divided else free, 0)

    def next_turn(self, turn: int) -> int:
        """Return the turn of a consumer that is given one more message under the limit.

        The consumer with the lowest turn is served next.  A turn counts messages, so that all get as
        many; but one whose queue was empty for long is at most a whole limit behind, or it would have
        all places until it has caught up.
        """
        turn = max(turn, self._last_turn - self.limit) + 1
        self._last_turn = max(self._last_turn, turn)
        return turn

    def release(self, count: int) -> None:
        """End a claim for *count* messages.  Never switches."""
        if self.reserved:
            self.reserved = max(0, self.reserved - count)


class PrefetchView:
    """A view of a channel's deliveries under the name of kombu's ``QoS``.

    Arguments:
        prefetch: of the channel.
    """

    def __init__(self, prefetch: Prefetch) -> None:
        self._prefetch = prefetch

    @property
    def prefetch_count(self) -> int:
        """Deliveries that may be unanswered at once; 0 is no limit."""
        return self._prefetch.limit or self._prefetch.count

    def can_consume(self) -> bool:
        """Return whether one more may be delivered."""
        return self.can_consume_max_estimate() != 0

    def can_consume_max_estimate(self) -> int | None:
        """Return the number of deliveries that there is room for; None: no limit."""
        limit = self.prefetch_count
        return max(limit - len(self), 0) if limit else None

    def __len__(self) -> int:
        return self._prefetch.in_flight

    def __bool__(self) -> bool:
        return True

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Give back what dead consumers left, where the broker needs clients for that."""
