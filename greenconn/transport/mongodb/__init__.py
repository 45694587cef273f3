"""The MongoDB transport: kombu's collections, with claims that end when a process dies."""

from __future__ import annotations

from greenconn.importing import needed

needed("pymongo", "pymongo", "mongodb")

# ruff: noqa: E402 - these import pymongo
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pymongo
from pymongo import errors

from greenconn.broker.channel import StoreChannel
from greenconn.broker.link import StoreLink
from greenconn.broker.transport import StoreOptions, StoreTransport
from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    InconsistencyError,
    RecoverableConnectionError,
)
from greenconn.transport.mongodb.client import address_of
from greenconn.transport.mongodb.store import MongoStore
from greenconn.url import mask_secrets

__all__ = ["Channel", "MongoOptions", "Transport"]

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


class Channel(StoreChannel[StoreLink]):
    """A channel to a database."""

    supported_arguments = replace(
        StoreChannel.supported_arguments,
        queue=StoreChannel.supported_arguments.queue | {"x-expires"},
    )


class Transport(StoreTransport):
    """``mongodb://``: kombu's collections.

    ``transport_options`` are those of :class:`~greenconn.transport.mongodb.MongoOptions`;
    what stands behind the question mark of the URL is pymongo's.
    """

    Channel = Channel
    Options: ClassVar[type[StoreOptions]] = MongoOptions
    driver_type = "mongodb"
    driver_name = "pymongo"
    default_port = 27017
    inner_schemes = frozenset({"srv"})
    can_parse_url = True
    connection_errors = (
        ConnectionError,
        InconsistencyError,
        OSError,
        errors.ConnectionFailure,
    )
    channel_errors = (ChannelError, errors.OperationFailure)
    recoverable_connection_errors = (
        RecoverableConnectionError,
        OSError,
        errors.ConnectionFailure,
    )

    def driver_version(self) -> str:
        return str(pymongo.version)

    def make_store(self, wake: Callable[[str | None], None]) -> MongoStore:
        return MongoStore(self.client, wake, self.options, self.kept(set))

    def place(self) -> str:
        """Servers and database."""
        address = address_of(self.client, self.options)
        return f"{mask_secrets(address.host)} {address.database}"

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Mask the password of a URL, which may name many servers."""
        if not uri:
            return "mongodb://"
        if uri.startswith("srv://"):
            uri = f"mongodb+{uri}"
        if include_password:
            return uri
        return mask_secrets(uri, mask)
