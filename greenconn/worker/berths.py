"""Which channel a consumer is on.

At most fifty consumers share a channel, so an error of the broker, which costs a channel, hits few.
Consumer channels carry qos, consume, cancel and answers only.  The prefetch of a channel holds for the
consumers that are started after it: both requests are sent under the channel's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gevent.lock import BoundedSemaphore

if TYPE_CHECKING:
    from greenconn.transport.base import Link

__all__ = ["Berth", "Berths"]

#: Consumers of one channel.
ROOM: Final = 50


class Berth:
    """A channel for up to :data:`ROOM` consumers, opened by the first of them.

    Attributes:
        lock: held over the opening, and over qos and consume of one consumer.
        taken: consumers that are here or about to be.
        is_private: one consumer has it for itself, since its request may fail.
    """

    __slots__ = ("_channel", "_link", "is_private", "lock", "taken")

    def __init__(self, link: Link, is_private: bool) -> None:
        self._link = link
        self._channel: Any = None
        self.lock = BoundedSemaphore(1)
        self.taken = 0
        self.is_private = is_private

    @property
    def is_usable(self) -> bool:
        """Whether consumers may be started here: not known to be closed."""
        return self._channel is None or bool(self._channel.is_open)

    def belongs_to(self, link: Link) -> bool:
        """Whether it is of the life of *link*."""
        return self._link is link

    def channel(self, transport: Any) -> Any:
        """The channel, opened now if it was not yet.  The caller holds the lock.  May switch."""
        if self._channel is None:
            self._channel = transport.create_channel(self._link)
            # What a handler answers itself must not wait for the end of its work.
            self._channel.answers_at_once = True
        return self._channel


class Berths:
    """The consumer channels of one connection.  Nothing here switches."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: list[Berth] = []

    def __len__(self) -> int:
        return len(self._all)

    def take(self, link: Link, *, is_private: bool = False) -> Berth:
        """Return a berth on *link* with room for one more, who must :meth:`leave` it.

        Arguments:
            is_private: one that nobody else gets.
        """
        self._all = [each for each in self._all if each.belongs_to(link) and each.is_usable]
        for berth in self._all:
            if not berth.taken:
                berth.is_private = is_private
                break
            if not berth.is_private and not is_private and berth.taken < ROOM:
                break
        else:
            berth = Berth(link, is_private)
            self._all.append(berth)
        berth.taken += 1
        return berth

    def leave(self, berth: Berth) -> None:
        """One consumer is no longer there; its channel stays open for the next ones."""
        berth.taken -= 1

    def clear(self) -> None:
        """Forget all: the connection is closed."""
        self._all = []
