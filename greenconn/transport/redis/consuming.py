"""What one link asks Redis of the queues that it consumes, and messages that are taken by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import NoScriptError

from greenconn.green.slot import Slot
from greenconn.transport.redis.clock import mark
from greenconn.transport.redis.directory import RedisDirectory
from greenconn.transport.redis.fanout import Fanout
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.scripts import CLAIM, CLAIM_BYTES, entry_suffix
from greenconn.transport.redis.source import RedisFeed, SourceLink
from greenconn.transport.redis.waking import Waking
from greenconn.transport.refusal import Method
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.virtual.port import ChannelPort

__all__ = ["RedisConsuming"]


class ConsumingLink(SourceLink, Protocol):
    """The link whose channels consume."""

    @property
    def directory(self) -> RedisDirectory: ...
    @property
    def fanout(self) -> Fanout: ...
    @property
    def waking(self) -> Waking: ...

    def feed(self, queue: str) -> RedisFeed:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""


class RedisConsuming:
    """See :class:`~greenconn.broker.subscriptions.Consuming`."""

    __slots__ = ("_link",)

    def __init__(self, link: ConsumingLink) -> None:
        self._link = link

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        self._link.directory.check(queue, method)
        self._link.claims.check(ENDLESS)

    def feed(self, queue: str) -> RedisFeed:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""
        return self._link.feed(queue)

    def enrol(self, feed: RedisFeed, *, exclusive: bool) -> bool:
        """Tell the server how many consumers there are; False: others consume.  May switch."""
        link = self._link
        link.fanout.listen(feed.queue)
        how = "exclusive" if exclusive else len(feed.consumers) + feed.coming
        if not link.directory.join(feed.queue, how):
            return False
        link.waking.add(feed.source)
        return True

    def left(self, feed: RedisFeed) -> None:
        """Tell the server that a consumer has left.  Never switches."""
        link = self._link
        if feed.is_used:
            link.directory.left(feed.queue, len(feed.consumers) + feed.coming)
        else:
            link.waking.discard(feed.source)
            link.fanout.leave(feed.queue)
            link.directory.unused(feed.queue)

    def ended(self, feed: RedisFeed) -> None:
        """Note that a consumer has left a queue that is gone.  Never switches."""
        if not feed.is_used:
            self._link.waking.discard(feed.source)

    def take(self, channel: ChannelPort, queue: str) -> Delivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        link = self._link
        link.answers.wait_routed()
        link.directory.check(queue, Method.BASIC_GET)
        link.claims.check(ENDLESS)
        number = link.claims.take_numbers(1)
        field = f"{link.commands.prefix}{number}"
        link.claims.under_way.add(number)
        try:
            try:
                raw, waiting = self._take(queue, number, field)
            except NoScriptError:
                link.commands.scripts.forget()  # somebody has flushed them
                raw, waiting = self._take(queue, number, field)
        finally:
            link.claims.under_way.discard(number)
        if raw is None:
            return None
        delivery = Delivery(channel, field, number, raw, queue, waiting=waiting)
        if link.forgets:
            link.answers.forget(delivery)
        return delivery

    def _take(self, queue: str, number: int, field: str) -> tuple[bytes | None, int]:
        """Claim one message; the message and how many are left.  May switch."""
        link = self._link
        pipeline = link.commands.pipeline
        if pipeline.writer.gate:
            pipeline.pass_gate(ENDLESS)
        link.answers.before_call()
        lists = link.commands.keys.lists(queue)
        slot: Slot[Any] = Slot()

        def put(reply: Any) -> None:
            if not slot.offer(reply) and not isinstance(reply, Exception) and reply:
                link.answers.return_unseen(Delivery(None, field, number, reply[0], queue))

        keys = (link.commands.keys.unacked, link.commands.keys.unacked_index, *lists)
        args = (link.commands.prefix, number, 1, CLAIM_BYTES, entry_suffix(queue), mark())
        pipeline.post(link.commands.scripts.call(CLAIM, keys, *args), put)
        sizes: list[Any] = []
        for key in lists[:-1]:
            pipeline.post(pack(b"LLEN", key), sizes.append)
        last: Slot[Any] = Slot()
        pipeline.post(pack(b"LLEN", lists[-1]), last.offer)
        link.directory.touch(queue)
        try:
            sizes.append(last.wait(ENDLESS))
            reply = slot.wait(ENDLESS)
        except BaseException:
            if slot.has_value and isinstance(slot.value, list) and slot.value:
                link.answers.return_unseen(Delivery(None, field, number, slot.value[0], queue))
            elif not slot.is_filled:
                slot.fail(TimeoutError("nobody waits"))
            raise
        if isinstance(reply, Exception):
            raise pipeline.error(reply, f"taking from queue {queue!r}")
        return (reply[0] if reply else None), sum(n for n in sizes if isinstance(n, int))
