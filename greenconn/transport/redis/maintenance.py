"""Maintenance in the background: dead consumers, queues that end by themselves, expired messages.

Dead consumers
--------------
The server's clock may be set, and so may that of a machine, so leases do not end by them.  The
sweepers of all links together count the time: ``greenconn.owners`` has it as the member ``clock``, in
milliseconds.  Each sweeper reads it a few times in a lease, and where no other has advanced it since its
last look, advances it by the time that has gone by on its own monotonic clock, at most by what lies
between two looks.  So it never runs faster than the time does, it stands still while no sweeper is there
or all are stopped, and an owner's lease ends by it only when there was time to renew it.

Who has advanced it looks:

- at owners whose lease has ended: what they held goes back to the heads of their queues.  The script
  asks once more whether the owner lives, so one that was slow and came back keeps what it has.
- at entries that have had no sign of life for a lease, and no owner: they go back, too.
- at those of another kind of client (kombu): they go back after ``visibility_timeout``, as with kombu.
- at queues that end with their owner, with their consumers or when they are not used.

So what a consumer held that was killed is in its queue again after 0.7 to 1.5 leases.

Expired messages
----------------
Messages may wait for the time to live of their queue (``x-message-ttl``).
A list of Redis does not tell how long an element is in it, and programs of kombu send messages without
a time.  But lists are first in, first out: which message is the newest is noted a few times in a time to
live, and when that note is as old as the time to live, this message has expired, and with it all that
are in front of it.  The notes are of this link, by its own monotonic clock: a message that was there
before the link counts from the link's first look.  So none expires early, whatever becomes of links and
clocks.

What has expired is claimed, as a consumer claims it, a hundred messages at most in one call, and becomes
a dead letter; a link that is lost in between leaves it to the lease.  Publishing and consuming do
nothing for all this.
"""

from __future__ import annotations

import logging
from collections import deque
from random import uniform
from time import monotonic, time
from typing import Any, Final, NamedTuple
from weakref import ref

import gevent
from gevent import Greenlet
from gevent.event import Event

from greenconn.green.supervisor import spawn
from greenconn.transport.redis.claiming import Claims
from greenconn.transport.redis.commands import Commands, as_pairs
from greenconn.transport.redis.delays import Delays
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.errors import PASSING
from greenconn.transport.redis.owners import Owners
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.queues import RedisQueues
from greenconn.transport.redis.scripts import (
    ADVANCE,
    CLAIM_BYTES,
    CLAIM_COUNT,
    EXPIRE,
    entry_suffix,
    mark,
)
from greenconn.transport.redis.settling import Requeuer
from greenconn.wire.resp import pack

logger = logging.getLogger("greenconn.transport.redis")

#: Leases for which it is remembered that a queue has ended.
ENDED_LEASES: Final = 10
#: What names begin with that a client generates.
GENERATED: Final = "amq.gen-"
#: Entries that are read at once.
PAGE: Final = 500


class Sweeper:
    """A greenlet that requeues messages of dead consumers.

    Arguments:
        commands: of the link.
        owners: tell who is dead.
        queues: ends queues.
        requeuer: requeues what is held.
        expiry: looks after messages that expire.
        delays: looks after messages that are delayed.

    Attributes:
        requeued: messages that it has requeued.
    """

    def __init__(
        self,
        commands: Commands,
        owners: Owners,
        queues: RedisQueues,
        requeuer: Requeuer,
        expiry: Expiry,
        delays: Delays,
    ) -> None:
        self._commands = commands
        self._owners = owners
        self._queues = queues
        self._requeuer = requeuer
        self._expiry = expiry
        self._delays = delays
        self._greenlet: Greenlet[..., Any] | None = None
        self._has_failed = False
        self.requeued = 0
        #: The time of the leases as it was read last, and when.
        self._time = b""
        self._read_at = monotonic()
        #: Where the next look at queues that end by themselves goes on.
        self._cursor = b"0"

    def start(self) -> None:
        """Begin.  A second call does nothing."""
        if self._greenlet is None:
            self._greenlet = spawn("redis-sweeper", _run, ref(self), self._owners.interval)
            self._delays.find()

    def stop(self) -> None:
        """End.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    def try_to_sweep(self) -> None:
        """Look if it is this one's turn, and log the first of several failures.  May switch."""
        try:
            self._delays.find()
            if self.advance():
                self.sweep()
            self._has_failed = False
        except Exception as exc:
            if self._commands.lost is None and not self._has_failed:
                self._has_failed = True
                logger.error(
                    "%s: cannot check for messages of dead consumers: %s",
                    self._commands.where,
                    exc,
                    extra={"connection": self._commands.where},
                )

    @property
    def is_over(self) -> bool:
        """Whether its link has ended."""
        return self._commands.lost is not None

    def advance(self) -> bool:
        """Advance the time of the leases, unless another one has done so.  May switch."""
        elapsed_ms = int(min(monotonic() - self._read_at, self._owners.interval) * 1000)
        keys = (self._commands.keys.owners,)
        has_advanced, self._time = self._commands.run(
            ADVANCE, keys, self._time, elapsed_ms, what="sweeping"
        )
        # As late as can be: what was on its way does not count.
        self._read_at = monotonic()
        return bool(has_advanced)

    def sweep(self) -> int:
        """Requeue what is due, and return the number of messages.  May switch."""
        commands = self._commands
        limit = commands.options.unacked_restore_limit
        time_now: bytes = self._time or b"0"
        dead = commands.call(
            pack(b"ZCOUNT", commands.keys.owners, b"-inf", b"(" + time_now), what="sweeping"
        )
        # What the dead held may be marked with any time, so all that is held is looked at.
        oldest = float("inf") if dead else time() - self._owners.dead_after
        skipped = count = 0
        is_complete = False
        while limit is None or count < limit:
            size = PAGE if limit is None else min(PAGE, limit - count)
            page = self._page(commands.keys.unacked_index, oldest, skipped, size)
            if not page:
                is_complete = True
                break
            done = self._requeue_page(page)
            count += done
            skipped += len(page) - done  # what is not due, or cannot be requeued, stays in front
        self._end_exclusive()
        self._end_temporary()
        self._watch_timed()
        self._forget_ended(float(time_now) - 1000 * ENDED_LEASES * commands.options.lease)
        if is_complete:
            # Of those who have come back meanwhile the lease ends later.
            commands.call(
                pack(b"ZREMRANGEBYSCORE", commands.keys.owners, b"-inf", b"(" + time_now),
                what="sweeping",
            )
        self.requeued += count
        if count:
            logger.warning(
                "%s: %d messages of dead consumers were requeued",
                commands.where,
                count,
                extra={"connection": commands.where},
            )
        return count

    def _page(self, key: bytes, most: float, start: int, size: int) -> list[tuple[str, float]]:
        """Return members of a sorted set whose score is at most *most*, with their scores."""
        flat = self._commands.call(
            pack(b"ZRANGEBYSCORE", key, b"-inf", most, b"WITHSCORES", b"LIMIT", start, size),
            what="sweeping",
        )
        if flat and isinstance(flat[0], list):  # RESP3 has pairs
            pairs = flat
        else:
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
        return [(field.decode("utf-8", "replace"), float(score)) for field, score in pairs]

    def _requeue_page(self, page: list[tuple[str, float]]) -> int:
        """Requeue what of *page* is due, and return the number of messages."""
        commands = self._commands
        by_owner: dict[str, list[str]] = {}
        foreign = []
        due = time() - commands.options.visibility_timeout
        for field, marked in page:
            if field.startswith("gc."):
                by_owner.setdefault(field.split(".")[1], []).append(field)
            elif marked <= due:
                foreign.append(field)
        done = self._requeuer.requeue(foreign)
        for owner in self._owners.dead(list(by_owner)):
            done += self._requeuer.requeue(by_owner[owner], owner)
        return done

    def _end_exclusive(self) -> None:
        """Delete the exclusive queues of dead owners."""
        commands = self._commands
        found = commands.call(pack(b"HGETALL", commands.keys.exclusive), what="sweeping")
        queues = {
            name.decode("utf-8", "replace"): owner.decode("utf-8", "replace")
            for name, owner in as_pairs(found).items()
        }
        dead = set(self._owners.dead(sorted(set(queues.values()))))
        for name, owner in queues.items():
            if owner in dead:
                self._end_exclusive_queue(name)

    def _end_exclusive_queue(self, name: str) -> None:
        """Delete a queue of a dead owner, unless another one was quicker to declare it."""
        commands = self._commands
        declared = self._queues.find(name)  # which deletes it where that owner is dead
        key = commands.keys.exclusive
        if declared is None:
            self._queues.end(name, "expired")
            commands.call(pack(b"HDEL", key, name), what="sweeping")
        elif declared.owner is None:
            commands.call(pack(b"HDEL", key, name), what="sweeping")
        else:
            commands.call(pack(b"HSET", key, name, declared.owner), what="sweeping")

    def _end_temporary(self) -> None:
        """Delete queues that have expired, or whose consumers are dead: a page at each look."""
        commands = self._commands
        self._cursor, names = commands.call(
            pack(b"SSCAN", commands.keys.temporary, self._cursor, b"COUNT", PAGE), what="sweeping"
        )
        self._queues.end_unused([each.decode("utf-8", "replace") for each in names])

    def _forget_ended(self, until: float) -> None:
        """Forget queues that ended before *until*, in the time of the leases: a page at each look.

        A process that does not use the script for it may have published to one just after its end.
        No program looks for such a message of a queue with a generated name, so it expires.
        """
        commands = self._commands
        names = [name for name, _ in self._page(commands.keys.ended, until, 0, PAGE)]
        if not names:
            return
        generated = [each for each in names if each.startswith(GENERATED)]
        asked = [pack(b"EXISTS", *commands.keys.lists(each)) for each in generated]
        for name, lists in zip(generated, commands.call_all(asked, what="sweeping"), strict=True):
            if lists:
                self._queues.end(name, "expired")
        commands.call(pack(b"ZREM", commands.keys.ended, *names), what="sweeping")

    def _watch_timed(self) -> None:
        """See that messages expire in queues that only dead programs know of."""
        commands = self._commands
        for each in commands.call(pack(b"SMEMBERS", commands.keys.timed), what="sweeping"):
            name = each.decode("utf-8", "replace")
            if not self._expiry.watches(name) and self._queues.find(name) is None:
                commands.call(pack(b"SREM", commands.keys.timed, name), what="sweeping")


def _run(reference: ref[Sweeper], interval: float) -> None:
    # While it waits it does not keep an unused link alive.
    while True:
        gevent.sleep(uniform(0.5, 1.0) * interval)
        sweeper = reference()
        if sweeper is None or sweeper.is_over:
            return
        sweeper.try_to_sweep()
        del sweeper


#: Looks in one time to live, and seconds between two of them, at least.
LOOKS: Final = 20
LEAST_PAUSE: Final = 0.05


class Expiry:
    """Looks after the queues with a time to live that one link knows of.

    Arguments:
        commands: of the link.
        claims: take what has expired.
        requeuer: makes dead letters of it.
    """

    def __init__(self, commands: Commands, claims: Claims, requeuer: Requeuer) -> None:
        self._commands = commands
        self._claims = claims
        self._requeuer = requeuer
        self._watched: dict[str, _Watch] = {}

    def watch(self, queue: str, seconds: float) -> None:
        """Messages of *queue* live so long.  Again: changes nothing.  Never switches."""
        known = self._watched.get(queue)
        if known is None or known.seconds != seconds:
            self.forget(queue)
            watch = _Watch(self._commands, self._claims, self._requeuer, queue, seconds)
            self._watched[queue] = watch
            spawn("redis-expiry", self._run, watch)

    def watches(self, queue: str) -> bool:
        """Return whether it looks after a queue."""
        return queue in self._watched

    def forget(self, queue: str) -> None:
        """Forget a deleted queue.  Never switches."""
        watch = self._watched.pop(queue, None)
        if watch is not None:
            watch.is_over.set()

    def stop(self) -> None:
        """Stop, as the link has ended.  Never switches."""
        for queue in list(self._watched):
            self.forget(queue)

    def _run(self, watch: _Watch) -> None:
        commands = self._commands
        has_failed = False
        while not watch.is_over.is_set():
            try:
                watch.check()
                has_failed = False
            except PASSING as exc:
                if commands.lost is not None:
                    return
                if not has_failed:
                    logger.error(
                        "%s: messages of queue %r do not expire: %s",
                        commands.where,
                        watch.queue,
                        exc,
                        extra={"connection": commands.where, "queue": watch.queue},
                    )
                has_failed = True
            except Exception:
                if commands.lost is None:
                    raise
                return  # it ended with an error of another kind
            watch.is_over.wait(max(watch.seconds / LOOKS, LEAST_PAUSE))


class _Watch:
    """One queue.

    Arguments:
        seconds: the time to live.

    Attributes:
        is_over: set when it is maintained no longer.
    """

    def __init__(
        self,
        commands: Commands,
        claims: Claims,
        requeuer: Requeuer,
        queue: str,
        seconds: float,
    ) -> None:
        self._commands = commands
        self._claims = claims
        self._requeuer = requeuer
        self.queue = queue
        self.seconds = seconds
        self.is_over = Event()
        self._suffix = entry_suffix(queue)
        #: The lists, each with its notes, the oldest in front.
        self._lists = {key: _List() for key in commands.keys.lists(queue)}

    def check(self) -> None:
        """Note the newest messages, and make dead letters of those that have expired.  May switch."""
        self._claims.check(ENDLESS)
        replies = self._commands.call_all(
            [command for key in self._lists for command in _asked(key)],
            what="looking for expired messages",
        )
        now = monotonic()
        newest = zip(replies[::2], replies[1::2], strict=True)
        for (key, found), (raw, length) in zip(self._lists.items(), newest, strict=True):
            notes = found.notes
            if raw is not None and (not notes or notes[-1].raw != raw):
                notes.append(_Note(now, raw, found.taken + length))
            while notes and notes[0].at + self.seconds <= now:
                self._expire_all(key, found, notes.popleft())

    def _expire_all(self, key: bytes, expiring: _List, note: _Note) -> None:
        """Expire the messages in a list up to that of a note.  May switch."""
        left = note.place - expiring.taken
        while not self.is_over.is_set():
            began_at = monotonic()
            count, others = self._expire(key, note.raw, max(left, 0))
            expiring.taken += count
            if not others:
                return
            if left != count + others:
                # Others take messages, too, and the server had to search: leave it most of its time.
                self.is_over.wait(min(10 * (monotonic() - began_at), self.seconds / LOOKS))
            left = others

    def _expire(self, key: bytes, last: bytes, left: int) -> tuple[int, int]:
        """Expire messages in a list up to *last*.  May switch.

        Arguments:
            left: how many there are up to it, as far as is known.

        Returns:
            how many have expired, and how many are left.
        """
        commands, claims = self._commands, self._claims
        first = claims.take_numbers(CLAIM_COUNT)
        numbers = range(first, first + CLAIM_COUNT)
        claims.under_way.update(numbers)  # the next life looks what they hold
        try:
            limits = first, CLAIM_COUNT, CLAIM_BYTES
            reply = commands.run(
                EXPIRE,
                (commands.keys.unacked, commands.keys.unacked_index, key),
                *(commands.prefix, *limits, self._suffix, mark(), last, left),
                what=f"looking for expired messages in queue {self.queue!r}",
            )
            *raws, others = reply or (b"0",)
            moves = []
            for number, raw in zip(numbers, raws, strict=False):
                message = Delivery(None, f"{commands.prefix}{number}", number, raw, self.queue)
                moves.append(self._requeuer.dead_letter_move(message, "expired"))
            self._requeuer.execute(moves)
        finally:
            if commands.lost is None:
                claims.under_way.difference_update(numbers)
        return len(raws), int(others)


def _asked(key: bytes) -> tuple[bytes, bytes]:
    """Return the commands for the newest message of a list, and for its length."""
    return pack(b"LINDEX", key, 0), pack(b"LLEN", key)


class _Note(NamedTuple):
    """A message that was the newest of a list.

    Attributes:
        at: when it was.
        raw: the message.
        place: how many messages there were up to it, with those that this link has taken before.
    """

    at: float
    raw: bytes
    place: int


class _List:
    """A list, as one link expires its messages.

    Attributes:
        taken: messages that it has taken.
    """

    __slots__ = ("notes", "taken")

    def __init__(self) -> None:
        self.notes: deque[_Note] = deque()
        self.taken = 0
