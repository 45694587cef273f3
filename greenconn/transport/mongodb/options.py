"""The transport options of MongoDB: kombu's first, then greenconn's."""

from __future__ import annotations

from typing import Any

from greenconn.broker.options import StoreOptions
from greenconn.checks import check_count, check_seconds, check_type, invalid

__all__ = ["MongoOptions"]

_COLLECTIONS = (
    "messages_collection",
    "routing_collection",
    "broadcast_collection",
    "queues_collection",
    "exchanges_collection",
)


class MongoOptions(StoreOptions):
    """The options of a connection to MongoDB."""

    # -- collections, which all programs on one database must agree on

    default_hostname: str = "127.0.0.1"
    """The server, where the URL names none (kombu's)."""

    default_port: int = 27017
    """Its port, likewise (kombu's)."""

    default_database: str = "kombu_default"
    """The database, where the URL names none (kombu's)."""

    messages_collection: str = "messages"
    """Name of the collection of messages (kombu's)."""

    routing_collection: str = "messages.routing"
    """Where bindings are (kombu's)."""

    broadcast_collection: str = "messages.broadcast"
    """Where the messages of fan-out exchanges are, for a while (kombu's)."""

    queues_collection: str = "messages.queues"
    """How queues were declared (kombu's, which writes it with *ttl* only)."""

    exchanges_collection: str = "messages.exchanges"
    """How exchanges were declared, and the bindings that kombu does not know: of headers exchanges,
    and between exchanges."""

    capped_queue_size: int = 100_000
    """Bytes that the broadcast collection holds, if it is made by us (kombu's)."""

    calc_queue_size: bool = True
    """False: queues are not counted, each seems to be empty (kombu's)."""

    ttl: bool = False
    """Whether the server itself removes messages that have expired, and queues (kombu's).  Without
    it consumers of ours do that, and put dead letters where they belong."""

    fanout_lists: bool = False
    """True: a fan-out exchange puts messages into its queues, where they wait for consumers, instead
    of broadcasting them to subscribers.  All programs must agree."""

    body_encoding: str | None = "base64"
    """How bodies stand in the JSON; None writes text as it is (kombu's)."""

    # -- the connection

    connect_timeout: float | None = None
    """Seconds for one server; None: the connection's ``connect_timeout`` (kombu's)."""

    ssl: Any = None
    """Whether to use TLS; None: as the connection's ``ssl`` (kombu's)."""

    threads: int = 4
    """Calls of pymongo that may be under way at once in a process that is not monkey-patched."""

    polling_interval: float | None = None
    """Seconds between two looks at queues that were empty, where the server does not tell of changes
    (no replica set); None begins at 10 ms and goes up to 1 s."""

    routing_lifetime: float = 1.0
    """Seconds for which a publisher may rely on the bindings as it has read them, which other
    processes may change; 0 reads them for each message, as kombu does."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_type(self, str, "default_hostname", "default_database", *_COLLECTIONS)
        check_type(self, bool, "calc_queue_size", "ttl", "fanout_lists")
        check_type(self, str, "body_encoding", optional=True)
        check_count(self, "default_port", least=1, optional=False)
        check_count(self, "capped_queue_size", least=4096, optional=False)
        check_count(self, "threads", least=1, optional=False)
        check_seconds(self, "connect_timeout", "polling_interval")
        check_seconds(self, "routing_lifetime", optional=False)
        if self.body_encoding not in (None, "base64"):
            raise invalid(self, "body_encoding", "'base64' or None")
