"""The queues that the channels of one link consume from, and messages that are taken by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from greenconn.green.slot import Slot
from greenconn.transport.redis.clock import mark
from greenconn.transport.redis.feed import Feed
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.scripts import CLAIM, CLAIM_BYTES, entry_suffix
from greenconn.transport.refusal import Method, refused
from greenconn.transport.virtual.consumer import Consumer
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.link import RedisLink
    from greenconn.transport.virtual.port import ChannelPort

__all__ = ["RedisSubscriptions"]


class RedisSubscriptions:
    """See :class:`~greenconn.broker.consumers.Subscriptions`."""

    __slots__ = ("_link",)

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    def feed(self, queue: str, method: Method) -> Feed:
        """Return what gives the messages of a queue to consumers.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        link = self._link
        link.directory.check(queue, method)
        link.claims.check(ENDLESS)
        return link.feed(queue)

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.  May switch.

        Raises:
            AccessRefused: it may not consume beside another one.
        """
        link = self._link
        # From now on the feed stays, whoever leaves it while the server is asked.
        feed = consumer.feed = link.feed(consumer.queue)
        feed.coming += 1
        try:
            self._join(consumer, feed)
        finally:
            feed.coming -= 1
            if not feed.is_used:
                link.fanout.leave(feed.queue)
                link.directory.unused(feed.queue)
                feed.retire()

    def _join(self, consumer: Consumer, feed: Feed) -> None:
        link, channel = self._link, consumer.channel
        others = feed.consumers
        may = not any(each.exclusive for each in others) and not (consumer.exclusive and others)
        how = "exclusive" if consumer.exclusive else len(others) + 1
        link.fanout.listen(feed.queue)
        if not may or not link.directory.join(feed.queue, how):
            raise refused(
                f"queue '{feed.queue}' in vhost '{channel.virtual_host}' in exclusive use",
                Method.BASIC_CONSUME,
            )
        channel.check_open()  # it may have been closed meanwhile
        link.waking.add(feed)
        feed.join(consumer)

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more.  Never switches."""
        link, feed = self._link, _feed_of(consumer)
        feed.leave(consumer)
        if feed.is_used:
            link.directory.left(feed.queue, len(feed.consumers) + feed.coming)
        else:
            link.waking.discard(feed)
            link.fanout.leave(feed.queue)
            link.directory.unused(feed.queue)

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone.  Never switches."""
        feed = _feed_of(consumer)
        feed.leave(consumer)
        if not feed.is_used:
            self._link.waking.discard(feed)

    def serve(self, consumer: Consumer) -> None:
        """Look for messages for a consumer that has room under its channel's limit.  Never switches."""
        _feed_of(consumer).serve()

    # -- getting

    def get(self, channel: ChannelPort, queue: str) -> Delivery | None:
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


def _feed_of(consumer: Consumer) -> Feed:
    assert isinstance(consumer.feed, Feed)
    return consumer.feed
