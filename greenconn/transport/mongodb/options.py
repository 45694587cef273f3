"""The transport options of MongoDB: kombu's first, then greenconn's."""

from __future__ import annotations

from typing import Any

from greenconn.broker.options import StoreOptions
from greenconn.checks import check_count, check_seconds, check_type, invalid

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
    """Host of the server, if the URL names none (kombu's)."""

    default_port: int = 27017
    """Port of that server (kombu's)."""

    default_database: str = "kombu_default"
    """Name of the database, if the URL names none (kombu's)."""

    messages_collection: str = "messages"
    """Name of the collection of messages (kombu's)."""

    routing_collection: str = "messages.routing"
    """Name of the collection of bindings (kombu's)."""

    broadcast_collection: str = "messages.broadcast"
    """Name of the capped collection of fan-out messages (kombu's)."""

    queues_collection: str = "messages.queues"
    """Name of the collection of queue declarations (kombu's, which writes it only with *ttl*)."""

    exchanges_collection: str = "messages.exchanges"
    """Name of the collection of exchange declarations, and of bindings that kombu lacks: of headers
    exchanges, and between exchanges."""

    capped_queue_size: int = 100_000
    """Maximum bytes of the broadcast collection, if it is created here (kombu's)."""

    calc_queue_size: bool = True
    """Whether queues are counted; with False each seems to be empty (kombu's)."""

    ttl: bool = False
    """Whether the server removes expired messages and queues (kombu's).  Otherwise our consumers
    do, and publish dead letters."""

    fanout_lists: bool = False
    """Whether a fan-out exchange puts messages into its queues, where they wait for consumers,
    instead of broadcasting them to subscribers.  All programs must have the same value."""

    body_encoding: str | None = "base64"
    """Encoding of bodies; None stores text as it is (kombu's)."""

    # -- the connection

    connect_timeout: float | None = None
    """Seconds to connect to one server; None is the connection's ``connect_timeout`` (kombu's)."""

    ssl: Any = None
    """Whether to use TLS; None is the connection's ``ssl`` (kombu's)."""

    threads: int = 4
    """Maximum number of concurrent calls of pymongo in a process that is not monkey-patched."""

    polling_interval: float | None = None
    """Seconds between polls of empty queues, if the server has no change streams (no replica set);
    None begins at 10 ms and grows to 1 s."""

    routing_lifetime: float = 1.0
    """Seconds for which a publisher caches bindings, which other processes may change; 0 reads them
    for each message, like kombu."""

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
