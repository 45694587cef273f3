"""The commands of one link: about the queues that it consumes, and the messages that it holds.

Each life of a connection is an *owner*.  With each renewal it tells the server that it lives:
``greenconn.owners`` gets the time at which its lease ends (the time that the sweepers count, see
``maintenance``), and what is held gets a new mark in ``unacked_index``, so that it looks fresh to
kombu's consumers too.

What goes back in one turn goes back in the order in which it was taken, so that the oldest is next
again, whatever the order of the calls was.

What the server refuses (it cannot write to its disk, a right was taken away) stays held, though no
consumer has it any more: the answer is sent again whenever the lease is renewed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from greenconn.broker.directory import Directory
from greenconn.broker.feed import Feed
from greenconn.broker.port import Claimed, Settlement
from greenconn.broker.settlement_port import Disposition, Done, HeldMessage
from greenconn.broker.settlements import Settlements
from greenconn.green.slot import Slot
from greenconn.jsoncodec import dumps
from greenconn.transport.redis.claiming import Claims, DueClaims, RedisFeed, RedisSource
from greenconn.transport.redis.commands import CommandPipeline, Commands
from greenconn.transport.redis.delays import Delays, delayed_text
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.fanout import Fanout
from greenconn.transport.redis.invalidations import Invalidations
from greenconn.transport.redis.owners import Owners
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.queues import RedisQueues
from greenconn.transport.redis.scripts import (
    CLAIM,
    CLAIM_BYTES,
    DEFER,
    MOVE,
    RENEW,
    entry_suffix,
    mark,
)
from greenconn.transport.redis.settling import (
    Requeuer,
    batched,
    list_of,
    move_arguments,
    move_of,
    number_of,
)
from greenconn.transport.refusal import Method, in_exclusive_use
from greenconn.transport.virtual.publishing import Envelope
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel

logger = logging.getLogger("greenconn.transport.redis")


class RedisConsuming:
    """See :class:`~greenconn.broker.consumers.Consuming`.

    Arguments:
        commands: of the link.
        claims: take messages.
        settlements: requeue messages that no consumer takes.
        directory: says which queues may be used.
        queues: the queues in the server.
        fanout: has what is published to fan-out exchanges.
        invalidations: tells when messages come.
        feeds: queue -> what serves its consumers of this link; filled here.

    Attributes:
        leaving: feeds whose last consumer has left while a claim was on its way.
    """

    def __init__(
        self,
        commands: Commands,
        claims: Claims,
        settlements: Settlements,
        directory: Directory,
        queues: RedisQueues,
        fanout: Fanout,
        invalidations: Invalidations,
        feeds: dict[str, RedisFeed],
    ) -> None:
        self._commands = commands
        self._claims = claims
        self._due = DueClaims(commands)
        self._settlements = settlements
        self._directory = directory
        self._queues = queues
        self._fanout = fanout
        self._invalidations = invalidations
        self._feeds = feeds
        self.leaving: set[RedisFeed] = set()

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
            self._settlements,
            self._invalidations,
            self._retire,
            feed,
        )

    def _retire(self, feed: RedisFeed) -> None:
        """Forget a feed that is not used any more, once no claim is on its way.  Never switches."""
        if feed.source.under_way():
            self.leaving.add(feed)
            return
        self.leaving.discard(feed)
        if not feed.is_used and self._feeds.get(feed.queue) is feed:
            del self._feeds[feed.queue]

    def set_consumers(self, feed: RedisFeed, *, exclusive: bool) -> bool:
        """Register the consumers of this link; False: others consume.  May switch."""
        self._fanout.listen(feed.queue)
        if not self._queues.join(feed.queue, _how(feed, exclusive=exclusive)):
            return False
        self._invalidations.add(feed.source)
        return True

    def announce(self) -> None:
        """Register all consumers again, since the server may have forgotten them.  May switch.

        Those whose queue has ended meanwhile are cancelled.  Where another one consumes exclusively, or
        they did and another one consumes, the server refuses them.
        """
        for feed in list(self._feeds.values()):
            if not feed.consumers:
                continue
            if not self._queues.is_usable(feed.queue):
                self._queues.cancel_consumers(feed)
                continue
            is_exclusive = any(each.exclusive for each in feed.consumers)
            if not self._queues.join(feed.queue, _how(feed, exclusive=is_exclusive)):
                for consumer in list(feed.consumers):
                    channel = consumer.channel
                    channel.refuse(consumer, in_exclusive_use(feed.queue, channel.virtual_host))

    def left(self, feed: RedisFeed) -> None:
        """Unregister a consumer.  Never switches."""
        if feed.is_used:
            self._queues.left(feed.queue, len(feed.consumers) + feed.coming)
        else:
            self._invalidations.discard(feed.source)
            self._fanout.leave(feed.queue)
            self._queues.unused(feed.queue)

    def ended(self, feed: RedisFeed) -> None:
        """Note that a consumer has left a queue that is gone.  Never switches."""
        if not feed.is_used:
            self._invalidations.discard(feed.source)

    def take(self, channel: StoreChannel[Any], queue: str) -> Delivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        self._settlements.wait_routed()
        self._directory.check(queue, Method.BASIC_GET)
        self._claims.check(ENDLESS)
        number = self._claims.take_numbers(1)
        field = f"{self._commands.prefix}{number}"
        self._claims.under_way.add(number)
        try:
            try:
                raw, waiting = self._take(queue, number, field)
            except NoScriptError:
                self._commands.scripts.forget()  # the server's scripts were flushed
                raw, waiting = self._take(queue, number, field)
        finally:
            self._claims.under_way.discard(number)
        if raw is None:
            return None
        delivery = Delivery(channel, field, number, raw, queue, waiting=waiting)
        if not self._commands.options.ack_emulation:
            self._settlements.forget(delivery)
        return delivery

    def _take(self, queue: str, number: int, field: str) -> tuple[bytes | None, int]:
        """Claim one message; the message and how many are left.  May switch."""
        pipeline = self._commands.pipeline
        if pipeline.writer.must_wait:
            pipeline.wait_writable(ENDLESS)
        self._settlements.before_call()
        lists = self._commands.keys.lists(queue)
        slot: Slot[Any] = Slot()

        def put(reply: Any) -> None:
            if not slot.offer(reply) and not isinstance(reply, Exception) and reply:
                self._settlements.requeue_unseen(Delivery(None, field, number, reply[0], queue))

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
                self._settlements.requeue_unseen(
                    Delivery(None, field, number, slot.value[0], queue)
                )
            elif not slot.is_filled:
                slot.fail(TimeoutError("the caller has left"))
            raise
        if isinstance(reply, Exception):
            raise pipeline.error(reply, f"getting from queue {queue!r}")
        return (reply[0] if reply else None), sum(n for n in sizes if isinstance(n, int))


def _how(feed: RedisFeed, *, exclusive: bool) -> str | int:
    """Return how a queue is consumed here; see :meth:`RedisQueues.join`."""
    return "exclusive" if exclusive else len(feed.consumers) + feed.coming


class RedisSettler:
    """See :class:`~greenconn.broker.settlement_port.MessageSettler`.

    Arguments:
        commands: of the link.
        owners: the link is one of them.
        claims: that are no feed's.
        queues: the queues in the server.
        requeuer: requeues what former lives held.
        delays: looks after delayed messages.
        feeds: queue -> what serves its consumers of this link.
        renewed: called with each renewal of the link's lease, and whether that had ended.  Never
            switches.
    """

    ack_limit = 500
    outlives_link = True

    def __init__(
        self,
        commands: Commands,
        owners: Owners,
        claims: Claims,
        queues: RedisQueues,
        requeuer: Requeuer,
        delays: Delays,
        feeds: Mapping[str, RedisFeed],
        renewed: Callable[[bool], object],
    ) -> None:
        self._commands = commands
        self._owners = owners
        self._claims = claims
        self._queues = queues
        self._requeuer = requeuer
        self._delays = delays
        self._feeds = feeds
        self._note_renewal = renewed

    @property
    def lease(self) -> float:
        """Seconds that a message is held without renewal."""
        return self._commands.options.lease

    @property
    def renewal_interval(self) -> float:
        """Seconds between two renewals."""
        options = self._commands.options
        return min(options.lease / 3, options.visibility_timeout / 4)

    def ack(self, handles: Sequence[Any], done: Done) -> None:
        """Tell that messages were handled.  Never switches."""
        pipeline, keys = self._commands.pipeline, self._commands.keys
        removed: list[Any] = []
        count = len(handles)

        def unlisted(reply: Any) -> None:
            # In the reader.  Only now: else a cut between the two would leave an entry.
            if pipeline.lost is None:
                done(None if removed[0] == count else _outcome(pipeline, removed[0], count))

        pipeline.post(pack(b"HDEL", keys.unacked, *handles), removed.append)
        pipeline.post(pack(b"ZREM", keys.unacked_index, *handles), unlisted)

    def parts(self, dispositions: Sequence[Disposition]) -> Iterable[Sequence[Disposition]]:
        """Cut what one turn has brought into what one call of the script takes.

        The newest come first: each goes to the head, before those that were put there already.
        """
        ordered = sorted(dispositions, key=_number, reverse=True)
        moved = [each for each in ordered if not _is_delayed(each)]
        delayed = [each for each in ordered if _is_delayed(each)]
        return batched(moved, _size) + batched(delayed, _size)

    def settle(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them.  Never switches."""
        commands = self._commands
        if _is_delayed(dispositions[0]):
            self._defer(dispositions, done)
            return
        moves = [move_of(commands, each) for each in dispositions]

        def moved(reply: Any) -> None:
            # In the reader.
            if commands.pipeline.lost is None:
                done(_outcome(commands.pipeline, reply, len(moves)))

        keys, *args = move_arguments(commands.keys, moves)
        commands.post_script(MOVE, keys, *args, done=moved)
        # What goes back may come here again, where there is room.
        for queue in {each.message.queue for each in dispositions if _goes_back(each)}:
            feed = self._feeds.get(queue)
            if feed is not None:
                feed.wake()

    def _defer(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Store delayed copies in the places of messages.  Never switches."""
        commands = self._commands
        keys = commands.keys
        args: list[Any] = []
        for each in dispositions:
            ((queue, envelope, _, delay, _),) = each.entries
            declaration = keys.queue(queue) if self._queues.may_end(queue) else None
            raw = dumps(envelope).encode()
            text = delayed_text(list_of(keys, queue, envelope), declaration, raw)
            args += [each.message.handle, round(delay * 1000), text]
        soonest = min(each.entries[0].delay for each in dispositions)

        def deferred(reply: Any) -> None:
            # In the reader.
            if commands.pipeline.lost is None:
                if not isinstance(reply, Exception):
                    self._delays.expect(soonest)
                done(_outcome(commands.pipeline, reply, len(dispositions)))

        held = (keys.unacked, keys.unacked_index, keys.delayed)
        commands.post_script(DEFER, held, *args, done=deferred)

    def return_unheld(self, delivery: Delivery) -> None:
        """Requeue a delivery that the server does not hold for us.  Never switches."""
        commands = self._commands
        if delivery.is_broadcast:
            feed = self._feeds.get(delivery.queue)
            if feed is not None and feed.consumers:
                feed.source.broadcast_again(delivery)
            return
        for key, raw in move_of(commands, Disposition(delivery, Settlement.REQUEUE)).copies:
            commands.pipeline.post(pack(b"RPUSH", key, raw))

    def unread(self, message: HeldMessage) -> Envelope:
        """Return an empty envelope: a message that cannot be read is moved as it is."""
        return {}

    def postpone(self, message: HeldMessage) -> None:
        """Leave a message held, until the lease is renewed."""

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew.  Never switches."""
        commands = self._commands

        def renewed(reply: Any) -> None:
            # In the reader.
            if commands.pipeline.lost is None:
                is_refused = isinstance(reply, Exception)
                if not is_refused:
                    self._note_renewal(not reply)
                done(reply if is_refused else None)

        keys, *args = self._owners.renewal(handles)
        commands.post_script(RENEW, keys, *args, done=renewed)
        self._queues.renew()

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return what claims may have taken whose answers never came.  Never switches."""
        numbers = list(self._claims.unconfirmed_claims())
        for feed in self._feeds.values():
            numbers += feed.source.under_way()
        prefix = self._commands.prefix
        return [Claimed("", None, f"{prefix}{number}") for number in numbers]

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses.
        """
        uncounted = {each.handle for each in (*unhandled, *unconfirmed)}
        fields = [each.handle for each in (*held, *unhandled, *unconfirmed)]
        # The newest come first: each goes to the head, before those that were put there already.
        fields.sort(key=number_of, reverse=True)
        count = self._requeuer.requeue(fields, uncounted=uncounted)
        if count:
            logger.info(
                "%s: %d messages that the lost connection held were requeued",
                self._commands.where,
                count,
                extra={"connection": self._commands.where},
            )

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run.  Never switches."""
        self._commands.pipeline.writer.before_flush(callback)

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception for a reply that is one; what ends the link ends it.  Never switches."""
        return self._commands.pipeline.error(outcome, what)

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since the outcome of what was sent is unknown.  Never switches."""
        self._commands.pipeline.interrupted(exc)


def _number(disposition: Disposition) -> int:
    return number_of(disposition.message.handle)


def _size(disposition: Disposition) -> int:
    """Return about how many bytes a disposition moves."""
    copies = 1 if _goes_back(disposition) else len(disposition.entries)
    return len(disposition.message.raw) * copies


def _is_delayed(disposition: Disposition) -> bool:
    """Return whether a message is replaced by one that is delayed."""
    entries = disposition.entries
    return bool(entries) and entries[0].delay > 0


def _goes_back(disposition: Disposition) -> bool:
    return disposition.settlement is Settlement.REQUEUE


def _outcome(pipeline: CommandPipeline, reply: Any, sent: int) -> Any:
    """Return None, how many of the messages were not held any more, or the server's error."""
    if isinstance(reply, Exception):
        return reply
    if reply == sent or pipeline.is_repeated:  # the first time may have settled them
        return None
    return sent - max(int(reply), 0)
