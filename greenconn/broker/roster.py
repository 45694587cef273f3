"""Who consumes from which queue, as far as this process goes."""

from __future__ import annotations

__all__ = ["Roster"]


class Roster:
    """The consumers of all links of a process to one broker."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        #: Queue -> owner -> how many consumers, and whether the one is exclusive.
        self._queues: dict[str, dict[str, tuple[int, bool]]] = {}

    def enrol(self, queue: str, owner: str, consumers: int, exclusive: bool) -> bool:
        """Note how many consumers of a queue a link has now; False: it may not."""
        owners = self._queues.setdefault(queue, {})
        others = {name: each for name, each in owners.items() if name != owner}
        if consumers and (any(alone for _, alone in others.values()) or (exclusive and others)):
            return False
        owners.pop(owner, None)
        if consumers:
            owners[owner] = (consumers, exclusive)
        if not owners:
            del self._queues[queue]
        return True

    def others(self, queue: str, owner: str) -> int:
        """How many consumers of a queue other links have."""
        owners = self._queues.get(queue, {})
        return sum(count for name, (count, _) in owners.items() if name != owner)

    def leave(self, owner: str) -> None:
        """A link is gone."""
        for queue, owners in list(self._queues.items()):
            owners.pop(owner, None)
            if not owners:
                del self._queues[queue]
