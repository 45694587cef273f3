"""The names of keys and channels: kombu's layout, and the keys of greenconn.

=========================================  ======================================================
``queue``, ``queue\\x06\\x163`` ...          lists of messages, one for each priority step (kombu)
``_kombu.binding.<exchange>``              set of bindings (kombu)
``_kombu.binding_permanent.<exchange>``    those of queues that do not expire (kombu)
``unacked``, ``unacked_index``             what consumers hold (kombu)
``/<db>.<exchange>``                       channel of a fan-out exchange (kombu); with a hash tag before
                                           it, the shard channel of one in a cluster
``greenconn.owners``                       sorted set: the time of the leases, as member ``clock``, and
                                           consumers of ours, by the end of their lease
``greenconn.exclusive``                    hash: exclusive queues, with their owners
``greenconn.temporary``                    set: queues that end by themselves (auto-delete, expires)
``greenconn.ended``                        sorted set: queues that have ended, by the time of the leases
``greenconn.timed``                        set: queues whose messages have a time to live
``greenconn.delayed``                      sorted set: delayed messages, by when they are due (server's
                                           clock, ms)
``greenconn.queue.<queue>``                how a queue was declared (JSON)
``greenconn.consumers.<queue>``            hash of the owners that consume from it
``greenconn.bound.<queue>``                hash of its bindings: 1 those that we made, 0 those that
                                           were there before (kombu's)
``greenconn.onward.<exchange>``            set of the bindings of exchanges to this one (JSON)
``greenconn.sources.<exchange>``           set of the exchanges that this one was bound to
``greenconn.exchange.<exchange>``          how an exchange was declared (JSON)
=========================================  ======================================================

``global_keyprefix`` stands before all of them.  In a cluster a hash tag follows it, but for channels,
and ``greenconn.partitions.<exchange>`` is the set of the tags under which an exchange has bindings.
"""

from __future__ import annotations

from bisect import bisect
from functools import lru_cache
from typing import Any, Final

from greenconn.transport.redis.options import RedisOptions
from greenconn.transport.virtual.publishing import level_of

#: The highest priority that has a list (kombu's).
HIGHEST: Final = 9
#: Why a queue may not have a name.
RESERVED: Final = "greenconn or kombu uses a key of this name: choose another name for the queue"
#: What our keys and kombu's are, or begin with, beside those that options name.
_OURS: Final = (
    "greenconn.owners",
    "greenconn.exclusive",
    "greenconn.temporary",
    "greenconn.ended",
    "greenconn.timed",
    "greenconn.delayed",
    "_kombu.binding_deadlines",
)
_PREFIXES: Final = (
    "greenconn.queue.",
    "greenconn.consumers.",
    "greenconn.bound.",
    "greenconn.exchange.",
    "greenconn.onward.",
    "greenconn.sources.",
    "greenconn.partitions.",
    "greenconn.canary.",
    "_kombu.binding.",
    "_kombu.binding_permanent.",
)


class Keys:
    """The names for one database and one set of options.

    Arguments:
        tag: the hash tag of all keys, in a cluster; empty for none.

    Attributes:
        is_sharded: fan-out messages are published to shard channels.
        prefix: begins all keys.
        sep: what stands between the parts of a binding.
    """

    def __init__(self, options: RedisOptions, database: int = 0, tag: str = "") -> None:
        self.tag = tag
        self.is_sharded = bool(tag) and options.fanout_sharding == "on"
        prefix = options.global_keyprefix + (f"{{{tag}}}" if tag else "")
        self.prefix = prefix
        self.sep = options.sep
        self.steps: list[int] = sorted(int(each) for each in options.priority_steps)
        self.unacked = (prefix + options.unacked_key).encode()
        self.unacked_index = (prefix + options.unacked_index_key).encode()
        self.owners = f"{prefix}greenconn.owners".encode()
        self.exclusive = f"{prefix}greenconn.exclusive".encode()
        self.temporary = f"{prefix}greenconn.temporary".encode()
        self.ended = f"{prefix}greenconn.ended".encode()
        self.timed = f"{prefix}greenconn.timed".encode()
        self.delayed = f"{prefix}greenconn.delayed".encode()
        fanout = options.fanout_prefix
        self.fanout_template = fanout if isinstance(fanout, str) else "/{db}." if fanout else ""
        self.fanout_prefix = self.fanout_template.replace("{db}", str(database))
        self._reserved = frozenset(
            (options.unacked_key, options.unacked_index_key, options.unacked_mutex_key, *_OURS)
        )
        for name in (options.dead_letter_queue, options.deadletter_queue):
            if name is not None and self.is_reserved(name):
                raise ValueError(f"queue {name!r}: {RESERVED}")
        #: Channels have no slot.
        self._topic_prefix = options.global_keyprefix
        self._patterns = options.fanout_patterns
        #: The lists of a queue, the one that is served first in front.
        self.lists = lru_cache(maxsize=4096)(self._lists)

    def _lists(self, queue: str) -> tuple[bytes, ...]:
        return tuple(self._list(queue, step) for step in self.steps)

    def _list(self, queue: str, step: int) -> bytes:
        # The first step's list has the plain name only if it is 0.
        return f"{self.prefix}{queue}{self.sep}{step}".encode() if step else self.plain(queue)

    def is_reserved(self, name: str) -> bool:
        """Return whether a key that has this name is no queue."""
        return name in self._reserved or name.startswith(_PREFIXES)

    def plain(self, queue: str) -> bytes:
        """Return the list of priority 0."""
        return f"{self.prefix}{queue}".encode()

    def list_for(self, queue: str, priority: Any) -> bytes:
        """Return the list that a message of *priority* goes to, whatever its sender gave for one."""
        steps = self.steps
        return self._list(queue, steps[bisect(steps, level_of(priority, HIGHEST)) - 1])

    def bindings(self, exchange: str) -> bytes:
        """Return the set of an exchange's bindings."""
        return f"{self.prefix}_kombu.binding.{exchange}".encode()

    def permanent_bindings(self, exchange: str) -> bytes:
        """Return the set of those bindings that no expiry removes."""
        return f"{self.prefix}_kombu.binding_permanent.{exchange}".encode()

    @property
    def binding_deadlines(self) -> bytes:
        """The sorted set of exchanges by the time when their bindings may go."""
        return f"{self.prefix}_kombu.binding_deadlines".encode()

    def member(self, routing_key: str, pattern: str | None, queue: str) -> bytes:
        """Return a binding as a member of the set."""
        return self.sep.join((routing_key or "", pattern or "", queue or "")).encode()

    def row(self, member: bytes) -> tuple[str, str, str]:
        """Routing key, pattern and queue of such a member."""
        parts = member.decode("utf-8", "replace").split(self.sep)
        if len(parts) < 3:
            return "", "", parts[-1]
        return parts[0], parts[1], self.sep.join(parts[2:])

    def queue(self, name: str) -> bytes:
        """Return the key of a queue's declaration."""
        return f"{self.prefix}greenconn.queue.{name}".encode()

    def declared_name(self, key: bytes) -> str:
        """Return the queue whose declaration has this key."""
        return key[len(self.queue("")) :].decode("utf-8", "replace")

    def list_name(self, key: bytes) -> str:
        """Return the queue that has a list with this key."""
        name = key[len(self.prefix.encode()) :].decode("utf-8", "replace")
        plain, _, step = name.rpartition(self.sep)
        return plain if step.isdigit() and int(step) in self.steps and int(step) else name

    def consumers(self, name: str) -> bytes:
        """Return the hash of the owners that consume from a queue."""
        return f"{self.prefix}greenconn.consumers.{name}".encode()

    def bound(self, name: str) -> bytes:
        """Return the hash of the bindings of a queue."""
        return f"{self.prefix}greenconn.bound.{name}".encode()

    def bound_field(self, exchange: str, member: bytes) -> bytes:
        """Return the field of one binding in that hash."""
        return b"%b\0%b" % (exchange.encode(), member)

    def exchange(self, name: str) -> bytes:
        """Return the key of an exchange's declaration."""
        return f"{self.prefix}greenconn.exchange.{name}".encode()

    def onward(self, exchange: str) -> bytes:
        """Return the set of the bindings of other exchanges to an exchange, which is their source."""
        return f"{self.prefix}greenconn.onward.{exchange}".encode()

    def sources(self, exchange: str) -> bytes:
        """Return the set of the exchanges that an exchange was bound to, as their destination."""
        return f"{self.prefix}greenconn.sources.{exchange}".encode()

    def exchange_partitions(self, exchange: str) -> bytes:
        """Return the set of the tags under which an exchange of a cluster has bindings."""
        return f"{self.prefix}greenconn.partitions.{exchange}".encode()

    def shard_channel(self, exchange: str) -> bytes:
        """Return the shard channel of a fan-out exchange, which is in the slot of the hash tag."""
        return f"{self.prefix}{self.fanout_prefix}{exchange}".encode()

    def topic(self, exchange: str, routing_key: str = "", *, legacy: bool = False) -> str:
        """Return the channel of a fan-out exchange.

        Arguments:
            legacy: as kombu before 5.4 named it with Sentinel.
        """
        prefix = self._topic_prefix + (self.fanout_template if legacy else self.fanout_prefix)
        if routing_key and self._patterns:
            return f"{prefix}{exchange}/{routing_key}"
        return f"{prefix}{exchange}"
