"""The former owners of one connection: their leases, and what they listened to."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink

__all__ = ["FormerOwners"]


class FormerOwners:
    """Former lives of a connection to one place."""

    __slots__ = ("_leased", "_listened")

    def __init__(self) -> None:
        #: Those that the server may still take for living.
        self._leased: list[str] = []
        #: Queues that listened to fan-out exchanges, and when that ended.
        self._listened: dict[str, float] = {}

    def add(self, link: RedisLink) -> None:
        """Note that the life of *link* is over.  Never switches."""
        self._listened.update(dict.fromkeys(link.fanout.queues, monotonic()))
        if link.leases.is_renewing:
            self._leased.append(link.owner)

    def gap(self, queue: str) -> float | None:
        """Seconds since a queue last listened in a former life; None: it did not.  Once."""
        since = self._listened.pop(queue, None)
        return None if since is None else monotonic() - since

    def end_leases(self, link: RedisLink) -> None:
        """End their leases over *link*, which has given back what they held.  May switch.

        Who has no lease is nobody's consumer, and others give back what he still holds.
        """
        if self._leased:
            link.answers.flush()
            link.call(pack(b"ZREM", link.keys.owners, *self._leased), what="ending leases")
            self._leased.clear()
