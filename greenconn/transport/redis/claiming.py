"""Claims: taking messages of consumed queues, and the fields under which one link holds them.

A claim moves messages from the lists of a queue to the hash of held messages, each under a field of its
own: the link's prefix and a number.  Until its reply arrives it is unknown what a claim has taken, so
its numbers are kept for the next life of the connection.  All scripts and permissions that this needs
are tried once on each connection.

Theory
------
A claim is a script (see ``scripts``).  When one found less than it asked for, the queue is empty, and
the feed asks the server to tell it when that changes: ``EXISTS`` of the queue's lists registers it
with client tracking, for one push.  If they exist by then it claims again.

::

    OFF       no consumer has room
    ASKING    EXISTS is on its way
    ARMED     the queue was empty; the server will push         (push: claim, or back off)
    WAITING   backing off, not registered                       (timer: ask again)
    PROBING   EXISTS is on its way after backing off            (not empty: claim)

Many processes may wait for one queue, and a push wakes them all.  One that found nothing backs off
after the next pushes, longer each time; one that found something claims at once again.  So one of them
takes what comes, and the others stay out of the way.  The server pushes to its oldest connection first,
which would win for ever: so each steps back after a term of :data:`TERM` messages, if there are others,
and the first to ask then is the next.  All back off for random times, which are the longer the more
there are, so that about one a millisecond asks.

Who consumes alone never does.  Rivals are those that are registered, and whose leases have not ended.
They are counted again when the server pushes that one has joined or left, after each term if there are
any, and a few times in a lease: one that has died is no rival any more, and one that was paused is one
again.

Pushes count only when ARMED: what was pushed earlier was caused before the claim or the EXISTS that
is on its way, which will see it.

Where the server cannot push, a feed that found nothing waits for an interval, and claims again.

Nothing here switches; it runs in the reader, in the hub, and in greenlets of users.

Hints and the safety poll
-------------------------
An invalidation message names a key that was changed after we had read it (Redis, *Client-side
caching*).  For the lists of a queue that is a hint to its feed; for the declaration of a queue, to
what is known of it.  Keys have no database in them, and other causes exist (expiry, a foreign pop): a
hint is only a hint, the claim decides.

A push may get lost (a server's limit of tracked keys, a proxy in between), but nothing waits for ever:
every few seconds, a link also asks for :data:`PAGE` of its empty queues in turn, and for all of them
once one had a message that was not pushed.  So thousands of idle consumers cost little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from functools import partial
from random import uniform
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub
from redis.exceptions import NoScriptError

from greenconn.broker.consuming import Consumer, Feed
from greenconn.broker.errors import Method, in_exclusive_use
from greenconn.green.deadline import Deadline
from greenconn.green.slot import SingleFlight, Slot
from greenconn.green.supervisor import Ticker, spawn
from greenconn.transport.redis.envelope import Broadcast, Delivery
from greenconn.transport.redis.errors import NodeLost
from greenconn.transport.redis.pipeline import ENDLESS, Commands
from greenconn.transport.redis.scripts import (
    CANARY,
    CLAIM,
    CLAIM_ACTIVE,
    CLAIM_BYTES,
    CLAIM_COUNT,
    MOVE,
    RENEW,
    RIVALS,
    STAND_DOWN,
    Scripts,
    entry_suffix,
    mark,
)
from greenconn.wire.resp import ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.transport.redis.link import Partition, RedisLink
    from greenconn.transport.redis.maintenance import Owners

#: The number of the message that tries the permissions.
CANARY_NUMBER: Final = 0


class Claims:
    """The claims of one link that are no feed's.

    Arguments:
        commands: of the link.
        owners: the link is one of them.
        keep_alive: sees that others know this owner as living.  Never switches.

    Attributes:
        under_way: numbers of the fields that they may have filled and whose replies have not come.
        is_trying: the message that tries the permissions may be held.
        last_number: the number that was reserved last.
    """

    def __init__(self, commands: Commands, owners: Owners, keep_alive: Callable[[], None]) -> None:
        self._commands = commands
        self._owners = owners
        self._keep_alive = keep_alive
        self.last_number = 0
        self._are_permitted = False
        self._flight = SingleFlight("redis-permissions")
        self.under_way: set[int] = set()
        self.is_trying = False

    def take_numbers(self, count: int) -> int:
        """Reserve numbers for fields, and return the first of them.  Never switches."""
        first = self.last_number + 1
        self.last_number += count
        return first

    def count_rivals(self, queue: str, done: Callable[[Any], object]) -> None:
        """Count the other links that consume from *queue*; *done* gets the reply.  Never switches."""
        commands = self._commands
        keys = (commands.keys.consumers(queue), commands.keys.owners)
        commands.post_script(RIVALS, keys, commands.owner, done=done)

    @property
    def count_interval(self) -> float:
        """Seconds after which rivals are counted again."""
        return self._owners.interval

    def unconfirmed_claims(self) -> list[str]:
        """Return the fields that may be filled.  Never switches."""
        numbers = [*self.under_way, CANARY_NUMBER] if self.is_trying else self.under_way
        return [f"{self._commands.prefix}{number}" for number in numbers]

    def check(self, deadline: Deadline) -> None:
        """See that messages may be taken, and that others know this owner as living.  May switch.

        Raises:
            redis.exceptions.ResponseError: the server refuses; names what.
        """
        if not self._are_permitted:
            self._flight.run("check", self._check, deadline)

    def _check(self) -> None:
        """Find out whether this user may do all that consuming needs.  May switch."""
        commands = self._commands
        keys, scripts = commands.keys, commands.scripts
        canary = f"{keys.prefix}greenconn.canary.{commands.owner}".encode()
        held = (keys.unacked, keys.unacked_index)
        field = f"{commands.prefix}{CANARY_NUMBER}"
        self.is_trying = True
        scripts.forget()  # what failed before was not remembered by the server
        asked = [
            scripts.call(CANARY, (canary,)),
            scripts.call(RENEW, *self._owners.renewal()),
            scripts.call(CLAIM, (*held, canary), commands.prefix, 0, 1, 1, ', "", ""]', mark()),
            scripts.call(MOVE, (*held, keys.owners, keys.ended), "", 0),
            pack("HDEL", keys.unacked, field),
            pack("ZREM", keys.unacked_index, field),
            pack("HMGET", keys.unacked, field),
            pack("EXISTS", canary),
            pack("RPOP", canary),  # to a script a refusal looks like an empty list
        ]
        try:
            commands.call_all(asked, what="consuming")
            commands.check_open()  # it may have ended behind the replies
        finally:
            if commands.lost is None:
                self.is_trying = False
        self._are_permitted = True
        self._keep_alive()


#: Seconds of back-off at most, for each that consumes from the queue, and for any number of them.
WAIT_EACH: Final = 0.002
LONGEST_WAIT: Final = 0.1
#: Looks without a message that count; each doubles the seconds, until they are as above.
MOST_MISSES: Final = 8
#: Messages after which one that claims at once lets others be the first.
TERM: Final = 16
#: Messages of fan-out that wait for a consumer of one queue; then the oldest are dropped.
FANNED: Final = 10_000
#: Seconds between two looks where the server cannot push.
FIRST_POLL: Final = 0.01
LONGEST_POLL: Final = 1.0


class Watch(Enum):
    """The ways of a feed to learn that its queue is not empty; see the module's theory."""

    OFF = "off"
    ASKING = "asking"
    ARMED = "armed"
    WAITING = "waiting"
    PROBING = "probing"


_OFF, _ASKING, _ARMED, _WAITING, _PROBING = Watch


class RedisFeed(Feed[Delivery]):
    """The consumers of one queue on Redis, and what wakes them.

    Attributes:
        lists: the keys of the queue's lists, the one that is served first in front.
        active: the key that tells which link has the active consumer; None: all consumers are served.
        stands_by: another link had it when this one asked last.
        rivals: how many other links consume from the queue, as far as is known.
        watching: how it learns that there is something.
    """

    __slots__ = (
        "_claims",
        "_commands",
        "_consuming",
        "_count",
        "_count_at",
        "_due_claims",
        "_exists",
        "_front",
        "_invalidations",
        "_misses",
        "_number",
        "_poll",
        "_rest",
        "_script",
        "_served",
        "_settlements",
        "_timer",
        "active",
        "lists",
        "rivals",
        "stands_by",
        "watching",
    )

    def __init__(self, queue: str, link: RedisLink) -> None:
        super().__init__(queue)
        partition = link.placement.of(queue)
        commands = self._commands = partition.commands
        self._claims = partition.claims
        self._due_claims = partition.due
        self._invalidations = partition.invalidations
        self._settlements = link.settlements
        self._consuming = link.consuming
        self.lists = commands.keys.lists(queue)
        self.watching: Watch = _OFF
        self._misses = 0
        #: The messages of this term.
        self._served = 0
        self.rivals = 0
        #: When they are counted again.
        self._count_at = 0.0
        #: The fields that the claim under way may fill: the number of the first, and how many.
        self._number = self._count = 0
        self._poll = FIRST_POLL
        self._timer: Any = None
        is_single_active = link.directory.is_single_active(queue)
        self.active = commands.keys.active(queue) if is_single_active else None
        self.stands_by = False
        self._script = CLAIM
        keys: tuple[bytes, ...] = (commands.keys.unacked, commands.keys.unacked_index)
        if self.active is not None:
            self._script = CLAIM_ACTIVE
            keys = (*keys, self.active, commands.keys.owners)
        self._front, self._rest = Scripts.claim_frame(
            self._script,
            (*keys, *self.lists),
            commands.prefix.encode(),
            entry_suffix(queue),
        )
        self._exists = pack(b"EXISTS", *self.lists)

    @property
    def is_single_active(self) -> bool:
        return self.active is not None

    def schedule(self) -> None:
        """Claim when the turn ends."""
        self.watching = _OFF
        if self._timer is not None:
            self._end_timer()
        if self._commands.lost is None:
            due = self._due_claims
            if not due.feeds:
                self._commands.pipeline.writer.before_flush(due.begin)
            due.feeds[self] = None

    def watch(self) -> None:
        """Ask the server to tell when the queue is not empty any more, or look again soon."""
        if self.stands_by:
            self._stand_by()
            return
        if not self._commands.is_tracking:
            self._wait_for_poll()
            return
        if (self.rivals and self._served >= TERM) or monotonic() >= self._count_at:
            self._count_rivals()
        self.watching = _ASKING
        self._commands.pipeline.post(self._exists, self._exists_replied)

    def retire(self) -> None:
        """Forget the feed, once no claim is on its way."""
        if not self._count:
            self.stop()
        self._consuming.retire(self)

    def delivery(self, message: Delivery, consumer: Consumer) -> Delivery:
        """Return *message*, which is the consumer's now."""
        if isinstance(message, Broadcast):
            return message.given_to(consumer)
        message.channel = consumer.channel
        message.consumer = consumer
        if not self._commands.options.ack_emulation:
            self._settlements.forget(message)  # delivered without acks: not held
        return message

    # -- watching

    def stop(self) -> None:
        """Watch no more."""
        self.watching = _OFF
        if self._timer is not None:
            self._end_timer()

    def _end_timer(self) -> None:
        timer, self._timer = self._timer, None
        timer.stop()
        timer.close()

    def pushed(self) -> None:
        """Note that the server has announced a change of the queue."""
        if self.stands_by:
            self._may_be_active()
        elif self.watching is _ARMED:
            if self._misses and self.rivals and self.has_room:
                waiting = WAIT_EACH * min(self.rivals + 1, 1 << self._misses)
                self._wait(uniform(0.0, min(LONGEST_WAIT, waiting)))
            else:
                self.wake()

    def _stand_by(self) -> None:
        """Wait until the link that has the active consumer may have left, or have died."""
        assert self.active is not None
        self._wait(uniform(0.5, 1.0) * self._claims.count_interval)
        if self._commands.is_tracking:
            # Read here, the key is watched by the server, too.
            self._commands.pipeline.post(pack(b"GET", self.active), self._active_replied)

    def _active_replied(self, reply: Any) -> None:
        # In the reader.  It may have left between the claim and this look.
        if reply is None:
            self._may_be_active()

    def _may_be_active(self) -> None:
        if self.stands_by and self.watching is _WAITING:
            self.stop()
            self.wake()

    def rivals_changed(self) -> None:
        """Note that others have begun to consume from the queue, or ended."""
        self._count_at = 0.0

    def check(self) -> None:
        """Ask whether there is something, although nothing was pushed."""
        if self.watching is _ARMED:
            self._commands.pipeline.post(self._exists, self._checked)

    def _checked(self, reply: Any) -> None:
        # In the reader.  A push that was sent before this reply has been taken by now.
        if self.watching is not _ARMED or not reply:
            return
        if isinstance(reply, Exception):
            self._ask()
        else:
            self._invalidations.lost_pushes += 1
            self.pushed()

    def _wait(self, seconds: float) -> None:
        self.watching = _WAITING
        self._timer = get_hub().loop.timer(seconds, ref=False)
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        # In the hub.
        if self._commands.lost is not None:
            self.stop()
        elif self._commands.is_tracking and not self.stands_by:
            self._end_timer()
            self.watching = _PROBING
            self._commands.pipeline.post(self._exists, self._exists_replied)
        else:
            self.stop()
            self.wake()

    def _wait_for_poll(self) -> None:
        interval = self._commands.options.polling_interval
        if interval is None:
            interval = self._poll
            self._poll = min(2 * self._poll, LONGEST_POLL)
        self._wait(uniform(interval / 2, interval))

    def _ask(self) -> None:
        self.watching = _ASKING
        self._commands.pipeline.post(self._exists, self._exists_replied)

    def _exists_replied(self, reply: Any) -> None:
        # In the reader.
        state = self.watching
        if (state is not _ASKING and state is not _PROBING) or self._commands.lost is not None:
            return
        if isinstance(reply, NodeLost):
            self.stop()
            self._ask()
            return
        if isinstance(reply, Exception):
            self.stop()
            self._refused(reply)
            return
        self.watching = _ARMED
        if state is _PROBING:
            if reply:
                self.wake()
            else:
                self._missed()
        elif reply:
            self.pushed()

    def _missed(self) -> None:
        self._misses = min(self._misses + 1, MOST_MISSES)

    def _count_rivals(self) -> None:
        """Learn how many others consume from the queue; the term of this one ends if there are any."""
        is_term = self._served >= TERM
        if is_term:
            self._served = 0

        def counted(reply: Any) -> None:
            # In the reader.  Where the server does not tell, there may be others.
            self.rivals = reply if isinstance(reply, int) else 1
            self._count_at = monotonic() + self._claims.count_interval
            if is_term and self.rivals:
                self._misses = MOST_MISSES

        self._claims.count_rivals(self.queue, counted)

    # -- claiming

    def under_way(self) -> list[str]:
        """Return the fields that a claim may have filled whose reply has not come."""
        numbers = range(self._number, self._number + self._count)
        return [f"{self._commands.prefix}{number}" for number in numbers]

    def claim(self, count: int) -> None:
        """Claim so many messages: the feed has begun.

        The numbers of their fields are taken from the link's.  Those of a claim that the server has
        not carried out are taken again.
        """
        if not self._count:
            self._count = count
            self._number = self._claims.last_number + 1
            self._claims.last_number += count
        first, most = b"%d" % self._number, b"%d" % self._count
        self._commands.pipeline.post(
            # The time has 17 characters from 2001 to 2286.
            b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b$17\r\n%.6f\r\n"
            % (self._front, len(first), first, len(most), most, self._rest, time()),
            self._claimed,
        )

    def _claimed(self, reply: Any) -> None:
        # In the reader.
        commands = self._commands
        if commands.pipeline.lost is not None:
            return  # it stays under way: the next life looks what it has taken
        if isinstance(reply, Exception):
            self._failed(reply)
            return
        number, size = self._number, 0
        count, self._count = self._count, 0
        self.stands_by = reply is None
        if self.stands_by:
            self.ended(is_dry=True)
            return
        for raw in reply:
            size += len(raw)
            message = Delivery(None, f"{commands.prefix}{number}", number, raw, self.queue)
            if not self.offer(message):
                # The consumer was cancelled during the claim: no handler has seen this message.
                self._settlements.requeue_unseen(message)
            number += 1
        found = len(reply)
        if found:
            self._misses = 0
            self._served += found
            self._poll = FIRST_POLL
        else:
            self._missed()
        self.ended(found < count and size < CLAIM_BYTES)

    def stand_down(self) -> None:
        """Let another link have the active consumer, behind what goes back to the queue."""
        commands, active = self._commands, self.active
        if active is not None and commands.lost is None:
            commands.pipeline.writer.before_flush(
                lambda: commands.post_script(STAND_DOWN, (active,), commands.owner, done=_ignore)
            )

    def _failed(self, reply: Exception) -> None:
        commands = self._commands
        if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
            # The server's scripts were flushed: send this one again, with its text.
            commands.scripts.forget()
            commands.pipeline.post(pack("SCRIPT", "LOAD", self._script.text), self._loaded)
            return
        self._count = 0
        if isinstance(reply, NodeLost):
            # What it has taken is requeued when the node is back.
            self.ended(is_dry=False)
        else:
            self._refused(reply)

    def _loaded(self, reply: Any) -> None:
        # In the reader.
        if self._commands.pipeline.lost is not None:
            return
        if isinstance(reply, Exception):
            self._failed(reply)
        elif self.is_used:
            self.claim(self._count)
        else:  # its last consumer has left meanwhile
            self._count = 0
            self.ended(is_dry=False)

    def _refused(self, reply: Exception) -> None:
        """Tell the consumers that the server refuses; what ends the link ends it."""
        commands = self._commands
        error = commands.pipeline.error(reply, f"consuming from queue {self.queue!r}")
        if commands.lost is None:
            self.refuse(error)

    # -- fan-out

    def broadcast(self, raw: bytes, number: int) -> None:
        """Take a fan-out message for this queue.  In the reader."""
        field = f"fanout.{self._commands.owner}.{number}"
        self.arrive(Broadcast(None, field, number, raw, self.queue))
        if len(self.arrived) > FANNED:
            self.arrived.popleft()
            self._invalidations.overflowed(self.queue)

    def broadcast_again(self, message: Broadcast) -> None:
        """Put back a fan-out message, which is the next one again."""
        message.is_repeated = True
        self.arrive_again(message)


class DueClaims:
    """The claims of one partition that leave when the turn ends.

    No queue starves: a feed that was asked for goes behind the others, and room goes to those in front.

    Attributes:
        feeds: those that are due, the next in front.
    """

    def __init__(self) -> None:
        self.feeds: dict[RedisFeed, None] = {}

    def begin(self) -> None:
        """Send the claims: the turn ends."""
        feeds, self.feeds = self.feeds, {}
        others = len(feeds)
        for feed in feeds:
            others -= 1
            count = feed.begin(CLAIM_COUNT, others)
            if count > 0:
                feed.claim(count)


logger = logging.getLogger("greenconn.transport.redis")

#: Seconds between two safety looks.
SAFETY: Final = (5.0, 10.0)
#: Queues that one EXISTS asks for, and one look as long as no push gets lost.
PAGE: Final = 250


class Invalidations:
    """The receiver of the invalidation messages of one connection.

    Arguments:
        commands: of the link.
        changed: called with a key that is no list of a feed and has changed; None: all may have.

    Attributes:
        lost_pushes: how often a queue was found not to be empty although nothing was pushed.
    """

    def __init__(self, commands: Commands, changed: Callable[[bytes | None], None]) -> None:
        self._commands = commands
        self._changed = changed
        self.lost_pushes = 0
        self._feeds: dict[bytes, RedisFeed] = {}
        #: Those that the next safety looks are for.
        self._unchecked: list[RedisFeed] = []
        self._ticker: Ticker | None = None
        self._has_warned = False
        self._overflowed: set[str] = set()

    def add(self, feed: RedisFeed) -> None:
        """Pass hints on to *feed*."""
        for key in _watched(feed):
            self._feeds[key] = feed
        if self._ticker is None and self._commands.is_tracking:
            self._ticker = Ticker(uniform(*SAFETY), self._check_armed, "redis-safety")
            self._ticker.start()
        if not self._commands.is_tracking and not self._has_warned:
            self._has_warned = True
            spawn(
                "log",
                logger.warning,
                "%s cannot notify of new messages (this needs Redis 6 and RESP3): polling",
                self._commands.where,
                extra={"connection": self._commands.where},
            )

    def discard(self, feed: RedisFeed) -> None:
        """Pass on no more; those of the queue's next feed stay."""
        for key in _watched(feed):
            if self._feeds.get(key) is feed:
                del self._feeds[key]

    def stop(self) -> None:
        """Stop, as the link has ended."""
        self._feeds.clear()
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def forget(self) -> None:
        """Take all keys for changed.  Never switches."""
        for feed in list(self._feeds.values()):
            feed.pushed()
        self._changed(None)

    def take(self, push: list[Any]) -> None:
        """Handle a push of the server.  In the reader."""
        if push[0] != b"invalidate":
            return
        if push[1] is None:
            self.forget()
            return
        for key in push[1]:
            found = self._feeds.get(key)
            if found is not None:
                if found.watching is _ARMED or found.stands_by:  # else what is on its way sees it
                    found.pushed()
            else:
                self._changed(key)

    def overflowed(self, queue: str) -> None:
        """Note that a fan-out message was dropped, as nothing took it.  In the reader."""
        if queue not in self._overflowed:
            self._overflowed.add(queue)
            spawn(
                "log",
                logger.error,
                "%s: queue %r gets more fan-out messages than its consumers handle: the oldest "
                "are dropped",
                self._commands.where,
                queue,
                extra={"connection": self._commands.where, "queue": queue},
            )

    def _check_armed(self, lag: float) -> None:
        # In the hub.
        if self.lost_pushes or not self._unchecked:
            self._unchecked = list(set(self._feeds.values()))
        while self._unchecked:
            page = [each for each in self._unchecked[-PAGE:] if each.watching is Watch.ARMED]
            del self._unchecked[-PAGE:]
            if page:
                keys = [key for each in page for key in each.lists]
                self._commands.pipeline.post(pack(b"EXISTS", *keys), partial(_check_each, page))
            if not self.lost_pushes:
                break


def _watched(feed: RedisFeed) -> tuple[bytes, ...]:
    """Return the keys whose changes matter to *feed*."""
    return feed.lists if feed.active is None else (*feed.lists, feed.active)


def _ignore(reply: Any) -> None:
    """Ignore a reply: where it is an error, the link ends, or is no owner any more."""


def _check_each(page: list[RedisFeed], reply: Any) -> None:
    # In the reader.
    if isinstance(reply, int) and reply:
        for feed in page:
            feed.check()


class RedisConsuming:
    """See :class:`~greenconn.broker.consuming.Consuming`.

    Arguments:
        link: whose consumers they are.
        at: returns the partition of a queue.  Never switches.

    Attributes:
        leaving: feeds whose last consumer has left while a claim was on its way.
    """

    def __init__(self, link: RedisLink, at: Callable[[str], Partition]) -> None:
        self._link = link
        self._at = at
        self._feeds = link.feeds
        self.leaving: set[RedisFeed] = set()

    def check(self, queue: str, method: Method) -> None:
        """See that a queue may be consumed.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        self._link.directory.check(queue, method)
        self._link.directory.rules(queue)  # which its feed needs to know
        self._at(queue).claims.check(ENDLESS)

    def feed(self, queue: str) -> RedisFeed:
        """Return what gives the messages of *queue* to the consumers of this link.  Never switches."""
        feed = self._feeds.get(queue)
        if feed is None:
            feed = self._feeds[queue] = RedisFeed(queue, self._link)
        return feed

    def retire(self, feed: RedisFeed) -> None:
        """Forget a feed that is not used any more, once no claim is on its way.  Never switches."""
        if feed.under_way():
            self.leaving.add(feed)
            return
        self.leaving.discard(feed)
        if not feed.is_used and self._feeds.get(feed.queue) is feed:
            del self._feeds[feed.queue]

    def set_consumers(self, feed: RedisFeed, *, exclusive: bool) -> bool:
        """Register the consumers of this link; False: others consume.  May switch."""
        self._link.fanout.listen(feed.queue)
        if not self._link.queues.join(feed.queue, _how(feed, exclusive=exclusive)):
            return False
        self._at(feed.queue).invalidations.add(feed)
        return True

    def announce(self, partition: Partition) -> None:
        """Register the consumers of a partition again: the server may have forgotten them.  May switch.

        Those whose queue has ended meanwhile are cancelled.  Where another one consumes exclusively, or
        they did and another one consumes, the server refuses them.
        """
        queues = self._link.queues
        for feed in list(self._feeds.values()):
            if not feed.consumers or self._at(feed.queue) is not partition:
                continue
            if not queues.is_usable(feed.queue):
                queues.cancel_consumers(feed)
                continue
            is_exclusive = any(each.exclusive for each in feed.consumers)
            if not queues.join(feed.queue, _how(feed, exclusive=is_exclusive)):
                for consumer in list(feed.consumers):
                    channel = consumer.channel
                    channel.refuse(consumer, in_exclusive_use(feed.queue, channel.virtual_host))

    def left(self, feed: RedisFeed) -> None:
        """Unregister a consumer.  Never switches."""
        if feed.is_used:
            self._link.queues.left(feed.queue, len(feed.consumers) + feed.coming)
        else:
            self.ended(feed)
            feed.stand_down()
            self._link.fanout.leave(feed.queue)
            self._link.queues.unused(feed.queue)

    def ended(self, feed: RedisFeed) -> None:
        """Note that a consumer has left a queue that is gone.  Never switches."""
        if not feed.is_used:
            self._at(feed.queue).invalidations.discard(feed)

    def take(self, channel: StoreChannel[Any], queue: str) -> Delivery | None:
        """Take one message for *channel*; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        self._link.settlements.wait_routed()
        self._link.directory.check(queue, Method.BASIC_GET)
        partition = self._at(queue)
        commands, claims = partition.commands, partition.claims
        claims.check(ENDLESS)
        number = claims.take_numbers(1)
        field = f"{commands.prefix}{number}"
        claims.under_way.add(number)
        try:
            try:
                raw, waiting = self._take(commands, queue, number, field)
            except NoScriptError:
                commands.scripts.forget()  # the server's scripts were flushed
                raw, waiting = self._take(commands, queue, number, field)
        finally:
            claims.under_way.discard(number)
        if raw is None:
            return None
        delivery = Delivery(channel, field, number, raw, queue, waiting=waiting)
        if not commands.options.ack_emulation:
            self._link.settlements.forget(delivery)
        return delivery

    def _take(
        self, commands: Commands, queue: str, number: int, field: str
    ) -> tuple[bytes | None, int]:
        """Claim one message; the message and how many are left.  May switch."""
        pipeline, settlements = commands.pipeline, self._link.settlements
        if pipeline.writer.must_wait:
            pipeline.wait_writable(ENDLESS)
        settlements.before_call()
        lists = commands.keys.lists(queue)
        slot: Slot[Any] = Slot()

        def put(reply: Any) -> None:
            if not slot.offer(reply) and not isinstance(reply, Exception) and reply:
                settlements.requeue_unseen(Delivery(None, field, number, reply[0], queue))

        keys = (commands.keys.unacked, commands.keys.unacked_index, *lists)
        args = (commands.prefix, number, 1, CLAIM_BYTES, entry_suffix(queue), mark())
        pipeline.post(commands.scripts.call(CLAIM, keys, *args), put)
        sizes: list[Any] = []
        for key in lists[:-1]:
            pipeline.post(pack(b"LLEN", key), sizes.append)
        last: Slot[Any] = Slot()
        pipeline.post(pack(b"LLEN", lists[-1]), last.offer)
        self._link.queues.touch(queue)
        try:
            sizes.append(last.wait(ENDLESS))
            reply = slot.wait(ENDLESS)
        except BaseException:
            if slot.has_value and isinstance(slot.value, list) and slot.value:
                settlements.requeue_unseen(Delivery(None, field, number, slot.value[0], queue))
            elif not slot.is_filled:
                slot.fail(TimeoutError("the caller has left"))
            raise
        if isinstance(reply, Exception):
            raise pipeline.error(reply, f"getting from queue {queue!r}")
        return (reply[0] if reply else None), sum(n for n in sizes if isinstance(n, int))


def _how(feed: RedisFeed, *, exclusive: bool) -> str | int:
    """Return how a queue is consumed here; see :meth:`RedisQueues.join`."""
    return "exclusive" if exclusive else len(feed.consumers) + feed.coming
