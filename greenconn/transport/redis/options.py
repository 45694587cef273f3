"""The transport options of Redis: kombu's first, then greenconn's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.records import Record

__all__ = ["RedisOptions", "is_client_name"]

#: Values of ``queue_order_strategy``.
QUEUE_ORDERS: Final = ("round_robin", "sorted", "priority")


def is_client_name(text: str) -> bool:
    """Return whether Redis takes *text* as the name of a client; '' is no name."""
    return all("!" <= each <= "~" for each in text)


class RedisOptions(Record):
    """The options of a connection to Redis."""

    # -- keys, which all programs on one server must agree on

    global_keyprefix: str = ""
    """What every key and every fan-out channel begins with."""

    sep: str = "\x06\x16"
    """Between a queue's name and a priority, and between the parts of a binding (kombu's)."""

    priority_steps: Sequence[int] = (0, 3, 6, 9)
    """The priorities that have a list of their own; the lowest is served first (kombu's)."""

    unacked_key: str = "unacked"
    """The hash of the messages that consumers hold (kombu's)."""

    unacked_index_key: str = "unacked_index"
    """The sorted set of the same, by the time of their last sign of life (kombu's)."""

    unacked_mutex_key: str = "unacked_mutex"
    """Key of the lock for requeueing messages of dead consumers (kombu's)."""

    unacked_mutex_expire: float = 300.0
    """Seconds; accepted for kombu's sake: our lock lasts as long as one look."""

    fanout_prefix: bool | str = True
    """Begins the names of fan-out channels: True is ``/{db}.``, False nothing (kombu's)."""

    fanout_patterns: bool = True
    """Whether the channel of a fan-out message names its routing key, too (kombu's)."""

    # -- consuming

    visibility_timeout: float = 3600.0
    """Seconds after which a message that another kind of client holds is requeued (kombu's)."""

    lease: float = 30.0
    """Seconds without a sign of life after which what a consumer of ours holds is requeued.
    A living one renews it every third of it, however long its handlers run."""

    ack_emulation: bool = True
    """False: messages are gone when they are delivered, whatever becomes of them (kombu's)."""

    unacked_restore_limit: int | None = None
    """Messages requeued in one look; None: all that are due (kombu's)."""

    unacked_restore_interval: float = 10.0
    """Seconds; accepted for kombu's sake: the sweeper looks every fifth of a *lease*."""

    unacked_restore_throttle: int = 10
    """Accepted for kombu's sake; see *unacked_restore_interval*."""

    queue_order_strategy: str = "round_robin"
    """Which queue is served first by a channel that has not room for all: ``round_robin``,
    ``sorted`` (by name) or ``priority`` (in the order of the consumers) (kombu's)."""

    polling_interval: float | None = None
    """Seconds between two looks at idle queues where the server cannot push (Redis before 6, RESP2);
    None begins at 10 ms and goes up to 1 s."""

    delivery_limit: int | None = None
    """Deliveries of one message after which it is a dead letter; None: no limit.  A queue's
    ``x-delivery-limit`` wins."""

    dead_letter_queue: str | None = None
    """Queue for dead letters of queues that have no ``x-dead-letter-exchange``; None drops them."""

    # -- publishing

    body_encoding: str | None = "base64"
    """How bodies stand in the JSON; None writes text as it is (kombu's)."""

    deadletter_queue: str | None = None
    """Queue for messages that no binding matches; None drops them (kombu's)."""

    publish_window: int = 0
    """Publishes of one channel that may be unanswered; their errors are raised by a later call of it
    or by ``channel.flush()``, and logged when it ends.  0: each publish waits for its answer."""

    confirm_publish: bool = False
    """Accepted as for AMQP: every publish waits for its answer anyway, unless *publish_window*."""

    confirm_timeout: float | None = None
    """Seconds that a publish waits for its answer, where the call gives no time; None: as long as the
    server answers within *reply_timeout*."""

    fanout_lists: bool = False
    """True: a fan-out exchange puts messages into the lists of its queues, where they wait for
    consumers, instead of publishing them to subscribers.  All programs must agree."""

    max_message_size: int = 512 * 1024 * 1024
    """Bytes of a body; Redis' own limit of a string."""

    # -- the connection

    socket_timeout: float | None = None
    """Seconds for the answer to a command; None: *reply_timeout* (redis-py's)."""

    reply_timeout: float | None = 30.0
    """Seconds for the answer to a command, where *socket_timeout* says nothing; None waits."""

    socket_connect_timeout: float | None = None
    """Seconds for TCP, TLS and login; None: the connection's ``connect_timeout`` (redis-py's)."""

    socket_keepalive: bool | None = None
    """Accepted for kombu's sake: TCP keep-alive is always on."""

    socket_keepalive_options: Mapping[Any, Any] | None = None
    """TCP options by name or number, as ``{'TCP_KEEPIDLE': 60}``."""

    health_check_interval: float = 25.0
    """Seconds of silence after which a PING asks whether the server lives; 0: never (kombu's)."""

    max_connections: int | None = 10
    """Sockets of ``channel.client`` at most; who needs one more waits (kombu's)."""

    retry_on_timeout: bool | None = None
    """Accepted for kombu's sake: a command is repeated only where that cannot double a message."""

    reauth_check_interval: float = 10.0
    """Seconds between two questions to a credential provider (or a password that is a function) for
    new credentials, which are sent to the server; 0: only at each connect (kombu's)."""

    client_name: str | None = None
    """Name in the server's list of clients; None: program, host and process, as ``app.py@host:1234``;
    '': none."""

    credential_provider: Any = None
    """Path of a class of ``redis.CredentialProvider``, for URLs; the argument of ``Connection`` takes
    an instance, too (kombu's)."""

    # -- Sentinel

    master_name: str | None = None
    """Name of the group whose master is meant (kombu's)."""

    min_other_sentinels: int = 0
    """Other sentinels that one must know of to be believed (kombu's)."""

    sentinel_kwargs: Mapping[str, Any] | None = None
    """Login and TLS at the sentinels: ``username``, ``password``, ``ssl`` and redis-py's
    ``ssl_...`` names; None: no login there (redis-py's)."""

    sentinel_fanout_compat: bool = False
    """Whether fan-out also uses the channel names of kombu before 5.4 (kombu's)."""

    def __post_init__(self) -> None:
        check_type(self, str, "global_keyprefix", "sep", "queue_order_strategy")
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
        check_count(self, "publish_window", "min_other_sentinels", optional=False)
        check_count(self, "max_message_size", least=1, optional=False)
        check_count(self, "unacked_restore_throttle", optional=False)
        if not self.lease:
            raise invalid(self, "lease", "a number of seconds above 0")
        if self.body_encoding not in (None, "base64"):
            raise invalid(self, "body_encoding", "'base64' or None")
        if not is_client_name(self.client_name or ""):
            raise invalid(self, "client_name", "visible ASCII characters without spaces")
        if self.queue_order_strategy not in QUEUE_ORDERS:
            raise invalid(self, "queue_order_strategy", f"one of {', '.join(QUEUE_ORDERS)}")
        if not isinstance(self.fanout_prefix, (bool, str)):
            raise invalid(self, "fanout_prefix", "True, False or text")
        self._check_steps()

    def _check_steps(self) -> None:
        steps = self.priority_steps
        is_list = isinstance(steps, Sequence) and not isinstance(steps, str)
        if not is_list or not steps or list(steps) != sorted({int(each) for each in steps}):
            raise invalid(self, "priority_steps", "a list of integers, each above the last")
