"""The commands of one link about the queues that it consumes, and ``basic_get``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from greenconn.broker.answers import Answers
from greenconn.broker.directory import Directory
from greenconn.broker.feed import Feed
from greenconn.green.slot import Slot
from greenconn.transport.redis.claims import Claims
from greenconn.transport.redis.commands import Commands
from greenconn.transport.redis.fanout import Fanout
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.queues import RedisQueues
from greenconn.transport.redis.scripts import CLAIM, CLAIM_BYTES, entry_suffix, mark
from greenconn.transport.redis.source import DueClaims, RedisFeed, RedisSource
from greenconn.transport.redis.waking import Waking
from greenconn.transport.refusal import Method
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.virtual.channel import ChannelPort

__all__ = ["RedisConsuming"]


class RedisConsuming:
    """See :class:`~greenconn.broker.subscriptions.Consuming`.

    Arguments:
        commands: of the link.
        claims: take messages.
        answers: give back what nobody takes.
        directory: says which queues may be used.
        queues: the queues in the server.
        fanout: has what is published to fan-out exchanges.
        waking: tells when messages come.
        feeds: queue -> what serves its consumers of this link; filled here.
    """

    __slots__ = (
        "_answers",
        "_claims",
        "_commands",
        "_directory",
        "_due",
        "_fanout",
        "_feeds",
        "_queues",
        "_waking",
    )

    def __init__(
        self,
        commands: Commands,
        claims: Claims,
        answers: Answers,
        directory: Directory,
        queues: RedisQueues,
        fanout: Fanout,
        waking: Waking,
        feeds: dict[str, RedisFeed],
    ) -> None:
        self._commands = commands
        self._claims = claims
        self._due = DueClaims(commands)
        self._answers = answers
        self._directory = directory
        self._queues = queues
        self._fanout = fanout
        self._waking = waking
        self._feeds = feeds

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        self._directory.check(queue, method)
        self._claims.check(ENDLESS)

    def feed(self, queue: str) -> RedisFeed:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""
        feed = self._feeds.get(queue)
        if feed is None:
            feed = self._feeds[queue] = Feed(queue, self._source)
        return feed

    def _source(self, feed: RedisFeed) -> RedisSource:
        return RedisSource(
            self._commands,
            self._claims,
            self._due,
            self._answers,
            self._waking,
            self._retire,
            feed,
        )

    def _retire(self, feed: RedisFeed) -> None:
        """Forget a feed if nobody uses it any more.  Never switches."""
        if not feed.is_used and self._feeds.get(feed.queue) is feed:
            del self._feeds[feed.queue]

    def enrol(self, feed: RedisFeed, *, exclusive: bool) -> bool:
        """Tell the server how many consumers there are; False: others consume.  May switch."""
        self._fanout.listen(feed.queue)
        how = "exclusive" if exclusive else len(feed.consumers) + feed.coming
        if not self._queues.join(feed.queue, how):
            return False
        self._waking.add(feed.source)
        return True

    def left(self, feed: RedisFeed) -> None:
        """Tell the server that a consumer has left.  Never switches."""
        if feed.is_used:
            self._queues.left(feed.queue, len(feed.consumers) + feed.coming)
        else:
            self._waking.discard(feed.source)
            self._fanout.leave(feed.queue)
            self._queues.unused(feed.queue)

    def ended(self, feed: RedisFeed) -> None:
        """Note that a consumer has left a queue that is gone.  Never switches."""
        if not feed.is_used:
            self._waking.discard(feed.source)

    def take(self, channel: ChannelPort, queue: str) -> Delivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        self._answers.wait_routed()
        self._directory.check(queue, Method.BASIC_GET)
        self._claims.check(ENDLESS)
        number = self._claims.take_numbers(1)
        field = f"{self._commands.prefix}{number}"
        self._claims.under_way.add(number)
        try:
            try:
                raw, waiting = self._take(queue, number, field)
            except NoScriptError:
                self._commands.scripts.forget()  # somebody has flushed them
                raw, waiting = self._take(queue, number, field)
        finally:
            self._claims.under_way.discard(number)
        if raw is None:
            return None
        delivery = Delivery(channel, field, number, raw, queue, waiting=waiting)
        if not self._commands.options.ack_emulation:
            self._answers.forget(delivery)
        return delivery

    def _take(self, queue: str, number: int, field: str) -> tuple[bytes | None, int]:
        """Claim one message; the message and how many are left.  May switch."""
        pipeline = self._commands.pipeline
        if pipeline.writer.gate:
            pipeline.pass_gate(ENDLESS)
        self._answers.before_call()
        lists = self._commands.keys.lists(queue)
        slot: Slot[Any] = Slot()

        def put(reply: Any) -> None:
            if not slot.offer(reply) and not isinstance(reply, Exception) and reply:
                self._answers.return_unseen(Delivery(None, field, number, reply[0], queue))

        keys = (self._commands.keys.unacked, self._commands.keys.unacked_index, *lists)
        args = (self._commands.prefix, number, 1, CLAIM_BYTES, entry_suffix(queue), mark())
        pipeline.post(self._commands.scripts.call(CLAIM, keys, *args), put)
        sizes: list[Any] = []
        for key in lists[:-1]:
            pipeline.post(pack(b"LLEN", key), sizes.append)
        last: Slot[Any] = Slot()
        pipeline.post(pack(b"LLEN", lists[-1]), last.offer)
        self._queues.touch(queue)
        try:
            sizes.append(last.wait(ENDLESS))
            reply = slot.wait(ENDLESS)
        except BaseException:
            if slot.has_value and isinstance(slot.value, list) and slot.value:
                self._answers.return_unseen(Delivery(None, field, number, slot.value[0], queue))
            elif not slot.is_filled:
                slot.fail(TimeoutError("nobody waits"))
            raise
        if isinstance(reply, Exception):
            raise pipeline.error(reply, f"getting from queue {queue!r}")
        return (reply[0] if reply else None), sum(n for n in sizes if isinstance(n, int))
