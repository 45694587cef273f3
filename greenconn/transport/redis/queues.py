"""Queues in a server: their declarations, stored for all programs that use greenconn.

kombu's queues are lists, and an empty list does not exist, so Redis alone cannot tell a declared queue
from one that never was.  A declaration is kept under ``greenconn.queue.<name>``; a queue that has
messages exists without one, too, since a program of kombu may have sent them.

What was read is remembered; the server's invalidations tell when it has changed.  Who may use a queue is
decided by the directory of all brokers (``broker.queues``).

Exchanges and bindings
----------------------
Bindings of queues are kombu's tables.  What kombu does not have here is ours: the declaration of an
exchange; the arguments of a binding of a headers exchange, as JSON where others have a pattern; and
bindings between exchanges, in sets of their own.  An exchange that only programs of kombu have declared
is known by its table alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count, islice
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gevent.event import Event
from redis.exceptions import ResponseError

from greenconn.broker.errors import Method, refused
from greenconn.broker.exchanges import PREDECLARED, ExchangeRecord, Row, TopologyStore
from greenconn.broker.queues import MOST_KNOWN, UNDECLARED, Declaration, KnownQueues, QueueStore
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import Ticker, spawn
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.options import RESERVED, Keys
from greenconn.transport.redis.pipeline import Commands, as_pairs, call_together
from greenconn.transport.redis.scripts import BIND, DECLARE, DROP, JOIN, MORE
from greenconn.wire.resp import ErrorReply, pack

if TYPE_CHECKING:
    from greenconn.transport.redis.claiming import RedisFeed
    from greenconn.transport.redis.link import Partition, RedisLink


logger = logging.getLogger("greenconn.transport.redis")

#: Seconds between two renewals of queues that expire, at least.
LEAST_RENEWAL: Final = 0.01
#: Seconds for which bindings count that were read, as what tells of changes may be lost (by a proxy).
KNOWN_FOR: Final = 5.0
#: Keys that one step of a listing looks at.
PAGE: Final = 1000


class RedisQueues(QueueStore):
    """The queues of one link, each asked for in its partition.

    Arguments:
        link: does what else begins and ends with a queue.
        known: gets what was read.
        feeds: queue -> what serves its consumers of this link.
        at: returns the partition of a queue.  Never switches.

    Attributes:
        expiring: queues that expire when they are not used, after so many milliseconds.
    """

    def __init__(
        self,
        link: RedisLink,
        known: KnownQueues,
        feeds: Mapping[str, RedisFeed],
        at: Callable[[str], Partition],
    ) -> None:
        self._link = link
        self._known = known
        self._feeds = feeds
        self._at = at
        self.expiring: dict[str, int] = {}
        self._most_expiring = MOST_KNOWN
        self._ticker: Ticker | None = None
        #: Queues that may end with another process -> until when they count as being there.
        self._exists_until: dict[str, float] = {}
        #: Declared queues that end with others, also some that have ended.
        self._may_end: set[str] = set()
        #: Auto-delete queues whose last consumer has left, and which go now.
        self._ending = 0
        self._none_ending = Event()

    def is_current(self, name: str) -> bool:
        """Return whether changes of a queue are announced by the server; one in use cannot expire."""
        if name not in self.expiring:
            return True
        feed = self._feeds.get(name)
        return feed is not None and bool(feed.consumers)

    def is_known_to_exist(self, name: str) -> bool:
        """Return whether a queue is known to exist, without asking.  Never switches."""
        feed = self._feeds.get(name)
        if feed is not None and feed.consumers:
            return True
        declared = self._known.declared.get(name)
        if declared is None or declared.auto_delete:
            return self._exists_until.get(name, 0.0) > monotonic()
        return name not in self.expiring and self._link.commands.is_tracking

    def is_permanent(self, name: str) -> bool:
        """Return whether a queue is known to exist, and cannot have ended since.  Never switches."""
        return self.is_known_to_exist(name) and name not in self._may_end

    def may_end(self, name: str) -> bool:
        """Return whether a queue may have ended since it was looked at.  Never switches."""
        return name in self._may_end

    def needed_by_delayed(self, name: str) -> bytes | None:
        """Return the key without which a delayed message is dropped when it is due.  Never switches.

        A queue that was deleted, or has expired, would be there again with that message, and without
        its arguments.  None: it is a queue of kombu, as far as is known, and has no declaration.
        """
        declared = self._known.declared.get(name)
        if (declared is None or declared is UNDECLARED) and not self.may_end(name):
            return None
        return self._at(name).commands.keys.queue(name)

    def is_there(self, name: str) -> bool:
        """Return whether a queue exists, as far as is known here; else the server says.  May switch."""
        return self.is_known_to_exist(name) or bool(self.existing({name: ()}))

    def existing(self, queues: Mapping[str, Iterable[bytes]]) -> list[str]:
        """Return those of *queues* that exist.  May switch.

        A queue exists that is declared, or has messages.  One that is neither and has a binding that
        a program of kombu has made exists, too: kombu keeps nothing else of an empty queue.  What is
        left of a queue that has ended is removed.

        Arguments:
            queues: names, with the fields of the bindings that lead there.
        """
        divided: dict[Partition, dict[str, Iterable[bytes]]] = {}
        for name, fields in queues.items():
            divided.setdefault(self._at(name), {})[name] = fields
        try:
            return [
                name
                for partition, own in divided.items()
                for name in self._existing(partition, own)
            ]
        except ResponseError as exc:
            # Who may only publish may not look: as kombu, which takes all of them to be there.
            link = self._link
            if link.commands.lost is not None:
                raise
            logger.debug(
                "%s: cannot check which queues exist: %s",
                link.where,
                exc,
                extra={"connection": link.where},
            )
            until = monotonic() + link.options.lease
            self._exists_until.update(dict.fromkeys(queues, until))
            return list(queues)

    def _existing(self, partition: Partition, queues: Mapping[str, Iterable[bytes]]) -> list[str]:
        """Return those of *queues* that exist, asked in one round trip.  May switch.

        Arguments:
            queues: names -> their fields in the table of an exchange that they are bound to.
        """
        commands, keys = partition.commands, partition.commands.keys
        queues = {name: queues[name] for name in queues if not keys.is_reserved(name)}
        asked = []
        for name in queues:
            asked += [
                pack(b"GET", keys.queue(name)),
                pack(b"EXISTS", *keys.lists(name)),
                pack(b"HGETALL", keys.bound(name)),
                pack(b"SISMEMBER", keys.temporary, name),
            ]
        replies = iter(commands.call_all(asked, what="checking queues"))
        found = []
        for (name, fields), text, messages, pairs, has_ended in zip(
            queues.items(), replies, replies, replies, replies, strict=True
        ):
            bound = as_pairs(pairs)
            if text is not None:
                is_there = self._is_alive(name, text)
            elif _is_bound(commands, (each for each in fields if bound.get(each) != b"1")):
                # Kombu's: it stays so until greenconn declares it.
                is_there = True
                self._note_exists(name)
            else:
                is_there = bool(messages) and not bound and not has_ended
                if not is_there and (bound or has_ended):
                    self.end(name, "expired")
            if is_there:
                found.append(name)
                if text is None:
                    self._may_end.discard(name)
        return found

    def _is_alive(self, name: str, text: bytes) -> bool:
        """Return whether a queue that is declared so has not ended with its owner or consumers."""
        declared = self._read(name, text)
        if declared is None:
            return False
        if declared.owner is None or declared.owner == self._link.owner:
            if not declared.auto_delete:
                return True
            self._at(name).sweeper.start()  # which counts the time in which leases end
            if self.end(name, "dead", text=text) is not None:
                return False
        self._note_exists(name)
        if len(self._may_end) >= MOST_KNOWN:
            self._may_end.clear()
        self._may_end.add(name)
        return True

    def _note_exists(self, name: str) -> None:
        if len(self._exists_until) >= MOST_KNOWN:
            self._exists_until.clear()
        self._exists_until[name] = monotonic() + self._at(name).owners.interval

    # -- looking up

    def find(self, name: str) -> Declaration | None:
        """Ask the server for a queue; None when there is none.  May switch."""
        commands = self._at(name).commands
        key = commands.keys.queue(name)
        text, messages = commands.call_all(
            [pack(b"GET", key), pack(b"EXISTS", *commands.keys.lists(name))],
            what=f"looking up queue {name!r}",
        )
        if text is not None:
            return self._read(name, text)
        if not messages:
            self._forget(name)
            return None
        return self._remember(name, UNDECLARED)

    def _read(self, name: str, text: bytes) -> Declaration | None:
        """Return the declaration of a queue; None: it has ended with its owner.  May switch."""
        declared = Declaration.read(text)
        if declared.owner is None or declared.owner == self._link.owner:
            return self._remember(name, declared)
        if self._at(name).owners.is_alive(declared.owner):
            return declared  # not remembered: it may go at any time
        self.end(name, "gone", text=text)
        return None

    def _remember(self, name: str, declared: Declaration) -> Declaration:
        """Note the declaration of a queue, and return it.  Never switches."""
        if len(self.expiring) >= self._most_expiring:
            self._known.clear()
            self._forget_expiring()
        self._known.remember(name, declared)
        if declared.arguments:
            seconds = declared.policy.message_ttl
            if seconds is not None:
                self._at(name).expiry.watch(name, seconds)
        expires_ms = declared.expires_ms if declared.arguments else None
        if expires_ms is not None:
            self.expiring[name] = expires_ms
        else:
            self.expiring.pop(name, None)
        return declared

    def _forget_expiring(self) -> None:
        """Forget the older half of the queues that expire.  Never switches.

        Those consumed here stay: they are renewed as long as they are consumed.
        """
        consumed = {*self.expiring} & self._feeds.keys()
        newer = islice(self.expiring, len(self.expiring) // 2, None)
        self.expiring = {name: self.expiring[name] for name in chain(consumed, newer)}
        self._most_expiring = MOST_KNOWN + 2 * len(consumed)

    def _forget(self, name: str) -> None:
        """Ask again when it is next needed.  Never switches."""
        self._known.forget(name)
        self._exists_until.pop(name, None)

    def names(self) -> Collection[str] | None:
        """Return the names of the queues that are declared, or have messages.  May switch.

        Any list is a queue, as for :meth:`find`.  Those that others have declared exclusive may be
        gone: who uses one finds out.
        """
        commands = self._at("").commands
        keys = commands.keys
        if keys.tag:
            return None  # they are in many partitions
        declared = {keys.declared_name(each) for each in _scan(commands, keys.queue(""))}
        lists = {keys.list_name(each) for each in _scan(commands, keys.plain(""), b"TYPE", b"list")}
        return {name for name in declared | lists if not keys.is_reserved(name)}

    # -- declaring

    def check_name(self, name: str, method: Method) -> None:
        """See that a queue may have this name.  Never switches.

        Raises:
            AccessRefused: one of our keys, or of kombu's, has it.
        """
        if self._link.commands.keys.is_reserved(name):
            raise refused(f"queue name '{name}' is reserved: {RESERVED}", method)

    def make(self, name: str, declared: Declaration) -> Declaration:
        """Store *declared* unless another client was faster; return what is stored."""
        partition = self._at(name)
        commands = partition.commands
        key = commands.keys.queue(name)
        if declared.owner is not None:
            partition.keep_alive()
        expires_ms = declared.expires_ms
        # Read by a command of its own, so that the server tells when others change it.
        text = commands.run_and_read(
            DECLARE,
            (key, commands.keys.temporary, commands.keys.timed, commands.keys.exclusive),
            *(name, declared.text(), "" if expires_ms is None else expires_ms),
            "1" if declared.auto_delete or expires_ms is not None else "",
            "1" if declared.policy.message_ttl is not None else "",
            declared.owner or "",
            reads=[pack(b"GET", key)],
            what=f"declaring queue {name!r}",
        )[1]
        return self._remember(name, declared if text is None else Declaration.read(text))

    # -- use and its end

    def touch(self, name: str) -> None:
        """Restart the time without use of a queue.  Never switches."""
        milliseconds = self.expiring.get(name)
        if milliseconds is not None:
            commands = self._at(name).commands
            commands.pipeline.post(pack(b"PEXPIRE", commands.keys.queue(name), milliseconds))
            self.pushed(name)
            self._link.topology.keep(name, milliseconds)

    def pushed(self, name: str) -> None:
        """Note a message sent to a queue that expires, with which it goes.  Never switches.

        To send is no use of a queue, as with RabbitMQ, so its declaration is not renewed.
        """
        milliseconds, commands = self.expiring[name], self._at(name).commands
        for key in commands.keys.lists(name):
            commands.pipeline.post(pack(b"PEXPIRE", key, milliseconds))

    def join(self, name: str, how: str | int) -> bool:
        """Note that this link consumes from a queue; False: it may not.  May switch.

        Arguments:
            how: ``exclusive``, or how many consumers it has now.
        """
        commands = self._at(name).commands
        keys = (commands.keys.consumers(name), commands.keys.owners)
        reply = commands.run(JOIN, keys, commands.owner, how, what="consuming")
        if reply < 0 and self._forget_dead_consumers(name):
            reply = commands.run(JOIN, keys, commands.owner, how, what="consuming")
        if reply >= 0 and self._known.last(name) is UNDECLARED:
            # A program of kombu uses the name of a queue that ended: what is taken goes back again.
            commands.pipeline.post(pack(b"ZREM", commands.keys.ended, name))
        if reply >= 0 and name in self.expiring:
            self._keep_alive(self.expiring[name] / 1000)
        return bool(reply >= 0)

    def _forget_dead_consumers(self, name: str) -> bool:
        """Forget those who consume from a queue by their lease alone; whether there were any."""
        commands = self._at(name).commands
        key = commands.keys.consumers(name)
        owners = [each.decode() for each in commands.call(pack(b"HKEYS", key), what="consuming")]
        dead = [
            each
            for each in owners
            if each != commands.owner and not self._at(name).owners.is_alive(each)
        ]
        if dead:
            commands.call(pack(b"HDEL", key, *dead), what="consuming")
        return bool(dead)

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        return {name: self._counts_of(name) for name in names}

    def _counts_of(self, name: str) -> tuple[int, int]:
        """Return the numbers of a queue's waiting messages and consumers."""
        commands = self._at(name).commands
        keys = (commands.keys.consumers(name), commands.keys.owners)
        others, *sizes = commands.run_and_read(
            *(JOIN, keys, commands.owner, ""),
            reads=[pack(b"LLEN", key) for key in commands.keys.lists(name)],
            what=f"counting messages of queue {name!r}",
        )
        feed = self._feeds.get(name)
        return sum(sizes), others + (len(feed.consumers) if feed is not None else 0)

    def left(self, name: str, consumers: int) -> None:
        """Note that one of several consumers of a queue on this link has left.  Never switches."""
        commands = self._at(name).commands
        if commands.lost is None:
            commands.pipeline.post(
                pack(b"HSET", commands.keys.consumers(name), commands.owner, consumers)
            )

    def _tick(self, lag: float) -> None:
        # In the hub.
        self.renew()

    def _keep_alive(self, expires: float) -> None:
        """Renew often enough for a queue that expires after so many seconds without use."""
        interval = max(expires / 3, LEAST_RENEWAL)
        if self._ticker is not None and self._ticker.interval <= interval:
            return
        if self._ticker is not None:
            self._ticker.stop()
        self._ticker = Ticker(interval, self._tick, "redis-queues")
        self._ticker.start()

    def unused(self, name: str) -> None:
        """Note that the last consumer of a queue on this link has left.  Never switches."""
        commands = self._at(name).commands
        if commands.lost is not None:
            return
        if not self._known.last(name).auto_delete:
            commands.pipeline.post(pack(b"HDEL", commands.keys.consumers(name), commands.owner))
            return
        self._forget(name)
        self._ending += 1
        self._none_ending.clear()
        self._leave(name, ())

    def _leave(self, name: str, exchanges: tuple[bytes, ...]) -> None:
        keys, *args = self._drop_arguments(name, "left", exchanges)
        done = partial(self._left, name, exchanges)
        self._at(name).commands.post_script(DROP, keys, *args, done=done)

    def _left(self, name: str, exchanges: tuple[bytes, ...], reply: Any) -> None:
        # In the reader.
        commands = self._at(name).commands
        if isinstance(reply, list) and reply[0] == MORE and commands.lost is None:
            self._leave(name, (*exchanges, *dict.fromkeys(reply[1:])))
            return
        if isinstance(reply, ErrorReply):
            error = commands.pipeline.error(reply, f"cancelling the consumer of queue {name!r}")
            spawn("log", logger.error, "%s", error, extra={"connection": commands.where})
        if isinstance(reply, list) and reply[0] >= 0:
            spawn("ended", self._after_leaving, name, reply)
        else:
            self._end_seen()

    def _after_leaving(self, name: str, reply: Any) -> None:
        try:
            self._ended(name, reply)
        except (LinkLost, TimeoutError):
            pass  # an exchange stays that nothing is bound to
        finally:
            self._end_seen()

    def _end_seen(self) -> None:
        self._ending -= 1
        if not self._ending:
            self._none_ending.set()

    def settle(self) -> None:
        """Wait until dead letters are stored, and queues that deleted themselves are gone.  May switch.

        Or the bindings of a queue of the same name, or an exchange that goes with them, would go too.
        """
        timeout = self._link.options.reply_timeout
        self._link.settlements.wait_routed(Deadline(timeout))
        if self._ending:
            self._none_ending.wait(timeout)

    def purge(self, name: str) -> int:
        """Drop the messages that wait in a queue, and return how many there were.  May switch."""
        commands = self._at(name).commands
        lists = commands.keys.lists(name)
        replies = commands.call_all(
            [*(pack(b"LLEN", key) for key in lists), pack(b"DEL", *lists)],
            what=f"purging queue {name!r}",
        )
        return sum(replies[:-1])

    def drop(self, name: str) -> int:
        """Delete a queue, and return how many messages it had.  May switch."""
        return self.end(name, "") or 0

    def end(self, name: str, why: str, *, text: bytes = b"") -> int | None:
        """Delete a queue and its bindings, and return how many messages it had.  May switch.

        Arguments:
            why, text: see the script.

        Returns:
            None: it does not end, since it is in use.
        """
        # Who publishes until the reply is there must ask, or the message would make a list of its own.
        self._exists_until.pop(name, None)
        exchanges: tuple[bytes, ...] = ()
        while True:
            keys, *args = self._drop_arguments(name, why, exchanges, text)
            reply = self._at(name).commands.run(DROP, keys, *args, what=f"deleting queue {name!r}")
            if reply[0] != MORE:
                break
            exchanges += tuple(dict.fromkeys(reply[1:]))
        if exchanges:
            self._link.topology.note_change()
        if reply[0] < 0:
            return None
        self._ended(name, reply)
        return int(reply[0])

    def _drop_arguments(
        self, name: str, why: str, exchanges: Iterable[bytes], text: bytes = b""
    ) -> tuple[Any, ...]:
        keys = self._at(name).commands.keys
        tables, permanent = keys.bindings("").__add__, keys.permanent_bindings("").__add__
        names = (
            keys.queue(name),
            keys.consumers(name),
            keys.bound(name),
            keys.exclusive,
            keys.temporary,
            keys.owners,
            keys.ended,
            *(table(each) for each in exchanges for table in (tables, permanent)),
            *keys.lists(name),
        )
        return names, name, why, self._link.owner, text, *exchanges

    def _ended(self, name: str, reply: Any) -> None:
        """Forget a deleted queue, and the auto-delete exchanges that go with it.  May switch."""
        self._exists_until.pop(name, None)
        self.expiring.pop(name, None)
        self._at(name).expiry.forget(name)
        self._link.topology.ended(name)
        self._link.queue_ended(name, [each.decode() for each in reply[1:]])

    def end_unused(self, commands: Commands, names: list[str]) -> None:
        """Delete those of *names* that have expired, or whose consumers are dead.  May switch.

        Arguments:
            commands: of their partition.
        """
        texts = commands.call_all(
            [pack(b"GET", commands.keys.queue(each)) for each in names], what="sweeping"
        )
        for name, text in zip(names, texts, strict=True):
            if text is None:
                self.end(name, "expired")
            elif Declaration.read(text).auto_delete:
                self.end(name, "dead", text=text)

    def changed(self, keys: Keys, key: bytes | None) -> None:
        """Note that a key has changed, or that all may have.  In the reader; never switches.

        Arguments:
            keys: of the partition.
        """
        known = self._known.declared
        prefix = keys.queue("")
        if key is None:
            names = list(known)
            for each in self._feeds.values():
                each.rivals_changed()
        elif key.startswith(prefix):
            names = [key[len(prefix) :].decode("utf-8", "replace")]
        else:
            self._consumers_changed(keys, key)
            return
        for name in names:
            declared = known.get(name)
            if declared is None:
                continue
            self._forget(name)
            feed = self._feeds.get(name)
            if feed is not None and feed.consumers:
                spawn("queue-changed", self._verify, name)

    def _consumers_changed(self, keys: Keys, key: bytes) -> None:
        prefix = keys.consumers("")
        if key.startswith(prefix):
            feed = self._feeds.get(key[len(prefix) :].decode("utf-8", "replace"))
            if feed is not None:
                feed.rivals_changed()

    def _verify(self, name: str) -> None:
        """Verify that a changed queue that is consumed here still exists."""
        feed = self._feeds.get(name)
        try:
            if feed is None or self.find(name) is not None:
                return
        except Exception:
            return  # the link is gone, or about to go
        self.cancel_consumers(feed)

    def is_usable(self, name: str) -> bool:
        """Return whether a queue that is consumed here has not ended, nor is another one's.  May switch.

        Of one that was not declared kombu keeps nothing while it is empty.
        """
        if self._known.last(name) is UNDECLARED:
            return True
        declared = self.find(name)
        return declared is not None and declared.owner in (None, self._link.owner)

    @staticmethod
    def cancel_consumers(feed: RedisFeed) -> None:
        """Tell the consumers of this link that their queue has ended.  Never switches."""
        for consumer in list(feed.consumers):
            consumer.channel.cancelled_by_broker(consumer)

    def stop(self) -> None:
        """Stop, as the link has ended.  Never switches."""
        self._none_ending.set()
        if self._ticker is not None:
            self._ticker.stop()

    def renew(self) -> None:
        """Tell that what is consumed here is in use.  In the hub."""
        for name in self.expiring:
            feed = self._feeds.get(name)
            if feed is not None and feed.consumers:
                self.touch(name)


#: A table of bindings of expiring queues is kept for so many times their expiry, and for an hour at
#: least (kombu's figures).
EXPIRY_FACTOR: Final = 2
LEAST_EXPIRY_MS: Final = 3_600_000
#: Renewals in that time, where the queue is in use (kombu's figure).
RENEWALS: Final = 3


def _is_bound(commands: Commands, fields: Iterable[bytes]) -> bool:
    """Return whether one of these bindings is in its exchange's table now.  May switch.

    Who read the table before a queue of ours ended still has its bindings, which look like kombu's.
    """
    pairs = [each.split(b"\0", 1) for each in fields]
    tables = commands.keys.bindings("")
    asked = [pack(b"SISMEMBER", tables + exchange, member) for exchange, member in pairs]
    return bool(pairs) and any(commands.call_all(asked, what="checking queues"))


def _scan(commands: Commands, prefix: bytes, *options: bytes) -> Iterator[bytes]:
    """Yield the keys that begin so, perhaps some of them twice.  May switch."""
    pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix) + b"*"
    cursor = b"0"
    while True:
        command = pack(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", PAGE, *options)
        cursor, found = commands.call(command, what="listing queues")
        yield from found
        if cursor == b"0":
            return


#: Numbers of changes.
_numbers: Final = count(1)


class RedisTopology(TopologyStore):
    """The records as one link reads them.

    An exchange is declared in the partition of its name.  The bindings of a queue are in that of the
    queue, and where there are several, the set ``greenconn.partitions.<exchange>`` says in which.

    A server that pushes names each record that has changed since this link read it, before it replies to
    what this link asks after the change.  So a publisher may use what was read last, and reads again
    where a change was noted when its message is stored.

    Arguments:
        link: has what is known of exchanges.
        at: returns the partition of a name.  Never switches.
        partition: returns that of a tag.  Never switches.

    Attributes:
        last_change: the number of the last change of which this process knows, its own among them: a
            program may publish over another link at once.
    """

    last_change: ClassVar[int] = next(_numbers)

    def __init__(
        self,
        link: RedisLink,
        at: Callable[[str], Partition],
        partition: Callable[[str], Partition],
    ) -> None:
        self._link = link
        self._at = at
        self._partition = partition
        #: Exchange -> the tags under which it has bindings, as they were read last.
        self._tags: dict[str, frozenset[str]] = {}
        #: Exchange -> what was read last, and the rows of that.
        self._read: dict[str, tuple[object, tuple[Row, ...]]] = {}
        #: Exchange -> the last change when its bindings were read, and until when that counts.
        self._known: dict[str, tuple[int, float]] = {}
        #: Queue that expires -> when its bindings must be renewed, on the monotonic clock.
        self._renewed: dict[str, float] = {}

    # -- what need not be read again

    @staticmethod
    def note_change() -> None:
        """Note that an exchange or a binding has changed.  Never switches."""
        RedisTopology.last_change = next(_numbers)

    def changed(self, keys: Keys, key: bytes | None) -> None:
        """Note that a key has changed, or that all may have.  In the reader; never switches."""
        if key is None or key.startswith((keys.bindings(""), keys.exchange(""), keys.onward(""))):
            self.note_change()

    def note_known(self, exchange: str, last_change: int) -> None:
        """Note that the bindings of an exchange were read after *last_change*.  Never switches.

        That is for one whose bindings alone decide, where the server tells of changes.
        """
        link = self._link
        partition = self._at(exchange)
        known = link.state.exchanges.get(exchange)
        if (
            known is None
            or last_change != self.last_change
            or not partition.commands.is_tracking
            or partition.tag
            or partition.invalidations.lost_pushes
            or known.leads_on
        ):
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[exchange] = last_change, monotonic() + KNOWN_FOR

    def known_since(self, exchange: str) -> int | None:
        """Return the last change if the bindings of an exchange are known as of it.  Never switches."""
        noted = self._known.get(exchange)
        if noted is None or noted[0] != self.last_change or noted[1] < monotonic():
            return None
        known, read = self._link.state.exchanges.get(exchange), self._read.get(exchange)
        # Two greenlets may have read them, and the former reply may be taken over last.
        return noted[0] if known and read and known.rows is read[1] else None

    # -- exchanges

    def get(self, exchange: str) -> ExchangeRecord | None:
        commands = self._at(exchange).commands
        keys = commands.keys
        what = f"looking up exchange {exchange!r}"
        text, has_table = commands.call_all(
            [
                pack(b"GET", keys.exchange(exchange)),
                pack(b"EXISTS", keys.bindings(exchange)),
            ],
            what=what,
        )
        if text is not None:
            record = _decoded(text)
            if isinstance(record.get("type"), str):
                return record
        elif not has_table:
            return None
        table = _table(commands, exchange, what)
        if text is None and not table:
            return None
        has_patterns = any(keys.row(each)[1] for each in table)
        return {"type": "topic" if has_patterns else "direct", "is_guess": True}

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        commands = self._at(exchange).commands
        command = pack(b"SET", commands.keys.exchange(exchange), dumps(record), b"NX")
        commands.call(command, what=f"declaring exchange {exchange!r}")
        self.note_change()

    def delete(self, exchange: str) -> None:
        home = self._at(exchange).commands
        what = f"deleting exchange {exchange!r}"
        for commands in [each for each in self._bound(exchange) if each is not home] + [home]:
            keys = commands.keys
            table = _table(commands, exchange)
            names = (
                *(keys.exchange(exchange), keys.bindings(exchange)),
                *(keys.permanent_bindings(exchange), keys.onward(exchange)),
            )
            asked = [pack(b"DEL", *names), pack(b"ZREM", keys.binding_deadlines, exchange)]
            for member in table:
                field = keys.bound_field(exchange, member)
                asked.append(pack(b"HDEL", keys.bound(keys.row(member)[2]), field))
            commands.call_all(asked, what=what)
        if home.keys.tag:
            home.call(pack(b"DEL", home.keys.exchange_partitions(exchange)), what=what)
        self._tags.pop(exchange, None)
        self._read.pop(exchange, None)
        self.note_change()

    def _bound(self, exchange: str) -> list[Commands]:
        """Return the partitions in which an exchange has, or had, bindings of queues.  May switch."""
        home = self._at(exchange).commands
        if not home.keys.tag:
            return [home]
        command = pack(b"SMEMBERS", home.keys.exchange_partitions(exchange))
        tags = frozenset(each.decode() for each in home.call(command, what="routing"))
        self._tags[exchange] = tags
        return [self._partition(each).commands for each in sorted(tags)]

    # -- bindings

    def rows(self, exchange: str) -> Sequence[Row] | None:
        link, home = self._link, self._at(exchange).commands
        keys = home.keys
        onward = pack(b"SMEMBERS", keys.onward(exchange))
        table: Collection[Any]
        if link.is_broadcast(exchange):
            # The queues of other programs are not asked for: they listen by themselves.
            others, is_there = home.call_all(
                [onward, pack(b"EXISTS", keys.exchange(exchange), keys.bindings(exchange))],
                what="routing",
            )
            table = tuple(link.routing.own_rows(exchange))
        else:
            if keys.tag:
                others, table = self._divided_table(home, exchange, onward)
            else:
                others, table = home.call_all(
                    [onward, pack(b"SMEMBERS", keys.bindings(exchange))], what="routing"
                )
            is_there = others or table or exchange in PREDECLARED
        if not is_there and not home.call(pack(b"EXISTS", keys.exchange(exchange)), what="routing"):
            self._read.pop(exchange, None)
            return None
        what = (table, others)
        known = self._read.get(exchange)
        if known is None or known[0] != what:
            rows = [each if isinstance(each, Row) else self._row(each) for each in table]
            onward_rows = (each for each in map(_onward_row, others) if each is not None)
            known = self._read[exchange] = (what, (*rows, *onward_rows))
        return known[1]

    def _divided_table(
        self, home: Commands, exchange: str, onward: bytes
    ) -> tuple[Collection[bytes], Collection[bytes]]:
        """Return the members of an exchange's sets in all partitions: exchanges, and queues.

        All that is needed is asked for at once: where to look seldom changes.  May switch.
        """
        known = self._tags.get(exchange, frozenset())
        places = (home, pack(b"SMEMBERS", home.keys.exchange_partitions(exchange)))
        tags, others, *tables = call_together(
            [places, (home, onward), *self._tables(exchange, known)], "routing"
        )
        members = {member for table in tables for member in table}
        now = frozenset(each.decode() for each in tags)
        if now != known:
            for table in call_together(self._tables(exchange, now - known), "routing"):
                members.update(table)
            self._tags[exchange] = now
        return sorted(others), sorted(members)

    def _tables(self, exchange: str, tags: Collection[str]) -> list[tuple[Commands, bytes]]:
        """Return the commands that read the bindings in some partitions."""
        all_commands = [self._partition(each).commands for each in sorted(tags)]
        return [(each, pack(b"SMEMBERS", each.keys.bindings(exchange))) for each in all_commands]

    def has_rows(self, exchange: str) -> bool:
        home = self._at(exchange).commands
        asked = [(home, pack(b"EXISTS", home.keys.onward(exchange)))]
        asked += [
            (each, pack(b"EXISTS", each.keys.bindings(exchange))) for each in self._bound(exchange)
        ]
        return any(call_together(asked, "routing"))

    def add(self, exchange: str, row: Row) -> None:
        link, home = self._link, self._at(exchange).commands
        commands = self._at(row.queue).commands
        if row.to_exchange:
            key = home.keys.onward(exchange)
            home.call(pack(b"SADD", key, _onward_member(row)), what="binding")
            key = commands.keys.sources(row.queue)
            commands.call(pack(b"SADD", key, exchange), what="binding")
            self.note_change()
            return
        if home.keys.tag:
            # Before the binding, so that it is never overlooked.  It stays when the binding goes.
            key = home.keys.exchange_partitions(exchange)
            home.call(pack(b"SADD", key, commands.keys.tag), what="binding")
        # The queue may have ended since the caller looked; a binding of none would stay for ever.
        while True:
            declared = link.directory.check(row.queue, Method.QUEUE_BIND)
            names, args = self._binding(exchange, row, declared)
            if commands.run(BIND, names, *args, what="binding") >= 0:
                self.note_change()
                return
            link.directory.forget(row.queue)

    def _binding(
        self, exchange: str, row: Row, declared: Declaration
    ) -> tuple[tuple[bytes, ...], tuple[Any, ...]]:
        """Return keys and arguments of the script that adds a binding of a queue that is declared so."""
        keys = self._at(row.queue).commands.keys
        member = self._member(exchange, row)
        expires_ms = declared.expires_ms
        if expires_ms is None:
            other, kept_ms = keys.permanent_bindings(exchange), ""
        else:
            other, kept_ms = keys.binding_deadlines, str(_kept_ms(expires_ms))
        names: tuple[bytes, ...] = (keys.bindings(exchange), other, keys.bound(row.queue))
        if declared is not UNDECLARED:
            names = (*names, keys.queue(row.queue))
        return names, (member, keys.bound_field(exchange, member), exchange, kept_ms)

    def remove(self, exchange: str, row: Row) -> bool:
        commands = self._at(exchange if row.to_exchange else row.queue).commands
        keys = commands.keys
        if row.to_exchange:
            asked = [pack(b"SREM", keys.onward(exchange), _onward_member(row))]
        else:
            member = self._member(exchange, row)
            asked = [
                *_removal(keys, exchange, member),
                pack(b"HDEL", keys.bound(row.queue), keys.bound_field(exchange, member)),
            ]
        was_there = bool(commands.call_all(asked, what="unbinding")[0])
        self.note_change()
        return was_there

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        left = self._leave_exchanges(destination) if is_exchange else self._leave(destination)
        self.note_change()
        return left

    def _leave(self, queue: str) -> Collection[str]:
        commands = self._at(queue).commands
        keys = commands.keys
        bound = commands.call(pack(b"HKEYS", keys.bound(queue)), what="unbinding")
        asked, exchanges = [pack(b"DEL", keys.bound(queue))], []
        for each in bound:
            exchange, member = each.split(b"\0", 1)
            exchanges.append(exchange.decode())
            asked += _removal(keys, exchanges[-1], member)
        commands.call_all(asked, what="unbinding")
        return exchanges

    def _leave_exchanges(self, destination: str) -> Collection[str]:
        home = self._at(destination).commands
        key = home.keys.sources(destination)
        members = home.call(pack(b"SMEMBERS", key), what="routing")
        sources = [each.decode() for each in members]
        for each in sources:
            _remove_onward(self._at(each).commands, each, destination)
        home.call(pack(b"DEL", key), what="unbinding")
        return sources

    def keep(self, queue: str, expires_ms: int) -> None:
        """Renew the bindings, known here, of an expiring queue that is in use.  Never switches.

        A program of kombu would remove the tables that are not renewed.
        """
        now = monotonic()
        if now < self._renewed.get(queue, 0.0):
            return
        link, commands = self._link, self._at(queue).commands
        self._renewed[queue] = now + _kept_ms(expires_ms) / 1000 / RENEWALS

        def renewed(reply: Any) -> None:
            if isinstance(reply, Exception):
                self._renewed.pop(queue, None)
                commands.scripts.forget()  # they may have been flushed: with the next use

        declared = link.directory.last(queue)
        for exchange, row in link.routing.rows_to(queue):
            names, args = self._binding(exchange, row, declared)
            commands.pipeline.post(commands.scripts.call(BIND, names, *args), renewed)

    def ended(self, queue: str) -> None:
        """Forget a queue that is gone.  Never switches."""
        self._renewed.pop(queue, None)

    def table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the rows of kombu's table: routing key, pattern, queue.  May switch.

        No program of kombu uses a cluster.
        """
        commands = self._at(exchange).commands
        if commands.keys.tag:
            return []
        return [commands.keys.row(each) for each in _table(commands, exchange)]

    def bound_field(self, exchange: str, row: Row) -> bytes:
        """Return the field of a binding among those of its queue.  Never switches."""
        return self._link.commands.keys.bound_field(exchange, self._member(exchange, row))

    def _member(self, exchange: str, row: Row) -> bytes:
        """Return the member of the table that a binding of a queue is."""
        known = self._link.state.exchanges.get(exchange)
        pattern = row.pattern
        if known is not None and known.type == "headers":
            pattern = dumps(dict(sorted((row.arguments or {}).items())))
        return self._link.commands.keys.member(row.routing_key, pattern, row.queue)

    def _row(self, member: bytes) -> Row:
        """Return the binding that a member of the table is."""
        key, pattern, queue = self._link.commands.keys.row(member)
        # Patterns of kombu's begin with "^".
        return (
            Row(key, "", queue, _decoded(pattern))
            if pattern[:1] == "{"
            else Row(key, pattern, queue)
        )


def _table(commands: Commands, exchange: str, what: str = "routing") -> Collection[bytes]:
    """Return the members of kombu's table of an exchange in one partition.  May switch."""
    found: Collection[bytes] = commands.call(
        pack(b"SMEMBERS", commands.keys.bindings(exchange)), what=what
    )
    return found


def _removal(keys: Keys, exchange: str, member: bytes) -> list[bytes]:
    """Return the commands that remove a binding of a queue from kombu's tables."""
    tables = (keys.bindings(exchange), keys.permanent_bindings(exchange))
    return [pack(b"SREM", table, member) for table in tables]


def _remove_onward(commands: Commands, exchange: str, destination: str) -> None:
    """Remove all bindings of another exchange to its source.  May switch."""
    key = commands.keys.onward(exchange)
    members = commands.call(pack(b"SMEMBERS", key), what="routing")
    rows = {each: _onward_row(each) for each in members}
    gone = [each for each, row in rows.items() if row and row.queue == destination]
    if gone:
        commands.call(pack(b"SREM", key, *gone), what="unbinding")


def _kept_ms(expires_ms: int) -> int:
    """Return the lifetime of a table in which only queues of this expiry are bound."""
    return max(expires_ms * EXPIRY_FACTOR, LEAST_EXPIRY_MS)


def _onward_member(row: Row) -> str:
    """Return a binding between exchanges as a member of its source's set."""
    return dumps([row.queue, row.routing_key, dict(sorted((row.arguments or {}).items()))])


def _onward_row(member: bytes) -> Row | None:
    """Return the binding of such a member; None: it cannot be read."""
    try:
        destination, routing_key, arguments = loads(member)
        return Row(str(routing_key), "", str(destination), dict(arguments), True)
    except (ValueError, TypeError, RecursionError):
        return None


def _decoded(text: Any) -> Mapping[str, Any]:
    """Return a table as it is kept; one that cannot be read fits no message, and says nothing."""
    try:
        table = loads(text)
    except (ValueError, TypeError, RecursionError):
        table = None
    return table if isinstance(table, dict) else {"x-match": "any"}
