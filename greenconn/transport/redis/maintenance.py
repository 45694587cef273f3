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

Owners
------
An owner is one life of a link.  Its name ends with the number that the server gave to its connection, so
that others can look whether that connection is still there, as a broker of AMQP knows it: a process
that was killed owns nothing any more, whatever its lease says.  Where the server does not tell (it is
older than 6.2, or the user may not ask) the lease alone decides.

Delayed messages
----------------
``greenconn.delayed`` has them by the time at which they are due, on the server's clock, so they outlive
clients and, as far as the server keeps its data, the server.  Each is one text: the list that it goes
to, the declaration of its queue if that may end by itself, and the message.

A link that has stored delayed messages, or that consumes, moves what is due.  Another process may store
an earlier one than those that it waits for, and end.  So it looks again whenever the server announces
that the key has changed, as it does for keys that the link has read (see ``claiming``), and every
few seconds in case it did not; where the server cannot push, every second.

The script lets one link move each message.  Those who have stored none that is due leave the first
attempt to those who have, and look twenty times a second at most, however many messages come.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import uniform
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import ref

import gevent
from gevent import Greenlet, get_hub
from gevent.event import Event
from redis.exceptions import ResponseError

from greenconn.broker.queues import is_lost, new_owner
from greenconn.green.hub import weakly
from greenconn.green.supervisor import OnDemand, spawn
from greenconn.transport.redis.envelope import Delivery, number_of
from greenconn.transport.redis.errors import PASSING, CommandRefused
from greenconn.transport.redis.pipeline import ENDLESS, Commands, as_pairs
from greenconn.transport.redis.scripts import (
    ADVANCE,
    CLAIM_BYTES,
    CLAIM_COUNT,
    DELAY,
    EXPIRE,
    PROMOTE,
    entry_suffix,
    mark,
)
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.claiming import Claims
    from greenconn.transport.redis.queues import RedisQueues
    from greenconn.transport.redis.settling import Requeuer

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
        ended = b"(" + (self._time or b"0")
        oldest = time() - self._owners.dead_after
        # Mostly there is nothing to do, so as few questions as possible find that out.
        dead, old = commands.call_all(
            [
                pack(b"ZCOUNT", commands.keys.owners, b"-inf", ended),
                pack(b"ZCOUNT", commands.keys.unacked_index, b"-inf", oldest),
            ],
            what="sweeping",
        )
        if dead:  # what they held may be marked with any time, so all that is held is looked at
            oldest = float("inf")
        skipped = count = 0
        is_complete = not (dead or old)
        held: dict[str, list[str]] = {}
        while not is_complete and (limit is None or count < limit):
            size = PAGE if limit is None else min(PAGE, limit - count)
            asked = _range_of(commands.keys.unacked_index, oldest, skipped, size)
            page = _scored(commands.call(asked, what="sweeping"))
            if not page:
                is_complete = True
                break
            done = self._requeue_foreign(page, held)
            count += done
            skipped += len(page) - done  # what is not due, or cannot be requeued, stays in front
        for owner in self._owners.dead(list(held)):
            # Each goes to the head of its queue: the newest first, so that the oldest is in front.
            fields = sorted(held[owner], key=number_of, reverse=True)
            if limit is not None and count + len(fields) > limit:
                del fields[max(limit - count, 0) :]
                is_complete = False
            count += self._requeuer.requeue(fields, owner)
        self._end_queues()
        if dead and is_complete:
            # Of those who have come back meanwhile the lease ends later.
            commands.call(
                pack(b"ZREMRANGEBYSCORE", commands.keys.owners, b"-inf", ended), what="sweeping"
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

    def _end_queues(self) -> None:
        """End queues whose time has come, and look after those of dead programs: a page at each look."""
        commands, keys = self._commands, self._commands.keys
        long_ago = float(self._time or 0) - 1000 * ENDED_LEASES * commands.options.lease
        exclusive, temporary, timed, ended = commands.call_all(
            [
                pack(b"HGETALL", keys.exclusive),
                pack(b"SSCAN", keys.temporary, self._cursor, b"COUNT", PAGE),
                pack(b"SMEMBERS", keys.timed),
                _range_of(keys.ended, long_ago, 0, PAGE),
            ],
            what="sweeping",
        )
        self._end_exclusive(
            {_text(name): _text(owner) for name, owner in as_pairs(exclusive).items()}
        )
        self._cursor, names = temporary
        self._queues.end_unused(commands, [_text(name) for name in names])
        self._watch_timed([_text(name) for name in timed])
        self._forget_ended([name for name, _ in _scored(ended)])

    def _requeue_foreign(self, page: list[tuple[str, float]], held: dict[str, list[str]]) -> int:
        """Requeue what kombu's consumers have held for too long, and return the number of messages.

        Arguments:
            held: gets the fields of our consumers, by the owner.
        """
        foreign = []
        due = time() - self._commands.options.visibility_timeout
        for field, marked in page:
            if field.startswith("gc."):
                held.setdefault(field.split(".")[1], []).append(field)
            elif marked <= due:
                foreign.append(field)
        return self._requeuer.requeue(foreign)

    def _end_exclusive(self, queues: dict[str, str]) -> None:
        """Delete those exclusive queues whose owners are dead."""
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

    def _forget_ended(self, names: Sequence[str]) -> None:
        """Forget queues that ended long ago.

        A process that does not use the script for it may have published to one just after its end.
        No program looks for such a message of a queue with a generated name, so it expires.
        """
        if not names:
            return
        commands = self._commands
        generated = [each for each in names if each.startswith(GENERATED)]
        asked = [pack(b"EXISTS", *commands.keys.lists(each)) for each in generated]
        for name, lists in zip(generated, commands.call_all(asked, what="sweeping"), strict=True):
            if lists:
                self._queues.end(name, "expired")
        commands.call(pack(b"ZREM", commands.keys.ended, *names), what="sweeping")

    def _watch_timed(self, names: Sequence[str]) -> None:
        """See that messages expire in queues that only dead programs know of."""
        commands = self._commands
        for name in names:
            if not self._expiry.watches(name) and self._queues.find(name) is None:
                commands.call(pack(b"SREM", commands.keys.timed, name), what="sweeping")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _range_of(key: bytes, most: float, start: int, size: int) -> bytes:
    """Return the command for the members of a sorted set whose score is at most *most*."""
    return pack(b"ZRANGEBYSCORE", key, b"-inf", most, b"WITHSCORES", b"LIMIT", start, size)


def _scored(reply: list[Any]) -> list[tuple[str, float]]:
    """Return the members of a sorted set, with their scores, from a reply of either protocol."""
    is_nested = bool(reply) and isinstance(reply[0], list)
    pairs = reply if is_nested else zip(reply[::2], reply[1::2], strict=True)
    return [(_text(member), float(score)) for member, score in pairs]


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
            spawn("redis-expiry", _look_after, ref(watch), watch.is_over)

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


def _look_after(reference: ref[_Watch], is_over: Event) -> None:
    # As _run().
    has_failed = False
    while not is_over.is_set():
        watch = reference()
        if watch is None:
            return
        commands = watch.commands
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
        pause = max(watch.seconds / LOOKS, LEAST_PAUSE)
        del watch, commands
        is_over.wait(pause)


class _Watch:
    """One queue.

    Arguments:
        seconds: the time to live.

    Attributes:
        commands: of the link.
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
        self.commands = commands
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
        replies = self.commands.call_all(
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
        commands, claims = self.commands, self._claims
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


#: Between the two parts of a name.
_SEPARATOR: Final = "-"
#: Looks of the sweepers in one lease.
SWEEPS: Final = 5


def owner_of(client_id: int | None) -> str:
    """Return a name that no other link has.

    Arguments:
        client_id: the server's number of its connection; None: it did not tell.
    """
    name = new_owner()
    return name if client_id is None else f"{name}{_SEPARATOR}{client_id}"


class Owners:
    """The owners in the server of one link, of which the link is one.

    Arguments:
        commands: of the link.
        count_time: makes a process count the time in which leases end.  Never switches.
    """

    def __init__(self, commands: Commands, count_time: Callable[[], None]) -> None:
        self._commands = commands
        self.count_time = count_time

    @property
    def dead_after(self) -> float:
        """Seconds without a sign of life after which what is held is looked at."""
        options = self._commands.options
        return min(options.lease, options.visibility_timeout)

    @property
    def interval(self) -> float:
        """Seconds between two looks of all sweepers together."""
        return self.dead_after / SWEEPS

    def is_alive(self, owner: str) -> bool:
        """Return whether *owner* may still use what it owns, as far as is known.  May switch."""
        if is_lost(owner):
            return False
        self.count_time()
        if self.dead([owner]):
            return False
        client_id = owner.rpartition(_SEPARATOR)[2] if _SEPARATOR in owner else ""
        return not client_id.isdecimal() or self._is_connected(client_id)

    def _is_connected(self, client_id: str) -> bool:
        """Return whether the server has a client of this number, or does not say so.  May switch."""
        command = pack(b"CLIENT", b"LIST", b"ID", client_id)
        try:
            clients = self._commands.call(command, what="looking up an owner")
        except ResponseError:
            return True
        return bool(clients)

    def dead(self, owners: Sequence[str]) -> list[str]:
        """Return those of *owners* whose lease has ended.  May switch, if there are owners."""
        if not owners:
            return []
        commands = self._commands
        now, *expiries = commands.call_all(
            [pack(b"ZSCORE", commands.keys.owners, each) for each in ("clock", *owners)],
            what="sweeping",
        )
        return [
            owner
            for owner, expiry in zip(owners, expiries, strict=True)
            if owner != commands.owner and (expiry is None or float(expiry) <= float(now or 0))
        ]

    def renewal(self, handles: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return keys and arguments of the script that says that the link lives, and holds these."""
        commands = self._commands
        keys = (commands.keys.owners, commands.keys.unacked_index, commands.keys.unacked)
        # The time that is counted may be behind by what lies between two looks of the sweepers.
        lasts_ms = int((commands.options.lease + self.interval) * 1000)
        return keys, commands.owner, lasts_ms, mark(), *handles


class FormerOwners:
    """The former lives of a connection to one place: their leases, and what they listened to."""

    def __init__(self) -> None:
        #: Those that the server may still take for living, with the tags of the partitions.
        self._leased: list[tuple[str, str]] = []
        #: Queues that listened to fan-out exchanges, and when that ended.
        self._listened: dict[str, float] = {}

    def add(self, owner: str, listened: Iterable[str], leased: Iterable[str]) -> None:
        """Note that the life of *owner* is over.  Never switches.

        Arguments:
            listened: queues that listened to fan-out exchanges.
            leased: the tags of the partitions where the server may still take it for living.
        """
        self._listened.update(dict.fromkeys(listened, monotonic()))
        self._leased += ((tag, owner) for tag in leased)

    def gap(self, queue: str) -> float | None:
        """Return, once, the seconds since a queue was subscribed in a former life; None if never."""
        since = self._listened.pop(queue, None)
        return None if since is None else monotonic() - since

    def end_leases(self, commands_of: Callable[[str], Commands]) -> None:
        """End their leases over a link which has requeued what they held.  May switch.

        An owner without a lease is no consumer, and others requeue what it still holds.

        Arguments:
            commands_of: returns the commands of the link for a partition, by its tag.
        """
        leased, done = self._leased, 0
        for tag, owner in leased:
            commands = commands_of(tag)
            commands.call(pack(b"ZREM", commands.keys.owners, owner), what="ending leases")
            done += 1
        del leased[:done]


#: Seconds between two looks at least, and after the server has refused one.
LEAST_WAIT: Final = 0.01
AFTER_REFUSAL: Final = 5.0
#: Seconds between two looks because of what others have stored.
OTHERS_PAUSE: Final = 0.1
#: Seconds between two looks at most, where the server announces changes, and where it cannot.
SAFETY: Final = (5.0, 10.0)
POLL: Final = 1.0
#: The operation, for messages.
_WHAT: Final = "moving delayed messages"


def delayed_text(key: bytes, declaration: bytes | None, raw: bytes) -> bytes:
    """Return what is stored of a delayed message; see :meth:`Delays.put_command`."""
    needed = declaration or b""
    return b"%d:%d:%b%b%b" % (len(key), len(needed), key, needed, raw)


class Delays:
    """The delayed messages that one link looks after.

    Arguments:
        commands: of the link.
    """

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._moving = OnDemand("redis-delays", self._move)
        #: When it looks next, looked last, and when the last is due that this link has stored, by the
        #: monotonic clock.
        self._due_at = self._looked_at = self._own_until = 0.0
        #: Runs until then.  A greenlet that waited would keep a link that its program has dropped.
        self._timer: Any = None
        self._is_consuming = False
        self._has_failed = False
        #: The lists and declarations of what was due last.
        self._keys: tuple[bytes, ...] = ()

    def put_command(
        self, key: bytes, declaration: bytes | None, raw: bytes, seconds: float
    ) -> bytes:
        """Return the command that stores a delayed message; it does not need a loaded script.

        Arguments:
            key: of the list.
            declaration: key of the declaration that there must be when it is due; None: it need not.
            seconds: of the delay.
        """
        delayed = self._commands.keys.delayed
        text = delayed_text(key, declaration, raw)
        return pack(b"EVAL", DELAY.text, 1, delayed, round(seconds * 1000), text)

    def expect(self, seconds: float) -> None:
        """Look after a message that was stored, and is due in so long.  Never switches."""
        due_at = monotonic() + seconds
        self._own_until = max(self._own_until, due_at)
        if not self._is_looking:  # others may have stored earlier ones
            due_at = min(due_at, self._looked_at + OTHERS_PAUSE)
        self._look_at(due_at)

    def find(self) -> None:
        """Look after what others store from now on, and what they have left behind.  Never switches."""
        self._is_consuming = True
        if not self._is_looking:
            self._commands.pipeline.post(pack(b"EXISTS", self._commands.keys.delayed), self._found)

    def _found(self, reply: Any) -> None:
        # In the reader.  An error is that of the first look, too, which tells it.
        if reply and self._commands.lost is None:
            self.changed()

    def changed(self) -> None:
        """Look again soon, as others may have stored an earlier message.  Never switches."""
        if not self._is_looking:
            if not self._is_consuming:
                return
        elif self._has_failed:
            return
        self._look_at(self._looked_at + OTHERS_PAUSE)

    @property
    def _is_looking(self) -> bool:
        """Whether it looks, or will."""
        return self._timer is not None or self._moving.greenlet is not None

    def _look_at(self, at: float) -> None:
        if self._moving.greenlet is not None:
            self._due_at = min(self._due_at, at)
        elif self._timer is None or at < self._due_at:
            self._wait_until(at)

    def _wait_until(self, at: float) -> None:
        self._due_at = at
        self._stop_timer()
        left = at - monotonic()
        if left <= 0:
            self._moving.start()
            return
        self._timer = get_hub().loop.timer(left, ref=False)
        self._timer.start(weakly(self._on_time), update=True)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _on_time(self) -> None:
        # In the hub.
        self._moving.start()
        self._stop_timer()

    def stop(self) -> None:
        """End.  Never switches."""
        self._stop_timer()
        self._moving.end()

    def _move(self) -> None:
        if self._commands.lost is not None:
            return
        seconds = self._promote()
        if seconds is not None and self._commands.lost is None:
            self._wait_until(monotonic() + max(seconds, LEAST_WAIT))

    def _promote(self) -> float | None:
        """Move what is due, and return the seconds until there is more; None: none is left."""
        commands = self._commands
        # What is stored from now on may be missed by the script, but not by ``expect`` and ``changed``.
        self._due_at = float("inf")
        self._looked_at = monotonic()
        try:
            left_ms = self._run_script()
        except PASSING as exc:
            if commands.lost is not None:
                return None
            if not self._has_failed:
                logger.error(
                    "%s: delayed messages are not delivered: %s",
                    commands.where,
                    exc,
                    extra={"connection": commands.where},
                )
            self._has_failed = True
            return AFTER_REFUSAL
        except Exception:
            if commands.lost is None:
                raise
            return None  # it ended with an error of another kind
        self._has_failed = False
        now = monotonic()
        own = max(self._due_at - now, 0.0)
        if left_ms < 0:
            return None if own == float("inf") else own
        seconds = left_ms / 1000
        if seconds and now + seconds > self._own_until:
            seconds += uniform(0.5, 1.0) * OTHERS_PAUSE
        return min(seconds, own, uniform(*SAFETY) if commands.is_tracking else POLL)

    def _run_script(self) -> int:
        """Move what is due, and return the milliseconds until there is more; -1: none is left."""
        commands = self._commands
        refused: frozenset[bytes] = frozenset()
        while True:
            try:
                reply: int | list[bytes] = commands.run(
                    PROMOTE,
                    (commands.keys.delayed, *self._keys),
                    CLAIM_COUNT,
                    CLAIM_BYTES,
                    *refused,
                    what=_WHAT,
                )
            except CommandRefused:
                found = frozenset(key for key in self._keys if self._is_refused(key))
                if not found:
                    raise  # not because of a queue
                refused |= found
                self._keys = tuple(key for key in self._keys if key not in found)
                continue
            if isinstance(reply, int):
                return reply
            self._keys, refused = tuple(dict.fromkeys(reply)), frozenset()

    def _is_refused(self, key: bytes) -> bool:
        """Return whether a script of this user may not have a key.  May switch."""
        try:
            self._commands.call(pack(b"EVAL", b"return 1", 1, key), what=_WHAT)
        except CommandRefused:
            return True
        return False
