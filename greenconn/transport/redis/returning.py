"""Where a held message goes when it is given back or given up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenconn.jsoncodec import loads
from greenconn.transport.redis.envelope import marked_redelivered

if TYPE_CHECKING:
    from greenconn.transport.redis.keys import Keys
    from greenconn.transport.redis.message import Delivery

__all__ = ["HEAD", "TAIL", "Move", "clamped", "given_back", "list_of", "priority_of", "unseen"]

logger = logging.getLogger("greenconn.transport.redis")

#: Where a message goes in its list: to be next, or to be last.
HEAD: Final = b"RPUSH"
TAIL: Final = b"LPUSH"


class Move(NamedTuple):
    """A held message and the lists it goes to, with what goes into each; none drops it.

    Attributes:
        number: position among all that were taken.
        field: under which it is held.
        queue: its name, where it goes back to it; else nothing.
        push: :data:`HEAD` or :data:`TAIL`.
        copies: pairs of a list's key and a message.
    """

    number: int
    field: str
    queue: str
    push: bytes
    copies: Sequence[tuple[bytes, bytes]]

    @property
    def size(self) -> int:
        """Bytes of all copies."""
        return sum(len(raw) for _, raw in self.copies)


def clamped(priority: Any) -> int:
    """A priority as a number from 0 to 9; 0 for what is none (kombu's reading)."""
    try:
        return max(0, min(int(priority), 9))
    except (TypeError, ValueError, OverflowError):
        return 0


def priority_of(envelope: Any) -> int:
    """The priority of a message, from 0 to 9."""
    try:
        return clamped(envelope["properties"]["priority"])
    except (TypeError, LookupError):
        return 0


def list_of(keys: Keys, queue: str, envelope: Any) -> bytes:
    """The list of *queue* that a message belongs to."""
    return keys.list_for(queue, priority_of(envelope))


def given_back(keys: Keys, delivery: Delivery) -> tuple[Move, int]:
    """A delivery on its way back to the head of its queue, and how often it was delivered."""
    raw, deliveries, envelope = marked_redelivered(delivery.raw)
    key = list_of(keys, delivery.queue, envelope)
    return Move(
        delivery.number, delivery.delivery_tag, delivery.queue, HEAD, [(key, raw)]
    ), deliveries


def unseen(keys: Keys, number: int, field: str, queue: str, raw: bytes) -> Move:
    """A message that nobody has seen on its way back: as if it had never been taken."""
    try:
        envelope = loads(raw)
    except (ValueError, TypeError, RecursionError):
        envelope = None
    return Move(number, field, queue, HEAD, [(list_of(keys, queue, envelope), raw)])
