"""The transport options of Redis, and the names of keys.

Keys
----

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
``greenconn.active.<queue>``               the owner of its single active consumer
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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from greenconn.broker.envelope import level_of
from greenconn.checks import Record, check_count, check_seconds, check_type, invalid

#: Values of ``queue_order_strategy``.
QUEUE_ORDERS: Final = ("round_robin", "sorted", "priority")
#: Values of ``fanout_sharding``.
SHARDING: Final = ("off", "listen", "on")


def is_client_name(text: str) -> bool:
    """Return whether *text* is valid as the name of a client in Redis, or empty for no name."""
    return all("!" <= each <= "~" for each in text)


class RedisOptions(Record):
    """The options of a connection to Redis."""

    hidden = frozenset({"credential_provider", "sentinel_kwargs"})

    # -- keys, which all programs on one server must agree on

    global_keyprefix: str = ""
    """Prefix of all keys and fan-out channels."""

    sep: str = "\x06\x16"
    """Separator between the name of a queue and a priority, and between the parts of a binding
    (kombu's)."""

    priority_steps: Sequence[int] = (0, 3, 6, 9)
    """The priorities that have a list of their own; the lowest number is served first (kombu's)."""

    unacked_key: str = "unacked"
    """Key of the hash of unacked messages (kombu's)."""

    unacked_index_key: str = "unacked_index"
    """Key of the sorted set of unacked messages, by the time of their last renewal (kombu's)."""

    unacked_mutex_key: str = "unacked_mutex"
    """Key of the lock for requeueing messages of dead consumers (kombu's)."""

    unacked_mutex_expire: float = 300.0
    """Seconds; accepted for compatibility with kombu and ignored: our lock lasts for one sweep."""

    fanout_prefix: bool | str = True
    """Prefix of the names of fan-out channels; True is ``/{db}.``, False is none (kombu's)."""

    fanout_patterns: bool = True
    """Whether the channel of a fan-out message includes its routing key (kombu's)."""

    # -- consuming

    visibility_timeout: float = 3600.0
    """Seconds after which an unacked message of another kind of client is requeued (kombu's)."""

    lease: float = 30.0
    """Seconds after which the messages of a consumer that shows no sign of life are requeued.  A
    living consumer renews the lease every third of that time, however long its handlers run."""

    ack_emulation: bool = True
    """Whether messages are kept until they are acked; with False they are deleted when they are
    delivered (kombu's)."""

    unacked_restore_limit: int | None = None
    """Maximum number of messages to requeue in one sweep; None is no limit (kombu's)."""

    unacked_restore_interval: float = 10.0
    """Seconds; accepted for compatibility with kombu and ignored: a sweep runs every fifth of a
    *lease*."""

    unacked_restore_throttle: int = 10
    """Accepted for compatibility with kombu and ignored; see *unacked_restore_interval*."""

    queue_order_strategy: str = "round_robin"
    """The order in which a channel with little room serves its queues: ``round_robin``, ``sorted``
    (by name) or ``priority`` (in the order of the consumers) (kombu's)."""

    polling_interval: float | None = None
    """Seconds between polls of empty queues, if the server cannot push (Redis before 6, or RESP2);
    None begins at 10 ms and grows to 1 s."""

    delivery_limit: int | None = None
    """Maximum number of deliveries of a message, after which it is dead-lettered; None is no limit.
    A queue's ``x-delivery-limit`` takes precedence."""

    dead_letter_queue: str | None = None
    """Queue for dead letters of queues without ``x-dead-letter-exchange``; None drops them."""

    # -- publishing

    body_encoding: str | None = "base64"
    """Encoding of bodies in the JSON envelope; None stores text as it is (kombu's)."""

    deadletter_queue: str | None = None
    """Queue for messages that no binding matches; None drops them (kombu's)."""

    publish_window: int = 0
    """Maximum number of unconfirmed publishes of a channel.  Their errors are raised by a later
    call of the channel, or by ``channel.flush()``, and logged when the channel ends.  With 0 each
    publish waits for its confirm."""

    replicas: int = 0
    """Number of replicas that must have a message before its publish is confirmed; with 0 the
    master's answer is enough, and a failover can lose what it had just confirmed."""

    confirm_publish: bool = False
    """Let ``Producer.publish`` raise ``Unroutable`` if a mandatory message reaches no queue.  It waits
    for its confirm anyway, unless there is a *publish_window*."""

    confirm_timeout: float | None = None
    """Seconds that a publish waits for its confirm, if the call gives no timeout; None is as long
    as the server replies within *reply_timeout*."""

    fanout_lists: bool = False
    """Whether a fan-out exchange puts messages into the lists of its queues, where they wait for
    consumers, instead of publishing them to subscribers.  All programs must have the same value."""

    max_message_size: int = 512 * 1024 * 1024
    """Maximum bytes of a message as it is stored, with its headers and the encoding of its body.  The
    limit of the server counts, too (proto-max-bulk-len, by default 512 MiB)."""

    # -- the connection

    socket_timeout: float | None = None
    """Seconds for the reply to a command; None is *reply_timeout* (redis-py's)."""

    reply_timeout: float | None = 30.0
    """Seconds for the reply to a command, if there is no *socket_timeout*; None is no limit."""

    socket_connect_timeout: float | None = None
    """Seconds for TCP, TLS and login; None is the connection's ``connect_timeout`` (redis-py's)."""

    socket_keepalive: bool | None = None
    """Accepted for compatibility with kombu and ignored: TCP keepalive is always on."""

    socket_keepalive_options: Mapping[Any, Any] | None = None
    """TCP options by name or number -> values, as ``{'TCP_KEEPIDLE': 60}``."""

    health_check_interval: float = 25.0
    """Seconds without data from the server after which a PING is sent; 0 sends none (kombu's)."""

    max_connections: int | None = 10
    """Maximum number of sockets of ``channel.client``; a command waits for a free one (kombu's)."""

    retry_on_timeout: bool | None = None
    """Accepted for compatibility with kombu and ignored: a command is repeated only if that cannot
    duplicate a message."""

    reauth_check_interval: float = 10.0
    """Seconds between calls of a credential provider, or of a password function, for new
    credentials, which are sent to the server; 0 calls it only to connect (kombu's)."""

    client_name: str | None = None
    """Name in the server's list of clients; None is made of program, host and process, as
    ``app.py@host:1234``; '' sets none."""

    credential_provider: Any = None
    """Path of a class of ``redis.CredentialProvider``, for URLs.  The argument of ``Connection``
    can also be an instance (kombu's)."""

    # -- Sentinel

    master_name: str | None = None
    """Name of the master at the sentinels (kombu's)."""

    min_other_sentinels: int = 0
    """Minimum number of other sentinels that a sentinel must know to be trusted (kombu's)."""

    sentinel_kwargs: Mapping[str, Any] | None = None
    """Login and TLS of the sentinels: ``username``, ``password``, ``ssl`` and redis-py's
    ``ssl_...`` names; None is no login (redis-py's)."""

    sentinel_fanout_compat: bool = False
    """Whether fan-out uses the channel names of kombu before 5.4, too (kombu's)."""

    # -- Redis Cluster

    fanout_sharding: str = "off"
    """Whether fan-out in a cluster uses sharded pub/sub (Redis 7.0): ``on``; with ``listen`` messages
    are published to all nodes, and listened for both ways, so that programs with ``off`` and, later,
    with ``on`` can be among them."""

    def __post_init__(self) -> None:
        check_type(self, str, "global_keyprefix", "sep", "queue_order_strategy", "fanout_sharding")
        check_type(self, str, "unacked_key", "unacked_index_key", "unacked_mutex_key")
        check_type(self, str, "body_encoding", "deadletter_queue", optional=True)
        check_type(self, str, "dead_letter_queue", "client_name", "master_name", optional=True)
        check_type(self, bool, "fanout_patterns", "ack_emulation", "confirm_publish")
        check_type(self, bool, "fanout_lists", "sentinel_fanout_compat")
        check_type(self, bool, "socket_keepalive", "retry_on_timeout", optional=True)
        check_type(self, Mapping, "socket_keepalive_options", "sentinel_kwargs", optional=True)
        check_seconds(self, "visibility_timeout", "lease", "unacked_mutex_expire", optional=False)
        check_seconds(self, "unacked_restore_interval", "health_check_interval", optional=False)
        check_seconds(self, "reauth_check_interval", optional=False)
        check_seconds(self, "socket_timeout", "reply_timeout", "socket_connect_timeout")
        check_seconds(self, "confirm_timeout", "polling_interval")
        check_count(self, "unacked_restore_limit", "max_connections", "delivery_limit", least=1)
        check_count(self, "publish_window", "replicas", "min_other_sentinels", optional=False)
        check_count(self, "max_message_size", least=1, optional=False)
        check_count(self, "unacked_restore_throttle", optional=False)
        if not self.lease:
            raise invalid(self, "lease", "a number of seconds above 0")
        if self.replicas and self.publish_window:
            raise invalid(self, "publish_window", "0 with replicas, which each publish waits for")
        if self.body_encoding not in (None, "base64"):
            raise invalid(self, "body_encoding", "'base64' or None")
        if not is_client_name(self.client_name or ""):
            raise invalid(self, "client_name", "visible ASCII characters without spaces")
        if self.queue_order_strategy not in QUEUE_ORDERS:
            raise invalid(self, "queue_order_strategy", f"one of {', '.join(QUEUE_ORDERS)}")
        if self.fanout_sharding not in SHARDING:
            raise invalid(self, "fanout_sharding", f"one of {', '.join(SHARDING)}")
        if not isinstance(self.fanout_prefix, (bool, str)):
            raise invalid(self, "fanout_prefix", "True, False or text")
        self._check_steps()

    def _check_steps(self) -> None:
        steps = self.priority_steps
        is_list = isinstance(steps, Sequence) and not isinstance(steps, str)
        if not is_list or not steps or list(steps) != sorted({int(each) for each in steps}):
            raise invalid(self, "priority_steps", "a list of integers, each above the last")


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
    "greenconn.active.",
    "greenconn.consumers.",
    "greenconn.bound.",
    "greenconn.exchange.",
    "greenconn.onward.",
    "greenconn.sources.",
    "greenconn.partitions.",
    "greenconn.canary.",
    "greenconn.limits.",
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

    def limits(self, key: str) -> bytes:
        """Return the facts under a key of limits."""
        return f"{self.prefix}greenconn.limits.{key}".encode()

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

    def active(self, name: str) -> bytes:
        """Return the key of the owner that has the single active consumer of a queue."""
        return f"{self.prefix}greenconn.active.{name}".encode()

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
