"""The queues of a consumer, and the channels on which they are consumed.

*What* is kept apart from *where*.  A tag says that a queue is to be consumed from, and stays the same
over all lives of a connection; ``placed`` says on which channel the broker has been asked to.  So
recovery, ``revive()`` and ``consume()`` may come in any order or at the same time: each does what is
missing, and what one has done the next one finds done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from greenconn.session.state import is_open
from greenconn.streams import OFFSET, StreamPosition, offset_of

if TYPE_CHECKING:
    from gevent.lock import BoundedSemaphore

    from greenconn.abc import Channel

__all__ = ["Subscriptions", "start_lock"]

_numbers: Final = count(1)

#: The prefetch of a channel holds for the consumers that are started after it, so the two requests
#: of one consumer must not be parted by those of another.
_starting: Final[WeakKeyDictionary[Any, BoundedSemaphore]] = WeakKeyDictionary()


def start_lock(channel: Channel) -> BoundedSemaphore:
    """Return the lock to hold over ``basic_qos`` and the ``basic_consume`` that it is meant for.

    No user code runs under it.
    """
    lock = _starting.get(channel)
    if lock is None:
        # When something is consumed: it takes a few milliseconds that publishers can do without.
        from gevent.lock import BoundedSemaphore

        lock = _starting[channel] = BoundedSemaphore(1)
    return lock


class Subscriptions:
    """The queues, by name, that one consumer consumes from.

    Attributes:
        tags: consumer tag by queue name.
        no_ack: whether its messages need no ack, by queue name.
        placed: by queue name, the channel that has been asked, set before the request is sent.
        positions: of the streams among them, by queue name.
    """

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.no_ack: dict[str, bool] = {}
        self.placed: dict[str, Any] = {}
        self.positions: dict[str, StreamPosition] = {}

    def add(self, name: str, no_ack: bool, prefix: str | None) -> None:
        """Want messages of queue *name*."""
        self.tags[name] = f"{'consumer-' if prefix is None else prefix}{next(_numbers)}"
        self.no_ack[name] = no_ack

    def is_missing(self, name: str, channel: Channel) -> bool:
        """Return whether queue *name* is wanted and *channel* does not serve it.

        A closed channel has no consumers: using it raises the reason why it was closed.
        """
        return name in self.tags and (self.placed.get(name) is not channel or not is_open(channel))

    def are_placed_on(self, channel: Channel) -> bool:
        """Return whether something is wanted, and all of it has been asked of *channel*."""
        return bool(self.tags) and not any(self.is_missing(name, channel) for name in self.tags)

    def arguments_of(self, queue: Any, target: dict[str, Any]) -> Any:
        """Return the arguments with which to consume from *queue*.

        A stream that was read before is read on.

        Arguments:
            target: where messages go; its callback is made to take note of their offsets.
        """
        arguments, offset = queue.consumer_arguments, offset_of(queue)
        if offset is None or "callback" not in target:
            return arguments
        position = self.positions.get(queue.name)
        if position is None:
            position = self.positions[queue.name] = StreamPosition(offset)
        target["callback"] = position.watching(target["callback"])
        return {**(arguments or {}), OFFSET: position.restart()}

    def start(self, name: str, channel: Channel, consume: Callable[[str, bool], Any]) -> None:
        """Ask *channel* for the messages of queue *name*.  May switch.

        Arguments:
            consume: sends the request, given the tag and whether messages need no ack.
        """
        tag = self.tags[name]
        self.placed[name] = channel
        try:
            consume(tag, self.no_ack[name])
        except BaseException:
            if self.placed.get(name) is channel:
                del self.placed[name]
            raise
        if name in self.positions:
            self.positions[name].note_begin()
        if self.tags.get(name) != tag or self.placed.get(name) is not channel:
            # Cancelled meanwhile, perhaps before the request was written.
            channel.basic_cancel(tag)

    def leave_others(self, channel: Channel) -> None:
        """Cancel what was asked of other channels.  May switch."""
        left = [name for name, other in self.placed.items() if other is not channel]
        self._cancel_all([(self.placed.pop(name), self.tags[name]) for name in left])

    def lose(self, tag: str) -> None:
        """Note that the broker cancelled *tag*, whose queue is still to be consumed."""
        for name, each in self.tags.items():
            if each == tag:
                self.placed.pop(name, None)
                # A stream that was deleted begins anew; who consumes again says where.
                self.positions.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Follow a queue that the broker has renamed."""
        tables: tuple[dict[str, Any], ...] = (self.tags, self.no_ack, self.placed)
        for table in tables:
            if old in table:
                table[new] = table.pop(old)

    def forget(self, name: str) -> None:
        """Want no messages of queue *name*, of which none was asked for."""
        self.tags.pop(name, None)
        self.no_ack.pop(name, None)
        self.positions.pop(name, None)

    def cancel(self, names: Iterable[str]) -> None:
        """Want no more messages of the queues *names*, and tell the broker.  May switch.

        Nothing is sent where the channel is gone.
        """
        ends = []
        for name in names:
            tag = self.tags.pop(name, None)
            self.no_ack.pop(name, None)
            self.positions.pop(name, None)
            channel = self.placed.pop(name, None)
            if tag is not None and channel is not None:
                ends.append((channel, tag))
        self._cancel_all(ends)

    def _cancel_all(self, ends: list[tuple[Any, str]]) -> None:
        while ends:
            channel, tag = ends.pop(0)
            if not is_open(channel):
                continue
            try:
                channel.basic_cancel(tag)
            except BaseException as exc:
                if isinstance(exc, Exception) and not is_open(channel):
                    continue  # it was lost, and the consumer with it
                for other, other_tag in ends:
                    # Killed, or refused: what is left is sent without waiting for replies.
                    with suppress(Exception):
                        other.basic_cancel(other_tag, nowait=True)
                raise
